"""SQL that tries to do more than read the views, through every door a query comes in by."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from seamcurate import Split, Store, query, run_local
from seamcurate.cli import app
from seamcurate.errors import QueryError
from seamcurate.select import decision, split, views
from seamcurate.sql import guard

pytestmark = pytest.mark.slow

SECRET = "the-canary-that-no-answer-may-hold"

ATTEMPTS = {
    "other statements": """
        DROP VIEW rows
        DELETE FROM rows
        UPDATE rows SET prompt = 'x'
        INSERT INTO rows SELECT 1
        TRUNCATE rows
        MERGE INTO rows USING rows AS r ON true WHEN MATCHED THEN DELETE
        CREATE TABLE x AS SELECT 1
        CREATE OR REPLACE VIEW rows AS SELECT 1 AS row_id
        CREATE MACRO f() AS 1
        CREATE SECRET x (TYPE http)
        ALTER VIEW rows RENAME TO r
        COMMENT ON VIEW rows IS 'x'
        COPY (SELECT 1) TO '{made}'
        COPY rows TO '{made}' (FORMAT parquet)
        EXPORT DATABASE '{made}'
        IMPORT DATABASE '{folder}'
        ATTACH '{made}' AS x
        ATTACH ':memory:' AS x
        DETACH memory
        USE other
        INSTALL httpfs
        FORCE INSTALL httpfs FROM 'http://127.0.0.1:9'
        LOAD json
        LOAD '{secret}'
        UPDATE EXTENSIONS
        PRAGMA database_list
        PRAGMA enable_profiling
        SET enable_external_access = true
        SET lock_configuration = false
        SET memory_limit = '1TB'
        SET VARIABLE x = 1
        RESET allowed_paths
        CALL pragma_version()
        CHECKPOINT
        VACUUM
        BEGIN
        PREPARE x AS SELECT 1
        EXECUTE x
        EXPLAIN SELECT row_id FROM rows
        EXPLAIN ANALYZE SELECT row_id FROM rows
        EXPLAIN ANALYZE DELETE FROM rows
        .read {secret}
    """,
    "several statements": """
        SELECT row_id FROM rows; SELECT row_id FROM rows
        SELECT row_id FROM rows; DROP VIEW rows
        SELECT row_id FROM rows; COPY (SELECT 1 AS x) TO '{shard}' (FORMAT parquet, USE_TMP_FILE false)
        SELECT row_id FROM rows; COPY (SELECT 1 AS x) TO '{made}'
        SELECT row_id FROM rows; SET lock_configuration = false
        SELECT row_id FROM rows) TO '{made}'; --
        SELECT row_id FROM rows); COPY (SELECT 1) TO '{made}'; SELECT (1
    """,
    "writing inside WITH": """
        WITH x AS (COPY (SELECT 1 AS x) TO '{shard}' (FORMAT parquet, USE_TMP_FILE false)) SELECT row_id FROM rows
        WITH x AS (COPY (SELECT 1 AS x) TO '{made}') SELECT row_id FROM rows
        WITH x AS (DELETE FROM scores RETURNING *) SELECT row_id FROM x
        WITH x AS (INSERT INTO scores SELECT * FROM scores RETURNING *) SELECT row_id FROM x
        WITH x AS (UPDATE scores SET row_id = 1 RETURNING *) SELECT row_id FROM x
        SELECT row_id FROM (WITH x AS (DELETE FROM scores RETURNING *) SELECT * FROM x)
    """,
    "files": """
        SELECT 1 AS row_id, * FROM '{secret}'
        SELECT 1 AS row_id, * FROM read_text('{secret}')
        SELECT 1 AS row_id, * FROM read_blob('{secret}')
        SELECT 1 AS row_id, * FROM read_csv('{secret}')
        SELECT 1 AS row_id, * FROM read_csv_auto('{secret}')
        SELECT 1 AS row_id, * FROM read_json('{secret}')
        SELECT 1 AS row_id, * FROM read_json_objects('{secret}')
        SELECT 1 AS row_id, * FROM read_ndjson('{secret}')
        SELECT 1 AS row_id, * FROM sniff_csv('{secret}')
        SELECT 1 AS row_id, * FROM read_parquet('{secret}')
        SELECT 1 AS row_id, * FROM parquet_scan('{secret}')
        SELECT 1 AS row_id, * FROM parquet_metadata('{shard}')
        SELECT 1 AS row_id, * FROM parquet_kv_metadata('{shard}')
        SELECT 1 AS row_id, * FROM parquet_schema('{shard}')
        SELECT 1 AS row_id, * FROM read_duckdb('{secret}')
        SELECT 1 AS row_id, * FROM read_xlsx('{secret}')
        SELECT 1 AS row_id, * FROM glob('{folder}/*')
        SELECT 1 AS row_id, * FROM query_table('{secret}')
        SELECT 1 AS row_id, * FROM query_table(['{shard}'])
        SELECT 1 AS row_id, * FROM query('SELECT * FROM read_text(''{secret}'')')
        SELECT 1 AS row_id, * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))
        SELECT * FROM read_parquet('{shard}')
        SELECT * FROM '{shard}'
        SELECT * FROM read_blob('{shard}')
        SELECT * FROM read_parquet('{other}')
        SELECT * FROM '{other}'
        SELECT * FROM read_parquet('{store}/rows/../../other/rows/00000.parquet')
        SELECT * FROM read_parquet('{store}/rows/*.parquet')
        SELECT row_id FROM rows WHERE EXISTS (SELECT 1 FROM read_text('{secret}') WHERE content LIKE 'the%')
        WITH x AS (SELECT * FROM read_text('{secret}')) SELECT 1 AS row_id, * FROM x
        DESCRIBE SELECT * FROM read_csv('{secret}')
        SUMMARIZE SELECT * FROM read_csv('{secret}')
        SELECT * FROM '/proc/self/environ'
        SELECT * FROM read_text('/proc/self/environ')
    """,
    "the network": """
        SELECT * FROM read_parquet('https://127.0.0.1:9/x.parquet')
        SELECT * FROM 's3://bucket/x.parquet'
        SELECT * FROM 'hf://datasets/a/b/x.parquet'
        SELECT * FROM postgres_scan('host=127.0.0.1', 'a', 'b')
        SELECT * FROM sqlite_scan('{secret}', 'a')
        SELECT * FROM register_external_resource('x')
    """,
    "names that WITH gives elsewhere": """
        SELECT b.* FROM (WITH "{shard}" AS (SELECT 1) SELECT 1) a, "{shard}" b
        SELECT * FROM (WITH "{other}" AS (SELECT 1) SELECT * FROM "{other}") a, "{other}" b
        WITH a AS (WITH "{shard}" AS (SELECT 1) SELECT 1) SELECT * FROM "{shard}"
        WITH "{shard}" AS (SELECT * FROM "{shard}") SELECT * FROM "{shard}"
        WITH a AS (SELECT * FROM "{shard}"), "{shard}" AS (SELECT 1) SELECT * FROM a
        WITH RECURSIVE "{shard}" AS (SELECT row_id FROM "{shard}" UNION ALL SELECT 1) SELECT 1 AS row_id
        (WITH "{shard}" AS (SELECT 1 AS row_id) SELECT * FROM "{shard}") UNION ALL SELECT row_id FROM "{shard}"
        WITH "{shard}" AS (SELECT 1) SELECT * FROM main."{shard}"
        SELECT (WITH "{shard}" AS (SELECT 1) SELECT 1), (SELECT max(row_id) FROM "{shard}")
        SELECT row_id FROM rows WHERE row_id IN (WITH "{shard}" AS (SELECT 1) SELECT 1) OR EXISTS (FROM "{shard}")
    """,
    "settings and environment": """
        SELECT 1 AS row_id, getenv('SEAMCURATE_CANARY')
        SELECT 1 AS row_id, current_setting('allowed_paths')
        SELECT 1 AS row_id, 'temp_directory'.current_setting()
        SELECT 1 AS row_id, * FROM duckdb_settings()
        SELECT 1 AS row_id, * FROM duckdb_settings
        SELECT 1 AS row_id, * FROM duckdb_secrets()
        SELECT 1 AS row_id, * FROM which_secret('s3://x', 's3')
        SELECT 1 AS row_id, * FROM duckdb_extensions()
        SELECT 1 AS row_id, * FROM duckdb_databases()
        SELECT 1 AS row_id, * FROM duckdb_views()
        SELECT 1 AS row_id, * FROM duckdb_views
        SELECT 1 AS row_id, * FROM duckdb_temporary_files()
        SELECT 1 AS row_id, * FROM duckdb_logs()
        SELECT 1 AS row_id, write_log('x')
        SELECT 1 AS row_id, * FROM pg_views
        SELECT 1 AS row_id, * FROM pg_catalog.pg_settings
        SELECT 1 AS row_id, pg_get_viewdef(1)
        SELECT 1 AS row_id, json_serialize_plan('SELECT * FROM rows')
        SELECT 1 AS row_id, * FROM information_schema.views
        SELECT 1 AS row_id, * FROM system.information_schema.tables
        SELECT 1 AS row_id, * FROM sqlite_master
        SELECT 1 AS row_id, * FROM pragma_database_list
        SELECT 1 AS row_id, * FROM pragma_platform()
        SELECT 1 AS row_id, * FROM histogram('duckdb_views', sql)
        WITH duckdb_views AS (SELECT 1) SELECT 1 AS row_id, * FROM duckdb_views
        SELECT 1 AS row_id, (SELECT sql FROM duckdb_views LIMIT 1)
        SELECT 1 AS row_id, * FROM query('SELECT * FROM duckdb_settings()')
        SHOW allowed_paths
        SELECT 1 AS row_id, * FROM (SHOW temp_directory)
        SHOW VARIABLES
    """,
}
LISTED = [line.strip() for lines in ATTEMPTS.values() for line in lines.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def attacked(finished, tmp_path_factory) -> dict[str, Path]:
    """A store with a store and a secret file beside it."""
    folder = tmp_path_factory.mktemp("attacked")
    for name in ("store", "other"):
        shutil.copytree(finished.path, folder / name)
    (folder / "secret.txt").write_text(f"a,b\n1,{SECRET}\n")
    return {
        "folder": folder,
        "store": folder / "store",
        "shard": folder / "store" / "rows" / "00000.parquet",
        "other": folder / "other" / "rows" / "00000.parquet",
        "secret": folder / "secret.txt",
        "made": folder / "made.csv",
    }


@pytest.fixture(scope="module")
def explorer(attacked) -> Any:
    pytest.importorskip("starlette", reason="starlette is not installed")
    pytest.importorskip("httpx", reason="httpx is not installed")
    from explorer_client import Client

    from seamcurate.explore import Session

    session = Session(Store(attacked["store"]))
    session.refresh()
    return Client(session)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("attempt", LISTED)
def test_what_is_more_than_reading_the_views_is_refused_by_every_door(
    attempt, attacked, explorer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEAMCURATE_CANARY", SECRET)
    sql, store = attempt.format(**attacked), Store(attacked["store"])
    before, told = _state(attacked["folder"]), []
    with pytest.raises(QueryError) as refused:
        query(store, sql)
    told.append(str(refused.value))
    by_command = CliRunner().invoke(app, ["sql", str(store.path), sql])
    assert isinstance(by_command.exception, QueryError)
    told += [by_command.output, str(by_command.exception)]
    with pytest.raises(QueryError) as refused:
        split.make(store, "x", Split(filter=sql))
    told.append(str(refused.value))
    doors = (("download", {"format": "csv"}), ("filter", {}), ("mosaic", {"type": "arrow"}))
    for path, more in (("sql", {}), doors[LISTED.index(attempt) % 3]):
        answer = explorer("POST", f"/api/{path}", json={"sql": sql, **more})
        assert answer.status_code == 400
        told.append(answer.text)
    counted = "SELECT count(*), sum(row_id)::BIGINT FROM scores"
    assert explorer("POST", "/api/sql", json={"sql": counted}).json()["rows"] == [[40, 780]]
    assert not any(SECRET in text or "\n" in text.strip() for text in told)
    assert _state(attacked["folder"]) == before and not list(tmp_path.iterdir())


def test_there_are_many_attempts():
    assert len(set(LISTED)) > 100


# Each layer on its own, as if the others let everything through.

BY_DUCKDB = """
    SELECT * FROM read_text('{secret}')
    SELECT * FROM '/proc/self/environ'
    SELECT * FROM '{other}'
    SELECT * FROM glob('{folder}/*')
    COPY (SELECT 1) TO '{made}'
    ATTACH '{made}' AS x
    EXPORT DATABASE '{made}'
    INSTALL httpfs
    LOAD '{secret}'
    SET enable_external_access = true
    SET allowed_directories = ['/']
    SET memory_limit = '1TB'
    SET temp_directory = '{folder}'
    RESET memory_limit
