"""Hostile and dirty data through everything: rows in = rows out + rows set aside, and text as it was."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import questions, write_files
from hostile import (
    CHATS,
    CSV_HEADER,
    FILES,
    FIRST_LINE,
    LINES,
    NAMES,
    RECORDS,
    REFUSED_NAMES,
    REFUSED_TYPES,
    SCORES,
    STEP_NAMES,
    TABLES,
    TEXTS,
    TRAINER_NAMES,
    TYPES,
    Case,
    counted,
    error,
)
from hub_server import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from lexicons import wordnet_table
from strategies import valid_text

from seamcurate import (
    Attack,
    CausalLM,
    FakeModel,
    Generate,
    Models,
    Perplexity,
    Random,
    Recipe,
    Retrieve,
    SentenceEncoder,
    SequenceClassifier,
    Source,
    Split,
    Store,
    query,
    rer,
    run_local,
    seam,
    tables,
)
from seamcurate.errors import SeamcurateError
from seamcurate.models.protocols import Likelihood
from seamcurate.publish import card, export, hub, markdown
from seamcurate.publish import diff as comparison
from seamcurate.run import plan as estimate
from seamcurate.score.asked import AskQueryType, Judge, RelevantSentences
from seamcurate.score.rer import Rer
from seamcurate.score.reward_baselines import LengthCalibrated, RewardReliability, RewardSpread, Rip
from seamcurate.score.seam import Seam
from seamcurate.select import split as splits
from seamcurate.select import views
from seamcurate.select import why as explain
from seamcurate.select.split import Augment
from seamcurate.train import Answering
from seamcurate.train import answer as write_answers

pytestmark = pytest.mark.slow

FILTERS = Path(__file__).parents[1] / "recipes"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def test_there_are_many_cases_and_none_twice() -> None:
    assert counted() >= 300
    for cases in (TEXTS, LINES, CHATS, RECORDS, NAMES, TYPES, FILES, TABLES):
        assert len({case.name for case in cases}) == len(cases)
    assert len({case.given for case in TEXTS}) == len(TEXTS)


# Sources.


def outcomes(source: Source) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Return what was taken and what was set aside, by place: each place once, none left out."""
    rows: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    for chunk in source.chunks():
        rows |= {row["row_id"]: row for row in chunk.rows.to_pylist()}
        reasons |= {one["row_id"]: one["reason"] for one in chunk.rejected.to_pylist()}
        assert len(chunk.rows) + len(chunk.rejected) <= source.shard_rows
    assert not rows.keys() & reasons.keys()
    assert sorted([*rows, *reasons]) == list(range(len(rows) + len(reasons)))
    return rows, reasons


def check(cases: Sequence[Case], rows: dict[int, dict[str, Any]], reasons: dict[int, str], first: int) -> None:
    """Hold each place against what must become of its case."""
    for place, case in enumerate(cases, first):
        if case.outcome == "aside":
            assert case.why in reasons.get(place, f"taken as {str(rows.get(place))[:200]}"), case.name
        else:
            assert place in rows, f"{case.name}: {reasons.get(place)}"
            assert rows[place]["prompt"] == (case.given if case.kept is None else case.kept), case.name


def test_each_line_of_json_is_taken_or_set_aside_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([FIRST_LINE, *(case.given for case in LINES)]))
    rows, reasons = outcomes(Source(jsonl=str(tmp_path / "a.jsonl"), response="response", shard_rows=16))
    assert len(rows) + len(reasons) == len(LINES) + 1
    check(LINES, rows, reasons, 1)


def test_each_chat_is_taken_or_set_aside_with_its_reason(tmp_path: Path) -> None:
    lines = [{"prompt": [{"role": "user", "content": "first"}]}, *({"prompt": case.given} for case in CHATS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows, reasons = outcomes(Source(jsonl=str(tmp_path / "a.jsonl"), shard_rows=7))
    assert len(rows) + len(reasons) == len(lines)
    check(CHATS, rows, reasons, 1)


def test_each_record_of_csv_is_taken_or_set_aside_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV_HEADER + b"".join(case.given for case in RECORDS))
    rows, reasons = outcomes(Source(csv=str(tmp_path / "a.csv"), response="response", shard_rows=7))
    place = 0
    for case in RECORDS:
        if case.outcome == "aside":
            assert case.why in reasons.get(place, f"taken as {rows.get(place)}"), case.name
            place += 1
            continue
        for kept in case.kept:
            row = rows.get(place, {})
            assert (row.get("prompt"), row.get("response"), row.get("n")) == kept, (case.name, reasons.get(place))
            place += 1
    assert place == len(rows) + len(reasons)


def text_rows() -> list[dict[str, Any]]:
    """Each text as prompt, as response and as reference of one row."""
    return [{"prompt": case.given, "response": case.given, "reference": case.given} for case in TEXTS]


def test_text_comes_out_of_every_kind_of_source_as_it_went_in(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(text_rows())
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(
        table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names])), tmp_path / "b.parquet"
    )
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, text_rows())))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in text_rows()))
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, quoting=csv.QUOTE_ALL).writerows(
            [table.column_names, *(row.values() for row in text_rows())]
        )
    (tmp_path / "store" / "rows").mkdir(parents=True)
    pq.write_table(table, tmp_path / "store" / "rows" / "00000.parquet")
    places = ["a.parquet", "b.parquet", "a.arrow", "a.jsonl", "b.jsonl", "a.csv", "store"]
    for place in places:
        kind = place.rpartition(".")[2]
        rows, reasons = outcomes(Source.model_validate({kind: str(tmp_path / place), "shard_rows": 40}))
        assert reasons == {}, place
        assert [{**row, "row_id": None} for row in rows.values()] == [{"row_id": None, **row} for row in text_rows()], (
            place
        )


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_a_file_gives_its_rows_or_one_line_of_error(case: Case, tmp_path: Path) -> None:
    for name, content in case.given.items():
        (tmp_path / name).write_bytes(content)
    kind = name.removesuffix(".gz").rpartition(".")[2]
    source = Source.model_validate({kind: str(tmp_path / f"*.{name.partition('.')[2]}"), "shard_rows": 1})
    if case.outcome == "error":
        with pytest.raises(SeamcurateError) as caught:
            run_local(Recipe(rows=source), tmp_path / "store")
        assert case.why in str(caught.value) and "\n" not in str(caught.value)
    else:
        report = run_local(Recipe(rows=source), tmp_path / "store")
        assert (report.rows, report.rejected) == (case.kept, 0)
        assert query(Store(tmp_path / "store"), "SELECT * FROM rows").num_rows == case.kept


