"""The command line in a child of a process that has imported everything: it starts at once and can be killed at any moment.

A line on standard input is a JSON object with the children's `argv`s, their `cwd`, the file of their `errors` (that of
their output if null), `at` and `fault`: from the `at`-th renaming on, a child meets `kill` (before it), `killed` (after
it), or `vanish` (the folder is gone). The answer is two lines: the child's process id when it starts, its exit code when
it has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


class Forker:
    """What starts children; `said` is where they write to."""

    def __init__(self, process: subprocess.Popen[str], said: Path) -> None:
        self.process, self.said = process, said

    def start(
        self,
        *argvs: Sequence[str],
        at: int = 0,
        fault: str = "kill",
        folder: Path | None = None,
        cwd: Path | None = None,
        errors: Path | None = None,
    ) -> int:
        """Start a child that does one command after another; returns its process id."""
        order = {"argvs": [list(map(str, argv)) for argv in argvs], "at": at, "fault": fault, "folder": str(folder)}
        order |= {"cwd": cwd and str(cwd), "errors": errors and str(errors)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """Return the child's exit code, negative for a signal."""
        return int(self._line())

    @property
    def renamings(self) -> int:
        """Return how many files and folders the last child that ended well renamed."""
        return int(self.said.with_suffix(".renamings").read_text())

    def run(self, *argvs: Sequence[str], **fault: object) -> int:
        """Start a child and wait for it."""
        self.start(*argvs, **fault)  # type: ignore[arg-type]
        return self.wait()

    def complete(self, *argv: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Do a command; returns what `subprocess.run` would, with what it said of errors apart."""
        errors = self.said.with_suffix(".errors")
        code = self.run(argv, cwd=cwd, errors=errors)
        return subprocess.CompletedProcess(argv, code, self.said.read_text(), errors.read_text())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@contextmanager
def forker(folder: Path) -> Iterator[Forker]:
    """Start the process that children are made of."""
    said = folder / "said.txt"
    root = Path(__file__).parents[1]
    command = [sys.executable, __file__, str(said)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    ) as process:
        try:
            yield Forker(process, said)
        finally:
            process.kill()


_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def _main(said: str) -> None:
    from seamcurate import cli

    names = Path(said).with_suffix(".modules")
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            # Its standard input is not that of the orders.
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(said, _NEW), 1)
            os.dup2(os.open(order["errors"], _NEW) if order["errors"] else 1, 2)
            if order["cwd"]:
                os.chdir(order["cwd"])
            done = _arm(order["at"], order["fault"], Path(order["folder"]))
            for argv in order["argvs"]:
                sys.argv = ["seamcurate", *argv]
                try:
                    cli.main()
                except SystemExit as ended:
                    if ended.code:
                        sys.stdout.flush()
                        os._exit(int(ended.code))
            sys.stdout.flush()
            names.write_text("\n".join(sys.modules))
            Path(said).with_suffix(".renamings").write_text(str(done[0]))
            os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        for name in names.read_text().split() if names.exists() else ():
            # The next child has from the start what this one needed.
            with suppress(Exception):
                importlib.import_module(name)
        names.unlink(missing_ok=True)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _arm(at: int, fault: str, folder: Path) -> list[int]:
    done = [0]

    def faulty(real: Callable[..., None]) -> Callable[..., None]:
        def rename(*arguments: object) -> None:
            done[0] += 1
            if done[0] == at and fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if done[0] == at and fault == "vanish":
                shutil.rmtree(folder)
            real(*arguments)
            if done[0] == at and fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)

        return rename

    os.replace, os.rename = faulty(os.replace), faulty(os.rename)  # type: ignore[assignment]
    return done


if __name__ == "__main__":
    _main(sys.argv[1])
