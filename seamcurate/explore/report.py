"""A store on one self-contained HTML page, to send on: what was result, five pairs, what a cut does, then the charts.

Figures are SVG inside the page, and SVG and PNG files where a folder for them is given. Text of rows is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import cast

import yaml

from seamcurate import extras
from seamcurate.explore import figure, finding, row
from seamcurate.explore.figure import Figure, Point
from seamcurate.explore.finding import Finding
from seamcurate.explore.session import Chart, Session
from seamcurate.progress import note
from seamcurate.select import views
from seamcurate.storage import objects
from seamcurate.store.store import Store
from seamcurate.text import brief, clean

_WORST, _LONGEST = 20, 400
_DOTS = 5_000
_SQUARES = 50
STYLE = """
:root{--paper:#f6f5f1;--card:#fffefb;--ink:#1b2027;--soft:#5b636e;--rule:#e2dfd6;--blue:#1f6fb2;--wrong:#c24a00;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--paper:#12151a;--card:#191d24;--ink:#e9e7e1;--soft:#a3abb6;--rule:#2b323d;--blue:#5db3ef;--wrong:#ff9057}}
.light{--card:#fffefb;--ink:#1b2027;--soft:#5b636e;--rule:#e2dfd6;--blue:#1f6fb2}
body{margin:0 auto;max-width:1120px;padding:24px;background:var(--paper);color:var(--ink);font:13px/1.5 system-ui,"DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums}
h1{font-size:20px;margin:0 0 16px}h2{font-size:15px;margin:24px 0 8px}h3{font-size:13px;margin:0}p{margin:0;color:var(--soft);font-size:12px}
.figures{display:flex;flex-wrap:wrap;gap:32px}.figures b{display:block;font-size:28px;line-height:1.1}.figures .wrong{color:var(--wrong)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:12px}.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px;break-inside:avoid}
svg{width:100%;height:auto;display:block;color:var(--soft)}svg rect[fill='#1f6fb2']{fill:var(--blue)}table{border-collapse:collapse;width:100%;background:var(--card)}td,th{padding:6px 12px;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
.headline{font-size:24px;line-height:1.25;color:var(--ink);margin:0 0 8px;max-width:32em}.lead{font-size:14px;max-width:60em;margin:0 0 12px}
article{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px;margin:0 0 12px;break-inside:avoid}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:12px;margin:8px 0}.pair>div{border-left:3px solid var(--blue);padding-left:8px;overflow-wrap:anywhere}
.pair>.preferred{border-color:var(--wrong)}.pair b{display:block;font-size:12px}body{overflow-wrap:anywhere}.scroll{overflow-x:auto}
pre{white-space:pre-wrap;font-size:12px}table{overflow-wrap:break-word}@media(max-width:560px){body{padding:12px}td,th{padding:4px 6px}.figures{gap:16px}.figures b{font-size:22px}.charts{grid-template-columns:minmax(0,1fr)}}
th{font-weight:550;font-size:12px;color:var(--soft)}.n{text-align:right;white-space:nowrap}
"""
"""The style of every page of HTML that is sent to somebody."""


def report(store: Store, out: Path, figures: Path | None = None) -> list[Path]:
    """Write a store's report, and its figures as SVG and PNG files where a folder for them is given; return the files.

    Without matplotlib no PNG is written, and a note on standard error says so.

    Raises:
        StoreError: There is no store; or a file to write is on object storage, or cannot be written.
        DamagedError: A shard is not the file that was written.
    """
    out, figures = objects.folder(out, "report"), figures and objects.folder(figures, "report")
    session = Session(store)
    mapped = _map(session)
    charts = [c for c in session.charts if mapped is None or not c.column.name.startswith("projection_")]
    drawn = {chart.column.name: figure.histogram(chart, _counts(session, chart)) for chart in charts}
    labels = {group.column.name: figure.bars(group) for group in session.groups}
    page = _page(session, drawn, labels, mapped)
    with objects.writing(out):
        out.write_text(page, encoding="utf-8")
    written = [out]
    if figures is None:
        return written
    with objects.writing(figures):
        return written + _drawn(figures, [*drawn.items(), *labels.items(), *([("map", mapped)] if mapped else [])])


def _drawn(figures: Path, drawn: Sequence[tuple[str, Figure]]) -> list[Path]:
    """Write each figure to files."""
    figures.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (name, drawing) in enumerate(drawn):
        # A column's name may hold characters that a file's name cannot.
        safe = "".join(c if c.isalnum() or c in "_-" else "_" for c in name)[:60]
        file = figures / f"{number:02d}_{safe}.svg"
        file.write_text(figure.svg(drawing, sized=True), encoding="utf-8")
        written.append(file)
        try:
            figure.png(drawing, file.with_suffix(".png"))
        except ModuleNotFoundError as error:
            if number == 0:
                note(f"figures are SVG only: PNG needs {error.name}; {extras.install('study')}")
        else:
            written.append(file.with_suffix(".png"))
    return written


def _map(session: Session) -> Figure | None:
    """Describe the map of the rows, where a step projected them: a dot a row, or squares where there are many rows."""
    charts = {chart.column.name: chart for chart in session.charts}
    x_chart, y_chart = charts.get("projection_x"), charts.get("projection_y")
    if x_chart is None or y_chart is None:
        return None
    colour = next((chart for chart in session.charts if chart.worst), None)
    value = f"{views.quoted(colour.column.name)}::DOUBLE" if colour else "NULL::DOUBLE"
    binned = session.rows > _DOTS
    x, y = (f"round(projection_{axis} * {_SQUARES}) / {_SQUARES}" if binned else f"projection_{axis}" for axis in "xy")
    points = session.ask(
        f"SELECT {x} AS x, {y} AS y, avg({value}) AS value, count(*) AS rows FROM scores WHERE projection_x IS NOT NULL "
        f"GROUP BY 1, 2{'' if binned else ', row_id'} ORDER BY ALL"
    )
    return figure.scatter(
        x_chart, y_chart, colour, [Point(**point) for point in points.to_pylist()], 9 if binned else 6
    )


def _page(session: Session, drawn: Mapping[str, Figure], labels: Mapping[str, Figure], mapped: Figure | None) -> str:
    (totals,) = session.ask(
        "SELECT count(*) AS rows, sum(_candidates)::BIGINT AS candidates, sum(_misjudged) AS misjudged, "
        "count(*) FILTER (_misjudged > 0) AS wrong, count(*) FILTER (_candidates = 0) AS without FROM scores"
    ).to_pylist()
    share = f"{totals['misjudged'] / totals['candidates']:.1%}" if totals["candidates"] and totals["misjudged"] else "–"
    result = finding.find(session)
    figures = [
        (f"{totals['rows']:,}", "rows", ""),
        (f"{totals['candidates'] or 0:,}", "candidates", ""),
        (share, "preferred to the golden response", "wrong"),
        (f"{totals['wrong']:,}", "rows misjudged at all", ""),
        (f"{totals['without']:,}", "rows without candidates", ""),
    ]
    charts = "".join(
        f'<div class="card"><h3>{text(chart.column.name)}</h3><p>{text(chart.column.meaning)}</p>{figure.svg(drawn[chart.column.name])}'
        f"<p>{chart.present:,} rows, {figure.number(chart.low)} to {figure.number(chart.high)}; {text(drawn[chart.column.name].subtitle.split(';')[0])}</p></div>"
        for chart in session.charts
        if chart.column.name in drawn
    )
    bars = "".join(
        f'<div class="card"><h3>{text(group.column.name)}</h3><p>{text(group.column.meaning or "column of the source")}</p>'
        f"{figure.svg(labels[group.column.name])}</div>"
        for group in session.groups
    )
    # The name only: a report is sent to others, and the store's path is private.
    name = text(Path(str(session.store.path)).resolve().name)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><style>{STYLE}</style><h1>{name}</h1>"
        f"{_opening(session, result)}"
        f'<div class="figures">{"".join(f"""<div><b class="{kind}">{value}</b>{name}</div>""" for value, name, kind in figures)}</div>'
        f"{_pairs(result)}{_cuts(session, result)}{_origin(session)}"
        f'{f"""<h2>Map</h2><div class="card light"><p>{text(mapped.title)}</p>{figure.svg(mapped)}</div>""" if mapped else ""}'
        f'<h2>Scores</h2><div class="charts">{charts}</div>{f"""<h2>Labels</h2><div class="charts">{bars}</div>""" if bars else ""}{_worst(session)}'
        "</html>\n"
    )


def _opening(session: Session, result: Finding | None) -> str:
    """Open with the finding, or with what is missing for one."""
    if result is None:
        missing = "No worse answer has a reward yet beside the golden response's, so nothing tells how often the reward is wrong."
        return f'<p class="lead">{missing}</p>'
    return (
        f'<p class="headline">{text(result.headline)}.</p><p class="lead">{text(result.counted.replace("`", ""))}</p>'
    )


def _pairs(result: Finding | None) -> str:
    """Show the golden response beside the answer that the reward prefers."""
    if result is None or not result.pairs:
        return ""
    cards = "".join(
        f"<article><h3>{text(brief(pair.prompt, _LONGEST))}</h3><div class=pair>"
        f"<div><b>golden {figure.number(pair.reward)}</b>{text(brief(pair.golden, _LONGEST))}</div>"
        f"<div class=preferred><b>preferred {figure.number(pair.preferred_reward)}</b>{text(brief(pair.preferred, _LONGEST))}</div></div>"
        f"<p>row {pair.row_id}</p></article>"
        for pair in result.pairs
    )
    return f"<h2>What the reward prefers</h2>{cards}"


def _cuts(session: Session, result: Finding | None) -> str:
    """Say what each split leaves out, and what that does to the share of prompts on which the reward is wrong."""
    splits = session.ask(
        r"SELECT split, regexp_replace(rule, '\brow \d+', 'row …', 'g') AS rule, kept, count(*) AS rows FROM ledger "
        "GROUP BY ALL ORDER BY ALL"
    ).to_pylist()
    if not splits:
        return ""
    said = "".join(
        f"<p class=lead><b>{text(s['split'])}</b> keeps {s['kept']:,} of {s['rows']:,} prompts; the reward prefers a worse answer on "
        f"{s['wrong_kept']:,} of these, where it does on {s['wrong']:,} of all.</p>"
        for s in (finding.cuts(session, result) if result else [])
    )
    rules = [[s["split"], s["rule"], "kept" if s["kept"] else "dropped", f"{s['rows']:,}"] for s in splits]
    return f"<h2>What the splits leave out</h2>{said}{table(['split', 'rule', '', 'rows'], rows=rules, texts=3)}"


def _origin(session: Session) -> str:
    """Name models, date and steps."""
    store = session.store
    models = [[role, name] for role, name in finding.models(store).items()]
    # Fields that name a model are in the table of models.
    steps = {
        name: {k: v for k, v in identity.items() if k not in ("step", "revision") and not isinstance(v, dict)}
        for name, record in store.records().items()
        if isinstance(identity := record.get("identity"), dict)
    }
    splits = {
        name: {k: record[k] for k in ("parameters", "format", "order", "kept", "dropped") if record.get(k)}
        for name, record in store.split_records().items()
    }
    recipe = yaml.safe_dump({"steps": steps, "splits": splits}, sort_keys=False, default_flow_style=None, width=100)
    day = finding.made_on(store)
    return (
        f"<h2>How it was made</h2>{table(['model', 'name'], models, texts=2) if models else ''}"
        f"<p>{f'Scored on {day}.' if day else ''}</p><details><summary>Recipe: its steps and splits</summary><pre>{text(recipe)}</pre></details>"
    )


def _worst(session: Session) -> str:
    chart = next((chart for chart in session.charts if chart.worst), None)
    if chart is None:
        return ""
    q, order = views.quoted(chart.column.name), "DESC" if chart.worst == "high" else "ASC"
    worst = session.ask(
        f"SELECT row_id, {q}::DOUBLE AS value, _candidates AS candidates, _misjudged AS misjudged FROM scores "
        f"WHERE {q} IS NOT NULL ORDER BY {q} {order}, row_id LIMIT {_WORST}"
    ).to_pylist()
    texts = row.prompts(session, [cast(int, line["row_id"]) for line in worst], 300)
    lines = [
        [
            texts.get(line["row_id"], ""),
            f"{line['misjudged'] or 0:.0f} of {line['candidates']}",
            figure.number(line["value"]),
            f"{line['row_id']}",
        ]
        for line in worst
    ]
    return f"<h2>Worst by {text(chart.column.name)}</h2>" + table(
        ["prompt", "misjudged", chart.column.name, "row"], lines
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]], texts: int = 1) -> str:
    """Write a table whose first columns are texts, and the others numbers."""

    def line(cells: Sequence[object], tag: str) -> str:
        return "".join(f"<{tag}{' class=n' if i >= texts else ''}>{text(cell)}</{tag}>" for i, cell in enumerate(cells))

    body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
    return f"<div class=scroll><table><tr>{line(header, 'th')}</tr>{body}</table></div>"


def _counts(session: Session, chart: Chart) -> list[int]:
    q = views.quoted(chart.column.name)
    binned = session.ask(
        f"SELECT least(greatest(floor(({q}::DOUBLE - $first::DOUBLE) / $step::DOUBLE), 0), {chart.bins - 1})::INTEGER AS bin, "
        f"count(*) AS rows FROM scores WHERE {q} IS NOT NULL GROUP BY 1",
        {"first": chart.first, "step": chart.step},
    )
    counts = dict(zip(binned["bin"].to_pylist(), binned["rows"].to_pylist(), strict=True))
    return [counts.get(i, 0) for i in range(chart.bins)]


def text(value: object) -> str:
    """Return a value as text of HTML, control characters spelled out."""
    return escape(clean(str(value)))