@pytest.mark.parametrize("case", TABLES, ids=lambda case: case.name)
def test_files_of_other_schemas_are_united_or_refused(case: Case, tmp_path: Path) -> None:
    for number, columns in enumerate(case.given):
        pq.write_table(pa.table({"prompt": ["p"], "response": ["r"], **columns}), tmp_path / f"{number}.parquet")
    recipe = Recipe(rows=Source(parquet=str(tmp_path / "*.parquet"), shard_rows=1))
    if case.outcome == "error":
        with pytest.raises(SeamcurateError) as caught:
            run_local(recipe, tmp_path / "store")
        assert case.why in str(caught.value) and "\n" not in str(caught.value)
    else:
        report = run_local(recipe, tmp_path / "store")
        assert report.rows == case.kept and report.rows + report.rejected == len(case.given)
        assert query(Store(tmp_path / "store"), "SELECT * FROM rows").num_rows == case.kept


# Everything over one store of hostile rows.


class Brief(FakeModel):
    """Writes from the beginning of what it is asked: a fake's answers to a megabyte take a minute."""

    def _text(self, request: Any) -> str:
        short = [{**turn, "content": turn["content"][:300]} for turn in request.messages]
        text = super()._text(request._replace(messages=short))
        # Half an emoji, as a reply that was cut inside an escape has it.
        return text.replace('"]}', ' \\ud83d"]}') if request.schema else text


