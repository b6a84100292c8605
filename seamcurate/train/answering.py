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
from seamcurate.train.data import Data
from seamcurate.train.options import Answering, Training


def answer(model: str | Path, data: Data, out: str | Path, config: Answering = Answering()) -> int:
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

    place = objects.folder(out, "answer").expanduser()
    if place.is_dir():
        raise TrainError(f"{out} is a folder; name the Parquet file to write")
    asked = rows_of.prompts(data)
    with objects.writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    options = Training(learning_rate=1.0, lora=False, revision=config.revision)
    training.identity(model, options)
    with training.quiet():
        tokenizer, policy = training.open_policy(model, options)
        form = training.prompt_form(tokenizer, config, policy)
        policy.to(weights.device("auto")).eval()
        policy.generation_config = rollout.sampling(policy.generation_config)
        room = weights.window(policy, tokenizer) - config.max_new_tokens
        every = rollout.numbered(tokenizer, form, asked)
        fitting = [one for one in every if 0 < len(one.ids) <= room]
        if not fitting:
            raise TrainError(
                f"none of {len(asked)} prompts leaves room for {config.max_new_tokens} tokens of answer; "
                "lower max_new_tokens"
            )
        training.said_skipped("answer", len(every) - len(fitting), f"less than {config.max_new_tokens} tokens")
        # Prompts of like lengths are read together; the table has them in their order.
        todo = sorted((one for one in fitting for _ in range(config.samples)), key=lambda one: len(one.ids))
        texts: dict[int, list[str]] = {}
        with bar("answer", len(todo), "answers") as advance, torch.random.fork_rng():
            torch.manual_seed(config.seed)
            for start in range(0, len(todo), config.batch_size):
                some = todo[start : start + config.batch_size]
                ids = [one.ids for one in some]
                length, temperature = config.max_new_tokens, config.temperature
                found = rollout.respond(policy, tokenizer, ids, length, temperature, (), form)
                for one, text in zip(some, found.texts, strict=True):
                    texts.setdefault(one.row, []).append(text)
                advance(len(some))
    name = Path(str(model)).name
    table = pa.Table.from_pylist(
        [
            {
                **{
                    key: value for key, value in one.asked.columns.items() if key not in ("model", "sample", "response")
                },
                "prompt": one.prompt,
                "model": name,
                "sample": sample,
                "response": text,
            }
            for one in fitting
            for sample, text in enumerate(texts[one.row])
        ]
    )
    with objects.writing(place), atomic.replacing(place) as temporary:
        pq.write_table(table, temporary)
    return len(table)
