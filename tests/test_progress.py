"""Progress: a bar that a notebook's browser draws, and one line elsewhere."""

from __future__ import annotations

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from seamcurate import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


class ZMQInteractiveShell(InteractiveShell):
    """A shell with the name of a kernel's, by which libraries such as rich know a notebook."""


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """The shell of a notebook: IPython's, without a terminal; what it shows is kept."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    ZMQInteractiveShell.clear_instance()
    shell = ZMQInteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.display_pub = CapturingDisplayPublisher()
    yield shell
    ZMQInteractiveShell.clear_instance()


def test_a_notebook_has_one_bar_that_moves_and_ends_as_a_line(shell, clock, capsys):
    with progress.bar("<reward>", 1000) as advance:
        advance(100)
        for _ in range(20):
            clock[0] += 0.125
            advance(10)
    shown = [output["data"]["text/html"] for output in shell.display_pub.outputs]
    assert len(shown) == 10
    assert shown[0] == (
        '<div>&lt;reward&gt;: <progress value="140" max="1000"></progress> 140 of 1,000 rows, 0 s, 3 s left</div>'
    )
    assert shown[-1] == "<div>&lt;reward&gt;: 300 rows in 2 s</div>"
    assert len({output["transient"]["display_id"] for output in shell.display_pub.outputs}) == 1
    assert [output.get("update", False) for output in shell.display_pub.outputs] == [False] + [True] * (len(shown) - 1)
    assert capsys.readouterr() == ("", "")


def test_a_notebook_has_no_bar_for_what_is_quick_and_none_without_a_total_has_an_end(shell, clock):
    with progress.bar("quick", 10) as advance:
        advance(10)
    assert shell.display_pub.outputs == []
    with progress.bar("reading", None) as advance:
        clock[0] += 1
        advance(5)
    assert shell.display_pub.outputs[0]["data"]["text/html"] == "<div>reading: <progress></progress> 5 rows, 1 s</div>"


def test_elsewhere_slow_work_is_one_line(clock, capsys):
    with progress.bar("reward", 10) as advance:
        clock[0] += 2
        advance(10)
    assert capsys.readouterr().err == "reward: 10 rows in 2 s\n"