STEPS = (
    *(Retrieve(k=4, band=(-1, 1)), *seam("contrast", k=4), Generate(k=3), *seam("gpt", k=3)),
    # Each row's reference is its response: there is nothing to fit F to.
    *(AskQueryType(), *rer(asked=True), Rip(), RewardSpread(), LengthCalibrated()),
    *(RewardReliability(truth="number"), Random(), Perplexity(), Judge(), RelevantSentences()),
)
SPLITS = {
    "low": Split(filter=(FILTERS / "keep_above_lowest.sql").read_text(), by="seam_contrast", rate=0.2),
    "told": Split(
        filter="SELECT row_id, row_id % 3 > 0 AS keep, prompt AS rule, number AS value FROM rows", format="sft"
    ),
    "pairs": Split(filter="SELECT row_id FROM rows WHERE row_id % 2 = 0", format="preferences"),
    "labels": Split(filter="SELECT row_id FROM rows WHERE row_id % 2 = 1", format="unpaired"),
    "more": Split(filter="SELECT row_id FROM rows", augment=Augment(samples=2, pairs="both")),
}
ROWS = len(LINES) + 1 + len(TEXTS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Every line and every text of the corpus in one store, through every step."""
    folder = tmp_path_factory.mktemp("date=1") / "prompt=evil"
    folder.mkdir()
    texts = [json.dumps({**row, "number": i}).encode() for i, row in enumerate(text_rows())]
    (folder / "a.jsonl").write_bytes(b"\n".join([FIRST_LINE, *(case.given for case in LINES), *texts]))
    wordnet = wordnet_table(folder)
    source = Source(jsonl=str(folder / "a.jsonl"), response="response", shard_rows=50)
    fakes = Models(**{role: FakeModel(path=role) for role in ("policy", "reward", "encoder", "base")})
    writer = Brief(path="writer")
    models = fakes.model_copy(update={"generator": writer, "judge": writer})
    attack = Attack(k=3, query_budget=20, wordnet=str(wordnet))
    recipe = Recipe(rows=source, corpus=source, models=models, steps=(*STEPS, attack, *seam("adv", k=3)), splits=SPLITS)
    report = run_local(recipe, folder / "store")
    assert report.rows + report.rejected == ROWS
    return Store(folder / "store")


def texts_of(table: pa.Table, column: str, first: int = len(LINES) + 1) -> list[str]:
    """Return a column of the rows that are texts of the corpus, by their place."""
    rows = dict(zip(table["row_id"].to_pylist(), table[column].to_pylist(), strict=True))
    return [rows[first + i] for i in range(len(TEXTS))]


GIVEN = [case.given for case in TEXTS]


def test_every_row_is_in_the_store_or_among_the_rejected(store: Store) -> None:
    rows = query(store, "SELECT row_id, prompt, response, reference FROM rows")
    aside = query(store, "SELECT row_id, reason FROM rejected")
    assert sorted(chain(rows["row_id"].to_pylist(), aside["row_id"].to_pylist())) == list(range(ROWS))
    check(LINES, {r["row_id"]: r for r in rows.to_pylist()}, dict(zip(*aside.to_pydict().values(), strict=True)), 1)
    for column in ("prompt", "response", "reference"):
        assert texts_of(rows, column) == GIVEN


def test_every_step_says_something_of_every_text(store: Store) -> None:
    stored = query(store, "SELECT * FROM rows")
    assert stored.num_rows == len(store)
    may_lack = {"worse_adv", "hacked_adv", "already_adv", "edits_adv", "queries_adv", "worse_gpt"}
    for name in stored.column_names:
        if name.startswith(("seam_", "discrepancy_", "misjudged_", "candidates_", "baseline_", "judged_")):
            continue
        values = texts_of(stored, name) if stored[name].null_count else []
        if name not in may_lack and "reason" not in name and not name.endswith(("_adv", "_gpt")) and name in LISTED:
            assert None not in values, name
        kind = stored[name].type
        if pa.types.is_floating(kind) and name not in ("x",):
            assert all(math.isfinite(value) for value in stored[name].drop_null().to_pylist()), name
    # A set that is missing says why.
    for variant in ("gpt", "adv"):
        sets, why = (texts_of(stored, f"{kind}_{variant}") for kind in ("worse", "reason"))
        assert all(some or reason for some, reason in zip(sets, why, strict=True))
    assert stored["worse_contrast"].null_count == 0


LISTED = {
    *("reward", "rewards_contrast", "logprobs_contrast", "rer_length", "rer_repetition", "rer_query_relevance"),
    *("rer_reference_relevance", "query_type", "query_type_open", "query_type_by", "rer"),
}
"""Columns that no text of the corpus may be without."""


def test_every_split_keeps_or_drops_every_row_and_says_by_what(store: Store) -> None:
    for name in SPLITS:
        ledger = query(store, f"SELECT row_id, kept, rule FROM ledger WHERE split = '{name}'")
        assert sorted(ledger["row_id"].to_pylist()) == sorted(
            query(store, "SELECT row_id FROM rows")["row_id"].to_pylist()
        )
        record = json.loads((store.path / "splits" / name / "_split.json").read_text())
        assert record["kept"] + record["dropped"] == len(store) == ledger.num_rows
    ledger = query(store, "SELECT row_id, rule FROM ledger WHERE split = 'told'")
    assert texts_of(ledger, "rule") == GIVEN


def test_sql_answers_are_read_back_as_they_were(store: Store, tmp_path: Path) -> None:
    sql = "SELECT row_id, prompt, nullif(response, '?') AS \"a,\"\"b\", CASE WHEN row_id % 2 = 0 THEN '' END AS e FROM rows"
    asked = query(store, sql)
    for form in ("csv", "jsonl", "parquet"):
        with views.connect(store) as connection:
            tables.write(views.run(connection, sql), form, tmp_path / f"a.{form}")
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == asked.to_pylist()
    # Not by splitlines, which knows more line ends than JSON lines have.
    lines = (tmp_path / "a.jsonl").read_text("utf-8").split("\n")
    assert list(map(json.loads, lines[:-1])) == asked.to_pylist() and lines[-1] == ""
    whole = pyarrow.csv.read_csv(
        tmp_path / "a.csv",
        read_options=pyarrow.csv.ReadOptions(block_size=2**26),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in asked.column_names[1:]},
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )
    assert whole.to_pylist() == asked.to_pylist()
    csv.field_size_limit(2**24)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as handle:
        header, *records = csv.reader(handle, strict=True)
    assert header == asked.column_names
    assert records == [[str(v) if v is not None else "" for v in row.values()] for row in asked.to_pylist()]


def test_exports_are_loaded_as_they_were(store: Store, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    sft = export.to_trl(store, "told", tmp_path / "sft")
    loaded = datasets.load_dataset(str(sft.folder), split="train", cache_dir=str(tmp_path / "cache"))
    rows = {row["row_id"]: row for row in loaded}
    kept = [i for i in query(store, "SELECT row_id FROM rows")["row_id"].to_pylist() if i % 3 > 0]
    assert sorted(rows) == kept
    first = len(LINES) + 1
    for row_id in kept:
        if row_id >= first:
            one = GIVEN[row_id - first]
            assert (rows[row_id]["prompt"], rows[row_id]["completion"]) == (one, one)
    for to, name in ((export.to_openrlhf, "low"), (export.to_verl, "low"), (export.to_trl, "low")):
        done = to(store, name, tmp_path / to.__name__)
        table = pa.concat_tables(map(pq.read_table, sorted(done.folder.glob("*.parquet"))))
        wanted = query(
            store,
            "SELECT row_id, prompt FROM rows SEMI JOIN ledger ON ledger.row_id = rows.row_id AND split = 'low' AND kept",
        )
        column = table["input" if to is export.to_openrlhf else "prompt"].to_pylist()
        texts = [one[0]["content"] for one in column] if to is export.to_verl else column
        assert texts == wanted.sort_by("row_id")["prompt"].to_pylist()
    pairs = export.to_trl(store, "pairs", tmp_path / "pairs")
    written = pa.concat_tables(map(pq.read_table, pairs.folder.glob("*.parquet")))
    candidates = query(
        store, "SELECT count(*) AS n, sum((c.row_id % 2 = 0)::INT) AS pairs FROM candidates c"
    ).to_pylist()[0]
    assert written.num_rows == pairs.rows == candidates["pairs"]
    labels = export.to_trl(store, "labels", tmp_path / "labels")
    assert labels.rows == candidates["n"] - candidates["pairs"] + sum(
        i % 2 for i in query(store, "SELECT row_id FROM rows")["row_id"].to_pylist()
    )


def test_augmentation_gives_pairs_or_a_reason_for_every_row(store: Store, tmp_path: Path) -> None:
    done = export.to_augmented(store, "more", tmp_path / "more", SPLITS["more"].augment)
    dropped = pq.read_table(tmp_path / "more" / "dropped.parquet").to_pylist()
    every = set(query(store, "SELECT row_id FROM rows")["row_id"].to_pylist())
    for one in done:
        pairs = pa.concat_tables(map(pq.read_table, one.folder.glob("*.parquet")))
        gave, none = set(pairs["row_id"].to_pylist()), {r["row_id"] for r in dropped if r["data"] == one.folder.name}
        assert gave | none == every and not gave & none
        texts = dict(zip(*query(store, "SELECT row_id, prompt FROM rows").to_pydict().values(), strict=True))
        own = [row for row in pairs.to_pylist() if row["kind"] != "sft" and row["kind"] != "neighbour"]
        assert all(row["prompt"] == texts[row["row_id"]] for row in own)


class Page(HTMLParser):
    """Gathers what a browser would make of a page: tags, and the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.comments = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_comment(self, data: str) -> None:
        self.comments += 1


def test_no_text_becomes_a_part_of_the_report(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="starlette is not installed")
    from seamcurate.explore import report

    report(store, tmp_path / "report.html")
    written = (tmp_path / "report.html").read_text("utf-8")
    page = Page()
    page.feed(written)
    page.close()
    assert "&lt;script&gt;alert(1)" in written
    assert page.tags <= {
        "html",
        "meta",
        "title",
        "style",
        "h1",
        "h2",
        "h3",
        "article",
        "details",
        "summary",
        "pre",
        "div",
        "b",
        "p",
        "svg",
        "rect",
        "text",
        "path",
        "table",
        "tr",
        "th",
        "td",
    }
    assert not page.attributes & {"onerror", "onload", "href", "src"} and page.comments == 0
    assert not CONTROL.search(written)


def test_the_explorer_shows_every_row_and_downloads_what_sql_answers(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="starlette is not installed")
    from seamcurate.explore import Session, server
    from seamcurate.explore.row import row

    session = Session(store)
    every = query(store, "SELECT row_id FROM rows")["row_id"].to_pylist()
    for row_id in every if os.environ.get("SEAMCURATE_LONG_TEXTS") else every[::6]:
        shown = row(session, row_id)
        json.dumps(shown, allow_nan=False)
        if row_id > len(LINES):
            assert shown["prompt"] == shown["response"] == GIVEN[row_id - len(LINES) - 1]
    page = server._page(session, server._Page(by="row_id", limit=200))
    json.dumps([page, server._overview(session)], allow_nan=False)
    # The download is `tables.write` over the session's own answer.
    with session.reading("SELECT prompt, response FROM rows", seconds=60) as reader:
        tables.write(reader, "csv", tmp_path / "a.csv")
    csv.field_size_limit(2**24)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as handle:
        assert [one[0] for one in csv.reader(handle)][-len(GIVEN) :] == GIVEN


def test_what_is_told_of_a_row_is_lines_without_control_characters(store: Store) -> None:
    for row_id in [*range(0, ROWS, 29), len(LINES) + 1 + GIVEN.index("\x1b[2J\x1b[Hsort")]:
        for line in explain.why(store, row_id):
            assert not CONTROL.search(line) and "\n" not in line and len(line) < 1000, line


def test_the_card_stays_whole_whatever_the_rules_say(tmp_path: Path) -> None:
    rows = [
        {**row, "a|b `c` <i> ]( $\\frac{$": float(i)} for i, row in enumerate(text_rows()) if len(row["prompt"]) < 5000
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    score = "a|b `c` <i> ]( $\\frac{$"
    chosen = "SELECT row_id, prompt AS rule, {by} AS value FROM rows WHERE row_id // 20 = $part"
    parts = {f"part{i}": {"filter": chosen, "by": score, "part": i} for i in range(-(-len(rows) // 20))}
    recipe = {"rows": {"jsonl": "rows.jsonl"}, "steps": ["random"], "splits": parts}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_local(Recipe.load(tmp_path / "recipe.yaml"), tmp_path / "store")
    prepared = hub.prepare(tmp_path / "recipe.yaml", Store(tmp_path / "store"), "me/mine")
    told = prepared.card + (prepared.folder / card.DETAILS).read_text(encoding="utf-8")
    _, front, body = told.split("---\n", 2)
    assert [one["config_name"] for one in yaml.safe_load(front)["configs"]] == list(parts)
    assert not CONTROL.search(told)
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1\n", "", body, flags=re.MULTILINE | re.DOTALL)
    # Of our own tags there are these; every other < is escaped.
    assert set(re.findall(r"<(?!/?details>|/?summary>)[^ ]?", prose)) == set()
    assert not re.search(r"^(---|```)", prose, re.MULTILINE) and "](javascript" not in prose
    columns, seen = 0, 0
    for before, line in pairwise(prose.splitlines()):
        if line.startswith("|---"):
            columns, seen = line.count("|"), seen + 1
            assert len(re.findall(r"(?<!\\)\|", before)) == columns
        elif line.startswith("|") and before.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == columns, line
    assert seen >= 2 * len(parts)


def test_the_command_line_answers_or_says_in_one_line_what_is_wrong(store: Store) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "seamcurate.cli", *words]
        return subprocess.run(command, capture_output=True, timeout=120, cwd=Path(__file__).parents[1])

    # The value that cannot be converted is a row's text, whatever is in it.
    wrong = run(
        "sql", str(store.path), f"SELECT prompt::DOUBLE FROM rows WHERE row_id > {len(LINES)}", "--format", "csv"
    )
    assert wrong.returncode == 2 and wrong.stderr.startswith(b"error: ") and wrong.stderr.count(b"\n") == 1
    assert len(wrong.stderr) < 2000
    right = run("sql", str(store.path), "SELECT prompt FROM rows ORDER BY row_id", "--format", "table")
    assert right.returncode == 0 and not CONTROL.search(right.stdout.decode())


# Names and types of columns.


def test_a_column_may_be_called_almost_anything(tmp_path: Path) -> None:
    names = [case.name for case in NAMES]
    rows, corpus = write_files(tmp_path)
    whole = pq.read_table(rows).slice(0, 6)
    for i, name in enumerate(names):
        values = [i + 1000 * row for row in range(6)]
        whole = whole.append_column(name, pa.array(values if i % 2 else [f"t{v % 2000}" for v in values]))
    pq.write_table(whole, rows)
    fakes = Models(**{role: FakeModel(path=role) for role in ("policy", "reward", "encoder")})
    keep = "SELECT row_id FROM rows"
    recipe = Recipe(
        rows=Source(parquet=str(rows), shard_rows=4),
        corpus=Source(parquet=str(corpus)),
        models=fakes,
        steps=(Retrieve(k=3, band=(0.5, 0.9)), *seam("contrast", k=3), *rer()),
        splits={"all": Split(filter=keep), "pairs": Split(filter=keep, format="unpaired")},
    )
    run_local(recipe, tmp_path / "store")
    store = Store(tmp_path / "store")
    found = query(store, "SELECT * FROM rows")
    assert found.select(names).to_pydict() == whole.select(names).to_pydict()
    assert len({name.lower() for name in found.column_names}) == len(found.column_names)
    quoted = ", ".join(map(views.quoted, names))
    assert query(store, f"SELECT {quoted} FROM rows").to_pydict() == whole.select(names).to_pydict()
    ranks = query(store, "SELECT rank, source_row_id, reward, weight FROM candidates WHERE row_id = 0 ORDER BY rank")
    assert ranks["rank"].to_pylist() == [1, 2, 3] and ranks["reward"].null_count == 0
    for to, split in (
        (export.to_trl, "all"),
        (export.to_openrlhf, "all"),
        (export.to_verl, "all"),
        (export.to_trl, "pairs"),
    ):
        done = to(store, split, tmp_path / f"{to.__name__}-{split}")
        table = pq.read_table(next(done.folder.glob("*.parquet")))
        table = pa.Table.from_struct_array(table["extra_info"].combine_chunks()) if to is export.to_verl else table
        own = ["source_rejected" if name == "rejected" and to is export.to_trl else name for name in names]
        first = table.slice(0, 1).select(own).rename_columns(names).to_pydict()
        assert first == whole.slice(0, 1).select(names).to_pydict()
    for name in names[1::24]:
        by = Split(filter=(FILTERS / "keep_above_lowest.sql").read_text(), by=name, rate=0.5)
        made = splits.make(store, "by", by)
        assert made.kept + made.dropped == 6
    pytest.importorskip("starlette", reason="starlette is not installed")
    from seamcurate.explore import report
    from seamcurate.explore.session import Session

    files = report(store, tmp_path / "report.html", tmp_path / "figures")
    for file in (one for one in files[1:] if one.suffix == ".svg"):
        ElementTree.parse(file)
    charted = {chart.column.name for chart in Session(store).charts}
    assert set(names[1::2]) - {"_candidates", "_length", "_misjudged"} <= charted


@pytest.mark.parametrize("case", REFUSED_NAMES + STEP_NAMES, ids=lambda case: case.name)
def test_a_name_that_clashes_is_refused_with_what_to_write(case: Case, tmp_path: Path) -> None:
    whole = pa.Table.from_pylist(questions(2)).append_column(case.given, pa.array([1, 2]))
    if case.given.lower() == "reference":
        whole = whole.drop_columns("reference")
    pq.write_table(whole, tmp_path / "a.parquet")
    fakes = Models(**{role: FakeModel(path=role) for role in ("policy", "reward", "encoder")})
    steps = (Retrieve(k=3, band=(0.5, 0.9)), *seam("contrast"), *(seam("gpt") if case.given == "worse_gpt" else ()))
    source = Source(parquet=str(tmp_path / "a.parquet"))
    recipe = Recipe(rows=source, corpus=source, models=fakes, steps=steps)
    with pytest.raises(SeamcurateError) as caught:
        run_local(recipe, tmp_path / "store")
    assert case.why in str(caught.value) and "\n" not in str(caught.value)
    renamed = source.model_copy(update={"rename": {case.given: "other"}})
    if case.given != "worse_gpt":
        run_local(recipe.model_copy(update={"rows": renamed, "corpus": renamed}), tmp_path / "other")
        assert query(Store(tmp_path / "other"), "SELECT other FROM rows")["other"].to_pylist() == [1, 2]


@pytest.mark.parametrize("case", TRAINER_NAMES, ids=lambda case: case.name)
def test_a_name_a_trainer_has_a_use_for_is_changed_by_the_export(case: Case, tmp_path: Path) -> None:
    worse = {"worse_contrast": [{"response": "no", "similarity": 0.5, "source_row_id": 0}]}
    rows = pa.Table.from_pylist([row | worse for row in questions(2)])
    pq.write_table(rows.append_column(case.given, pa.array([1, 2])), tmp_path / "a.parquet")
    form = "preferences" if "preference" in case.name or "candidate" in case.name else "prompts"
    split = Split(filter="SELECT row_id FROM rows", format=form)
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "a.parquet")), splits={"all": split}), tmp_path / "store")
    to = {"OpenRLHF": export.to_openrlhf, "verl": export.to_verl}.get(case.name.partition("'")[0], export.to_trl)
    done = to(Store(tmp_path / "store"), "all", tmp_path / "out")
    table = pq.read_table(next(done.folder.glob("*.parquet")))
    table = pa.Table.from_struct_array(table["extra_info"].combine_chunks()) if to is export.to_verl else table
    assert table[f"source_{case.given}"].to_pylist() == [1, 2]
    assert f"exported are {case.given} as source_{case.given}" in done.note


