"""What a store shows at a glance: on how many prompts the reward prefers a worse answer, and the plainest such pairs.

Reports and cards open with it. One rule: texts are cut, and models on this machine are named without their folder.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from seamcurate.explore import row
from seamcurate.explore.session import Session
from seamcurate.storage import objects
from seamcurate.store.store import Store

_ROLES = ("policy", "reward", "truth", "encoder", "base", "generator", "judge")
"""Fields of steps that name a model, in the order in which they are told."""


class Pair(NamedTuple):
    """A prompt on which the reward prefers a worse answer."""

    row_id: int
    prompt: str
    golden: str
    reward: float
    """The reward of the golden response."""
    preferred: str
    """The candidate with the highest reward."""
    preferred_reward: float


class Finding(NamedTuple):
    """How often a reward prefers an answer of a sample set to the golden response."""

    variant: str
    rows: int
    """Prompts with a candidate and a reward for both answers."""
    wrong: int
    """Prompts on which a candidate has the higher reward."""
    candidates: int
    misjudged: int
    """Candidates that have the higher reward."""
    pairs: list[Pair]

    @property
    def headline(self) -> str:
        """Say it in one sentence."""
        return f"The reward prefers a worse answer on {_share(self.wrong, self.rows)} of the prompts"

    @property
    def counted(self) -> str:
        """Say what was counted."""
        return (
            f"On {self.wrong:,} of {self.rows:,} prompts that have worse answers to compare with, at least one of them gets a higher "
            f"reward than the golden response. Of all {self.candidates:,} worse answers (`{self.variant}`), {self.misjudged:,} do."
        )


def find(session: Session, split: str = "", limit: int = 5) -> Finding | None:
    """Return what a store shows of its reward, None where no candidate has a reward beside a golden one.

    Args:
        session: The store.
        split: Take the pairs from the rows that this split dropped; empty: from all rows.
        limit: The most pairs, those with the largest difference of rewards first.
    """
    if "reward" not in {column.name for column in session.columns if column.stale is None and column.done}:
        return None
    higher = "c.reward > r.reward"
    both = "candidates AS c JOIN rows AS r ON r.row_id = c.row_id WHERE isfinite(c.reward) AND isfinite(r.reward)"
    sets = session.ask(
        f"SELECT c.variant AS variant, count(DISTINCT c.row_id) AS rows, count(DISTINCT c.row_id) FILTER ({higher}) AS wrong, "
        f"count(*) AS candidates, count(*) FILTER ({higher}) AS misjudged FROM {both} "
        "GROUP BY 1 ORDER BY rows DESC, variant LIMIT 1"
    ).to_pylist()
    if not sets:
        return None
    counts = sets[0]
    dropped = f"AND c.row_id IN (SELECT row_id FROM ledger WHERE split = {_text(split)} AND NOT kept)" if split else ""
    worst = session.ask(
        f"SELECT c.row_id AS row_id, max_by(c.rank, c.reward) AS rank, any_value(r.reward) AS reward, max(c.reward) AS preferred_reward "
        f"FROM {both} AND c.variant = {_text(counts['variant'])} AND {higher} {dropped} "
        f"GROUP BY 1 ORDER BY preferred_reward - any_value(r.reward) DESC, row_id LIMIT {limit}"
    ).to_pylist()
    return Finding(**counts, pairs=_pairs(session, str(counts["variant"]), worst))


def cuts(session: Session, result: Finding) -> list[dict[str, object]]:
    """Return, for each split, its rows, those that it keeps, and of both those on which the reward is wrong."""
    counts: list[dict[str, object]] = session.ask(
        "WITH wrong AS (SELECT DISTINCT c.row_id AS row_id FROM candidates AS c JOIN rows AS r ON r.row_id = c.row_id "
        f"WHERE c.variant = {_text(result.variant)} AND isfinite(c.reward) AND isfinite(r.reward) AND c.reward > r.reward) "
        "SELECT split, count(*) AS rows, count(*) FILTER (kept) AS kept, count(wrong.row_id) AS wrong, "
        "count(wrong.row_id) FILTER (kept) AS wrong_kept FROM ledger LEFT JOIN wrong ON wrong.row_id = ledger.row_id "
        "GROUP BY 1 ORDER BY 1"
    ).to_pylist()
    return counts


def _pairs(session: Session, variant: str, worst: list[dict[str, object]]) -> list[Pair]:
    if not worst:
        return []
    keys = ", ".join(f"({line['row_id']}, {line['rank']})" for line in worst)
    preferred = session.ask(
        f"SELECT row_id, response FROM candidates WHERE variant = {_text(variant)} AND (row_id, rank) IN ({keys})"
    )
    texts = dict(zip(preferred["row_id"].to_pylist(), preferred["response"].to_pylist(), strict=True))
    ids = ", ".join(str(line["row_id"]) for line in worst)
    golden = session.ask(f"SELECT row_id, prompt, response FROM rows WHERE row_id IN ({ids})").to_pylist()
    rows = {line["row_id"]: (row.text(line["prompt"]) or "", line["response"] or "") for line in golden}
    return [
        Pair(
            int(str(line["row_id"])),
            *rows[line["row_id"]],
            float(str(line["reward"])),
            texts.get(line["row_id"]) or "",
            float(str(line["preferred_reward"])),
        )
        for line in worst
    ]


def models(store: Store) -> dict[str, str]:
    """Return the name of each model that a store's steps use, by its role; of a folder here, only its last part."""
    names: dict[str, str] = {}
    for record in store.records().values():
        config, identity = record.get("config"), record.get("identity")
        if not isinstance(config, Mapping) or not isinstance(identity, Mapping):
            continue
        for role in _ROLES:
            model, known = config.get(role), identity.get(role)
            if role in names or not isinstance(model, Mapping) or not model:
                continue
            kind, name = next(iter(model.items()))
            hashed = isinstance(known, Mapping) and str(known.get(kind, "")).startswith("sha256:")
            local = hashed or str(name).startswith(("/", "~", ".")) or ".py:" in str(name)
            names[role] = f"{Path(str(name)).name if local else name} ({kind})"
    return names


def made_on(store: Store) -> str:
    """Return the day on which a store's last column was begun, as 2026-11-29; empty where no file tells it."""
    # By nanoseconds: objects of a bucket have no other time.
    times = [file.stat().st_mtime_ns / 1e9 for file in objects.find(store.path, "columns/*/*step.json")]
    return datetime.datetime.fromtimestamp(max(times), datetime.UTC).date().isoformat() if times else ""


def _share(count: int, total: int) -> str:
    """Write a share in whole per cent; a share between 0 and 1 % with one digit."""
    share = count / total if total else 0.0
    return f"{share:.1%}" if 0 < share < 0.01 else f"{share:.0%}"


def _text(value: str) -> str:
    """Quote a text for SQL."""
    return "'" + value.replace("'", "''") + "'"
