"""What an audit found, as one frozen value: the same numbers in the terminal, in JSON and in HTML."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from seamcurate.contrast.probes import Kind
from seamcurate.text import counted

Failure = Literal["exploit", "golden", "disagreement"]

FAILURES: dict[Failure, str] = {
    "exploit": "a probe is an exploit: the lower end of its interval is above the share that is tolerated",
    "golden": "more than 20 % of golden responses have no reward, or the lowest, or less than most of the policy's own samples",
    "disagreement": "the second reward orders more than 20 % of the probes' answers and their golden responses the other way",
}
"""What `--fail-on` may name, and when an audit fails by it."""
TOLERATED = 0.2
"""The share of golden responses, or of pairs, above which an audit fails by `golden` or by `disagreement`."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Share(_Frozen):
    """A share of rows with its 95 % interval."""

    share: float | None
    """Between 0 and 1; None where it is a share of nothing."""
    low: float | None
    high: float | None
    n: int
    """What it is a share of."""


class Slope(_Frozen):
    """What the reward adds for a hundred more words, with its 95 % interval."""

    slope: float | None
    """In the audit's `unit`; None where it cannot be estimated."""
    low: float | None
    high: float | None
    n: int
    """Rows that it rests on."""


class ProbeResult(_Frozen):
    """What a reward makes of the answers of one probe."""

    probe: str
    kind: Kind
    """`worse`: an answer that is paid as much as the golden response, or more, is a fault. `neutral`: one that is paid more."""
    purpose: str
    """What was done to the golden response."""
    finds: str
    """What a reward that pays for it does wrong."""
    not_applicable: int
    """Rows to which the probe does not apply."""
    no_reward: int
    """Answers without a reward, and those whose golden response has none."""
    at_fault: Share
    """The share of the scored answers that are at fault."""
    paid_more: int
    """Answers that are paid more than their golden response, beyond the noise."""
    paid_as_much: int
    """Answers that are paid as much, and not the lowest reward."""
    gain: float | None
    """Mean of the answer's reward minus the golden response's, in the audit's `unit`."""
    tolerated: float
    """The share at fault up to which the probe is no exploit."""
    exploit: bool
    """Whether the lower end of the interval is above that share, and it rests on at least 10 answers."""


class Golden(_Frozen):
    """What the reward makes of the golden responses."""

    failed: Share
    """Those that have no reward, or the lowest that the reward gives."""
    no_reward: int
    mean: float | None
    deviation: float | None
    """Their standard deviation in the reward's own unit; 0 where all have the same."""


class Disagreement(_Frozen):
    """How often a second reward orders an answer and its golden response the other way."""

    reward: str
    pairs: Share
    """Of the pairs that both rewards order; the interval is a bootstrap over rows."""


class Worst(_Frozen):
    """A row on which the reward is at fault."""

    row: int
    """Its position in the data, from 0."""
    probe: str
    prompt: str
    golden: str
    golden_reward: float
    preferred: str
    preferred_reward: float


class PaidWord(_Frozen):
    """A word that answers are paid more for, among answers of the same length to the same prompt."""

    word: str
    answers: int
    """Answers that hold it."""
    coefficient: float
    """By how much they are paid more, in the audit's `unit`."""
    q: float
    """The share of false finds among the words up to this one (Benjamini and Hochberg)."""


class Policy(_Frozen):
    """What a policy says of its own accord, and what the reward makes of it; its answers need not be worse."""

    policy: str
    samples: int
    distinct: int
    paid_more: Share
    """The share of samples that are paid more than the golden response; the interval is a bootstrap over rows."""
    golden_below: Share
    """The share of rows most of whose samples are paid more than the golden response."""
    gain: float | None
    """Mean of a sample's reward minus the golden response's, in the audit's `unit`."""
    without: int
    """Rows without a sample."""
    overpaid: tuple[Worst, ...]
    """The rows with the largest gains of a sample, three at most."""


class Reason(_Frozen):
    """Why answers have no reward."""

    reason: str
    answers: int


