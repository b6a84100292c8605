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
from seamcurate.train import training, verdict
from seamcurate.train.data import TrainingData, TrainingRow
from seamcurate.train.options import SFTTraining

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = (("completion", "response", "messages"),)


def sft(
    model: str | Path, data: TrainingData, out: str | Path, config: SFTTraining = SFTTraining()
) -> dict[str, JsonValue]:
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
    rows, held_out_rows = training.read(data, COLUMNS, config)
    model_identity = training.identity(model, config)
    with training.quiet():
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        tokenizer, policy = training.open_policy(model, config)
        config = training.pinned(config, tokenizer, work.out)
        form = training.prompt_form(tokenizer, config, policy)
        most_tokens = min(config.max_length, weights.window(policy, tokenizer))
        training_ids, held_out_ids, counts = training.encode(
            "sft", rows, held_out_rows, most_tokens, partial(_encoded, tokenizer, form)
        )
        inputs = training.inputs("sft", model_identity, data, config, [training_ids, held_out_ids])
        if (finished := training.finished(work, inputs)) is not None:
            return finished
        _, checkpoint = work.begin(inputs)
        trainer = SFTTrainer(
            model=training.adapted(policy, "CAUSAL_LM", config),
            args=SFTConfig(**training.arguments(config, str(work.folder)), max_length=None, completion_only_loss=True),
            train_dataset=Dataset.from_list(
                [
                    {
                        "input_ids": prompt_ids + completion_ids,
                        "completion_mask": [0] * len(prompt_ids) + [1] * len(completion_ids),
                    }
                    for prompt_ids, completion_ids in training_ids
                ]
            ),
            processing_class=tokenizer,
        )
        loss_before = completion_loss(trainer.model, held_out_ids)
        lengths = [len(prompt_ids) + len(completion_ids) for prompt_ids, completion_ids in training_ids]
        result = training.fit(trainer, "sft", config, work, checkpoint, lengths)
        trained = training.merged(trainer)
        loss_after = completion_loss(trained, held_out_ids)
        record = {**inputs, **counts, **result, "loss_before": loss_before, "loss_after": loss_after}
        record["verdict"] = training.agreed(
            work, lambda: verdict.of_losses(loss_before, loss_after, len(held_out_ids), work.losses())
        )
        training.save(trained, tokenizer, work, record)
    return record


def completion_loss(model: PreTrainedModel, rows: list[tuple[list[int], list[int]]]) -> float | None:
    """Return the mean negative log-likelihood of a completion token in nats, over all tokens of all rows."""
    import torch

    if not rows:
        return None
    model.eval()
    total, count = 0.0, 0
    row_ids = [prompt_ids + completion_ids for prompt_ids, completion_ids in rows]
    with torch.inference_mode():
        for batch in batches([len(ids) for ids in row_ids], 8192):
            logits = model(**padded([row_ids[i] for i in batch], 0, model.device)).logits
            for position, i in enumerate(batch):
                prompt_ids, completion_ids = rows[i]
                logits_before = logits[position, len(prompt_ids) - 1 : len(row_ids[i]) - 1].float()
                target = torch.tensor(completion_ids, device=logits_before.device)
                total += float(torch.nn.functional.cross_entropy(logits_before, target, reduction="sum"))
                count += len(completion_ids)
    return total / count


def _encoded(
    tokenizer: PreTrainedTokenizerBase, form: Form, row: TrainingRow, limit: int
) -> tuple[tuple[list[int], list[int]], bool] | None:
    """Return a row's (prompt ids, completion ids), and whether the completion was cut."""
    prompt_ids, uncut_ids = tokens.policy_ids(tokenizer, row.prompt, row.answers[0], sys.maxsize, form)
    completion_ids = tokens.policy_ids(tokenizer, row.prompt, row.answers[0], max(0, limit - len(prompt_ids)), form)[1]
    return (
        ((prompt_ids, completion_ids), len(completion_ids) < len(uncut_ids)) if prompt_ids and completion_ids else None
    )
