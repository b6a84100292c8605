"""The command line in a process that kills itself at a moment of its work, whatever else the machine does meanwhile.

A test that watches a run from outside and kills it may look too late on a busy machine: the run has ended by then.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_BEFORE_A_SHARD = """
import os, signal, sys
from pathlib import Path
folder, count = Path(sys.argv.pop(1)), int(sys.argv.pop(1))
def watch(event, values):
    if event == "os.rename":
        file = Path(os.fsdecode(values[1]))
        if file.parent == folder and file.stem.isdigit() and len([*folder.glob("[0-9]*.parquet")]) == count:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
from seamcurate.cli import main
main()
"""
_AFTER_REPLIES = """
import os, signal, sys
from seamcurate.models.calls import Calls
count, put, kept = int(sys.argv.pop(1)), Calls.put, []
def putting(*values, **settings):
    put(*values, **settings)
    kept.append(1)
    if len(kept) == count:
        os.kill(os.getpid(), signal.SIGKILL)
Calls.put = putting
from seamcurate.cli import main
main()
"""


def before_a_shard(folder: Path, count: int, argv: Sequence[object]) -> list[Path]:
    """Run a command until `count` shards of a folder are written and the next is to be; return those that are."""
    _die(_BEFORE_A_SHARD, folder, count, *argv)
    written = sorted(folder.glob("[0-9]*.parquet"))
    assert len(written) == count
    return written


def after_replies(count: int, argv: Sequence[object]) -> None:
    """Run a command until so many replies of a server are kept."""
    _die(_AFTER_REPLIES, count, *argv)


def _die(program: str, *argv: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, argv)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
