"""SQL over a store: the four views, and nothing but reading."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import Recipe, Retrieve, Source, Split, Store, query, run_local, seam, tables
from seamcurate.errors import QueryError, StoreError
from seamcurate.select import views
from seamcurate.sql import connection as connections
from seamcurate.storage import shard


@pytest.fixture
def store(finished):
    return finished


def test_rows_hold_every_column_once(store):
    names = query(store, "SELECT * FROM rows LIMIT 1").column_names
    assert names[:4] == ["row_id", "prompt", "response", "reference"] and len(names) == len(set(names))
    assert set(names) == {column.name for column in store.columns()}
    assert query(store, "SELECT count(*) AS n FROM rows").to_pylist() == [{"n": 40}]


def test_candidates_line_up_with_the_lists_they_come_from(store):
    lists = {
        row["row_id"]: row
        for table in store.rows(["worse_contrast", "rewards_contrast", "reward"])
        for row in table.to_pylist()
    }
    found = query(store, "SELECT * FROM candidates ORDER BY row_id, rank").to_pylist()
    assert len(found) == sum(len(row["worse_contrast"]) for row in lists.values()) > 0
    for one in found:
        row, place = lists[one["row_id"]], one["rank"] - 1
        candidate = row["worse_contrast"][place]
        assert (one["variant"], one["response"], one["source_row_id"]) == (
            "contrast",
            candidate["response"],
            candidate["source_row_id"],
        )
        assert one["similarity"] == candidate["similarity"] and one["reward"] == row["rewards_contrast"][place]
        assert one["misjudgement"] == max(one["reward"] - row["reward"], 0)
        assert (one["weight"] is None) == (one["logprob"] is None) == (one["misjudgement"] == 0)


def test_the_score_is_the_sum_over_its_candidates(store):
    differing = query(
        store,
        "SELECT r.row_id FROM rows r JOIN (SELECT row_id, avg(misjudgement * coalesce(weight, 0)) * 5 AS d FROM candidates "
        "GROUP BY row_id) c USING (row_id) WHERE abs(r.discrepancy_contrast - c.d) > 1e-12",
    )
    assert differing.num_rows == 0


def test_the_corpus_is_joined_by_the_id_a_candidate_names(store):
    wrong = "SELECT 1 FROM candidates JOIN corpus ON corpus.row_id = source_row_id WHERE corpus.response <> candidates.response"
    assert query(store, wrong).num_rows == 0
    assert query(store, "SELECT count(*) AS n FROM corpus").to_pylist() == [{"n": 200}]


@pytest.mark.slow
def test_columns_not_yet_computed_are_null(recipe, tmp_path):
    run_local(recipe(splits={}), tmp_path / "store")
    for file in (tmp_path / "store/columns/rer").glob("0*.parquet"):
        file.unlink()
    (tmp_path / "store/columns/reward/00002.parquet").unlink()
    # The facts of a column are written when it is finished.
    for name in ("rer", "reward"):
        (tmp_path / f"store/columns/{name}/_facts.json").unlink()
    store = Store(tmp_path / "store")
    counted = query(
        store, "SELECT count(*) AS rows, count(reward) AS rewards, count(rer) AS rers FROM rows"
    ).to_pylist()
    assert counted == [{"rows": 40, "rewards": 30, "rers": 0}]


def test_views_are_there_and_empty_without_candidates_corpus_or_splits(recipe, tmp_path):
    run_local(recipe(steps=(), corpus=None, splits={}), tmp_path / "store")
    store = Store(tmp_path / "store")
    for view in ("candidates", "corpus", "ledger", "rejected"):
        assert query(store, f"SELECT row_id FROM {view}").num_rows == 0


@pytest.mark.parametrize(
    "sql",
    [
        "DROP VIEW rows",
        "SELECT 1; SELECT 2",
        "CREATE TABLE x AS SELECT 1",
        "COPY (SELECT 1) TO 'x.csv'",
        "ATTACH 'x.db'",
        "SET threads = 1",
        "PRAGMA database_list",
        "EXPLAIN ANALYZE DELETE FROM rows",
        "INSERT INTO rows SELECT 1",
        "INSTALL httpfs",
        "",
    ],
)
def test_anything_but_one_select_is_refused(store, sql):
    with pytest.raises(QueryError):
        query(store, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '{store}/store.json'",
        "SELECT * FROM read_text('{store}/store.json')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('https://127.0.0.1/x.parquet')",
        "SELECT getenv('HOME')",
    ],
)
def test_a_query_sees_the_views_and_no_other_file(store, sql):
    with pytest.raises(QueryError):
        query(store, sql.format(store=store.path))


def test_sql_that_is_no_text_is_refused(store):
    with pytest.raises(QueryError, match="the SQL is no UTF-8 text"):
        query(store, "SELECT '\udc80'")


@pytest.mark.slow
def test_a_wrong_name_says_what_there_is(store):
    with pytest.raises(
        QueryError, match=r'Referenced column "seam_contrst" not found.*Candidate bindings: "seam_contrast"'
    ):
        query(store, "SELECT seam_contrst FROM rows")
    for name, meant in (
        ("rowz", "did you mean rows\\? "),
        ("Candidats", "did you mean candidates\\? "),
        ("nonsense", ""),
    ):
        with pytest.raises(QueryError, match=f"not '{name}'; {meant}views: rows, candidates, corpus, ledger, rejected"):
            query(store, f"SELECT 1 FROM {name}")
    candidates = "columns of candidates: row_id, variant, rank, response, "
    for sql in ("SELECT c.misjudgment FROM candidates AS c", "SELECT misjudgment FROM candidates"):
        with pytest.raises(QueryError, match=f'misjudgment".*misjudgement.*{candidates}') as refused:
            query(store, sql)
        assert "columns of rows" not in str(refused.value)
    with pytest.raises(QueryError, match=r"did you mean row_id.*columns of rows: .*columns of candidates"):
        query(store, "SELECT 1 FROM rows JOIN candidates USING (rowid_)")
    with views.connect(store, other=store) as connection:
        with pytest.raises(QueryError, match=r"did you mean other\.rows"):
            views.run(connection, "SELECT 1 FROM other.rwos")
        with pytest.raises(QueryError, match=r"columns of rows: .*columns of other\.ledger: row_id, split"):
            views.run(connection, "SELECT splitt FROM rows JOIN other.ledger USING (row_id)")
    with pytest.raises(QueryError) as refused:
        query(store, "SELEC 1")
    assert "\n" not in str(refused.value)


def seam_steps():
    return (Retrieve(k=5, band=(0.3, 0.95)), *seam("contrast", k=5))


def test_chat_prompts_stay_messages(recipe, tmp_path):
    rows = tmp_path / "chat.jsonl"
    rows.write_text(
        '{"prompt": [{"role": "user", "content": "how do I sort the list"}], "response": "a"}\n'
        '{"prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "merge"}], "response": "b"}\n'
    )
    run_local(recipe(rows=Source(jsonl=str(rows)), steps=seam_steps(), splits={}), tmp_path / "store")
    roles = query(Store(tmp_path / "store"), "SELECT prompt[-1].content AS last FROM rows ORDER BY row_id").to_pylist()
    assert roles == [{"last": "how do I sort the list"}, {"last": "merge"}]


@pytest.mark.slow
def test_a_query_over_candidates_larger_than_its_memory_is_answered_from_disk(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = {file: file.stat().st_size for file in store.path.rglob("*")}
    ((candidates,),) = views.connect(store).execute("SELECT count(*) FROM candidates").fetchall()
    sql = "SELECT md5(c.response || r.range || ' ' || c.row_id || ' ' || c.rank) AS t, count(*) FROM candidates c, range(5000) r GROUP BY t"
    with views.connect(store, memory="40MB") as connection:
        answer = views.run(connection, sql)
        count = spilled = 0
        for batch in answer:
            spilled = max(spilled, sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()))
            count += batch.num_rows
    del connection, answer, batch
    gc.collect()
    assert count == 5000 * candidates and spilled > 10**7
    assert not list((tmp_path / "temporary").iterdir()) and [p.name for p in tmp_path.iterdir()] == ["temporary"]
    assert before == {file: file.stat().st_size for file in store.path.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_sorted_answer_larger_than_its_memory_is_written_whole_in_every_form(store, tmp_path, form):
    sql = "SELECT md5(i.range || ' ' || row_id) AS t, row_id FROM rows, range(30000) AS i ORDER BY t"
    file = tmp_path / f"answer.{form}"
    with views.connect(store, memory="60MB") as connection, views.limited(connection, 600, ""):
        tables.write(views.run(connection, sql), form, file)
    with duckdb.connect() as plain:
        ((count, distinct, sorted_),) = plain.execute(
            f"SELECT count(*), count(DISTINCT t), count(*) FILTER (t >= before) FROM "
            f"(SELECT t, lag(t, 1, '') OVER (ORDER BY place) AS before FROM "
            f"(SELECT t, row_number() OVER () AS place FROM '{file}'))"
        ).fetchall()
    assert count == distinct == sorted_ == 1_200_000


def test_rows_too_wide_to_sort_in_so_little_memory_are_refused_with_what_to_do(store):
    sql = "SELECT repeat(md5(i.range || ' ' || row_id), 40) AS t FROM rows, range(4000) AS i ORDER BY t"
    with (
        pytest.raises(QueryError, match=r"Out of Memory Error.*; sort fewer or shorter columns") as refused,
        views.connect(store, memory="40MB") as connection,
        views.limited(connection, 600, ""),
    ):
        views.run(connection, sql).read_all()
    assert "\n" not in str(refused.value)


def test_one_view_spills_too_and_not_into_the_working_folder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with views.opened(store, [], "40MB") as connection:
        connection.execute("CREATE TABLE t AS SELECT md5(i.range || ' ' || row_id) AS t FROM rows, range(50000) AS i")
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(2_000_000,)]
    assert not list(tmp_path.iterdir())


def test_no_bar_is_drawn_over_an_answer_where_python_has_no_script(store):
    code = (
        "import sys; from seamcurate import Store; from seamcurate.select import views\n"
        "print(views.connect(Store(sys.argv[1])).execute(\"SELECT current_setting('enable_progress_bar')\").fetchall())"
    )
    command = [sys.executable, "-c", code, str(store.path)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120).stdout == "[(False,)]\n"


def test_what_duckdb_makes_of_a_ctrl_c_is_one():
    # As its Python side does between two tasks, where it looks for signals.
    for said, raised in (("Query interrupted", KeyboardInterrupt), ("something else", RuntimeError)):
        with pytest.raises(raised), views.in_memory():
            raise RuntimeError(said)


@pytest.mark.parametrize("open_it", [views.connect, lambda store: views.opened(store, ["reward"])], ids=["all", "one"])
def test_what_a_run_adds_while_a_store_is_opened_is_not_in_the_views_yet(store, monkeypatch, tmp_path, open_it):
    shutil.copytree(store.path, tmp_path / "store")
    column = tmp_path / "store" / "columns" / "reward"
    last = max(column.glob("*.parquet"))
    content, verify = last.read_bytes(), shard.verify
    last.unlink()
    (column / "_facts.json").unlink()

    def finished_meanwhile(file, *job):
        if file.parent == column:
            last.write_bytes(content)
        return verify(file, *job)

    monkeypatch.setattr(shard, "verify", finished_meanwhile)
    with open_it(Store(tmp_path / "store")) as connection:
        ((rows, scored),) = connection.execute("SELECT count(*), count(reward) FROM rows").fetchall()
    assert last.exists() and 0 < scored < rows


@pytest.mark.parametrize(("rows", "limit"), [(40, "38.1 MiB"), (10_000_000, "114.4 MiB")])
def test_what_a_filter_may_take_before_it_spills_grows_with_the_rows(store, monkeypatch, tmp_path, rows, limit):
    monkeypatch.setattr(Store, "__len__", lambda _: rows)
    with views.connect(store, tmp_path / "spill") as connection:
        assert connection.execute("SELECT current_setting('memory_limit')").fetchall() == [(limit,)]


NAN = float("nan")
SCORES = [0.5, NAN, 0.75, 1.0, 2.0, NAN, -1.0, 0.25]
BY_SCORE = {
    "x <= 1.0": [0, 2, 3, 6, 7],
    "x > 1.0": [1, 4, 5],
    "NOT x <= 1.0": [1, 4, 5],
    "x BETWEEN 0 AND 1": [0, 2, 3, 7],
    "x <> 1.0": [0, 1, 2, 4, 5, 6, 7],
    "CASE WHEN x > 1.0 THEN true ELSE false END": [1, 4, 5],
    "isnan(x)": [1, 5],
    "x IN (2.0, 'nan'::DOUBLE)": [1, 4, 5],
    "f > 1.0": [1, 4, 5],
    "s.y > 1.0": [1, 4, 5],
    "s.y <= 1.0": [0, 2, 3, 6, 7],
    "l[1] > 1.0": [1, 4, 5],
    "x >= (SELECT max(x) FROM rows)": [1, 5],
    "row_id IN (SELECT row_id FROM rows ORDER BY x DESC, row_id LIMIT 2)": [1, 5],
    "row_id IN (SELECT b.row_id FROM rows AS a JOIN rows AS b ON a.x = b.x AND a.row_id = 5)": [1, 5],
}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("shard_rows", [1, 3, 8])
@pytest.mark.parametrize("before", [False, True], ids=["now", "with statistics"])
def test_nan_is_above_every_number_whatever_the_shards(kind, shard_rows, before, tmp_path, monkeypatch):
    if before:
        # As shards were written: each with the bounds of its fractions, NaN left out.
        monkeypatch.setattr(shard, "with_statistics", lambda schema: True)
    asked = [{"prompt": f"p{i}", "x": x, "f": x, "s": {"y": x}, "l": [x]} for i, x in enumerate(SCORES)]
    table = pa.Table.from_pylist(asked)
    pq.write_table(table.set_column(2, "f", table["f"].cast(pa.float32())), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    source = Source(**{kind: str(tmp_path / f"a.{kind}")}, shard_rows=shard_rows)
    split = Split(filter="SELECT row_id FROM rows WHERE x <= 1.0")
    run_local(Recipe(rows=source, splits={"low": split}), tmp_path / "store")
    with views.connect(Store(tmp_path / "store")) as connection:
        for where, row_ids in BY_SCORE.items():
            found = connection.ask(f"SELECT row_id FROM rows WHERE {where} ORDER BY row_id").fetchall()
            assert [row_id for (row_id,) in found] == row_ids, where
        kept = connection.ask("SELECT row_id FROM ledger WHERE kept ORDER BY row_id").fetchall()
        assert [row_id for (row_id,) in kept] == BY_SCORE["x <= 1.0"]


def test_no_bounds_of_fractions_are_written(store, tmp_path):
    table = query(store, "SELECT row_id, seam_contrast FROM rows")
    shard.write(tmp_path / "a.parquet", table, "maker", 0)
    shard.verify(tmp_path / "a.parquet", "maker", 0)
    footer = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    assert [footer.column(i).is_stats_set for i in range(2)] == [True, False]
    assert not shard.bounds_fractions(tmp_path / "a.parquet")


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_a_query_reads_times_in_utc_wherever_it_runs(zone, tmp_path, monkeypatch):
    pq.write_table(
        pa.table({"prompt": ["a"], "stamp": pa.array([1_704_063_600], pa.timestamp("s", "UTC"))}),
        tmp_path / "a.parquet",
    )
    run_local(Recipe(rows=Source(parquet=str(tmp_path / "a.parquet"))), tmp_path / "store")
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        # A process that was started before has the time zone of then.
        monkeypatch.setattr(connections, "_spare", [])
        sql = "SELECT stamp::DATE::VARCHAR AS day, hour(stamp) AS hour, stamp::VARCHAR AS text, date_trunc('day', stamp)::VARCHAR AS began FROM rows"
        assert query(tmp_path / "store", sql).to_pylist() == [
            {"day": "2023-12-31", "hour": 23, "text": "2023-12-31 23:00:00+00", "began": "2023-12-31 00:00:00+00"}
        ]
        with views.in_memory() as connection:
            assert connection.execute("SELECT TIMESTAMPTZ '2023-12-31 23:00:00+00'::VARCHAR").fetchall() == [
                ("2023-12-31 23:00:00+00",)
            ]
    finally:
        monkeypatch.undo()
        time.tzset()


WRITTEN = {
    "SELECT sum(row_id) AS s, count(*) AS n FROM rows": (
        "s,n\n780,40\n",
        '{"s": 780, "n": 40}\n',
        [{"s": 780, "n": 40}],
    ),
    "SELECT true AS t, 3::DECIMAL(4, 1) AS d, [0.25] AS l": (
        "t,d,l\ntrue,3.0,[0.25]\n",
        '{"t": true, "d": 3.0, "l": [0.25]}\n',
        [{"t": True, "d": Decimal("3.0"), "l": [Decimal("0.25")]}],
    ),
    "SELECT INTERVAL 1 DAY AS i, INTERVAL 90 MINUTE AS m": (
        "i,m\n1 day,01:30:00\n",
        '{"i": "1 day", "m": "01:30:00"}\n',
        [{"i": "1 day", "m": "01:30:00"}],
    ),
    "SELECT '101'::BIT AS b, TIMETZ '12:00:00+02' AS z, union_value(a := 1) AS u, 1::VARIANT AS v, 7::BIGNUM AS n": (
        "b,z,u,v,n\n101,12:00:00+02,1,1,7\n",
        '{"b": "101", "z": "12:00:00+02", "u": "1", "v": "1", "n": "7"}\n',
        [{"b": "101", "z": "12:00:00+02", "u": "1", "v": "1", "n": "7"}],
    ),
    "SELECT INTERVAL 1 DAY AS i, ';--' AS t ; -- the end": (
        "i,t\n1 day,;--\n",
        '{"i": "1 day", "t": ";--"}\n',
        [{"i": "1 day", "t": ";--"}],
    ),
    "SELECT INTERVAL (row_id) DAY AS i FROM rows ORDER BY row_id DESC LIMIT 2": (
        "i\n39 days\n38 days\n",
        '{"i": "39 days"}\n{"i": "38 days"}\n',
        [{"i": "39 days"}, {"i": "38 days"}],
    ),
}


@pytest.mark.parametrize("sql", WRITTEN)
def test_a_value_is_written_as_what_it_is_in_every_form(sql, store, tmp_path, capsys):
    *texts, values = WRITTEN[sql]
    with views.connect(store) as connection:
        for form, text in zip(("csv", "jsonl"), texts, strict=True):
            tables.write(views.run(connection, sql), form, None)
            assert capsys.readouterr().out == text
        tables.write(views.run(connection, sql), "parquet", tmp_path / "a.parquet")
        assert pq.read_table(tmp_path / "a.parquet").to_pylist() == values
        assert views.run(connection, sql).read_all().to_pylist() == values


def test_a_sum_is_aligned_as_a_number_and_one_beyond_64_bits_is_refused_by_parquet_alone(store, tmp_path, capsys):
    with views.connect(store) as connection:
        tables.write(views.run(connection, "SELECT sum(row_id) AS sum_of_row_ids, 'x' AS t FROM rows"), "table", None)
        assert "            780   x" in capsys.readouterr().out
        wide = "SELECT sum(9223372036854775807) AS s FROM rows"
        tables.write(views.run(connection, wide), "jsonl", None)
        assert capsys.readouterr().out == f'{{"s": {40 * (2**63 - 1)}}}\n'
        with pytest.raises(QueryError, match=r"^column 's' holds a whole number beyond 64 bits, .*name::DOUBLE"):
            tables.write(views.run(connection, wide), "parquet", tmp_path / "a.parquet")
        assert views.run(connection, wide).read_all().to_pylist() == [{"s": Decimal(40 * (2**63 - 1))}]


def test_dates_that_python_does_not_have_are_text_in_every_form_but_parquet(store, tmp_path, capsys):
    sql = """SELECT 'infinity'::DATE AS a, '-infinity'::TIMESTAMPTZ AS b, '290000-01-01 10:30:00'::TIMESTAMP AS c,
        {d: '0044-03-15 (BC)'::DATE, l: ['-infinity'::TIMESTAMP, NULL, '2020-01-01'::TIMESTAMP]} AS d,
        MAP {'k': '10000-01-01'::TIMESTAMPTZ} AS m, '2020-01-01 00:00:00.123456789'::TIMESTAMP_NS AS n,
        NULL::DATE AS o, '2020-02-03'::DATE AS p"""
    shown = {
        "a": "infinity",
        "b": "-infinity",
        "c": "290000-01-01 10:30:00.000000",
        "d": {"d": "-043-03-15", "l": ["-infinity", None, "2020-01-01 00:00:00"]},
        "m": [["k", "10000-01-01 00:00:00.000000+00:00"]],
        "n": "2020-01-01 00:00:00.123456789",
        "o": None,
        "p": "2020-02-03",
    }
    with views.connect(store) as connection:
        for form in ("jsonl", "csv", "table"):
            tables.write(views.run(connection, sql), form, None)
            written = capsys.readouterr().out
            if form == "jsonl":
                assert json.loads(written) == shown
            else:
                assert "infinity" in written and "290000-01-01" in written and '"2020-02-03' not in written
        tables.write(views.run(connection, sql), "parquet", tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet").field("c").type == pa.timestamp("us")
    assert pq.read_table(tmp_path / "a.parquet")["a"].cast(pa.int32()).to_pylist() == [2**31 - 1]


def test_a_whole_number_of_128_bits_without_sign_is_itself_or_refused(store):
    values = "md5_number('a') % 1000 AS m, {'n': [5::UHUGEINT, NULL]} AS s, NULL::UHUGEINT AS e"
    digest = int.from_bytes(hashlib.md5(b"a", usedforsecurity=False).digest(), "little")
    assert query(store, f"SELECT {values}").to_pylist() == [
        {"m": digest % 1000, "s": {"n": [Decimal(5), None]}, "e": None}
    ]
    # As the decimal that Arrow would hold, this is -1.
    with pytest.raises(QueryError, match=r"out of range .*; cast it to text: name::VARCHAR$"):
        query(store, f"SELECT {2**128 - 1}::UHUGEINT AS n")
    assert query(store, f"SELECT ({2**128 - 1}::UHUGEINT)::VARCHAR AS n").to_pylist() == [{"n": str(2**128 - 1)}]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "table"])
def test_an_answer_that_breaks_off_leaves_the_file_that_was_there(store, tmp_path, form):
    (tmp_path / "answer").write_text("the answer before")
    (tmp_path / "link").symlink_to("answer")
    late = "SELECT CASE WHEN range < 400000 THEN range ELSE error('stop') END AS n FROM range(400001)"
    with views.connect(store) as connection:
        for name in ("answer", "link", "new"):
            with pytest.raises(QueryError, match="stop"):
                tables.write(views.run(connection, late), form, tmp_path / name)
        assert {file.name for file in tmp_path.iterdir()} == {"answer", "link"}
        assert (tmp_path / "answer").read_text() == "the answer before"
        tables.write(views.run(connection, "SELECT 7 AS n"), form, tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and b"n" in (tmp_path / "answer").read_bytes()
        with pytest.raises(StoreError, match=r"absent/answer cannot be written: No such file or directory"):
            tables.write(views.run(connection, "SELECT 7 AS n"), form, tmp_path / "absent" / "answer")
        tables.write(views.run(connection, "SELECT 7 AS n"), form, Path("/dev/null"))
        assert Path("/dev/null").is_char_device()
