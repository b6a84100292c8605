"""The table of studies, one row each, and what runs a study by its name.

One rule: a new study is a file of its own and a row here; the command line's help, the docs and the tests read this table.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

from seamcurate.errors import StudyError
from seamcurate.models import CausalLM, RewardModel, SentenceEncoder, SequenceClassifier
from seamcurate.storage import objects
from seamcurate.study.alignment_tax import TAX
from seamcurate.study.answers import RESPONSES
from seamcurate.study.best_of_n import BEST_OF_N
from seamcurate.study.filter_rates import FILTER_RATE
from seamcurate.study.grid import SATURATION
from seamcurate.study.likelihoods import LIKELIHOOD
from seamcurate.study.methods import AUGMENTATION, QUERY_TYPE, SELECTION
from seamcurate.study.overlaps import OVERLAP
from seamcurate.study.pairs import MISMATCH, PREFERENCE
from seamcurate.study.proxies import MONOTONICITY
from seamcurate.study.rer_model import RerModel
from seamcurate.study.results import Study, StudyResult
from seamcurate.study.sources import StudySource
from seamcurate.study.transfer import SANITY
from seamcurate.study.validity import VALIDITY
from seamcurate.study.winrates import WINRATE
from seamcurate.text import suggestion

STUDIES: list[Study] = [
    SATURATION,
    MISMATCH,
    SELECTION,
    FILTER_RATE,
    OVERLAP,
    LIKELIHOOD,
    AUGMENTATION,
    SANITY,
    MONOTONICITY,
    RESPONSES,
    WINRATE,
    PREFERENCE,
    TAX,
    QUERY_TYPE,
    VALIDITY,
    BEST_OF_N,
]
"""All studies, in the order in which help and docs list them."""


def find(name: str) -> Study:
    """Return the study of a name.

    Raises:
        StudyError: There is no such study.
    """
    studies = {study.name: study for study in STUDIES}
    if name not in studies:
        raise StudyError(f"there is no study {name!r}; there are {', '.join(studies)}{suggestion(name, studies)}")
    return studies[name]


def run(
    name: str,
    sources: Sequence[StudySource],
    out: Path | None = None,
    *,
    rewards: Sequence[str] = (),
    encoder: str | None = None,
    policy: str | None = None,
    max_tokens: int | None = None,
    by: str | None = None,
    rate: float | None = None,
    baseline: str | None = None,
    rows: int | None = None,
    columns: Sequence[str] = (),
) -> StudyResult:
    """Run one study and, with `out`, write its table, figure and finding there.

    Args:
        name: The name of one of `STUDIES`.
        sources: Stores or tables; see the study for the columns it reads.
        out: A folder for NAME.parquet, NAME.png, NAME.svg and NAME.txt.
        rewards: For mismatch and preference: folders or Hub ids of reward models, smallest first. For validity and
            best-of-n: the store's reward model.
        encoder: For mismatch and preference: an encoder, which adds RER to the reward models.
        policy: For likelihood: the policy that scores golden responses and samples.
        max_tokens: The reward models' window in tokens, where it is not their own.
        by: For overlap: the column that ranks rows. For mismatch and preference: the one that divides pairs. For validity: the
            one within whose values correlations are also taken.
        rate: For overlap: the share of rows that is low. For best-of-n: the share of rows that is left out.
        baseline: For selection, augmentation, filter-rate, query-type and tax: what is compared with.
        rows: For mismatch and preference: judge only this many pairs.
        columns: For validity and best-of-n: columns of the store to measure, where not all numeric ones.

    Raises:
        StudyError: There is no such study, it does not take an option, or see the study.
    """
    study = find(name)
    out = out and objects.folder(out, "study")
    if out is not None and out.exists() and not out.is_dir():
        raise StudyError(f"{out} is a file; name a folder for the table and the figures")
    options: dict[str, object] = {"by": by, "rate": rate, "baseline": baseline, "rows": rows}
    options = {key: value for key, value in options.items() if value is not None}
    if columns:
        options["columns"] = tuple(columns)
    _check_options(study, options, rewards, encoder, policy, max_tokens)
    if rewards or encoder:
        options["rewards"] = _reward_models(rewards, encoder, max_tokens)
    if policy is not None:
        options["policy"] = CausalLM(path=policy).load()
    result = study.run(*sources, **options)
    if out is not None:
        with objects.writing(out):
            result.save(out)
    return result


def _check_options(
    study: Study,
    options: dict[str, object],
    rewards: Sequence[str],
    encoder: str | None,
    policy: str | None,
    max_tokens: int | None,
) -> None:
    """Refuse an option that a study does not take; `max_tokens` belongs to `rewards`."""
    models = {"rewards": rewards or encoder, "policy": policy, "max_tokens": None if rewards else max_tokens}
    accepted = inspect.signature(study.run).parameters
    for key in (*options, *(key for key, value in models.items() if value)):
        if key not in accepted:
            raise StudyError(f"{study.name} takes no {key}; leave it out")


def _reward_models(rewards: Sequence[str], encoder: str | None, max_tokens: int | None) -> dict[str, RewardModel]:
    """Load reward models, each named after its folder, or by its whole path where two folders have one name."""
    folders = [Path(path).name for path in rewards]
    models: dict[str, RewardModel] = {
        folder if folders.count(folder) == 1 else path: SequenceClassifier(path=path, max_tokens=max_tokens).load()
        for folder, path in zip(folders, rewards, strict=True)
    }
    if encoder is not None:
        models["RER"] = RerModel(SentenceEncoder(path=encoder).load())
    return models