"""


@pytest.mark.parametrize("attempt", BY_DUCKDB.split("\n    ")[1:])
def test_duckdbs_own_locks_hold_without_the_look_at_the_statement(attempt, attacked):
    sql, before = attempt.strip().format(**attacked), _state(attacked["folder"])
    store = Store(attacked["store"])
    for opened in (views.connect(store), views.opened(store, ["baseline_random"], "1GB")):
        with opened as connection, pytest.raises(QueryError):
            connection.execute(sql).fetchall()
    assert _state(attacked["folder"]) == before


@pytest.fixture(scope="module")
def open_to_all(attacked) -> Any:
    """A connection without a lock that has the explorer's views."""
    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW rows AS SELECT * FROM '{attacked['shard']}'")
        connection.execute("CREATE TABLE scores AS SELECT row_id FROM rows")
        yield connection


@pytest.mark.parametrize("attempt", LISTED)
def test_the_look_at_the_statement_refuses_it_without_duckdbs_locks(attempt, attacked, open_to_all):
    with pytest.raises(QueryError):
        guard.check(open_to_all, attempt.format(**attacked))


def test_a_statement_is_refused_by_its_kind_and_by_its_tree(open_to_all, monkeypatch):
    harmless = json.dumps({"error": False, "statements": []})

    class Blind:
        def execute(self, sql, *values):
            return open_to_all.execute(f"SELECT '{harmless}'" if "json_serialize_sql" in sql else sql)

    with pytest.raises(QueryError, match="exactly one SELECT"):
        guard.check(Blind(), "DELETE FROM scores")
    (select,) = duckdb.extract_statements("SELECT 1")
    monkeypatch.setattr(duckdb, "extract_statements", lambda sql: [select])
    with pytest.raises(QueryError, match="exactly one SELECT"):
        guard.check(open_to_all, "DELETE FROM scores")


