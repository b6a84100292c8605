"""The server that other tests ask: it starts, names its model, and leaves no process behind."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request

import pytest
import vllm_server

pytestmark = [pytest.mark.vllm, vllm_server.installed]


def test_a_server_names_its_model_and_leaves_no_process_behind(tokenizer, tmp_path):
    policy = vllm_server.write_policy(tmp_path / "policy", tokenizer)
    with vllm_server.serving(policy, "tiny", log=tmp_path / "log") as server:
        with urllib.request.urlopen(f"{server.url}/v1/models") as reply:
            (model,) = json.load(reply)["data"]
        assert (model["id"], model["max_model_len"]) == ("tiny", 512)
        group = server.process.pid
        assert len(running(group)) > 1
    for _ in range(50):
        if not running(group):
            break
        time.sleep(0.1)
    assert running(group) == []


def running(group):
    """List the processes of a group that have not ended."""
    shown = subprocess.run(["ps", "-eo", "pgid=,state=,args="], capture_output=True, text=True, check=True).stdout
    processes = [line.split(maxsplit=2) for line in shown.splitlines()]
    return [args for number, state, *args in processes if int(number) == group and state != "Z"]
