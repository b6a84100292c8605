"""A process with vLLM's engine in it, started by the Python of the environment that has vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

PYTHON = Path(os.environ.get("SEAMCURATE_VLLM") or Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python")
INSTALL = "make .venv-vllm/installed, or SEAMCURATE_VLLM=/path/to/python"
_WORKER = Path(__file__).with_name("vllm_worker.py")


class Engine:
    """A running engine."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, kind: Literal["likelihoods", "rewards", "samples"], **what: Any) -> Any:
        """Return the engine's answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"kind": kind, **what}) + "\n")
        self._process.stdin.flush()
        return self.answer().get("value")

    def answer(self) -> dict[str, Any]:
        """Read the next line that it writes.

        Raises:
            RuntimeError: The process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("vLLM's process ended")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def engine(folder: Path, runner: Literal["generate", "pooling"], threads: int) -> Iterator[Engine | None]:
    """Start an engine over a folder's model; None where vLLM is not installed.

    Raises:
        RuntimeError: It does not start; the message ends with what it printed.
    """
    if not PYTHON.exists():
        yield None
        return
    own = {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(PYTHON), str(_WORKER), str(folder), runner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own,
            cwd=tempfile.gettempdir(),
            text=True,
        )
        try:
            started = Engine(process)
            try:
                started.answer()
            except RuntimeError:
                log.seek(0)
                raise RuntimeError("vLLM did not start:\n" + log.read()[-2000:]) from None
            yield started
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