@pytest.mark.parametrize(
    "sql",
    [
        "FROM rows SELECT count(*)",
        "TABLE rows",
        "VALUES (1)",
        "DESCRIBE rows",
        "SUMMARIZE rows",
        "SHOW TABLES",
        "SELECT * FROM main.rows JOIN candidates USING (row_id)",
        "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t WHERE i < 3) SELECT * FROM t",
        'WITH "rows/00000.parquet" AS (SELECT 1) SELECT * FROM "rows/00000.parquet"',
        "WITH rows AS (SELECT 1 AS x), b AS (SELECT * FROM rows) SELECT b.x FROM b, (SELECT * FROM rows) AS c, LATERAL (FROM b) AS d",
        "WITH a AS (SELECT 1 AS x) (SELECT * FROM a) UNION ALL SELECT (SELECT x FROM a)",
        "WITH RECURSIVE t AS (SELECT 1 i UNION ALL SELECT i + 1 FROM (WITH u AS (FROM t) FROM u) WHERE i < 3) SELECT * FROM t",
        "WITH RECURSIVE t(i, n) USING KEY (i) AS (SELECT 1, 1 UNION SELECT i, n + 1 FROM t WHERE n < 3) SELECT * FROM t",
        "WITH Mine AS MATERIALIZED (SELECT * FROM rows) SELECT * FROM mine UNION SELECT * FROM MINE",
        "SELECT unnest([1, 2]) UNION ALL SELECT * FROM range(3)",
        "SELECT list_transform([1], lambda x: x + 1), 'it''s; fine' -- really; fine",
        "SELECT * FROM (PIVOT rows ON query_type IN ('open', 'closed') USING count(*))",
        "SELECT j.value FROM json_each('[1, 2]') AS j",
    ],
)
def test_reading_the_views_in_any_way_is_answered(finished, sql):
    assert query(finished, sql).num_columns > 0


