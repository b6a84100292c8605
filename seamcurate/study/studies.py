"""All studies by name, as the command line runs them.

saturation monotonicity filter-rate selection augmentation query-type sanity winrate     tables of runs
overlap likelihood responses                                                             stores
mismatch preference tax                                                                  tables of texts
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from seamcurate.errors import StudyError
from seamcurate.models import CausalLM, RewardModel, SentenceEncoder, SequenceClassifier
from seamcurate.storage import objects
from seamcurate.study.grid import sanity, saturation
from seamcurate.study.judging import winrate
from seamcurate.study.methods import augmentation, filter_rate, query_type, selection
from seamcurate.study.pairs import mismatch, preference
from seamcurate.study.proxy import monotonicity
from seamcurate.study.rer_model import RerModel
from seamcurate.study.results import Data, Finding
from seamcurate.study.scores import likelihood, overlap
from seamcurate.study.texts import responses, tax
from seamcurate.text import suggestion

STUDIES: dict[str, Callable[..., Finding]] = {
    "saturation": saturation,
    "mismatch": mismatch,
    "selection": selection,
    "filter-rate": filter_rate,
    "overlap": overlap,
    "likelihood": likelihood,
    "augmentation": augmentation,
    "sanity": sanity,
    "monotonicity": monotonicity,
    "responses": responses,
    "winrate": winrate,
    "preference": preference,
    "tax": tax,
    "query-type": query_type,
}


def run(
    name: str,
    sources: Sequence[Data],
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
) -> Finding:
    """Run one study and, with `out`, write its table, figure and finding there.

    Args:
        name: One of `STUDIES`.
        sources: Stores or tables; see the study for the columns it reads.
        out: A folder for NAME.parquet, NAME.png, NAME.svg and NAME.txt.
        rewards: For mismatch and preference: folders or Hub ids of reward models, smallest first.
        encoder: For mismatch and preference: an encoder, which adds RER to the reward models.
        policy: For likelihood: the policy that scores golden responses and samples.
        max_tokens: The reward models' window, where it is not their own.
        by: For overlap: the column that ranks rows. For mismatch and preference: the one that divides pairs.
        rate: For overlap: the share of rows that is low.
        baseline: For selection, augmentation, filter-rate, query-type and tax: what is compared with.
        rows: For mismatch and preference: judge so many pairs only.

    Raises:
        StudyError: There is no such study, it does not take an option, or see the study.
    """
    if name not in STUDIES:
        raise StudyError(f"there is no study {name!r}; there are {', '.join(STUDIES)}{suggestion(name, STUDIES)}")
    out = out and objects.folder(out, "study")
    if out is not None and out.exists() and not out.is_dir():
        raise StudyError(f"{out} is a file; name a folder for the table and the figures")
    study = STUDIES[name]
    takes = inspect.signature(study).parameters
    asked: dict[str, object] = {"by": by, "rate": rate, "baseline": baseline, "rows": rows}
    asked |= {"rewards": rewards or encoder or None, "policy": policy, "max_tokens": max_tokens}
    wanted = {key: value for key, value in asked.items() if value is not None}
    for key in wanted:
        if key not in takes and not (key == "max_tokens" and rewards):
            raise StudyError(f"{name} takes no {key}; leave it out")
    given: dict[str, object] = {
        key: value for key, value in wanted.items() if key in ("by", "rate", "baseline", "rows")
    }
    if "rewards" in wanted:
        given["rewards"] = _reward_models(rewards, encoder, max_tokens)
    if policy is not None:
        given["policy"] = CausalLM(path=policy).load()
    found = study(*sources, **given)
    if out is not None:
        with objects.writing(out):
            found.save(out)
    return found


def _reward_models(rewards: Sequence[str], encoder: str | None, max_tokens: int | None) -> dict[str, RewardModel]:
    short = [Path(place).name for place in rewards]
    names = [one if short.count(one) == 1 else place for one, place in zip(short, rewards, strict=True)]
    models: dict[str, RewardModel] = {
        name: SequenceClassifier(path=place, max_tokens=max_tokens).load()
        for name, place in zip(names, rewards, strict=True)
    }
    if encoder is not None:
        models["RER"] = RerModel(SentenceEncoder(path=encoder).load())
    return models
