"""Hostile and dirty tables through every study: a right measurement, or one line that names the row; none is left out unsaid."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from endpoint import serving
from hostile import FILES, LINES, MEGABYTE, REFUSED_TYPES, SCORES, TEXTS, TYPES, Case, error
from hypothesis import given, settings
from hypothesis import strategies as st

from seamcurate import FakeModel, cli, study, tables
from seamcurate.errors import SeamcurateError, StudyError
from seamcurate.study import figure, sources, texts

pytestmark = pytest.mark.slow

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
NAN, INF = float("nan"), float("inf")
GIVEN = [case.given for case in TEXTS]
NAMES = [text for text in GIVEN if len(text) <= 200 and text.strip()]
"""Texts of the corpus that may name a method, a model or a subset."""


def table(rows: list[dict[str, Any]], /, **columns: Callable[[int], Any]) -> pa.Table:
    """Make a table of rows, some columns made anew by their place."""
    return pa.Table.from_pylist([row | {n: make(i) for n, make in columns.items()} for i, row in enumerate(rows)])


RUNS = [{"method": m, "seed": s, "quality": 0.1 * s + (m == "seam")} for m in ("full", "seam") for s in range(3)]
RATES = [
    {"method": m, "rate": r, "seed": s, "quality": 0.1 * s + r}
    for m, rates in {"full": (0.0,), "seam": (0.1, 0.2, 0.4)}.items()
    for r in rates
    for s in range(2)
]
GRID = [
    {"policy": p, "reward": r, "seed": s, "quality": 0.1 * s + p + r}
    for p in range(3) for r in range(3) for s in range(2)
]  # fmt: skip
HOMES = [
    {"model": m, "data": d, "seed": s, "quality": 0.5 + 0.1 * s}
    for m in ("policy", "reward") for d in ("sft", "preference", "rl") for s in range(2)
]  # fmt: skip
PROXIES = [
    {"proxy": p, "checkpoint": c, "seed": s, "proxy_mean": c + 0.1 * s, "gold_mean": 0.5 * c, "length_mean": c}
    for p in ("LI", "RER") for c in range(4) for s in range(2)
]  # fmt: skip
COUNTS = [
    {"first": "a", "second": b, "seed": 0, "rows": 100, "lowest_first": 20, "lowest_second": 20, "shared": 10}
    for b in "bc"
]
LIKELIHOODS = [
    {"set": s, "row_id": i, "logprob": -1.0 - i, "n_tokens": 3} for s in ("golden", "contrast") for i in range(4)
]
PAIRS = [
    {"prompt": f"p{i}", "chosen": f"a {i}", "rejected": f"b {i}", "subset": "xy"[i % 2], "context": None}
    for i in range(6)
]
PEOPLE = [{"prompt": f"p{i}", "response_a": f"a {i}", "response_b": f"b {i}", "label": "ab"[i % 2]} for i in range(6)]
VERDICTS = [{"reward": "r", "prompt_id": i, "human": "a", "model": "b"} for i in range(5)]
SCORED = [{"reward": "r", "prompt_id": i, "score_chosen": float(i), "score_rejected": 2.0} for i in range(5)]
JUDGED = [
    {"model": "m", "prompt_id": i, "position": p, "verdict": "win", "response": "r", "baseline_response": "s"}
    for i in range(4) for p in ("first", "second")
]  # fmt: skip
ANSWERS = [
    {"model": "m", "prompt": f"p{i}", "response": "a b c d e", "query_type": "open", "relevant_sentences": 0.5}
    for i in range(4)
]
TASKS = [
    {"model": m, "task": "t", "instance_id": i, "references": ["a b"], "response": "a b", "input": "a"}
    for m in "ab" for i in range(4)
]  # fmt: skip

FAKE = {"rewards": {"r": FakeModel()}}
STUDIES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, str]]] = {
    # Rows; options; and of each column what it holds: names, numbers, texts, prompts.
    "selection": (RUNS, {"baseline": "full"}, {"method": "name", "seed": "number", "quality": "number"}),
    "augmentation": (RUNS, {"baseline": "full"}, {"method": "name", "quality": "number"}),
    "query-type": (RUNS, {"baseline": "full"}, {"method": "name", "quality": "number"}),
    "filter-rate": (RATES, {}, {"method": "name", "rate": "number", "seed": "number", "quality": "number"}),
    "saturation": (GRID, {}, {"policy": "number", "reward": "number", "seed": "number", "quality": "number"}),
    "sanity": (HOMES, {}, {"data": "name", "quality": "number"}),
    "monotonicity": (
        PROXIES,
        {},
        {"proxy": "name", "checkpoint": "number", "proxy_mean": "number", "gold_mean": "number", "length_mean": "number"},
    ),
    "overlap": (COUNTS, {}, {"first": "name", "second": "name", "rows": "number", "shared": "number"}),
    "likelihood": (LIKELIHOODS, {}, {"set": "name", "row_id": "name", "logprob": "number", "n_tokens": "number"}),
    "preference": (PAIRS, FAKE, {"prompt": "prompt", "chosen": "text", "rejected": "text", "subset": "name"}),
    "mismatch": (PEOPLE, FAKE, {"prompt": "prompt", "response_a": "text", "response_b": "text"}),
    "mismatch of verdicts": (VERDICTS, {}, {"reward": "name", "prompt_id": "name"}),
    "preference of scores": (SCORED, {}, {"score_chosen": "number", "score_rejected": "number"}),
    "winrate": (JUDGED, {}, {"model": "name", "prompt_id": "name", "response": "text", "baseline_response": "text"}),
    "responses": (ANSWERS, {}, {"model": "name", "prompt": "prompt", "query_type": "name"}),
    "tax": (TASKS, {}, {"model": "name", "task": "name", "instance_id": "name", "references": "text"}),
}  # fmt: skip

DIRTY = {
    "number": [
        error("nothing", None, "no finite number"),
        error("NaN", NAN, "no finite number"),
        error("infinity", -INF, "no finite number"),
        error("text", "reward 1", "no finite number"),
        error("a number as text", "1", "no finite number"),
        error("a truth value", True, "no finite number"),
        error("a list", [1.0], "no finite number"),
        error("what overflows a square", 1.7e308, "too large"),
        error("what no double holds", 2**60 + 1, "too large"),
    ],
    "name": [
        error("nothing", None, "has no "),
        error("NaN", NAN, "has no "),
        error("an empty name", "", "has no "),
        error("a blank name", " \n\u3000", "has no "),
        error("a list", ["a"], "is no name"),
        error("an object", {"a": 1}, "is no name"),
        error("bytes", b"\xff", "is no name"),
    ],
    "text": [
        error("nothing", None, "has no "),
        error("a number", 7, "neither text nor one assistant turn"),
        error("a list of lists", [["a"]], "neither text nor one assistant turn"),
        error("a user's turn", [{"role": "user", "content": "a"}], "neither text nor one assistant turn"),
        error("a turn without content", [{"role": "assistant", "content": None}], "neither text nor"),
    ],
    "prompt": [
        error("nothing", None, "neither text nor chat messages"),
        error("a number", 7, "neither text nor chat messages"),
        error("an object", {"a": 1}, "neither text nor chat messages"),
        error("a list of texts", ["a"], "neither text nor chat messages"),
        error("no turn", [], "neither text nor chat messages"),
        error("ShareGPT's words", [{"from": "human", "value": "a"}], "neither text nor chat messages"),
    ],
}
CASES = [
    pytest.param(name, column, case, id=f"{name}, {column}: {case.name}")
    for name, (_, _, columns) in STUDIES.items()
    for column, kind in columns.items()
    for case in DIRTY[kind]
    # A list may be of references.
    if not (column == "references" and isinstance(case.given, list))
]


def note(drawn: Any) -> str:
    """Return what a figure says of its marks, on one line."""
    [text] = [text.get_text() for text in drawn.texts if text.get_gid() != "finding" and text.get_position()[1] < 0]
    return " ".join(text.split())


def run(name: str, given: pa.Table, **more: Any) -> study.StudyResult:
    options = STUDIES[name][1] | more
    return study.find(name.partition(" ")[0]).run(given, **options)


@pytest.mark.parametrize(("name", "column", "case"), CASES)
def test_a_value_that_cannot_be_read_stops_a_study_at_its_row(name: str, column: str, case: Case) -> None:
    rows, _, _ = STUDIES[name]
    # In the last row alone where one Arrow type holds both, else in every row.
    last = len(rows) - 1
    try:
        dirty = table(rows, **{column: lambda i: case.given if i == last else rows[i][column]})
    except pa.ArrowException:
        dirty = table(rows, **{column: lambda i: case.given})
    if type(dirty[column][last].as_py()) is not type(case.given):
        dirty = table(rows, **{column: lambda i: case.given})
    place = next(i for i, row in enumerate(dirty.to_pylist()) if row[column] != rows[i][column] or i == last)
    if case.given is None and column == "response":
        pytest.skip("a response may be missing")
    with pytest.raises(StudyError) as caught:
        run(name, dirty)
    said = str(caught.value)
    assert case.why in said and f"row {place} " in said and column.rstrip("s") in said, said
    assert said.startswith(name.partition(" ")[0]) and "\n" not in said and len(said) < 300


@pytest.mark.parametrize("name", STUDIES)
def test_each_study_reads_its_clean_rows(name: str) -> None:
    rows = STUDIES[name][0]
    found = run(name, table(rows))
    assert found.line and found.table.num_rows > 0


@pytest.mark.parametrize("name", STUDIES)
def test_each_column_of_a_study_says_what_it_means(name: str, tmp_path: Path) -> None:
    run(name, table(STUDIES[name][0])).save(tmp_path)
    [file] = tmp_path.glob("*.parquet")
    for field in pq.read_schema(file):
        meaning = field.metadata[b"meaning"].decode()
        assert meaning.endswith(" end") == field.name.endswith(("_low", "_high")), field.name


# Names.


def test_any_name_is_drawn_and_told_on_one_line_and_stands_in_the_table(tmp_path: Path) -> None:
    some = [*NAMES[::4], "$\\frac{1}{2}$ \\begin{x} % $$", "x" * 10_000, "\x1b[2J\nred", "a_b^c", "#", "_hidden"]
    names = list(dict.fromkeys(some))
    found = study.selection(table([r | {"method": m} for m in ["full", *names] for r in RUNS[:3]]))
    assert sorted(found.table["method"].to_pylist()) == sorted(["full", *names])
    assert set(found.table["seeds"].to_pylist()) == {3}
    for file in found.save(tmp_path):
        if file.suffix == ".svg":
            page = ElementTree.parse(file).getroot()
            shown = "".join(page.itertext())
            assert "$\\frac{1}{2}$" in shown and "a_b^c" in shown and "xxx…xxx" in shown
            assert float(page.attrib["width"].removesuffix("pt")) < 600
        elif file.suffix == ".txt":
            assert file.read_text("utf-8").count("\n") == 1 and not CONTROL.search(file.read_text("utf-8"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [n for n, (_, _, columns) in STUDIES.items() if "name" in columns.values()])
def test_a_name_is_no_formula_in_any_figure(name: str, tmp_path: Path) -> None:
    rows, _, columns = STUDIES[name]
    odd = {c: lambda i, c=c: f"$\\frac{{$ {rows[i][c]}\x1b[31m_{{" for c, kind in columns.items() if kind == "name"}
    for fixed in ("prompt_id", "instance_id", "row_id") if name != "sanity" else ("data",):
        odd.pop(fixed, None)
    if name == "sanity":
        odd = {"data": lambda i: "$\\frac{$" if rows[i]["data"] == "rl" else rows[i]["data"]}
    options = {"baseline": odd["method"](0)} if "method" in odd and name != "filter-rate" else {}
    *_, svg, line = run(name, table(rows, **odd), **options).save(tmp_path)
    ElementTree.parse(svg)
    assert "\x1b" not in svg.read_text("utf-8") + line.read_text("utf-8")
    # A single curve needs no legend.
    assert "\\frac{" in svg.read_text("utf-8") or name == "filter-rate"


def test_a_name_that_stands_for_something_else_is_not_mixed_with_it() -> None:
    # A reward model that has the name of a simple baseline is told by its own share.
    rows = [{"reward": "length", "prompt_id": i, "score_chosen": 1.0, "score_rejected": 0.0} for i in range(4)]
    texts_ = {"chosen": lambda i: "a", "rejected": lambda i: "b c"}
    assert study.preference(table(rows, **texts_)).line.startswith("length prefers the chosen response on 100.0 %")
    with pytest.raises(StudyError, match="subset has the value 'all', which stands for all pairs"):
        study.preference(table(PAIRS, subset=lambda i: "all" if i else "x"), **FAKE)
    with pytest.raises(StudyError, match="the query_type 'all', which stands for all of them"):
        study.responses(table(ANSWERS, query_type=lambda i: "all" if i else "open"))
    with pytest.raises(StudyError, match="two rows for model reward, data rl, seed 0"):
        study.sanity(table([*HOMES, *(row | {"data": "RL"} for row in HOMES if row["data"] == "rl")][6:]))
    with pytest.raises(StudyError, match="b answered instance 0 2 times; keep one answer"):
        study.tax(table([*TASKS, TASKS[4]]), baseline="a")
    # An instance's number counts within its task.
    two = [row | {"task": t, "response": t} for t in ("a", "b") for row in TASKS]
    assert study.tax(table(two), baseline="a").table["instances"].to_pylist()[0] == 8


def test_more_than_a_page_holds_is_in_the_table_and_said() -> None:
    runs = [{"method": m, "seed": 0, "quality": 0.0} for m in ["full", *(f"m{i}" for i in range(250))]]
    found = study.selection(table(runs))
    assert found.table.num_rows == 251 and [len(axes.get_yticks()) for axes in found.figure.axes] == [100, 100]
    told = note(found.figure)
    assert told.endswith("The first 100 of 251 lines; the table has them all.")
    drawn = study.monotonicity(table([row | {"proxy": f"p{i}"} for i in range(60) for row in PROXIES[:8]]))
    assert drawn.table.num_rows == 60 and len(drawn.figure.axes) == figure._PANELS
    with pytest.raises(StudyError, match="an axis has more than 100 levels"):
        study.saturation(table([{"policy": i, "reward": 0, "seed": 0, "quality": 0.0} for i in range(101)]))


def test_equal_and_single_values_are_measured_without_a_warning() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = study.selection(table(RUNS, quality=lambda i: 0.5))
        assert "not told apart from full by +0.000 [+0.000, +0.000] (paired t, p = 1.000" in same.line
        one = study.selection(table([RUNS[0], RUNS[3]])).table.to_pylist()
        assert {row["quality_low"] for row in one} == {None} and [row["seeds"] for row in one] == [1, 1]
        flat = study.monotonicity(table(PROXIES, gold_mean=lambda i: 1.0)).table
        assert flat["spearman"].to_pylist() == flat["pearson"].to_pylist() == [0, 0]
        # Little around much: Pearson's r is as exact as elsewhere.
        far = study.monotonicity(table(PROXIES, gold_mean=lambda i: 2.0**50 + PROXIES[i]["checkpoint"])).table
        assert far["pearson"].to_pylist() == pytest.approx([1, 1])
        single = study.responses(table(ANSWERS[:1])).table.to_pylist()[0]
        assert (single["responses"], single["words"], single["words_low"]) == (1, 5, None)
        assert study.responses(table(ANSWERS, response=lambda i: "")).table["words"].to_pylist() == [0]
        even = study.preference(table(SCORED, score_chosen=lambda i: 2.0)).table.to_pylist()[0]
        assert (even["accuracy"], even["accuracy_low"], even["pairs"]) == (0.5, None, 5)


class Odd(FakeModel):
    """Gives the rewards of the corpus by the response's number."""

    def rewards(self, prompts: Any, responses: Any) -> list[list[float | None]]:
        return [[SCORES[int(text.split()[-1]) % len(SCORES)].given for text in group] for group in responses]