def test_a_column_that_clashes_late_is_renamed_as_the_error_says(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "n": 1}\n{"prompt": "b", "N": 2, "response": "r"}\n')
    source = Source(jsonl=str(tmp_path / "a.jsonl"), shard_rows=1, rename={"N": "m", "response": "source_response"})
    rows, _ = outcomes(source)
    assert rows[1] == {"row_id": 1, "prompt": "b", "n": None, "m": 2, "source_response": "r"}


def test_a_column_may_hold_almost_any_type(tmp_path: Path) -> None:
    columns = {f"{i} {case.name}": case.given for i, case in enumerate(TYPES)}
    whole = pa.table({"prompt": ["a", "b"], "response": ["x", "y"], **columns})
    with pa.ipc.new_file(tmp_path / "a.arrow", whole.schema) as writer:
        # One row apart, so that a row that is set aside is shown with every type.
        writer.write_table(pa.concat_tables([whole, whole.set_column(0, "prompt", pa.array([" ", "c"]))]))
    pq.write_table(whole, tmp_path / "a.parquet", store_schema=True)
    for kind, total in (("arrow", 4), ("parquet", 2)):
        split = {"all": Split(filter="SELECT row_id FROM rows")}
        report = run_local(
            Recipe(rows=Source.model_validate({kind: str(tmp_path / f"a.{kind}"), "shard_rows": 2}), splits=split),
            tmp_path / kind,
        )
        assert (report.rows, report.rejected) == (total - (kind == "arrow"), int(kind == "arrow"))
        store = Store(tmp_path / kind)
        found = query(store, "SELECT * FROM rows")
        wanted = {name for name, case in zip(columns, TYPES, strict=True) if case.kept is None}
        assert set(found.column_names) - {"row_id", "prompt", "response", "reference"} == wanted
        plain = {n for n in wanted if n.split(" ", 1)[1] in EQUAL}
        for name in plain:
            assert found[name].to_pylist()[:2] == whole[name].to_pylist(), name
        for to in (export.to_trl, export.to_openrlhf, export.to_verl):
            assert to(store, "all", tmp_path / f"{kind}-{to.__name__}").rows == report.rows
        for form in ("csv", "jsonl", "parquet"):
            with views.connect(store) as connection:
                tables.write(views.run(connection, "SELECT * FROM rows"), form, tmp_path / f"a.{form}2")
        assert (tmp_path / "a.jsonl2").read_text().count("\n") == report.rows
        pytest.importorskip("starlette", reason="starlette is not installed")
        from seamcurate.explore import Session, server
        from seamcurate.explore import report as write
        from seamcurate.explore.row import row

        write(store, tmp_path / "report.html")
        session = Session(store)
        assert max(chart.bins for chart in session.charts) <= 200
        page = server._page(session, server._Page(by="row_id"))
        json.dumps([row(session, 0), page, server._overview(session)], allow_nan=False)


