"""What the tests of trainings share: untrained models of 30,000 parameters, rows in Parquet, and a training that is stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINGS = [
    f"{a} {b}" for a in ("red", "blue", "old", "new", "big", "wet") for b in ("cat", "dog", "hat", "sea", "sun", "map")
]


def tokenizer(template: str | None = None, eos: bool = True) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    bpe.train_from_iterator([f"Question: Where is the {t}?\n\nAnswer: The {t} is here." for t in THINGS], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>" if eos else None)
    made.chat_template = template
    return made


def start(folder: Path, template: str | None = None, eos: bool = True) -> Path:
    """Write an untrained Qwen2 of 30,000 parameters: a policy, and what a reward head is put on."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

    made = tokenizer(template, eos)
    set_seed(0)
    shape = Qwen2Config(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=made.pad_token_id,
        eos_token_id=made.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start(tmp_path_factory.mktemp("chat") / "model", CHAT)


def parquet(path: Path, records: Sequence[Mapping[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(records)), path)
    return path


def answered(n: int = 36) -> list[dict[str, object]]:
    return [{"prompt": f"Where is the {t}?", "response": f"The {t} is here."} for t in THINGS[:n]]


def preferred(n: int = 36) -> list[dict[str, object]]:
    return [
        {"prompt": f"Where is the {t}?", "chosen": f"The {t} is here.", "rejected": f"Who knows the {t}"}
        for t in THINGS[:n]
    ]


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def stop_after(update: int, monkeypatch: pytest.MonkeyPatch, train: Callable[[], object]) -> None:
    """Begin a training that is stopped as soon as it has done so many updates."""
    from seamcurate.train.workplace import Workplace

    write = Workplace.write

    def stop(self: Workplace, step: int, values: Mapping[str, object]) -> None:
        write(self, step, values)
        if step == update:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Workplace, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            train()
