"""The two papers' measurements: each a table, a figure and a finding in one line, with its interval."""

from seamcurate.study.alignment_tax import tax
from seamcurate.study.answers import responses
from seamcurate.study.best_of_n import best_of_n
from seamcurate.study.filter_rates import filter_rate
from seamcurate.study.grid import saturation
from seamcurate.study.likelihoods import likelihood
from seamcurate.study.methods import augmentation, query_type, selection
from seamcurate.study.overlaps import overlap
from seamcurate.study.pairs import mismatch, preference
from seamcurate.study.proxies import monotonicity
from seamcurate.study.rer_model import RerModel
from seamcurate.study.results import Study, StudyResult
from seamcurate.study.sources import StudySource
from seamcurate.study.studies import STUDIES, find, run
from seamcurate.study.transfer import sanity
from seamcurate.study.validity import validity
from seamcurate.study.verdicts import compare, read_judge
from seamcurate.study.winrates import winrate

__all__ = [
    "STUDIES",
    "RerModel",
    "Study",
    "StudyResult",
    "StudySource",
    "augmentation",
    "best_of_n",
    "compare",
    "filter_rate",
    "find",
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
    "validity",
    "winrate",
]