def test_a_query_a_filter_and_the_command_end_in_time(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.path, tmp_path / "store")
    store = Store(tmp_path / "store")
    # Without the limit it takes some seconds, and is answered.
    slow = "SELECT sum(a.range * b.range) AS row_id FROM range(50000) a, range(50000) b"
    for where, name, ask in (
        (views, "SECONDS", lambda: query(store, slow)),
        (decision, "SECONDS", lambda: split.make(store, "x", Split(filter=slow))),
    ):
        monkeypatch.setattr(where, name, 0.3)
        started = time.monotonic()
        with pytest.raises(QueryError, match=r"stopped after 0\.3 seconds"):
            ask()
        assert time.monotonic() - started < 60
    by_command = CliRunner().invoke(app, ["sql", str(store.path), slow, "--seconds", "0.3"])
    assert re.match(r"stopped after 0\.3 seconds; .* more --seconds", str(by_command.exception))
    assert not (tmp_path / "store/splits/x").exists()


def test_what_a_query_spills_is_bounded_and_lies_in_a_folder_of_its_own(finished, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    asked = "SELECT current_setting('temp_directory'), current_setting('max_temp_directory_size')"
    with views.connect(finished) as connection:
        ((where, most),) = connection.execute(asked).fetchall()
        assert Path(where).parent == tmp_path / "temporary" and Path(where).stat().st_mode & 0o77 == 0
    del connection
    assert float(most.split()[0]) > 0 and not list((tmp_path / "temporary").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda where: shutil._ntuple_diskusage(10**9, 10**9, 10**7))
    with views.connect(finished, tmp_path / "spill") as connection:
        big = "SELECT a.range, repeat('text', 40) || a.range AS t FROM range(3000000) a ORDER BY t"
        with pytest.raises(QueryError, match="Out of Memory"), views.limited(connection, 600, ""):
            views.run(connection, big).read_all()
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 2 * 10**7


def test_a_strangers_filter_cannot_write_over_the_store(recipe, tmp_path):
    run_local(recipe(splits={}), tmp_path / "store")
    shard = tmp_path / "store/rows/00000.parquet"
    before = shard.read_bytes()
    written = f"COPY (SELECT 1 AS row_id) TO '{shard}' (FORMAT parquet, USE_TMP_FILE false)"
    for sql in (f"SELECT row_id FROM rows; {written}", f"WITH x AS ({written}) SELECT row_id FROM rows"):
        with pytest.raises(QueryError, match="exactly one SELECT"):
            run_local(recipe(splits={"x": Split(filter=sql)}), tmp_path / "store")
        assert shard.read_bytes() == before
