"""Supervised fine-tuning on TRL's SFTTrainer: a policy learns the completions, never the prompts.

Ids come from `models.tokens`, so that the policy is scored on exactly what it was trained on.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from seamcurate.models import tokens, weights
from seamcurate.models.batching import batches, padded
from seamcurate.models.template import Form
from seamcurate.train import training
from seamcurate.train.data import Data, Row
from seamcurate.train.options import SFTTraining

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = (("completion", "response", "messages"),)


def sft(model: str | Path, data: Data, out: str | Path, config: SFTTraining = SFTTraining()) -> dict[str, JsonValue]:
    """Fine-tune a causal language model on `prompt` and `completion` (or `response`), text or chat messages, or on `messages`.

    Of `messages`, as of a `completion` without a `prompt`, the last turn is what is learnt.

    `out` becomes a plain model folder, adapters merged, tokenizer included, with what is returned as `training.json`:
    the inputs, rows used, cut (the response's end did not fit) and skipped (the prompt alone does not fit), steps,
    `train_loss`, and `loss_before` and `loss_after`: nats per completion token of the held-out rows, None without any.
    A finished `out` of the same inputs is returned as it is. Uses a GPU where there is one.

    Raises:
        TrainError: A column, the model or EOS is missing, no row fits, or `out` holds something else.
    """
    work = training.prepare(out)
    rows, measured = training.read(data, COLUMNS, config)
    start = training.identity(model, config)
    with training.quiet():
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        tokenizer, opened = training.open_policy(model, config)
        config = training.pinned(config, tokenizer, work.out)
        form = training.prompt_form(tokenizer, config, opened)
        limit = min(config.max_length, weights.window(opened, tokenizer))
        kept, tested, counts = training.encode("sft", rows, measured, limit, partial(_encoded, tokenizer, form))
        inputs = training.inputs("sft", start, data, config, [kept, tested])
        if (done := training.finished(work, inputs)) is not None:
            return done
        _, checkpoint = work.begin(inputs)
        trainer = SFTTrainer(
            model=training.adapted(opened, "CAUSAL_LM", config),
            args=SFTConfig(**training.arguments(config, str(work.folder)), max_length=None, completion_only_loss=True),
            train_dataset=Dataset.from_list(
                [
                    {"input_ids": before + after, "completion_mask": [0] * len(before) + [1] * len(after)}
                    for before, after in kept
                ]
            ),
            processing_class=tokenizer,
        )
        loss_before = completion_loss(trainer.model, tested)
        lengths = [len(before) + len(after) for before, after in kept]
        result = training.fit(trainer, "sft", config, work, checkpoint, lengths)
        trained = training.merged(trainer)
        loss_after = completion_loss(trained, tested)
        record = {**inputs, **counts, **result, "loss_before": loss_before, "loss_after": loss_after}
        training.save(trained, tokenizer, work, record)
    return record


def completion_loss(model: PreTrainedModel, rows: list[tuple[list[int], list[int]]]) -> float | None:
    """Return the mean negative log-likelihood of a completion token in nats, over all tokens of all rows."""
    import torch

    if not rows:
        return None
    model.eval()
    total, count = 0.0, 0
    joined = [before + after for before, after in rows]
    with torch.inference_mode():
        for batch in batches([len(ids) for ids in joined], 8192):
            logits = model(**padded([joined[i] for i in batch], 0, model.device)).logits
            for place, i in enumerate(batch):
                before, after = rows[i]
                picked = logits[place, len(before) - 1 : len(joined[i]) - 1].float()
                target = torch.tensor(after, device=picked.device)
                total += float(torch.nn.functional.cross_entropy(picked, target, reduction="sum"))
                count += len(after)
    return total / count


def _encoded(
    tokenizer: PreTrainedTokenizerBase, form: Form, row: Row, limit: int
) -> tuple[tuple[list[int], list[int]], bool] | None:
    """Return a row's (prompt ids, completion ids), and whether the completion was cut."""
    before, whole = tokens.policy_ids(tokenizer, row.prompt, row.answers[0], sys.maxsize, form)
    after = tokens.policy_ids(tokenizer, row.prompt, row.answers[0], max(0, limit - len(before)), form)[1]
    return ((before, after), len(after) < len(whole)) if before and after else None