EQUAL = {
    *("bool", "int8", "uint64", "int64 beyond 2^53", "float32", "decimal128", "decimal32", "date32", "large string"),
    *("string view", "dictionary of text", "dictionary of numbers", "binary that is no text", "large binary"),
    *("list", "large list", "list of lists", "struct", "map", "time64", "binary view", "tensor"),
} - {"tensor"}
"""Types whose values SQL gives back as Python knows them."""


@pytest.mark.parametrize("case", REFUSED_TYPES, ids=lambda case: case.name)
def test_a_type_that_nothing_can_hold_is_refused_by_its_column(case: Case, tmp_path: Path) -> None:
    whole = pa.table({"prompt": ["a", "b"], "odd": case.given})
    with pa.ipc.new_file(tmp_path / "a.arrow", whole.schema) as writer:
        writer.write_table(whole)
    with pytest.raises(SeamcurateError, match="column 'odd'") as caught:
        run_local(Recipe(rows=Source(arrow=str(tmp_path / "a.arrow"))), tmp_path / "store")
    assert case.why in str(caught.value) and "\n" not in str(caught.value)


# Scores.


class Odd(FakeModel):
    """Gives the scores of the corpus, and embeddings that are none; each by the text alone."""

    def rewards(self, prompts: Any, responses: Any) -> list[list[float | None]]:
        drawn = super().rewards(prompts, responses)
        return [[self._odd(a, d) for a, d in zip(*pair, strict=True)] for pair in zip(responses, drawn, strict=True)]

    def _odd(self, answer: str, drawn: float | None) -> float | None:
        step = re.search(r"step (\d+)", answer)
        return SCORES[int(step[1]) % 20].given if step and int(step[1]) % 20 < len(SCORES) else drawn

    def logprobs(self, prompts: Any, responses: Any) -> list[list[Likelihood | None]]:
        found = super().logprobs(prompts, responses)
        odd = [float("nan"), -float("inf"), float("inf"), -1e308, 3e38]
        return [
            [
                Likelihood(odd[len(a) % 7], one.tokens, False) if one and len(a) % 7 < 5 else one
                for a, one in zip(*pair, strict=True)
            ]
            for pair in zip(responses, found, strict=True)
        ]

    def embed(self, texts: Any) -> Any:
        vectors = super().embed(texts)
        for i, text in enumerate(texts):
            if number := re.search(r"number (\d+)", text):
                vectors[i] *= {0: math.nan, 1: math.inf, 2: 0, 3: 1e30}.get(int(number[1]) % 9, 1)
        return vectors


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("likelihood", ["geometric", "logprob"])
def test_no_score_that_is_not_finite_reaches_a_column(likelihood: Any, tmp_path: Path) -> None:
    rows, corpus = write_files(tmp_path)
    table = pq.read_table(rows)
    truth = [[0.5, math.nan, math.inf, None, -1e308][i % 5] for i in range(len(table))]
    pq.write_table(table.append_column("truth", pa.array(truth)), rows)
    odd = Models(**{role: Odd(path=role) for role in ("policy", "reward", "encoder", "base")})
    by = {"filter": (FILTERS / "keep_above_lowest.sql").read_text(), "rate": 0.2}
    recipe = Recipe(
        rows=Source(parquet=str(rows), shard_rows=15),
        corpus=Source(parquet=str(corpus), shard_rows=64),
        models=odd,
        steps=(
            *(Retrieve(k=5, band=(0.4, 0.95)), *seam("contrast", k=5, likelihood=likelihood), *rer(), Rip()),
            *(RewardSpread(), LengthCalibrated(), RewardReliability(truth="truth"), Perplexity()),
        ),
        splits={name: Split(by=name, **by) for name in ("seam_contrast", "rer", "truth", "baseline_perplexity")},
    )
    report = run_local(recipe, tmp_path / "store")
    store = Store(tmp_path / "store")
    found = query(store, "SELECT * EXCLUDE (truth) FROM rows")
    for name, column in zip(found.column_names, found.columns, strict=True):
        flat = column.combine_chunks().flatten() if pa.types.is_list(column.type) else column
        if pa.types.is_floating(flat.type):
            assert all(math.isfinite(value) for value in flat.drop_null().to_pylist()), name
    rewards = found["reward"].to_pylist()
    assert rewards[: len(SCORES)] == [case.kept for case in SCORES]
    assert rewards[20 : 20 + len(SCORES)] == rewards[: len(SCORES)]
    told = "\n".join(report.lines)
    assert "warning: reward: 12 of 40 scores are NULL" in told
    assert "warning: seam_contrast: " in told and "left out" in told
    for file in store.path.rglob("*.json"):
        json.loads(file.read_text("utf-8"), parse_constant=pytest.fail)
    for name in recipe.splits:
        ledger = query(
            store, f"SELECT count(*) AS n, count(value) AS valued FROM ledger WHERE split = '{name}'"
        ).to_pylist()
        assert ledger[0]["n"] == len(store) > ledger[0]["valued"] > 0


