"""One number limits the threads of every library, whether it is loaded before or after, and of the query process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from seamcurate import threads
from seamcurate.errors import SeamcurateError
from seamcurate.select import views

_TOLD = """
import faiss, numpy, pyarrow, torch
torch.ones(2)
faiss.IndexFlatIP(2)
"""
_ASKED = """
print(torch.get_num_threads(), faiss.omp_get_max_threads(), pyarrow.cpu_count(), pyarrow.io_thread_count())
import os
print(os.environ["RAYON_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"], threads.available())
"""


def _run(script: str, **variables: str) -> str:
    # The tests' own limit is taken away.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")} | variables
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr[-300:]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after", "by the environment"])
def test_every_library_has_the_limit(order):
    pytest.importorskip("faiss")
    limit = "from seamcurate import threads\n" + ("" if order == "by the environment" else "threads.limit(1)\n")
    variables = {threads.VARIABLE: "1"} if order == "by the environment" else {}
    script = _TOLD + limit + _ASKED if order == "after" else limit + _TOLD + _ASKED
    assert _run(script, **variables).split() == ["1"] * 7


def test_a_query_process_has_the_limit(finished, monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "1")
    with views.connect(finished) as connection:
        assert connection.execute("SELECT current_setting('threads')").fetchall() == [(1,)]
    with views.in_memory() as connection:
        assert connection.execute("SELECT current_setting('threads')").fetchall() == [(1,)]


def test_without_a_limit_there_is_a_thread_for_each_core_of_this_process(monkeypatch):
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    assert threads.available() == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "²"])
def test_what_is_no_number_of_threads_is_refused(limit, monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, limit)
    with pytest.raises(SeamcurateError, match="give 1 or more"):
        threads.available()


def test_the_command_line_refuses_it_in_one_line():
    limit, command = (
        "two",
        "import sys; sys.argv = ['seamcurate', 'columns', '.']\nfrom seamcurate.cli.app import main\nmain()",
    )
    shown = _run(command, **{threads.VARIABLE: limit})
    assert f"error: {threads.VARIABLE}={limit} is no number of threads; give 1 or more" in shown
    assert "Traceback" not in shown


def test_a_limit_below_one_is_refused():
    with pytest.raises(SeamcurateError, match="0 threads: give 1 or more"):
        threads.limit(0)


def test_the_option_limits_threads_before_the_verb_begins(finished):
    script = (
        f"import sys; sys.argv = ['seamcurate', 'sql', {str(finished.path)!r}, 'SELECT 1 AS one', '--threads', '1']\n"
        "from seamcurate.cli.app import main\nimport atexit, os\n"
        "atexit.register(lambda: print('OMP', os.environ['OMP_NUM_THREADS']))\nmain()"
    )
    assert "OMP 1" in _run(script)
