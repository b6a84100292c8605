"""An audit as lines for a terminal of some width."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from seamcurate.audit.result import FAILURES, Audit, Failure, ProbeResult, Share, Worst, percent, signed
from seamcurate.text import clean, counted, one_line

_NARROW, _WIDE = 72, 120
_BEFORE = 40
"""Characters that are shown of what two answers share at their beginning."""
KINDS = {
    "worse": "worse answers: at fault where paid as much as the golden one, or more",
    "neutral": "answers that are no better: at fault where paid more",
}


def lines(audit: Audit, width: int, failed: tuple[Failure, ...] = ()) -> Iterator[str]:
    """Yield an audit's lines: the headline, a table of probes, what else was measured, the worst rows, where the store is.

    Args:
        audit: The audit.
        width: Characters of a line, where texts can be cut to them.
        failed: By which of `FAILURES` the command fails.
    """
    width = min(max(width, _NARROW), _WIDE)
    of = "" if audit.rows == audit.data_rows else f" of {audit.data_rows:,}"
    yield from _wrapped(
        f"{audit.reward} on {audit.rows:,}{of} {'row' if audit.data_rows == 1 else 'rows'} of {audit.data}", width
    )
    yield ""
    yield from _wrapped(audit.headline, width)
    yield ""
    yield from _table(audit, width)
    yield ""
    yield from _facts(audit, width)
    if audit.worst:
        yield ""
        yield "The worst rows:"
    for number, worst in enumerate(audit.worst, 1):
        yield ""
        yield f"{number}. row {worst.row}, {worst.probe}"
        yield from _quoted("question", "", worst.prompt, width)
        yield from _quoted("golden", f"{worst.golden_reward:.4g}", worst.golden, width)
        yield from _quoted(
            "preferred", f"{worst.preferred_reward:.4g}", differing(worst.golden, worst.preferred), width
        )
    yield ""
    yield f"store   {audit.store}"
    yield f"recipe  {audit.recipe}"
    for name in failed:
        yield from _wrapped(f"fails by {name}: {FAILURES[name]}", width)


def _table(audit: Audit, width: int) -> Iterator[str]:
    unit = "gain in sd" if audit.unit == "deviations" else "gain"
    purposes = width >= 110
    yield f"  {'probe':<19}{'rows':>7}  {'at fault':>8} {'95 %':>12}{unit:>12}" + (
        "  what was done" if purposes else ""
    )
    for kind, title in KINDS.items():
        yield f"  {title}"
        for probe in audit.probes:
            if probe.kind == kind:
                yield _row(probe) + (f"  {probe.purpose}"[: width - 64] if purposes else "")


def _row(probe: ProbeResult) -> str:
    fault = probe.at_fault
    gain = "–" if probe.gain is None else signed(probe.gain)
    mark = "!" if probe.exploit else " "
    return f"{mark} {probe.probe:<19}{fault.n:>7,}  {percent(fault.share):>8} {interval(fault):>12}{gain:>12}"


def interval(share: Share) -> str:
    """Write the interval of a share in per cent, or nothing where there is none."""
    return "" if share.low is None or share.high is None else f"{100 * share.low:.0f} to {100 * share.high:.0f}"


def _facts(audit: Audit, width: int) -> Iterator[str]:
    yield from _wrapped("! an exploit: the lower end of its interval is above the share that is tolerated", width)
    golden = audit.golden
    if golden.failed.share:
        yield from _wrapped(
            f"golden responses: {percent(golden.failed.share)} have no reward, or the lowest ({interval(golden.failed)} %)",
            width,
        )
    unit = "sd" if audit.unit == "deviations" else "rewards"
    for what, slope in (("words that say nothing", audit.length), ("words of golden responses", audit.golden_length)):
        if slope.slope and slope.low is not None and slope.high is not None:
            yield f"a hundred {what}: {signed(slope.slope)} {unit} ({signed(slope.low)} to {signed(slope.high)})"
    if audit.words:
        listed = ", ".join(f"{word.word} {signed(word.coefficient)}" for word in audit.words)
        yield from _wrapped(f"words that it pays for, in {unit}, length taken off: {listed}", width)
    if audit.noise:
        share = audit.noise / audit.golden.deviation if audit.golden.deviation else None
        of = "" if share is None else f", {share:.2g} sd of golden rewards"
        yield from _wrapped(
            f"noise: rewards change by up to {audit.noise:.3g} without a reason{of}; less counts as none", width
        )
    if audit.policy is not None:
        said, below = audit.policy.paid_more, audit.policy.golden_below
        yield from _wrapped(
            f"{audit.policy.policy} is paid more than the golden response for {percent(said.share)} ({interval(said)} %) of "
            f"{counted(audit.policy.samples, 'sample')}; most of its samples are on {percent(below.share)} of rows",
            width,
        )
        if audit.policy.without:
            yield f"{counted(audit.policy.without, 'row has', 'rows have')} no sample: see reason_policy"
    if audit.second is not None:
        pairs = audit.second.pairs
        yield from _wrapped(
            f"{audit.second.reward} orders {percent(pairs.share)} of {counted(pairs.n, 'pair')} the other way"
            + (f" ({interval(pairs)} %)" if pairs.low is not None else ""),
            width,
        )
    if audit.no_reward:
        why = (
            f"; {counted(audit.reasons[0].answers, 'time')}: {one_line(audit.reasons[0].reason)}"
            if audit.reasons
            else ""
        )
        why = why or ": no room in the window, most often"
        yield from _wrapped(f"{counted(audit.no_reward, 'answer has', 'answers have')} no reward{why}", width)
    if audit.rejected:
        yield from _wrapped(
            f"{counted(audit.rejected, 'row')} of the data could not be read, or had no golden response", width
        )


def differing(golden: str, preferred: str) -> str:
    """Return the preferred answer from where it leaves the golden one: what was added at its end would not be seen."""
    pairs = enumerate(zip(golden, preferred, strict=False))
    same = next((i for i, (first, second) in pairs if first != second), min(len(golden), len(preferred)))
    start = max(0, same - _BEFORE)
    if start < _BEFORE // 4:
        return preferred
    rest = preferred[start:].partition(" ")[2] or preferred[start:]
    return f"… {rest}" + (" (ends here)" if same == len(preferred) else "")


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(one_line(text), width) or [""]


def _rows(worst: Sequence[Worst], width: int) -> Iterator[str]:
    for number, row in enumerate(worst, 1):
        yield ""
        yield f"{number}. row {row.row}, {row.probe}"
        yield from _quoted("question", "", row.prompt, width)
        yield from _quoted("golden", f"{row.golden_reward:.4g}", row.golden, width)
        yield from _quoted("preferred", f"{row.preferred_reward:.4g}", differing(row.golden, row.preferred), width)


def _quoted(label: str, value: str, text: str, width: int) -> list[str]:
    room = width - 24
    shortened = textwrap.shorten(clean(text), 2 * room - 16, placeholder=" …")
    first, *others = textwrap.wrap(shortened, room) or ["(empty)"]
    return [f"   {label:<10}{value:>9}  {first}", *(f"{'':<24}{line}" for line in others)]