def test_rewards_that_are_no_numbers_are_left_out_and_counted() -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"a {i}", "rejected": "b 6"} for i in range(20)]
    found = study.preference(table(rows), rewards={"odd": Odd()})
    known = [case for case in SCORES if case.kept is not None]
    assert found.table["pairs"].to_pylist()[0] == 2 * len(known)
    assert f"of {2 * len(known)} pairs ({20 - 2 * len(known)} without a reward left out)" in found.line


# Files.


def test_texts_come_out_of_every_kind_of_file_as_they_went_in(tmp_path: Path) -> None:
    rows = [{"prompt": text, "response": text} for text in GIVEN]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, quoting=csv.QUOTE_ALL).writerows([["prompt", "response"], *(r.values() for r in rows)])
    tables.write(pa.Table.from_pylist(rows).to_reader(), "csv", tmp_path / "ours.csv")
    for name in ("a.jsonl", "a.parquet", "a.csv", "ours.csv"):
        read = sources.read("study", [tmp_path / name], ["prompt", "response"])
        assert read["prompt"].to_pylist() == read["response"].to_pylist() == GIVEN, name
    (tmp_path / "b.csv").write_text('response,method,quality\n007,1.50,1\n,,\n"",x,2\n1e999,y,\n')
    read = sources.read("study", [tmp_path / "b.csv"], ["response"]).to_pydict()
    assert read["response"] == ["007", None, "", "1e999"] and read["quality"] == [1, None, 2, None]
    (tmp_path / "c.csv").write_text("response,n\n007,007\n")
    assert sources.read("study", [tmp_path / "c.csv"], ["response"]).to_pylist() == [{"response": "007", "n": 7}]
    # A column may first come in a later line.
    (tmp_path / "b.jsonl").write_text('{"response": "a"}\n\n{"response": "b", "query_type": "open"}')
    assert sources.read("study", [tmp_path / "b.jsonl"], [])["query_type"].to_pylist() == [None, "open"]


