"""What several test files share: small stores on FakeModel, and tiny real models made on the spot."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# A store syncs each file to the disk, for which tests of small stores wait a quarter of their time; memory has no disk to
# wait for. Where programs may not be run from there, a script that a test writes could not be.
MEMORY = Path("/dev/shm")
if (
    os.access(MEMORY, os.W_OK)
    and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    and shutil.disk_usage(MEMORY).free > 4 * 2**30
):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

WORDS = ["sort", "list", "queue", "cache", "thread", "parse", "merge", "filter", "lock", "index", "open"]
WORDS += ["close", "copy", "file", "table"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


_STARTS_PROCESSES = {"Popen", "fork", "multiprocessing", "run_ray", "subprocess"}
"""Names in code that starts other processes. The process that answers SQL is not meant: most tests have one."""


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give the tests a cache of their own: what earlier tests left in the user's must not decide what these compute."""
    os.environ["SEAMCURATE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use a browser or other processes, before `-m` selects among them."""
    for item in items:
        if isinstance(item, pytest.Function):
            if "browser" in item.fixturenames:
                item.add_marker("browser")
            fixtures = [definition.func for name in item.fixturenames for definition in _definitions(item, name)]
            if any(map(_starts_processes, [item.function, *fixtures])):
                item.add_marker("process")


def _definitions(item: pytest.Function, fixture: str) -> Sequence[Any]:
    return item._fixtureinfo.name2fixturedefs.get(fixture, ())


@cache
def _starts_processes(function: Any) -> bool:
    """Tell whether a test or a fixture, or what it calls in the tests' modules, names something that starts processes."""
    seen, remaining = set[Any](), [function]
    while remaining:
        called = inspect.unwrap(remaining.pop())
        if called in seen:
            continue
        seen.add(called)
        if inspect.isclass(called):
            remaining += filter(inspect.isfunction, vars(called).values())
            continue
        names, codes = set[str](), [called.__code__]
        while codes:
            code = codes.pop()
            names |= {*code.co_names}
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        if names & _STARTS_PROCESSES:
            return True
        values = [called.__globals__.get(name) for name in names]
        remaining += [
            value for value in values if inspect.isfunction(value) or inspect.isclass(value) if _is_of_tests(value)
        ]
    return False


def _is_of_tests(value: Any) -> bool:
    file = getattr(sys.modules.get(value.__module__), "__file__", None)
    return file is not None and Path(file).is_relative_to(Path(__file__).parent)


def interrupt(process: subprocess.Popen[str]) -> tuple[list[str], float]:
    """Send a command a Ctrl-C, and return what it said and how many seconds it took to say that it stopped.

    What the interpreter still puts away afterwards is not timed, and what took long before is not of interest.
    """
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    giving_up = threading.Timer(60, process.kill)
    giving_up.start()
    assert process.stderr is not None
    said = []
    while (line := process.stderr.readline()) and not line.startswith("stopped"):
        said += [] if line.endswith(" s\n") else [line]
    took = time.monotonic() - start
    process.communicate()
    giving_up.cancel()
    assert process.returncode == 130, said
    return [*said, line.strip()], took


def untimed(report):
    """Return a run's report without what its steps took, which no two runs share."""
    return report._replace(times=())


def questions(count: int, start: int = 0) -> list[dict[str, str]]:
    """Questions that share words, so that a FakeModel finds neighbours among them."""
    rows = []
    for i in range(start, start + count):
        a, b, c = WORDS[i % 15], WORDS[(i // 15) % 15], WORDS[(i // 225) % 15]
        rows.append(
            {
                "prompt": f"how do I {a} the {b} and then {c} all of it number {i}",
                "response": f"use {a} on {b} then {c} it {'carefully ' * (i % 4)}step {i}",
                "reference": f"{a} {b} {c}",
            }
        )
    return rows


def write_files(folder: Path) -> tuple[Path, Path]:
    """Write a rows file of 40 questions and a corpus file of 200 others."""
    rows, corpus = folder / "rows.parquet", folder / "corpus.parquet"
    pq.write_table(pa.Table.from_pylist(questions(40)), rows)
    pq.write_table(pa.Table.from_pylist(questions(200, start=1000)), corpus)
    return rows, corpus


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The files of `recipe`, to be changed freely."""
    return write_files(tmp_path)


@pytest.fixture
def recipe(files: tuple[Path, Path]) -> Callable[..., Any]:
    """A function that makes a whole recipe on FakeModel; keywords replace its parts."""
    return whole_recipe(*files)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store in which that recipe was run, for tests that only read it."""
    from seamcurate import Store, run_local

    folder = tmp_path_factory.mktemp("finished")
    run_local(whole_recipe(*write_files(folder))(), folder / "store")
    return Store(folder / "store")


def whole_recipe(rows: Path, corpus: Path) -> Callable[..., Any]:
    """Return a function that makes a recipe of every step over the two files."""
    from seamcurate import FakeModel, Models, Random, Recipe, Retrieve, Source, Split, rer, seam

    keep = (Path(__file__).parents[1] / "recipes" / "keep_above_lowest.sql").read_text()

    def make(**parts: Any) -> Recipe:
        whole: dict[str, Any] = {
            "rows": Source(parquet=str(rows), shard_rows=15),
            "corpus": Source(parquet=str(corpus), shard_rows=64),
            "models": Models(
                policy=FakeModel(path="policy"), reward=FakeModel(path="reward"), encoder=FakeModel(path="encoder")
            ),
            "steps": (Retrieve(k=5, band=(0.5, 0.9)), *seam("contrast", k=5), *rer(fit="quantiles"), Random()),
            "splits": {"train": Split(filter=keep, by="seam_contrast", rate=0.2)},
        }
        return Recipe(**(whole | parts))

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer with distinct pad and end tokens and no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [f"Question: {q['prompt']}\n\nAnswer: {q['response']}" for q in questions(200)]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|pad|>", "<|im_end|>", "<|im_start|>"],
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=256,
    )


def _sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,
    }


@pytest.fixture(scope="session")
def policy_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2 with the plain tokenizer; large initial weights, so that scores differ visibly."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    config = Qwen2Config(num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, **_sizes(tokenizer))
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def decoder_reward_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2 reward model with a chat template."""
    import torch
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(1)
    config = Qwen2Config(num_key_value_heads=2, num_labels=1, **_sizes(tokenizer))
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    chat = type(tokenizer).from_pretrained(_saved(tokenizer, tmp_path_factory))
    chat.chat_template = CHAT_TEMPLATE
    chat.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_reward_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT reward model whose tokenizer frames texts with [CLS] and [SEP]."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = sorted({word for q in questions(300) for word in (q["prompt"] + " " + q["response"]).split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "question", "answer", ":", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    bert = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=256)
    torch.manual_seed(2)
    sizes = _sizes(bert) | {"pad_token_id": bert.pad_token_id}
    BertForSequenceClassification(BertConfig(num_labels=1, **sizes)).save_pretrained(folder)
    bert.save_pretrained(folder)
    return folder


def _saved(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def masked_folder(encoder_reward_folder, tmp_path_factory):
    """A masked language model of one layer that learned the questions' words."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder = tmp_path_factory.mktemp("masked")
    tokenizer = BertTokenizerFast(str(encoder_reward_folder / "vocab.txt"), model_max_length=64)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    texts = [row["response"] for row in questions(200)]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for start in range(0, 200, 20):
        batch = tokenizer(texts[start : start + 20], return_tensors="pt", padding=True, truncation=True, max_length=64)
        loss = model(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
