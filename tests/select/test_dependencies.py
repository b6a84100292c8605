"""What a filter reads, told from its text: all of it where that cannot be told for certain."""

from __future__ import annotations

import json
from itertools import product

import duckdb
import pytest

from seamcurate.select.dependencies import reads

JOINED = "SELECT r.row_id FROM rows AS r {join} ledger AS l {on} {where}"


@pytest.mark.parametrize(
    ("sql", "views"),
    [
        ("SELECT row_id FROM rows", {"rows"}),
        ("SELECT row_id FROM rows WHERE prompt NOT IN (SELECT prompt FROM Corpus)", {"rows", "corpus"}),
        ("SELECT DISTINCT row_id FROM candidates WHERE misjudgement > 0", {"candidates"}),
        ("SELECT row_id FROM rows WHERE EXISTS (FROM rejected)", {"rows", "rejected"}),
        ("WITH x AS (SELECT * FROM main.corpus) SELECT row_id FROM x", {"corpus", "x"}),
    ],
)
def test_views_are_found_wherever_they_are_named(sql, views):
    found = reads(sql, {})
    assert found is not None and (found.views, found.splits) == (views, frozenset())


@pytest.mark.parametrize(
    ("sql", "splits"),
    [
        ("SELECT row_id FROM ledger WHERE split = 'a' AND kept", {"a"}),
        ("SELECT row_id FROM ledger WHERE kept AND 'a' = split", {"a"}),
        ("SELECT row_id FROM ledger WHERE split IN ('a', 'b')", {"a", "b"}),
        ("SELECT row_id FROM ledger AS l WHERE l.split = $of", {"c"}),
        ("SELECT row_id FROM rows ANTI JOIN (FROM ledger WHERE split = 'a') USING (row_id)", {"a"}),
        ("SELECT row_id FROM ledger WHERE split = 'a' UNION FROM ledger SELECT row_id WHERE split = 'b'", {"a", "b"}),
        ("SELECT row_id FROM ledger WHERE split = 'a' OR kept", None),
        ("SELECT row_id FROM ledger WHERE split <> 'a'", None),
        ("SELECT row_id FROM ledger WHERE split LIKE 'a'", None),
        ("SELECT row_id FROM ledger WHERE split = rule", None),
        ("SELECT row_id FROM (FROM ledger) WHERE split = 'a'", None),
        ("SELECT row_id FROM ledger WHERE split = 'a' AND row_id IN (SELECT row_id FROM ledger)", None),
        ("SELECT row_id FROM ledger TABLESAMPLE 50% WHERE split = 'a'", None),
        ("SELECT row_id FROM ledger WHERE split = 'a' USING SAMPLE 5", None),
        ("SELECT row_id FROM ledger AS l(row_id, prompt, split) WHERE split = 'a'", None),
        ("SELECT row_id FROM rows POSITIONAL JOIN ledger AS l WHERE l.split = 'a'", None),
        ("SELECT row_id FROM rows JOIN ledger USING (row_id) WHERE split = 'a'", None),
    ],
)
def test_splits_are_told_apart_by_constants_alone(sql, splits):
    found = reads(sql, {"of": "c"})
    assert found is not None and found.splits == splits


@pytest.mark.slow
def test_a_join_reads_no_less_than_it_is_said_to():
    """The answer over the whole ledger is the one over the splits that are said to be read, whatever the join."""
    lines = "(1, 'a', true), (1, 'b', false), (2, 'b', true), (4, 'a', true), (5, 'b', true)"
    connection = duckdb.connect()
    connection.execute("CREATE TABLE rows AS SELECT * FROM (VALUES (1), (2), (3)) AS v(row_id)")
    connection.execute("CREATE SCHEMA every")
    connection.execute(f"CREATE TABLE every.line AS SELECT * FROM (VALUES {lines}) AS v(row_id, split, kept)")
    told = 0
    for join, on, where in product(
        ("JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"),
        ("ON l.row_id = r.row_id", "ON l.row_id = r.row_id AND l.split = 'a'", "ON l.split = 'a'"),
        ("", "WHERE l.kept", "WHERE l.split = 'a'", "WHERE l.row_id IS NULL"),
    ):
        sql = JOINED.format(join=join, on=on, where=where)
        found = reads(sql, {})
        assert found is not None
        if found.splits is None:
            continue
        answers = []
        for some in ("every.line", "every.line WHERE split IN ('a')"):
            connection.execute(f"CREATE OR REPLACE VIEW ledger AS SELECT * FROM {some}")
            answers.append(sorted(connection.execute(sql).fetchall(), key=str))
        assert found.splits == {"a"} and answers[0] == answers[1], sql
        told += 1
    assert told == 24


def test_the_constants_of_duckdb_1_are_read_too(monkeypatch):
    constant = {"type": "VALUE_CONSTANT", "value": {"type": {"id": "VARCHAR"}, "is_null": False, "value": "a"}}
    where = {"type": "COMPARE_EQUAL", "left": {"type": "COLUMN_REF", "column_names": ["split"]}, "right": constant}
    node = {
        "type": "SELECT_NODE",
        "from_table": {"type": "BASE_TABLE", "table_name": "ledger", "alias": "", "sample": None},
        "where_clause": where,
        "sample": None,
    }
    monkeypatch.setattr(json, "loads", lambda text: {"error": False, "statements": [{"node": node}]})
    found = reads("SELECT 1", {})
    assert found is not None and found.splits == {"a"}


@pytest.mark.parametrize("sql", ["SELECT FROM WHERE", "DROP TABLE rows", "\ud800"])
def test_what_is_no_select_is_not_told(sql):
    assert reads(sql, {}) is None