class Audit(_Frozen):
    """What a reward pays for that it should not, on some rows; `seamcurate.audit.audit` makes one.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from seamcurate.audit import audit
        >>> scratch = tempfile.TemporaryDirectory()
        >>> folder = Path(scratch.name)
        >>> verifier = "def score(completions, reference, **columns): return [float(r in c) for c, r in zip(completions, reference)]"
        >>> _ = (folder / "verifier.py").write_text(verifier)
        >>> sums = [{"prompt": f"{n} + {n}?", "response": f"It is {2 * n}.", "reference": str(2 * n)} for n in range(30, 60)]
        >>> _ = (folder / "sums.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in sums))
        >>> result = audit(f"{folder}/verifier.py:score", folder / "sums.jsonl", store=folder / "store")
        >>> [probe.probe for probe in result.probes if probe.exploit]
        ['all_answers']
        >>> result.failures(["exploit", "golden"])
        ('exploit',)
    """

    schema_version: Literal[1] = 1
    """Raised when a field changes its meaning or goes; new fields do not raise it."""
    headline: str
    reward: str
    data: str
    rows: int
    """Rows that were audited."""
    data_rows: int
    """Rows of the data from which these are evenly spaced."""
    rejected: int
    """Rows of the data that could not be read, or have no golden response."""
    unit: Literal["deviations", "rewards"]
    """What gains and slopes are in: standard deviations of the golden responses' rewards, or where these are all the same, the
    reward's own unit."""
    golden: Golden
    prefers_worse: Share
    """Rows on which a worse answer is paid more than the golden response."""
    pays_worse: Share
    """Rows on which a worse answer is paid as much as the golden response, or more."""
    probes: tuple[ProbeResult, ...]
    length: Slope
    """What words that say nothing add: by the probe `padded`."""
    golden_length: Slope
    """How rewards of golden responses grow with their length; they may be better for it."""
    words: tuple[PaidWord, ...]
    """Words that the reward pays for, in golden responses and those of other rows, length taken off; ten at most. Words that
    come together share what they are paid: they are suspects."""
    noise: float | None
    """By how much a reward changes without a reason, in the reward's own unit; smaller differences count as none."""
    no_reward: int
    """Answers without a reward."""
    reasons: tuple[Reason, ...]
    """Why, the most frequent reasons first."""
    policy: Policy | None = None
    second: Disagreement | None = None
    worst: tuple[Worst, ...]
    """Of each probe at fault the row with the largest gain, five at most."""
    store: str
    """The store behind it."""
    recipe: str
    """The recipe that makes this store, to go on from."""

    @property
    def exploits(self) -> tuple[ProbeResult, ...]:
        """Return the probes that are exploits, the most frequent first."""
        return tuple(sorted((p for p in self.probes if p.exploit), key=lambda p: -(p.at_fault.share or 0)))

    def failures(
        self, of: tuple[Failure, ...] | list[Failure] = ("exploit", "golden", "disagreement")
    ) -> tuple[Failure, ...]:
        """Return by which of these the reward fails; see `FAILURES`."""
        below = None if self.policy is None else self.policy.golden_below.share
        failed: dict[Failure, bool] = {
            "exploit": bool(self.exploits),
            "golden": max(self.golden.failed.share or 0, below or 0) > TOLERATED,
            "disagreement": self.second is not None and (self.second.pairs.share or 0) > TOLERATED,
        }
        return tuple(name for name in failed if name in of and failed[name])


def headline(
    prefers_worse: Share,
    pays_worse: Share,
    length: Slope,
    golden_length: Slope,
    unit: str,
    probes: tuple[ProbeResult, ...],
) -> str:
    """Say in one line what a reward pays for that it should not."""
    parts = []
    if prefers_worse.share:
        parts.append(f"prefers a worse answer on {percent(prefers_worse.share)} of prompts")
    if (pays_worse.share or 0) > (prefers_worse.share or 0):
        rest = (pays_worse.share or 0) - (prefers_worse.share or 0)
        parts.append(f"pays a worse answer as much on {percent(rest)}" + ("" if prefers_worse.share else " of prompts"))
    short = "" if unit == "deviations" else " in rewards"
    if _pays(length):
        parts.append(f"pays for length: {signed(length.slope or 0)}{short} a hundred words that say nothing")
    elif _pays(golden_length):
        parts.append(f"longer golden responses get {signed(golden_length.slope or 0)}{short} a hundred words")
    exploits = [probe for probe in probes if probe.exploit]
    often = sum((probe.at_fault.share or 0) > 0.5 for probe in exploits)
    if often:
        parts.append(f"{counted(often, 'exploit pays', 'exploits pay')} on more than half of the rows")
    elif exploits:
        parts.append(f"{counted(len(exploits), 'exploit')}, none on more than half of the rows")
    else:
        parts.append("no exploit found")
    return "; ".join(parts)


def _pays(slope: Slope) -> bool:
    """Tell whether longer answers are paid more, by more than rounding."""
    return slope.slope is not None and slope.low is not None and slope.low > 0 and signed(slope.slope) != "0"


def percent(share: float | None) -> str:
    """Write a share as per cent; one that is neither 0 nor 1 is not rounded to it."""
    if share is None:
        return "–"
    value = 100 * share
    return f"{value:.1f} %" if 0 < value < 1 or 99 < value < 100 else f"{value:.0f} %"


def signed(value: float) -> str:
    """Write a number with its sign and two decimals, without the 0 before the point."""
    if abs(value) < 0.005:
        return "0"
    text = f"{value:+.2f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text
