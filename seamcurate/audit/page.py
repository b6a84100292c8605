"""An audit as one self-contained HTML page, in the style of a store's report."""

from __future__ import annotations

from pathlib import Path

from seamcurate.audit.result import Audit, ProbeResult, Slope, Worst, percent, signed
from seamcurate.audit.terminal import KINDS, differing, interval
from seamcurate.explore.report import STYLE, table, text
from seamcurate.storage import objects

_MORE = """
.lead{font-size:17px;color:var(--ink);max-width:60em;margin-bottom:16px}.wide{overflow-x:auto}.bar{display:inline-block;width:110px;height:10px;background:var(--rule);border-radius:3px;overflow:hidden;vertical-align:-1px;margin-right:8px}
.bar i{display:block;height:100%;background:var(--blue)}.exploit .bar i{background:var(--wrong)}.exploit td:first-child{color:var(--wrong);font-weight:600}.kind td{color:var(--soft);font-size:12px;background:var(--paper)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:12px;margin-top:8px}.answer{white-space:pre-wrap;overflow-wrap:anywhere}.worst{margin-bottom:12px}
@media(max-width:520px){body{padding:12px}.bar{width:48px}td,th{padding:6px}.what{display:none}}
"""
_SHOWN, _ASKED = 600, 240
"""Characters of an answer, and of a question."""


def write(audit: Audit, file: Path) -> None:
    """Write an audit as an HTML file.

    Raises:
        StoreError: The file is on object storage, or cannot be written.
    """
    file = objects.folder(file, "audit")
    with objects.writing(file):
        file.write_text(page(audit), encoding="utf-8")


def page(audit: Audit) -> str:
    """Return an audit as a page of HTML."""
    name = text(f"{audit.reward} on {audit.data}")
    of = "" if audit.rows == audit.data_rows else f" of {audit.data_rows:,}"
    figures = [
        (f"{audit.rows:,}{of}", "rows", ""),
        (percent(audit.pays_worse.share), "of prompts have a worse answer that is paid as much, or more", "wrong"),
        (f"{len(audit.exploits):,}", "exploits", "wrong"),
        (percent(audit.golden.failed.share), "of golden responses have the lowest reward or none", ""),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><style>{STYLE}{_MORE}</style><h1>{name}</h1>"
        f'<p class="lead">{text(audit.headline)}</p>'
        f'<div class="figures">{"".join(f"""<div><b class="{kind}">{value}</b>{label}</div>""" for value, label, kind in figures)}</div>'
        f'<h2>Probes</h2><div class="wide">{_probes(audit)}</div>'
        f"<h2>Measured</h2>{table(['', 'value'], _facts(audit))}"
        + (f"<h2>The worst rows</h2>{''.join(map(_worst, audit.worst))}" if audit.worst else "")
        + (
            f"<h2>What the policy says</h2>{''.join(map(_worst, audit.policy.overpaid))}"
            if audit.policy and audit.policy.overpaid
            else ""
        )
        + "</html>\n"
    )


def _probes(audit: Audit) -> str:
    unit = "gain in sd" if audit.unit == "deviations" else "gain"
    heads = ["probe", "what was done", "at fault", "95 %", unit, "rows"]
    header = "".join(
        f"<th{' class=n' if i > 2 else ' class=what' if i == 1 else ''}>{head}</th>" for i, head in enumerate(heads)
    )
    body = ""
    for kind, title in KINDS.items():
        body += f'<tr class="kind"><td colspan="6">{title}</td></tr>'
        body += "".join(_probe(probe) for probe in audit.probes if probe.kind == kind)
    return f"<table><tr>{header}</tr>{body}</table>"


def _probe(probe: ProbeResult) -> str:
    fault = probe.at_fault
    bar = f'<span class="bar"><i style="width:{100 * (fault.share or 0):.1f}%"></i></span>'
    gain = "–" if probe.gain is None else signed(probe.gain)
    return (
        f'<tr{" class=exploit" if probe.exploit else ""}><td title="{text(probe.finds)}">{text(probe.probe)}</td>'
        f'<td class=what>{text(probe.purpose)}</td><td style="white-space:nowrap">{bar}{percent(fault.share)}</td>'
        f"<td class=n>{interval(fault)}</td><td class=n>{gain}</td><td class=n>{fault.n:,}</td></tr>"
    )


def _facts(audit: Audit) -> list[list[str]]:
    unit = "sd" if audit.unit == "deviations" else "rewards"
    facts = []
    slopes = [
        ("a hundred words that say nothing add", audit.length),
        ("a hundred words of a golden response go with", audit.golden_length),
    ]
    facts += [[what, _slope(slope, unit)] for what, slope in slopes if slope.slope]
    if audit.words:
        listed = ", ".join(f"{word.word} {signed(word.coefficient)}" for word in audit.words)
        facts.append([f"words that it pays for, in {unit}, length taken off", listed])
    facts.append(["noise: less than this counts as no difference", f"{audit.noise or 0:.3g}"])
    if audit.policy is not None:
        said, below = audit.policy.paid_more, audit.policy.golden_below
        facts.append(
            [
                f"samples of {audit.policy.policy} that are paid more than the golden response",
                f"{percent(said.share)} of {said.n:,}",
            ]
        )
        facts.append(["rows most of whose samples are", f"{percent(below.share)} of {below.n:,}"])
    if audit.second is not None:
        pairs = audit.second.pairs
        facts.append(
            [f"pairs that {audit.second.reward} orders the other way", f"{percent(pairs.share)} of {pairs.n:,}"]
        )
    facts.append(["answers without a reward", f"{audit.no_reward:,}"])
    facts += [[f"… {reason.reason}", f"{reason.answers:,}"] for reason in audit.reasons]
    if audit.rejected:
        facts.append(["rows that could not be read, or had no golden response", f"{audit.rejected:,}"])
    return facts


def _slope(slope: Slope, unit: str) -> str:
    ends = "" if slope.low is None or slope.high is None else f" ({signed(slope.low)} to {signed(slope.high)})"
    return f"{signed(slope.slope or 0)} {unit}{ends}"


def _worst(worst: Worst) -> str:
    answers = [
        ("golden response", worst.golden_reward, worst.golden),
        ("preferred", worst.preferred_reward, differing(worst.golden, worst.preferred)),
    ]
    pair = "".join(
        f'<div><p>{label}: {reward:.4g}</p><div class="answer">{text(_clipped(answer) or "(empty)")}</div></div>'
        for label, reward, answer in answers
    )
    return (
        f'<div class="card worst"><p>row {worst.row}, {text(worst.probe)}</p><h3>{text(_clipped(worst.prompt, _ASKED))}</h3>'
        f'<div class="pair">{pair}</div></div>'
    )


def _clipped(answer: str, length: int = _SHOWN) -> str:
    return answer if len(answer) <= length else f"{answer[:length]} …"