TAKEN = {
    *("nothing but braces", "an empty prompt", "a prompt of spaces", "a prompt of newlines"),
    *("a prompt of other spaces", "a reference that is a number", "a reference that is a list", "no prompt"),
    *("a fraction among whole numbers", "an infinite number among whole ones", "a number among texts", "a null prompt"),
    *("text among objects", "a field of another type", "fields SQL takes for one", "NUL in a field's name"),
    *("an object with an empty name", "a prompt in capitals"),
}
"""Lines that a source sets aside and that leave a study whole columns."""


def test_each_line_of_json_is_taken_or_named_by_its_row(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for case in LINES:
        if case.outcome == "aside" and "response" not in case.name:
            file.write_bytes(b'{"response": "r", "prompt": "p", "n": 1}\n' + case.given + b'\n{"response": "s"}')
            try:
                taken = len(sources.read("study", [file], []))
            except SeamcurateError as caught:
                said = str(caught)
                assert "a.jsonl is no readable" in said and ("row 1" in said or "column" in said), (case.name, said)
                assert (
                    "\n" not in said
                    and len(said) < 300
                    and (not case.name.startswith("a lone") or "row 1: lone" in said)
                )
            else:
                assert taken == 3 and (case.name in TAKEN or b'"prompt"' in case.given), case.name


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_a_file_is_read_whole_or_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    for name, content in case.given.items():
        (tmp_path / name).write_bytes(content)
        try:
            read = sources.read("study", [tmp_path / name], ["prompt"])
        except SeamcurateError as caught:
            assert "\n" not in str(caught) and name in str(caught) and len(str(caught)) < 400
        else:
            if name.endswith(".csv"):
                decoded = content.decode("utf-8-sig")
                wanted = sum(any(row) for row in csv.reader(io.StringIO(decoded, newline=""))) - 1
            else:
                text = content.decode("utf-16") if content[:2] in (b"\xff\xfe", b"\xfe\xff") else content
                wanted = sum(bool(line.strip()) for line in text.splitlines())
            assert len(read) == wanted


@pytest.mark.parametrize("case", [*TYPES, *REFUSED_TYPES], ids=lambda case: case.name)
def test_a_column_of_any_type_is_read_refused_or_left_alone(case: Case, tmp_path: Path) -> None:
    clean = table(ANSWERS[:2])
    beside = clean.append_column("extra", case.given)
    try:
        assert study.responses(beside).table["responses"].to_pylist() == [2]
    except StudyError as caught:
        assert case in REFUSED_TYPES and "\n" not in str(caught)
    for name, study_ in (("response", study.responses), ("method", study.selection), ("quality", study.selection)):
        columns = {"response": pa.array(["r", "s"]), "method": pa.array(["full", "b"]), "seed": pa.array([0, 1])}
        columns |= {"quality": pa.array([0.1, 0.2]), name: case.given}
        try:
            assert study_(pa.table(columns)).table.num_rows
        except StudyError as caught:
            assert "\n" not in str(caught) and len(str(caught)) < 400


def test_sources_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="of one type in one source and of another in the next"):
        study.selection(table(RUNS), table(RUNS, seed=lambda i: f"s{i}"))
    twice = pa.Table.from_arrays(
        [pa.array(["full"]), pa.array(["b"]), pa.array([0.1])], ["method", "method", "quality"]
    )
    with pytest.raises(StudyError, match="the table has two columns called 'method'; rename one"):
        study.selection(twice)
    assert study.selection(table(RUNS, quality=lambda i: Decimal(i))).table["quality"].to_pylist() == [4, 1]
    (tmp_path / "training.json").write_text('{"config": {"seed": 0}}')
    for log in ('{"step": 1, "eval/gold"', '{"eval/gold": 1}', "[1]", '{"eval/gold": 1, "step": 99999999999999999999}'):
        (tmp_path / "log.jsonl").write_text(log)
        with pytest.raises(StudyError, match="is no training that `train` finished"):
            study.monotonicity(tmp_path)


