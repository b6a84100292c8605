"""What a policy answers to prompts, as a table that studies read: `responses`, `tax`, `winrate`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seamcurate.errors import TrainError
from seamcurate.models import weights
from seamcurate.progress import bar
from seamcurate.storage import atomic, objects
from seamcurate.train import data as rows_of
from seamcurate.train import rollout, training
from seamcurate.train.data import TrainingData
from seamcurate.train.options import Answering, Training


def answer(model: str | Path, data: TrainingData, out: str | Path, config: Answering = Answering()) -> int:
    """Write a policy's answers to prompts as Parquet: the rows' own columns, `model`, `sample` and `response`.

    Args:
        model: A causal language model: a folder or a Hub id; `model` is its last name.
        data: Rows with a `prompt`, text or chat messages. Prompts that leave no room for an answer are skipped, and said.
        out: The file.
        config: Everything else.

    Returns:
        How many answers were written. The same model, rows and options give the same ones.

    Raises:
        TrainError: The data or the model cannot be read, no prompt leaves room, or `out` is a folder.
        StoreError: `out` cannot be written.
    """
    import torch

    file = objects.folder(out, "answer").expanduser()
    if file.is_dir():
        raise TrainError(f"{out} is a folder; name the Parquet file to write")
    rows = rows_of.prompts(data)
    with objects.writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    options = Training(learning_rate=1.0, lora=False, revision=config.revision)
    training.identity(model, options)
    with training.quiet():
        tokenizer, policy = training.open_policy(model, options)
        form = training.prompt_form(tokenizer, config, policy)
        policy.to(weights.device("auto")).eval()
        policy.generation_config = rollout.sampling(policy.generation_config)
        most_tokens = weights.window(policy, tokenizer) - config.max_new_tokens
        tokenized = rollout.tokenized(tokenizer, form, rows)
        prompts = [prompt for prompt in tokenized if 0 < len(prompt.ids) <= most_tokens]
        if not prompts:
            raise TrainError(
                f"none of {len(rows)} prompts leaves room for {config.max_new_tokens} tokens of answer; "
                "lower max_new_tokens"
            )
        training.note_skipped("answer", len(tokenized) - len(prompts), f"less than {config.max_new_tokens} tokens")
        # Prompts of like lengths are read together; the table has them in their order.
        queue = sorted(
            (prompt for prompt in prompts for _ in range(config.samples)), key=lambda prompt: len(prompt.ids)
        )
        texts: dict[int, list[str]] = {}
        with bar("answer", len(queue), "answers") as advance, torch.random.fork_rng():
            torch.manual_seed(config.seed)
            for start in range(0, len(queue), config.batch_size):
                batch = queue[start : start + config.batch_size]
                ids = [prompt.ids for prompt in batch]
                length, temperature = config.max_new_tokens, config.temperature
                responses = rollout.respond(policy, tokenizer, ids, length, temperature, (), form)
                for prompt, text in zip(batch, responses.texts, strict=True):
                    texts.setdefault(prompt.row, []).append(text)
                advance(len(batch))
    name = Path(str(model)).name
    table = pa.Table.from_pylist(
        [
            {
                **{
                    key: value
                    for key, value in prompt.source.columns.items()
                    if key not in ("model", "sample", "response")
                },
                "prompt": prompt.prompt,
                "model": name,
                "sample": sample,
                "response": text,
            }
            for prompt in prompts
            for sample, text in enumerate(texts[prompt.row])
        ]
    )
    with objects.writing(file), atomic.replacing(file) as scratch:
        pq.write_table(table, scratch)
    return len(table)