def test_an_encoder_that_gives_nothing_finite_is_named(tmp_path: Path) -> None:
    class Nothing(FakeModel):
        def embed(self, texts: Any) -> Any:
            return super().embed(texts) * math.nan

    rows, _ = write_files(tmp_path)
    recipe = Recipe(rows=Source(parquet=str(rows)), models=Models(encoder=Nothing()), steps=rer())
    with pytest.raises(SeamcurateError, match="labelled examples of query types no finite"):
        run_local(recipe, tmp_path / "store")


# Real models, once over all texts.


def test_real_models_score_every_text_or_say_it_does_not_fit(
    policy_folder: Path, decoder_reward_folder: Path, encoder_reward_folder: Path
) -> None:
    policy, chat = (
        CausalLM(path=str(policy_folder), max_response_tokens=100).load(),
        SequenceClassifier(path=str(decoder_reward_folder)).load(),
    )
    pair = SequenceClassifier(path=str(encoder_reward_folder), pair=True).load()
    # A text that fills the window as a prompt is scored as an answer too, whose end is cut.
    long = [one for one in GIVEN if len(one.encode()) > 100]
    prompts = [*GIVEN, *(["how do I sort a list"] * len(long))]
    answers = [*([one[:20] or "so"] for one in GIVEN), *([one] for one in long)]
    scored: dict[str, list[Any]] = {
        "policy": [one and one.logprob for (one,) in policy.logprobs(prompts, answers)],
        "chat": [one for (one,) in chat.rewards(prompts, answers)],
        "pair": [one for (one,) in pair.rewards(prompts, answers)],
    }
    for name, values in scored.items():
        assert len(values) == len(prompts), name
        for prompt, (answer,), value in zip(prompts, answers, values, strict=True):
            if value is None:
                # Only what fills the window may be without a score: a long response is cut.
                unread = "<|endoftext|>" in prompt + answer
                assert unread or len(prompt.encode()) > 200, (name, prompt[:50], answer[:50])
            else:
                assert math.isfinite(value), (name, prompt[:50], answer[:50])
    encoder = SentenceEncoder(path=str(encoder_reward_folder), pooling="mean").load()
    vectors = encoder.embed(GIVEN)
    assert vectors.shape[0] == len(GIVEN) and bool((abs(vectors).sum(axis=1) > 0).all())


STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)


def test_a_chat_its_template_refuses_has_no_score_and_stops_nobody(
    policy_folder: Path, decoder_reward_folder: Path, encoder_reward_folder: Path, tmp_path: Path
) -> None:
    fair = [{"role": "user", "content": "how do I sort a list"}]
    chats = [fair, [*fair, *fair], [{"role": "system", "content": "obey"}, *fair], fair]
    for kind, source in (
        (CausalLM, policy_folder),
        (SequenceClassifier, decoder_reward_folder),
        (SequenceClassifier, encoder_reward_folder),
    ):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        (folder / "chat_template.jinja").write_text(STRICT)
        model: Any = kind(path=str(folder)).load()
        score = model.logprobs if kind is CausalLM else model.rewards
        scored = score(chats, [["so"]] * len(chats))
        assert [one is None for (one,) in scored] == [False, True, True, False], source
        assert scored[0] == scored[3]


# Properties.


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(st.none() | valid_text, st.none() | valid_text), max_size=6))
def test_csv_is_read_back_as_it_was_written(rows: list[tuple[str | None, str | None]]) -> None:
    table = pa.table(
        {"a": pa.array([a for a, _ in rows], pa.string()), "b": pa.array([b for _, b in rows], pa.string())}
    )
    handle = io.StringIO(newline="")
    tables._lines(table.to_reader(), "csv", handle)
    header, *records = csv.reader(io.StringIO(handle.getvalue(), newline=""), strict=True)
    assert header == ["a", "b"] and records == [[a or "", b or ""] for a, b in rows]
    # What is NULL stands bare, what is empty in quotes.
    assert len(re.findall(r"(?:^|,)(?=,|$)", handle.getvalue(), re.MULTILINE)) >= sum(
        (a is None) + (b is None) for a, b in rows
    )


@settings(max_examples=200, deadline=None)
@given(text=valid_text)
def test_no_text_breaks_out_of_a_cell_of_the_card(text: str) -> None:
    cell = markdown.cell(text)
    assert "\n" not in cell and "\r" not in cell and "`" not in cell and "<" not in cell and "](" not in cell
    for pipe in re.finditer(r"(\\*)\|", cell):
        assert len(pipe[1]) == 1


# What a source brings along in place of a step's columns.

_TWO = [{"response": "a b"}, {"response": "c d"}]
BROUGHT = {
    "reward": 0.5,
    "worse_gpt": _TWO,
    "rewards_gpt": [1.0, 2.0],
    "logprobs_gpt": [-1.0, -2.0],
    "tokens_gpt": [1, 2],
}
FEATURES = {
    **{f"rer_{name}": 0.5 for name in ("length", "repetition", "query_relevance", "reference_relevance")},
    "query_type": "open",
}


def brought(tmp_path: Path, columns: dict[str, Any], steps: Any) -> list[dict[str, Any]]:
    """Run steps over a source that has their inputs already."""
    rows = [row | columns for row in questions(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "a.parquet")), steps=steps), tmp_path / "store")
    rows = query(Store(tmp_path / "store"), "SELECT * FROM rows").to_pylist()
    assert len(rows) == 3
    return rows


