"""A real vLLM on loopback, for tests that hold its scores against those computed here, and tiny models for it to serve.

The server runs in an environment of its own, `.venv-vllm`, or by the Python that SEAMCURATE_VLLM names.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

PYTHON = Path(os.environ.get("SEAMCURATE_VLLM") or Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python")
installed = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"no vLLM is installed: {PYTHON} is missing, `make test-vllm` installs it"
)
"""Marks tests that need the server."""
_SECONDS = 400
"""Until a server is up: it imports for 15 processor seconds."""
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    # A spawned process would import everything again.
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
}


class Server:
    """A running server: its address, and how to stop it and start it again there."""

    def __init__(self, model: Path, name: str, log: Path, options: tuple[str, ...]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.model, self.log = f"http://127.0.0.1:{port}", model, log
        self.command = [
            *(str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)),
            *("--model", str(model), "--served-model-name", name, "--dtype", "float32", "--enforce-eager"),
            *("--distributed-executor-backend", "uni", "--max-num-seqs", "8", "--disable-log-stats", *options),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return at once; `wait` waits until it answers."""
        with self.log.open("ab") as log:
            # A session of its own, so that `stop` reaches its children too.
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                env=os.environ | _ENVIRONMENT,
                cwd=self.log.parent,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers, or fail with the end of its log."""
        assert self.process is not None
        end = time.monotonic() + _SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.3)
        raise RuntimeError("vLLM did not start:\n" + self.log.read_text(errors="replace")[-3000:])

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Stop it, with the processes that it started."""
        if self.process is not None:
            self.process.send_signal(signal_number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def running(group: int) -> list[str]:
    """List the processes of a group that have not ended, at the latest after a few seconds."""
    end = time.monotonic() + 5
    while True:
        shown = subprocess.run(["ps", "-eo", "pgid=,state=,args="], capture_output=True, text=True, check=True).stdout
        processes = [line.split(maxsplit=2) for line in shown.splitlines()]
        left = [args for number, state, *args in processes if int(number) == group and state != "Z"]
        if not left or time.monotonic() > end:
            return [" ".join(args) for args in left]
        time.sleep(0.1)


@contextmanager
def serving(model: Path, name: str, *options: str, log: Path) -> Iterator[Server]:
    """Serve a folder's model under a name, with vLLM's own options, such as `--runner pooling`; its log goes to `log`."""
    server = Server(model, name, log, options)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def sizes(tokenizer: Any) -> dict[str, Any]:
    """Return the sizes of a tiny model whose attention vLLM's kernels for processors can read: heads of 32."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,
    }


def write_classifier(folder: Path, tokenizer: Any, labels: tuple[str, ...] = ("reward",)) -> Path:
    """Write a tiny random reward model, a Qwen2 with one output a label."""
    import torch
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    torch.manual_seed(3)
    names: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    Qwen2ForSequenceClassification(Qwen2Config(num_key_value_heads=1, **names, **sizes(tokenizer))).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def write_policy(folder: Path, tokenizer: Any) -> Path:
    """Write a tiny random policy, a Qwen2."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(4)
    config = Qwen2Config(num_key_value_heads=1, eos_token_id=tokenizer.eos_token_id, **sizes(tokenizer))
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_encoder(folder: Path) -> Path:
    """Write a tiny random BERT for mean pooling, with sentence-transformers' own files; return its folder."""
    import torch
    from conftest import questions
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word for row in questions(300) for word in f"{row['prompt']} {row['response']}".split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128)
    torch.manual_seed(5)
    BertModel(BertConfig(**sizes(tokenizer) | {"max_position_embeddings": 128})).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    SentenceTransformer(str(folder / "bert"), device="cpu").save(str(folder / "whole"))
    return folder / "whole"
