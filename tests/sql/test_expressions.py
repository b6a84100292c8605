"""Expressions of a recipe compute values of one row, alike in every run, and can do nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from seamcurate.errors import QueryError
from seamcurate.sql.connection import Connection
from seamcurate.sql.expressions import Expressions, opened

ROWS = pa.table(
    {
        "instruction": ["a", "c", "d"],
        "input": ["b", None, ""],
        "n": pa.array([1, 2, 3], pa.int32()),
        "meta": [{"tags": [{"name": "x"}]}, {"tags": []}, None],
    }
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Connection]:
    with opened() as connection:
        yield connection


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("instruction || coalesce(chr(10) || nullif(input, ''), '')", ["a\nb", "c", "d"]),
        ("meta.tags[1].name", ["x", None, None]),
        ("n::VARCHAR", ["1", "2", "3"]),
        ("CASE WHEN n > 1 THEN 'many' ELSE 'one' END -- a comment", ["one", "many", "many"]),
        ("INSTRUCTION", ["a", "c", "d"]),
        ("list_transform([instruction, 'z'], lambda word: upper(word))", [["A", "Z"], ["C", "Z"], ["D", "Z"]]),
        ("[tag.name FOR tag IN meta.tags IF tag.name IS NOT NULL]", [["x"], [], None]),
        ("json_extract_string('{\"k\": 7}', '$.k')", ["7", "7", "7"]),
        ("instruction IN ('a', 'd') AND n BETWEEN 1 AND 2", [True, False, False]),
        ("list_sum([n, n])", [2, 4, 6]),
        ("regexp_replace(instruction, '[ac]', 'x')", ["x", "x", "d"]),
        ("'constant'", ["constant"] * 3),
    ],
)
def test_a_value_is_computed_from_its_row(engine: Connection, expression: str, expected: list[object]) -> None:
    expressions = Expressions(engine, {"out": expression}, None, ROWS.schema)
    values, kept = expressions.values(ROWS.select(expressions.columns) if expressions.columns else ROWS)
    assert values == {"out": expected}
    assert kept == [True] * 3


def test_a_condition_keeps_rows_where_it_is_true(engine: Connection) -> None:
    expressions = Expressions(engine, {"double": "n * 2"}, "input <> 'b'", ROWS.schema)
    assert expressions.columns == ["input", "n"]
    assert expressions.fields == [pa.field("double", pa.int32())]
    assert expressions.values(ROWS.select(["input", "n"])) == ({"double": [2, 4, 6]}, [False, False, True])


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("instructoin", "no column 'instructoin' for select: out; it has instruction, input, n, meta; did you mean"),
        ("(SELECT 1)", "select: out holds a query; an expression computes a value from one row"),
        ("(SELECT content FROM read_text('/etc/passwd'))", "holds a query"),
        ("n IN (SELECT 1)", "holds a query"),
        ("EXISTS (FROM read_csv('x.csv'))", "holds a query"),
        ("row_number() OVER ()", "holds a window function"),
        ("sum(n)", "calls sum, which is no function of one row whose value is the same in every run"),
        ("count(*)", "select: out "),
        ("unnest([1, 2])", "calls unnest"),
        ("*", "holds a star"),
        ("COLUMNS('n')", "holds a star"),
        ("$1", "holds a parameter"),
        ("#1", "holds a column by its number"),
        ("random()", "calls random"),
        ("now()", "calls now"),
        ("current_date", "reads current_date, which is not the same in every run"),
        ("gen_random_uuid()", "calls gen_random_uuid"),
        ("sleep_ms(100000)", "calls sleep_ms"),
        ("getenv('HOME')", "calls getenv"),
        ("current_setting('temp_directory')", "calls current_setting"),
        ("write_log('x')", "calls write_log"),
        ("read_text('/etc/passwd')", "calls read_text"),
        ("main.read_text('/etc/passwd')", "calls read_text"),
        ("pg_sleep(5)", "calls pg_sleep"),
        ("n + ", "is no SQL expression: syntax error"),
        ("1 FROM rows", "is no SQL expression"),
        ("n AS m", "is no SQL expression"),
        ("1; DROP TABLE attached", "is no SQL expression"),
        ("1) AS a, (2", "is more than one expression"),
        ("1) FROM duckdb_settings() --", "is no SQL expression"),
        ("1) UNION (SELECT 2", "is more than one expression"),
        ("1); COPY (SELECT 1) TO '/tmp/x' --", "expression"),
        ("meta.absent", "Could not find key"),
        ("\ud800", "is no SQL expression"),
    ],
)
def test_all_else_is_refused_in_one_line_before_a_row_is_read(
    engine: Connection, expression: str, message: str
) -> None:
    with pytest.raises(QueryError) as caught:
        Expressions(engine, {"out": expression}, None, ROWS.schema)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_that_cannot_be_converted_says_what_to_do(engine: Connection) -> None:
    expressions = Expressions(engine, {"out": "instruction::INT"}, None, ROWS.schema)
    with pytest.raises(QueryError, match=r"select: out: Conversion Error: .* 'a' .*; try_cast\(… AS …\) gives NULL"):
        expressions.values(ROWS.select(["instruction"]))


@pytest.mark.slow
def test_an_expression_that_takes_too_much_memory_ends_its_engine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seamcurate.sql.expressions._MEMORY", "64MB")
    with opened() as connection:
        expressions = Expressions(connection, {"out": "length(repeat('x', 2000000000 + n))"}, None, ROWS.schema)
        with pytest.raises(QueryError, match=r"select: out: .* of memory"):
            expressions.values(ROWS.select(["n"]))


def test_an_expression_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "len(list_filter(range(8000000 + n), lambda i: i % 7 = n))"
    with opened() as connection:
        expressions = Expressions(connection, {"out": text}, None, ROWS.schema)
        monkeypatch.setattr("seamcurate.sql.expressions._SECONDS", 0.05)
        with pytest.raises(QueryError, match="select: out: 3 rows took more than 0 s"):
            expressions.values(ROWS.select(["n"]))
