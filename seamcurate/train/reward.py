"""Reward modelling on TRL's RewardTrainer: one number per answer, higher for the chosen than for the rejected.

Ids come from `models.tokens`, so that the reward model scores exactly what it was trained on.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from seamcurate.errors import TrainError
from seamcurate.models import tokens, weights
from seamcurate.models.batching import batches, padded
from seamcurate.models.template import Form
from seamcurate.train import training, verdict
from seamcurate.train.data import TrainingData, TrainingRow
from seamcurate.train.options import RewardTraining

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = (("chosen",), ("rejected",))


def reward(
    model: str | Path, data: TrainingData, out: str | Path, config: RewardTraining = RewardTraining()
) -> dict[str, JsonValue]:
    """Train a one-output sequence classifier on `prompt`, `chosen` and `rejected`, text or chat messages.

    Without `prompt`, `chosen` and `rejected` are whole chats, alike up to their last turns.

    `out` becomes a plain model folder, adapters merged, tokenizer included, with what is returned as `training.json`:
    the inputs, rows used, cut (an answer's end did not fit) and skipped (the prompt alone does not fit), steps,
    `train_loss`, and for the held-out pairs the logistic loss and the share with the chosen answer strictly above, before
    and after; None without any. A finished `out` of the same inputs is returned as it is. Uses a GPU where there is one.

    Raises:
        TrainError: A column or the model is missing, no row fits, or `out` holds something else.
    """
    work = training.prepare(out)
    rows, held_out_rows = training.read(data, COLUMNS, config)
    model_identity = training.identity(model, config)
    with training.quiet():
        from datasets import Dataset
        from transformers import AutoModelForSequenceClassification
        from trl import RewardConfig, RewardTrainer
        from trl.trainer.utils import disable_dropout_in_model

        tokenizer = training.open_tokenizer(model, config)
        config = training.pinned(config, tokenizer, work.out)
        form = training.prompt_form(tokenizer, config)
        if tokenizer.pad_token is None and tokenizer.eos_token is None:
            raise TrainError(
                f"the tokenizer of {model} has neither a padding nor an end-of-sequence token; "
                "set tokenizer.pad_token and save it there"
            )
        classifier, _ = training.open_model(model, AutoModelForSequenceClassification, config, num_labels=1)
        # TRL would switch dropout off after the adapters are put on, theirs too.
        disable_dropout_in_model(classifier)
        most_tokens = min(config.max_length, weights.window(classifier, tokenizer))
        training_ids, held_out_ids, counts = training.encode(
            "reward", rows, held_out_rows, most_tokens, partial(_encoded, tokenizer, form)
        )
        inputs = training.inputs("reward", model_identity, data, config, [training_ids, held_out_ids])
        if (finished := training.finished(work, inputs)) is not None:
            return finished
        _, checkpoint = work.begin(inputs)
        trainer = RewardTrainer(
            model=training.adapted(classifier, "SEQ_CLS", config),
            args=RewardConfig(**training.arguments(config, str(work.folder)), max_length=None, disable_dropout=False),
            train_dataset=Dataset.from_list(
                [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in training_ids]
            ),
            processing_class=tokenizer,
        )
        measures_before = _measures(margins(trainer.model, held_out_ids, tokenizer.pad_token_id))
        lengths = [max(len(chosen), len(rejected)) for chosen, rejected in training_ids]
        result = training.fit(trainer, "reward", config, work, checkpoint, lengths)
        trained = training.merged(trainer)
        measures_after = _measures(margins(trained, held_out_ids, tokenizer.pad_token_id))
        record: dict[str, JsonValue] = {
            **inputs,
            **counts,
            **result,
            "loss_before": measures_before[0],
            "loss_after": measures_after[0],
            "accuracy_before": measures_before[1],
            "accuracy": measures_after[1],
            "verdict": training.agreed(
                work,
                lambda: verdict.of_losses(measures_before[0], measures_after[0], len(held_out_ids), work.losses()),
            ),
        }
        training.save(trained, tokenizer, work, record)
    return record


def margins(model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]], pad: int) -> list[float]:
    """Return R(chosen) - R(rejected) of each pair of ids."""
    import torch

    model.eval()
    all_ids = [ids for pair in pairs for ids in pair]
    scores = [0.0] * len(all_ids)
    # Beside a backbone in bfloat16 the head that is trained is in float32.
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16)
    with torch.inference_mode(), autocast:
        for batch in batches([len(ids) for ids in all_ids], 8192):
            logits = model(**padded([all_ids[i] for i in batch], pad, model.device)).logits[:, 0]
            for i, score in zip(batch, logits.float().tolist(), strict=True):
                scores[i] = score
    return [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]


def _measures(margins: list[float]) -> tuple[float | None, float | None]:
    """Return the mean logistic loss and the accuracy that margins amount to."""
    import numpy as np

    if not margins:
        return None, None
    values = np.asarray(margins)
    return float(np.logaddexp(0, -values).mean()), float((values > 0).mean())


def _encoded(
    tokenizer: PreTrainedTokenizerBase, form: Form, row: TrainingRow, limit: int
) -> tuple[tuple[list[int], list[int]], bool] | None:
    """Return a row's (chosen ids, rejected ids), and whether one was cut."""
    chosen, rejected = (tokens.reward_ids(tokenizer, row.prompt, answer, limit, form) for answer in row.answers)
    if chosen is None or rejected is None:
        return None
    cut = any(
        len(ids) == limit and ids != tokens.reward_ids(tokenizer, row.prompt, answer, limit + 1, form)
        for ids, answer in zip((chosen, rejected), row.answers, strict=True)
    )
    return (chosen, rejected), cut