WRONG = [
    error("text for a reward", {"reward": "reward 1"}, "'reward' as a number, and the source's column is string"),
    error("a list for a reward", {"reward": [0.5]}, "'reward' as a number"),
    error("a date for a reward", {"reward": datetime.date(2020, 1, 1)}, "'reward' as a number"),
    error("a number for rewards", {"rewards_gpt": 0.5}, "'rewards_gpt' as a list of numbers"),
    error("texts for rewards", {"rewards_gpt": ["a", "b"]}, "'rewards_gpt' as a list of numbers"),
    error("text for tokens", {"tokens_gpt": "12"}, "'tokens_gpt' as a list of numbers"),
    error("fewer rewards", {"rewards_gpt": [1.0]}, "row 0 has"),
    error("more likelihoods", {"logprobs_gpt": [-1.0] * 3}, "row 0 has"),
    error("fewer likelihoods", {"logprobs_gpt": [-1.0]}, "row 0 has"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_a_column_that_no_step_could_have_made_is_refused_with_what_to_write(case: Case, tmp_path: Path) -> None:
    (name,) = case.given
    steps = {"reward": RewardSpread(variant="gpt"), "rewards_gpt": Rip(variant="gpt")}.get(name, Seam(variant="gpt"))
    with pytest.raises(SeamcurateError) as caught:
        brought(tmp_path, BROUGHT | case.given, (steps,))
    said = str(caught.value)
    assert case.why in said and name in said and "\n" not in said
    assert f"rename: {{{name}: source_{name}}}" in said or "give both one for each candidate" in said


@pytest.mark.parametrize("case", SCORES, ids=lambda case: case.name)
def test_a_score_that_a_source_brings_along_is_taken_where_it_can_be_compared(case: Case, tmp_path: Path) -> None:
    steps = (Seam(variant="gpt"), RewardSpread(variant="gpt"), Rer())
    features = FEATURES | {"rer_repetition": case.given}
    row = brought(tmp_path, BROUGHT | features | {"reward": case.given}, steps)[0] if case.given is not None else {}
    for name in ("seam_gpt", "baseline_reward_margin_gpt", "rer"):
        assert (row.get(name) is None) == (case.kept is None), name
    given_ = {"rewards_gpt": [case.given, 1.0], "logprobs_gpt": [-1.0, -1.0]}
    (tmp_path / "two").mkdir()
    found = brought(tmp_path / "two", BROUGHT | given_, (Seam(variant="gpt"),))[0]
    assert found["candidates_gpt"] == (1 if case.kept is None else 2)
    assert found["seam_gpt"] is not None and math.isfinite(found["seam_gpt"])


@pytest.mark.parametrize("odd", ["OPEN", "", "\x1b[31m\n"])
def test_a_query_type_that_is_none_is_no_closed_one(odd: str, tmp_path: Path) -> None:
    with pytest.raises(SeamcurateError, match="query_type is open, closed or null, not") as caught:
        brought(tmp_path, FEATURES | {"query_type": odd}, (Rer(),))
    assert "\n" not in str(caught.value)


# Plans and comparisons.


def test_a_plan_counts_every_row_and_asks_for_no_more(store: Store) -> None:
    source = Source(jsonl=str(store.path.parent / "a.jsonl"), response="response", shard_rows=50)
    fakes = Models(
        **{role: FakeModel(path=role) for role in ("policy", "reward", "encoder", "base", "generator", "judge")}
    )
    made = estimate.plan(Recipe(rows=source, corpus=source, models=fakes, steps=STEPS), store.path.parent / "none")
    assert (made.rows, made.rejected, made.corpus) == (len(store), ROWS - len(store), len(store))
    assert [file.name for file in (store.path.parent / "none").iterdir()] == ["plan.json"]
    for line in (*made.lines, *made.notes):
        assert not CONTROL.search(str(line)) and "\n" not in str(line)


def test_two_runs_are_compared_in_lines_whatever_their_rules_say(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "other")
    other = Store(tmp_path / "other")
    turned = "SELECT row_id, row_id % 3 = 0 AS keep, response || '\n\x1b[2J' AS rule, number AS value FROM rows"
    splits.make(other, "told", Split(filter=turned, format="sft"))
    found = comparison.diff(str(store.path), str(other.path))
    moved = next(one for one in found.splits if one.split == "told")
    assert moved.rows["row_id"].to_pylist() == query(store, "SELECT row_id FROM rows ORDER BY 1")["row_id"].to_pylist()
    lines = list(found.lines())
    assert len(lines) > len(GIVEN)
    for line in lines:
        assert not CONTROL.search(line) and "\n" not in line and len(line) < 500
    # A threshold that one side has not is none.
    splits.make(
        other,
        "pairs",
        Split(filter="SELECT row_id, true AS keep, 'r' AS rule, 1.0 AS value, 0.5 AS threshold FROM rows"),
    )
    shutil.copytree(other.path, tmp_path / "third")
    splits.make(
        Store(tmp_path / "third"),
        "pairs",
        Split(filter="SELECT row_id, false AS keep, 'r' AS rule, 1.0 AS value FROM rows"),
    )
    told = list(comparison.diff(str(other.path), str(tmp_path / "third")).lines())
    assert any("the threshold moved from 0.5 to none" in line for line in told)


# The Hub as a source.

FROM_HUB = """
import json, pathlib, sys
from seamcurate.errors import SeamcurateError
from seamcurate.data.source import Source
told = {}
for name in sys.argv[2:]:
    try:
        chunks = list(Source(hub=f"me/{name}", shard_rows=40).chunks())
        told[name] = [[one for chunk in chunks for one in table(chunk).to_pylist()]
            for table in (lambda c: c.rows, lambda c: c.rejected)]
    except SeamcurateError as error:
        told[name] = str(error)
pathlib.Path(sys.argv[1]).write_text(json.dumps(told))
"""


def test_what_the_hub_holds_is_taken_set_aside_or_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    rows = [{"prompt": one, "response": one} for one in (*GIVEN, None, "", " \n\u3000")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts.parquet")
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"prompt": bad, "response": ["r"]}), tmp_path / "bad.parquet")
    lines = b"\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows if row["prompt"])
    refused = {
        "cut": {"train.jsonl": b'{"prompt": "a"}\n{"prompt": "b'},
        "number": {"train.jsonl": b'{"prompt": 7}\n'},
    }
    with serving() as server:
        server.add("me/texts", {"data/train.parquet": (tmp_path / "texts.parquet").read_bytes()})
        server.add("me/bad", {"data/train.parquet": (tmp_path / "bad.parquet").read_bytes()})
        server.add("me/lines", {"train.jsonl": lines})
        server.add("me/cells", {"train.csv": b"prompt,response\nNULL,a\nb,c\n"})
        for name, held in refused.items():
            server.add(f"me/{name}", held)
        environment = os.environ | {
            "HF_ENDPOINT": server.address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        names = ["texts", "bad", "lines", "cells", *refused]
        ran = subprocess.run(
            [sys.executable, "-c", FROM_HUB, str(tmp_path / "told.json"), *names],
            env=environment, cwd=Path(__file__).parents[1], capture_output=True, timeout=240,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr.decode()[-2000:]
    told = json.loads((tmp_path / "told.json").read_text())
    taken, aside_ = told["texts"]
    assert [(row["row_id"], row["prompt"], row["response"]) for row in taken] == [
        (i, t, t) for i, t in enumerate(GIVEN)
    ]
    assert [(one["row_id"], one["reason"]) for one in aside_] == [
        (len(GIVEN), "prompt is null"), (len(GIVEN) + 1, "prompt is blank"), (len(GIVEN) + 2, "prompt is blank"),
    ]  # fmt: skip
    assert [row["prompt"] for row in told["lines"][0]] == [
        row["prompt"] for row in rows if str(row["prompt"]).strip() and row["prompt"]
    ]
    assert [one["reason"] for one in told["bad"][1]] == ["invalid UTF-8 in prompt"] and told["bad"][0] == []
    # `datasets` reads CSV by pandas, to which NULL is none: the row is set aside, not lost.
    assert [one["reason"] for one in told["cells"][1]] == ["prompt is null"]
    assert [row["prompt"] for row in told["cells"][0]] == ["b"]
    for name in refused:
        assert isinstance(told[name], str) and "\n" not in told[name] and f"me/{name}" in told[name], told[name]


# Answers.


def test_a_policy_answers_every_text_that_leaves_room(policy_folder: Path, tmp_path: Path, capfd: Any) -> None:
    rows = [{"prompt": one, "n": i} for i, one in enumerate(GIVEN) if len(one) <= 600]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    config = Answering(max_new_tokens=3, batch_size=64)
    count = write_answers(policy_folder, tmp_path / "a.jsonl", tmp_path / "a.parquet", config)
    written = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert count == len(written) and [row["prompt"] for row in written] == [GIVEN[row["n"]] for row in written]
    left = {row["n"] for row in rows} - {row["n"] for row in written}
    # Only what fills the window is skipped, and that is said.
    assert left and all(len(GIVEN[i].encode()) > 200 for i in left)
    assert f"answer: {len(left)} prompt" in capfd.readouterr().err
    for line in (b'{"prompt": "a \\ud83d"}', b'{"prompt": "caf\xe9"}', b'{"prompt": ' + b"[" * 10_000, b"[1]", b"NaN"):
        (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "p"}\n\n' + line + b"\n")
        with pytest.raises(SeamcurateError, match=r"b\.jsonl, line 3: ") as caught:
            write_answers(policy_folder, tmp_path / "b.jsonl", tmp_path / "b.parquet", config)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "b.parquet").exists()
