"""The two papers' measurements: each a table, a figure and one line that says what was found, and how surely."""

from seamcurate.study.grid import sanity, saturation
from seamcurate.study.judging import winrate
from seamcurate.study.methods import augmentation, filter_rate, query_type, selection
from seamcurate.study.pairs import mismatch, preference
from seamcurate.study.proxy import monotonicity
from seamcurate.study.rer_model import RerModel
from seamcurate.study.results import Data, Finding
from seamcurate.study.scores import likelihood, overlap
from seamcurate.study.studies import STUDIES, run
from seamcurate.study.texts import responses, tax
from seamcurate.study.verdicts import compare, read_judge

__all__ = [
    "STUDIES",
    "Data",
    "Finding",
    "RerModel",
    "augmentation",
    "compare",
    "filter_rate",
    "likelihood",
    "mismatch",
    "monotonicity",
    "overlap",
    "preference",
    "query_type",
    "read_judge",
    "responses",
    "run",
    "sanity",
    "saturation",
    "selection",
    "tax",
    "winrate",
]