# Long texts.


def test_long_answers_take_neither_the_memory_nor_the_time_of_their_square() -> None:
    many = [f"word{i % 5000} " * 3 for i in range(20_000)]
    long = "".join(many)
    rows = [
        {"references": [t], "response": t} for t in (long, "y" * MEGABYTE, "a" * MEGABYTE, "\x00" * 9999, "yy" * 30)
    ]
    scored = study.tax(table(rows)).table.to_pylist()[0]
    # NUL is no word, and what has none equals nothing.
    assert scored["instances"] == 5 and scored["rouge_l"] == pytest.approx(80)


_LETTERS = st.text("ab cd,E\n\u00e9", max_size=30)


@settings(max_examples=150, deadline=None)
@given(one=_LETTERS, other=_LETTERS)
def test_rouge_is_the_librarys(one: str, other: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    split = texts.stemmer()
    theirs = RougeScorer(["rougeL"], use_stemmer=True).score(other, one)["rougeL"].fmeasure
    assert texts.rouge_l(split(one), split(other)) == pytest.approx(theirs)


def test_rouge_is_the_librarys_on_real_words() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer, split, draw = RougeScorer(["rougeL"], use_stemmer=True), texts.stemmer(), random.Random(0)
    some = [w for w in NAMES if w.isascii()]
    for _ in range(60):
        one, other = (" ".join(draw.choices(some, k=6)) for _ in range(2))
        assert texts.rouge_l(split(one), split(other)) == pytest.approx(scorer.score(other, one)["rougeL"].fmeasure)


# A judge, and the command line.


def test_a_judge_is_asked_about_every_text_in_both_positions_and_its_words_are_kept(tmp_path: Path) -> None:
    short = [text for text in GIVEN if 0 < len(text) <= 200]
    # A prompt that the data hold twice is answered twice by each.
    asked = [*short[::5], short[0], short[0]]
    rows = [{"prompt": text, "response": text} for text in asked]
    own = [row | {"model": "own", "sample": 0} for row in rows]
    pq.write_table(pa.Table.from_pylist(own), tmp_path / "own.parquet")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "base.parquet")
    judge = tmp_path / "judge.yaml"
    with serving() as server:
        server.answer = lambda body: "half an emoji \ud83d [[A]]" if len(server.requests) % 2 else "\x1b[31m none"
        judge.write_text(f"{{openai_server: tiny, base_url: '{server.url}', retries: 1, max_tokens: 64}}")
        out = tmp_path / "v.parquet"
        silent = study.compare([tmp_path / "own.parquet"], tmp_path / "base.parquet", study.read_judge(judge), out)
        with pytest.raises(StudyError, match="0 answers are to be compared"):
            study.compare([tmp_path / "own.parquet"], tmp_path / "base.parquet", study.read_judge(judge), out, rows=0)
    told = pq.read_table(out)
    assert len(told) == 2 * len(asked) and len(
        set(zip(*told.select(["prompt_id", "position"]).to_pydict().values(), strict=True))
    ) == len(told)
    assert told["response"].to_pylist() == told["baseline_response"].to_pylist() == [t for t in asked for _ in "ab"]
    given_, why = told["verdict"].to_pylist(), told["reason"].to_pylist()
    assert given_.count(None) == silent > 0 and all(
        (v is None) == (w is not None) for v, w in zip(given_, why, strict=True)
    )
    if silent < len(told):
        try:
            found = study.winrate(out)
        except StudyError as caught:
            assert "gave no verdict on any prompt" in str(caught)
        else:
            assert found.table["prompts"].to_pylist()[0] + int(
                re.search(r"(\d+) prompts have no", found.line)[1]
            ) == len(asked)


def test_the_command_line_prints_a_study_of_hostile_names_without_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.jsonl"
    odd = "\x1b]0;owned\x07\x1b[2Jm\n$\\frac{$"
    file.write_text("\n".join(json.dumps(row | {"method": m}) for m in ("full", odd) for row in RUNS[:3]))
    monkeypatch.setattr(sys, "argv", ["seamcurate", "study", "selection", str(file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    right = capsys.readouterr()
    assert ended.value.code == 0 and not CONTROL.search(right.out) and r"\x1b" in right.out.splitlines()[-1]
    monkeypatch.setattr(sys, "argv", ["seamcurate", "study", "selection", str(file), "--baseline", f"{odd}x"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    wrong = capsys.readouterr().err
    assert ended.value.code == 2 and wrong.startswith("error: selection: ") and wrong.count("\n") == 1
    assert not CONTROL.search(wrong)
