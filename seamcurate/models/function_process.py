"""The process that a reward function runs in, seen from outside: started, asked, limited in time and memory, ended.

One rule: whatever the function does, the asker gets an answer or a reason within the time limit. A process that hangs or
ends is killed with all that it started, and the next request starts another one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

_WORKER = Path(__file__).with_name("function_worker.py")
_LOAD_SECONDS = 120.0
"""Most seconds in which the function's file is imported: it may import large libraries."""
_LOOK_SECONDS = 0.1
"""How often a process that does not answer is looked at: what it started may keep its socket open after its end."""
_LARGEST_REPLY = 2**26
"""Most bytes of a reply."""
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)
"""Variables that the process gets; keys and other secrets of the environment stay here."""


class NoAnswerError(Exception):
    """The function gave no answer; the message is the reason, in one line."""


class LateError(NoAnswerError):
    """The function did not answer in time."""


class EndedError(NoAnswerError):
    """The process ended by itself, or was ended from outside."""


class FunctionProcess:
    """Hold a process with one reward function, and start it anew where it was ended.

    Args:
        settings: What the worker is told first: file and name of the function, its signature, its memory limit in MiB.
        seconds: Most seconds for a request.

    Raises:
        NoAnswerError: By `start` and `ask`; the process is ended where it did not answer.
    """

    def __init__(self, settings: Mapping[str, JsonValue], seconds: float) -> None:
        self._settings, self._seconds = dict(settings), seconds
        self._end: weakref.finalize[..., FunctionProcess] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._received = b""

    @property
    def runs(self) -> bool:
        """Tell whether the process is started and was not ended."""
        return self._process is not None

    def start(self) -> None:
        """Start the process and import the function."""
        ours, theirs = socket.socketpair()
        passed_on = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            self._process = subprocess.Popen(
                # -P and -s: no module is imported from the working folder or the user's own site.
                [sys.executable, "-P", "-s", str(_WORKER)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Sets of text are in one order in every process.
                env={**passed_on, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
                # Away from the terminal: Ctrl-C ends the run, which then ends this process.
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise EndedError(f"its process cannot be started: {error.strerror}") from error
        finally:
            theirs.close()
        self._channel, self._received = ours, b""
        self._end = weakref.finalize(self, _killed, self._process, ours)
        reply = self._asked(self._settings, _LOAD_SECONDS)
        if "error" in reply:
            self.end()
            raise NoAnswerError(str(reply["error"]))

    def ask(self, request: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Return the reply to a request; start the process where it does not run."""
        if not self.runs:
            self.start()
        reply = self._asked(request, self._seconds)
        if reply.get("memory"):
            # What is left of its memory may not do for the next row.
            self.end()
        return reply

    def end(self) -> None:
        """End the process, and all processes that it started."""
        if self._end is not None:
            self._end()
        self._process = self._channel = self._end = None

    def _asked(self, request: Mapping[str, JsonValue], seconds: float) -> dict[str, JsonValue]:
        assert self._channel is not None and self._process is not None
        deadline = time.monotonic() + seconds
        try:
            self._channel.settimeout(seconds)
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            while b"\n" not in self._received:
                self._receive(deadline, seconds)
        except (OSError, NoAnswerError) as error:
            failure = error if isinstance(error, NoAnswerError) else EndedError(self._ending())
            self.end()
            raise failure from error
        except BaseException:
            # Ctrl-C: a reply that comes later would be taken for that of the next request.
            self.end()
            raise
        line, _, self._received = self._received.partition(b"\n")
        try:
            reply = json.loads(line)
            if isinstance(reply, dict):
                return reply
        except ValueError:
            pass
        self.end()
        raise NoAnswerError("the function wrote into the answers of its process")

    def _receive(self, deadline: float, seconds: float) -> None:
        """Wait for more of a reply."""
        assert self._channel is not None and self._process is not None
        left = deadline - time.monotonic()
        if left <= 0:
            raise LateError(f"no answer in {seconds:g} seconds")
        self._channel.settimeout(min(left, _LOOK_SECONDS))
        ended = self._process.poll() is not None
        received = b""
        with suppress(TimeoutError):
            received = self._channel.recv(1 << 16)
            ended = not received
        if (ended and not received) or len(self._received) > _LARGEST_REPLY:
            raise EndedError(self._ending())
        self._received += received

    def _ending(self) -> str:
        """Say how the process ended."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        status = self._process.returncode
        if status is None:
            return "the function closed the socket of its process"
        if status < 0:
            with suppress(ValueError):
                return f"the function's process was ended by {signal.Signals(-status).name}"
        return f"the function ended its process with status {status}"


def _killed(process: subprocess.Popen[bytes], channel: socket.socket) -> None:
    """End a process and what it started."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(OSError):
        process.kill()
    channel.close()
    process.wait()
