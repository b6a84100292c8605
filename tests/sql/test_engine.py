"""Queries in a process of their own: whatever one does, it ends, and the process that asked goes on."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from seamcurate import Split, Store, query
from seamcurate.cli import app
from seamcurate.errors import QueryError
from seamcurate.select import decision, split, views
from seamcurate.sql import connection as connections
from seamcurate.sql.connection import TooLargeError

pytestmark = pytest.mark.slow

ENDLESS = "SELECT levenshtein(repeat('a', 600000), repeat('b', 600000)) AS row_id"
LARGE = {
    "a list": "SELECT len(range(400000000)) AS row_id",
    "a text": "SELECT length(repeat('x', 2000000000)) AS row_id",
    "a format": "SELECT length(printf('%*d', 2000000000, 5)) AS row_id",
    "many texts": "SELECT row_id, repeat('x', 100000000) AS t FROM rows",
}


@pytest.mark.parametrize("sql", LARGE.values(), ids=LARGE)
def test_a_query_that_takes_more_memory_than_it_may_is_ended_and_the_next_is_answered(sql, finished):
    with views.connect(finished, memory="64MB") as connection, views.limited(connection, 60, "ask for less"):
        with pytest.raises(
            QueryError, match=r"needs more than 0\.\d GB of memory; ask for fewer|Out of Memory"
        ) as refused:
            views.run(connection, sql).read_all()
        assert "\n" not in str(refused.value)
    assert query(finished, "SELECT count(*) AS n FROM rows").to_pylist() == [{"n": 40}]


def test_a_call_that_cannot_be_interrupted_is_ended_by_every_door(finished, tmp_path, monkeypatch):
    starlette = pytest.importorskip("starlette", reason="starlette is not installed")
    assert starlette
    from seamcurate.explore import Session

    for where, name, ask in (
        (views, "SECONDS", lambda: query(finished, ENDLESS)),
        (decision, "SECONDS", lambda: split.make(finished, "x", Split(filter=ENDLESS))),
    ):
        monkeypatch.setattr(where, name, 0.3)
        with pytest.raises(QueryError, match=r"stopped after 0\.3 seconds"):
            ask()
    by_command = CliRunner().invoke(app, ["sql", str(finished.path), ENDLESS, "--seconds", "0.3"])
    assert "stopped after 0.3 seconds" in str(by_command.exception)
    session = Session(finished, seconds=0.3)
    for ask in (session.ask, session.chart):
        with pytest.raises(QueryError, match=r"stopped after 0\.3 seconds"):
            ask(ENDLESS)
    # Its engine was ended, and a new one has the same views and charts.
    session._seconds = 60.0
    assert session.ask("SELECT count(*) AS n FROM candidates JOIN scores USING (row_id)").to_pylist()[0]["n"] > 0
    assert not (finished.path / "splits" / "x").exists()


def test_a_query_beside_one_that_ends_their_engine_is_answered_all_the_same(finished):
    pytest.importorskip("starlette", reason="starlette is not installed")
    from seamcurate.explore import Session

    session = Session(finished, seconds=1.0)
    session.refresh()
    session.complete()
    ended: list[str] = []

    def ask() -> None:
        with pytest.raises(QueryError) as refused:
            session.ask(ENDLESS)
        ended.append(str(refused.value))

    other = threading.Thread(target=ask)
    other.start()
    while other.is_alive():
        assert session.chart("SELECT count(*) AS n FROM scores").to_pylist() == [{"n": 40}]
    other.join()
    assert len(ended) == 1 and ended[0].startswith("stopped after 1 seconds")


def test_one_process_serves_one_connection_after_the_other(finished):
    # Connections of other tests would give theirs back in the middle.
    gc.collect()
    with views.connect(finished) as first:
        process = first._engine._process.popen
    query(finished, "SELECT count(*) FROM candidates")
    with pytest.raises(QueryError):
        query(finished, "SELECT no_such_column FROM rows")
    with views.connect(finished) as one, views.connect(finished) as two:
        assert one._engine._process.popen is process
        other = two._engine._process.popen
        assert one.execute("SELECT 1").fetchall() == two.execute("SELECT 1").fetchall() == [(1,)]
    # The first that is given back stays for the next connection.
    assert [p.popen for p in connections._spare] == [other] and process.poll() is not None


def test_nothing_of_one_connection_is_left_for_the_next(finished):
    with views.connect(finished, memory="99MB") as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS x")
    with views.connect(finished) as connection:
        with pytest.raises(QueryError, match="not 'mine'"):
            connection.ask("SELECT * FROM mine")
        ((limit,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
        assert limit != "94.4 MiB"


def test_an_answer_that_is_left_unread_ends_with_its_connection(finished):
    with views.connect(finished) as connection:
        answer = views.run(connection, "SELECT a.range AS x FROM range(1000000) a, range(1000000) b")
        assert next(iter(answer)).num_rows > 0
        answer.close()
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_an_engine_that_dies_is_told_by_its_signal(finished):
    with views.connect(finished) as connection:
        connection.execute("SELECT 1").fetchall()
        os.kill(connection._engine._process.popen.pid, signal.SIGSEGV)
        with pytest.raises(connections.EndedError, match=r"^the query ended its process by signal 11; ask for it"):
            connection.execute("SELECT 2")
    with views.connect(finished) as connection:
        connection.execute("SELECT 1").fetchall()
        os.kill(connection._engine._process.popen.pid, signal.SIGKILL)
        with pytest.raises(TooLargeError, match="more memory than this machine has left"):
            connection.execute("SELECT 2")
    assert query(finished, "SELECT 1 AS one").to_pylist() == [{"one": 1}]


ORPHAN = """
import sys, threading
from seamcurate import Store
from seamcurate.select import views
connection = views.connect(Store(sys.argv[1]))
print(connection._engine._process.popen.pid, flush=True)
views.run(connection, sys.argv[2]).read_all()
"""


def test_a_query_ends_with_the_process_that_asked_it(finished):
    command = [sys.executable, "-c", ORPHAN, str(finished.path), ENDLESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        engine = int(owner.stdout.readline())
        handle = os.pidfd_open(engine)
        owner.kill()
        owner.wait()
    import select

    # The handle is readable when the process has ended.
    assert select.select([handle], [], [], 60)[0]
    os.close(handle)


SCRIPT = """
from seamcurate import query
print(query("{store}", "SELECT count(*) AS n FROM rows").to_pylist())
"""


def test_a_script_asks_from_a_folder_with_modules_of_the_same_names_and_without_a_guard(finished, tmp_path):
    (tmp_path / "work").mkdir()
    for name in ("duckdb", "pyarrow", "json", "seamcurate"):
        (tmp_path / "work" / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    (tmp_path / "script.py").write_text(SCRIPT.format(store=finished.path))
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=tmp_path / "work", capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[{'n': 40}]\n", "")


def test_query_takes_a_folder_as_text_or_path(finished):
    for store in (finished, finished.path, str(finished.path), Store(finished.path)):
        assert query(store, "SELECT count(*) AS n FROM rows").to_pylist() == [{"n": 40}]


def test_memory_that_is_no_size_is_refused_in_one_line(finished):
    with pytest.raises(QueryError, match=r"^Parser Error: Memory must have a number") as refused:
        views.connect(finished, memory="much")
    assert "\n" not in str(refused.value)
