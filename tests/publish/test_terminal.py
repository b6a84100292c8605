"""`reproduce` at a real terminal: a person sees who is asked with which key, and answers before anything is sent."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import endpoint
import pytest
from hub_server import serving

ROWS = b'{"prompt": "how do I sort", "response": "sort it"}\n{"prompt": "how do I merge", "response": "merge it"}\n'
RECIPE = (
    "rows: {jsonl: q.jsonl}\nmodels: {generator: {openai_server: m, base_url: 'URL', api_key: MY_MODEL_KEY, retries: 0}}\n"
    "steps: [generate: {k: 1}]\nsplits: {a: {filter: SELECT row_id FROM rows, format: preferences}}\n"
)
QUESTION = "Send this recipe's requests and keys there? [y/N]: "


def at_a_terminal(command, folder, environment, answer):
    """Run a command on a pseudo-terminal, answer its question once it is asked; returns the screen and the exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen, answered, deadline = b"", False, time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 0.1)[0]:
            continue
        try:
            output = os.read(ours, 4096)
        except OSError:  # Linux says so that the other side is closed.
            break
        screen += output
        if not answered and QUESTION.encode() in screen:
            os.write(ours, answer)
            answered = True
    os.close(ours)
    return screen.decode(), process.wait(timeout=10)


@pytest.mark.parametrize(("answer", "requests"), [(b"n\n", 0), (b"\n", 0), (b"y\n", 2)])
def test_a_person_is_asked_and_nothing_is_sent_before_the_answer(tmp_path, answer, requests):
    (tmp_path / "files").mkdir()
    (tmp_path / "files/q.jsonl").write_bytes(ROWS)
    with serving() as hub, endpoint.serving() as server:
        recipe = RECIPE.replace("URL", server.url).encode()
        hub.add("them/it", {"recipe.yaml": recipe, "seamcurate.json": b'{"format": 1, "trainer": "trl", "files": {}}'})
        environment = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "OPENAI_API_KEY")}
        environment |= {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        environment |= {"NO_PROXY": "127.0.0.1", "MY_MODEL_KEY": "sk-canary", "COLUMNS": "200"}
        command = [
            sys.executable,
            "-m",
            "seamcurate.cli",
            "reproduce",
            "them/it",
            "--store",
            "again",
            "--files",
            "files",
        ]
        screen, code = at_a_terminal(command, tmp_path, environment, answer)
        question = screen.index(QUESTION)
        assert f"m at {server.url} (this machine), with the key in MY_MODEL_KEY" in screen[:question].replace(
            "\r\n", ""
        )
        assert len(server.requests) == requests and "sk-canary" not in screen
        if not requests:
            assert code == 2 and "them/it: its endpoints were not allowed; nothing was sent" in screen
