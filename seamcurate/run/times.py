"""What a plan foretold of each step, kept in the store as `plan.json`, and what a run took.

One rule: the file is a note to the report of a run. One that is missing, damaged or of another configuration counts as none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from seamcurate import tables
from seamcurate.errors import SeamcurateError
from seamcurate.progress import note
from seamcurate.step import Step, digest
from seamcurate.storage import shard
from seamcurate.storage.objects import Place

FILE = "plan.json"
CORPUS = "corpus "
"""What stands before the name of a step that runs over the corpus."""


class Duration(NamedTuple):
    """What a step takes, in seconds."""

    once: float
    """However many the rows: models are loaded, a noise floor is measured, an index is built."""
    each: float
    """For each row."""

    def of(self, rows: int) -> float:
        """Return the seconds for so many rows."""
        return self.once + self.each * rows

    def plus(self, more: Duration) -> Duration:
        """Return what both take."""
        return Duration(self.once + more.once, self.each + more.each)


class StepTime(NamedTuple):
    """What a step of a run took."""

    step: str
    rows: int
    """Rows that this run computed."""
    seconds: float
    planned: float | None
    """Seconds that the store's last plan foretold for so many rows; None where it foretold none."""


def keep(path: Place, durations: Mapping[str, tuple[Step, Duration]]) -> None:
    """Write what a plan foretells of each step to a store; a store that cannot be written is told.

    Args:
        path: The store.
        durations: The steps and what they take, by the name under which a run tells it.
    """
    content = {
        name: {"config": _config(step), "once": duration.once, "each": duration.each}
        for name, (step, duration) in durations.items()
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        shard.replace(path / FILE, json.dumps(content, indent=1).encode() + b"\n")
    except (OSError, SeamcurateError) as error:
        note(f"warning: {path / FILE} is not written, so that a run will name no plan beside what it took: {error}")


def foretold(path: Place, steps: Mapping[str, Step]) -> dict[str, Duration]:
    """Return what the last plan of a store foretold of those steps that it had in the same configuration."""
    try:
        content = json.loads((path / FILE).read_bytes())
        return {
            name: Duration(float(content[name]["once"]), float(content[name]["each"]))
            for name, step in steps.items()
            if name in content and content[name]["config"] == _config(step)
        }
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def lines(times: Sequence[StepTime]) -> list[str]:
    """Return a table of what each step took, beside what was planned, and the sum of both; no line where no step ran."""
    if not times:
        return []
    planned = [time.planned for time in times if time.planned is not None]
    rows = [*times, StepTime("all", 0, sum(time.seconds for time in times), sum(planned) if planned else None)]
    cells = [
        [
            time.step,
            f"{time.rows:,}" if time.rows else "",
            *([] if not planned else ["" if time.planned is None else written(time.planned)]),
            written(time.seconds),
        ]
        for time in rows
    ]
    header = ("step", "rows", *(["planned"] if planned else []), "took")
    return tables.shown(header, cells, right=range(1, len(header))).strip("\n").splitlines()


def written(seconds: float) -> str:
    """Write seconds in the unit in which a person plans: "0 s", "4.1 s", "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.1f} s" if 0.95 <= seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:,.1f} h"


def _config(step: Step) -> str:
    return digest({"step": type(step).__name__, "config": step.model_dump(mode="json")})
