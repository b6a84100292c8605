"""What the races read: real rows where they are at hand, else the interpreter's own documentation; made-up weights."""

from __future__ import annotations

import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

REAL = Path(__file__).parents[2] / "shared" / "data"
"""Slices of public data that may lie beside the project."""


@cache
def pairs() -> list[tuple[str, str]]:
    """Return (instruction, response) pairs: 60,000 real ones, or about 5,300 from the documentation."""
    file = REAL / "sft_corpus.parquet"
    if file.exists():
        table = pq.read_table(file, columns=["instruction", "response"])
        return list(zip(table["instruction"].to_pylist(), table["response"].to_pylist(), strict=True))
    from seamcurate.demo.corpus import docs_pairs

    return [(pair["prompt"], pair["response"]) for pair in docs_pairs()]


def source() -> str:
    """Name what `pairs` returns."""
    return "real rows" if (REAL / "sft_corpus.parquet").exists() else "documentation"


@cache
def tokenizer(size: int = 16_000) -> Any:
    """Train a byte-level tokenizer of so many tokens on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|pad|>", "<|end|>"],
        show_progress=False,
    )
    bpe.train_from_iterator((f"{p} {r}" for p, r in random.Random(0).sample(pairs(), min(5000, len(pairs())))), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>", model_max_length=4096
    )
    # transformers gives a Qwen2 folder Qwen2's own way of cutting words: lengths are measured by what will be loaded.
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        Qwen2Config().save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def decoder(
    folder: Path, labels: int | None = None, seed: int = 0, width: int = 384, layers: int = 6, tokens: int = 16_000
) -> Path:
    """Save a Qwen2 of made-up weights, 16 M unless said otherwise: a policy, or with `labels` a reward model."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 64),
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=1,
        initializer_range=0.1,
        **({} if labels is None else {"num_labels": labels}),
    )
    kind = Qwen2ForCausalLM if labels is None else Qwen2ForSequenceClassification
    kind(config).save_pretrained(folder)
    tokenizer(tokens).save_pretrained(folder)
    return folder


def prompt_of(tokens: int, start: int) -> str:
    """Return about this many tokens of real text."""
    ids: list[int] = []
    for instruction, response in pairs()[start : start + 1000]:
        ids += tokenizer()(f"{instruction}\n{response}\n")["input_ids"]
        if len(ids) >= tokens:
            break
    return str(tokenizer().decode(ids[:tokens])).strip()


def responses(count: int, mean: int, seed: int) -> list[str]:
    """Return real responses of varied lengths, `mean` tokens on average, each at least a fifth and at most thrice it."""
    draw = random.Random(seed)
    found: list[str] = []
    lengths: list[int] = []
    for _, response in draw.sample(pairs(), len(pairs())):
        response = response.strip()
        length = len(tokenizer()(f" {response}")["input_ids"])
        if not mean / 5 <= length <= min(mean * 3, 500):
            continue
        # Whichever side of the mean is short is waited for.
        if lengths and (sum(lengths) / len(lengths) > mean) == (length > mean):
            continue
        found.append(response)
        lengths.append(length)
        if len(found) == count:
            break
    return found


def groups(rows: int, count: int, prompt_tokens: int, response_tokens: int) -> tuple[list[str], list[list[str]]]:
    """Return prompts, and for each as many responses."""
    prompts = [prompt_of(prompt_tokens, 5 * row) for row in range(rows)]
    return prompts, [responses(count, response_tokens, row) for row in range(rows)]


def encoder(folder: Path, seed: int = 0) -> Path:
    """Save a BERT reward model of MiniLM's shape, with made-up weights and the words of the texts."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = BertWordPieceTokenizer()
    texts = (f"{p} {r}" for p, r in random.Random(0).sample(pairs(), min(5000, len(pairs()))))
    words.train_from_iterator(texts, vocab_size=30_000, show_progress=False)
    folder.mkdir()
    words.save_model(str(folder))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30_000,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_labels=1,
        initializer_range=0.1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    return folder


def embeddings() -> tuple[Any, Any]:
    """Return float32 embeddings of queries and of a corpus by all-MiniLM-L6-v2; see `embedded`."""
    prompts = [prompt for prompt, _ in pairs()]
    queries = prompts[::30]
    if source() == "real rows":
        queries = pq.read_table(REAL / "rl_prompts.parquet", columns=["instruction"])["instruction"].to_pylist()
    return embedded("queries", queries), embedded("corpus", prompts)


def embedded(name: str, texts: list[str]) -> Any:
    """Return float32 embeddings of texts by all-MiniLM-L6-v2, kept in .benchmarks by name and number for the next run."""
    import numpy as np

    from seamcurate import SentenceEncoder
    from seamcurate.demo.corpus import encoder_folder

    file = Path(__file__).parents[1] / ".benchmarks" / f"{name}-{len(texts)}.npy"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        np.save(file, SentenceEncoder(path=str(encoder_folder()), dtype="float32", device="cpu").load().embed(texts))
    return np.load(file, allow_pickle=False)
