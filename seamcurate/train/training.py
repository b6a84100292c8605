"""What the trainers share: opening a model, one quiet run of a TRL trainer, and a folder that is whole.

The same model, rows and options give the same weights, so a finished folder is returned and never trained again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import JsonValue

from seamcurate.errors import ModelError, TrainError, first_line, typed_line
from seamcurate.models import checkpoint, probe, tokens, weights
from seamcurate.models.protocols import Prompt
from seamcurate.models.template import CLOCK, Form, FormSettings, prompt_text
from seamcurate.progress import bar, note
from seamcurate.storage import objects
from seamcurate.text import brief, counted
from seamcurate.train import data
from seamcurate.train.options import Training
from seamcurate.train.workplace import RECORD, Workplace, differences, first_day

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer


def read(given: data.Data, answers: Sequence[Sequence[str]], config: Training) -> tuple[list[data.Row], list[data.Row]]:
    """Return the rows to train on and the rows to measure on."""
    rows = data.rows(given, answers)
    if config.eval_data is not None:
        return rows, data.rows(config.eval_data, answers)
    return data.held_out(rows, config.eval_rows, config.seed)


def prepare(out: str | Path) -> Workplace:
    """Refuse to write over anything but an empty folder or a finished training, or to start without the libraries."""
    place = objects.folder(out, "train").expanduser()
    for library in ("accelerate", "peft", "trl"):
        if importlib.util.find_spec(library) is None:
            raise TrainError(f'training needs {library}, which is not installed; pip install "seamcurate[train]"')
    if place.exists() and not ((place / RECORD).is_file() or (place.is_dir() and not any(place.iterdir()))):
        raise TrainError(f"{place} exists and is no finished training; give another folder, or delete it")
    return Workplace(place)


Encoded = TypeVar("Encoded")
Options = TypeVar("Options", bound=Training)


def encode(
    trainer: str,
    rows: Sequence[data.Row],
    measured: Sequence[data.Row],
    limit: int,
    one: Callable[[data.Row, int], tuple[Encoded, bool] | None],
) -> tuple[list[Encoded], list[Encoded], dict[str, JsonValue]]:
    """Return the ids of the rows to train on and to measure on that fit into `limit` tokens, and how many did.

    Args:
        trainer: Its name, for what is said of rows that are skipped.
        rows: To train on.
        measured: To measure on.
        limit: Tokens.
        one: Returns a row's ids and whether they were cut to fit; None where the prompt alone does not fit.

    Raises:
        TrainError: No row to train on fits, or the chat template refuses one.
    """
    found = []
    with bar("tokenize", len(rows) + len(measured)) as advance:
        for some in (rows, measured):
            encoded = []
            for row in some:
                with rendered(row.prompt):
                    ids = one(row, limit)
                if ids is not None:
                    encoded.append(ids)
                advance(1)
            found.append(encoded)
    kept, tested = found
    if not kept:
        raise TrainError(
            f"none of {len(rows)} prompts leaves room for an answer in {limit} tokens; "
            "raise max_length if the model reads more, or give shorter prompts"
        )
    said_skipped(trainer, len(rows) + len(measured) - len(kept) - len(tested), f"no token of {limit} for an answer")
    counts: dict[str, JsonValue] = {
        "rows": len(rows),
        "rows_used": len(kept),
        "rows_cut": sum(cut for _, cut in kept),
        "rows_skipped": len(rows) - len(kept),
        "rows_held_out": len(tested),
    }
    return [ids for ids, _ in kept], [ids for ids, _ in tested], counts


@contextmanager
def rendered(prompt: Prompt) -> Iterator[None]:
    """Say which chat a template has no form for: a system's turn, two of one role in a row."""
    from jinja2 import TemplateError

    try:
        yield
    except TemplateError as error:
        raise TrainError(
            f"the model's chat template refuses the prompt “{brief(prompt_text(prompt), 60)}”: "
            f"{brief(str(error), 120)}; leave such rows out, or write their turns as it wants them"
        ) from error


def said_skipped(trainer: str, skipped: int, left: str) -> None:
    """Say how many prompts are too long; of several processes, the first does."""
    if skipped and os.environ.get("RANK", "0") == "0":
        note(f"{trainer}: {counted(skipped, 'prompt')} skipped for leaving {left}")


def identity(model: str | Path, config: Training) -> str:
    """Return the content hash or Hub commit of the model to start from; refuses what is not there."""
    name = str(model)
    if isinstance(model, Path) and not model.expanduser().is_dir():
        raise TrainError(f"model folder {name} is not there; give a folder that save_pretrained(…) wrote, or a Hub id")
    try:
        return weights.identity(name, config.revision)
    except ModelError as error:
        raise TrainError(str(error)) from error


def open_tokenizer(model: str | Path, config: Training) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model to start from."""
    from transformers import AutoTokenizer

    with _told(model):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            weights.tokenizer_folder(str(model), config.revision), trust_remote_code=False
        )
    return tokenizer


def pinned(config: Options, tokenizer: PreTrainedTokenizerBase, out: Path) -> Options:
    """Return the options with the date that the model's chat template writes, where it writes one; see `first_day`."""
    if config.date is not None or config.form not in (None, "chat") or CLOCK not in str(tokenizer.chat_template):
        return config
    return config.model_copy(update={"date": first_day(out)})


def prompt_form(
    tokenizer: PreTrainedTokenizerBase, settings: FormSettings, policy: PreTrainedModel | None = None
) -> Form:
    """Return how prompts become text; a form that is set is saved with the tokenizer, so that scoring reads it too.

    Args:
        tokenizer: The model's.
        settings: The trainer's options.
        policy: What is trained, where it writes answers and so ends them.

    Raises:
        TrainError: The form, or its arguments, need a chat template that the tokenizer does not have.
    """
    ends = () if policy is None else weights.model_ends(policy)
    try:
        form = tokens.form_of(tokenizer, settings, ends)
    except ModelError as error:
        raise TrainError(str(error)) from error
    if settings.form or settings.template:
        tokens.remember_form(tokenizer, form)
    return form


def open_policy(model: str | Path, config: Training) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load the causal language model to start from, and its tokenizer.

    Raises:
        TrainError: It cannot be loaded, is no language model, or its tokenizer has no end-of-sequence token.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = open_tokenizer(model, config)
    if tokenizer.eos_token_id is None:
        raise TrainError(
            f"the tokenizer of {model} has no end-of-sequence token, so that no answer would ever end; "
            "set tokenizer.eos_token and save it there"
        )
    opened, lacking = open_model(model, AutoModelForCausalLM, config)
    if lacking:
        raise TrainError(
            f"model {model} is no causal language model: it has no {lacking[0]}, which would be drawn by lot; "
            "give a policy, not a reward model or an encoder"
        )
    with _told(model):
        probe.check_causal(opened.eval(), f"model {model}")
    return tokenizer, opened


def open_model(
    model: str | Path, auto: type[Any], config: Training, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load the weights to start from; returns the names of those it lacks too, which are drawn by the seed."""
    import torch
    from transformers import set_seed

    # Adapters leave the weights as they are, so half the bytes do; full training needs the small steps of float32.
    dtype = weights.torch_dtype("auto", "auto") if config.lora else torch.float32
    set_seed(config.seed)
    with _told(model):
        return checkpoint.open_model(auto, str(model), config.revision, dtype, **options)


def adapted(model: PreTrainedModel, task: Literal["CAUSAL_LM", "SEQ_CLS"], config: Training) -> PreTrainedModel:
    """Wrap the model in LoRA adapters, where asked for; what is newly drawn beside its backbone trains in full."""
    if not config.lora:
        return model
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
    from transformers import set_seed

    heads = [
        name
        for name, part in model.named_children()
        if name != model.base_model_prefix and any(True for _ in part.parameters())
    ]
    adapters = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=None if model.config.model_type in TARGETS else "all-linear",
        modules_to_save=heads if task == "SEQ_CLS" else None,
        task_type=task,
    )
    set_seed(config.seed)
    wrapped: Any = get_peft_model(model, adapters)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def arguments(config: Training, scratch: str) -> dict[str, Any]:
    """Return what TRL's own configurations are told."""
    import torch

    gpu = torch.cuda.is_available()
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise TrainError(
            f"{torch.cuda.device_count()} GPUs are visible; start by `accelerate launch -m seamcurate.cli train …` "
            "to use them all, or set CUDA_VISIBLE_DEVICES=0 for one"
        )
    return {
        "output_dir": scratch,
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "warmup_steps": config.warmup_steps,
        "seed": config.seed,
        "gradient_checkpointing": config.gradient_checkpointing,
        "use_cpu": weights.device("auto") == "cpu",
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "dataloader_pin_memory": gpu,
        "remove_unused_columns": False,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 500,
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": config.logging_steps,
        "report_to": "tensorboard" if config.tensorboard else "none",
        "disable_tqdm": True,
    }


def fit(
    trainer: Trainer,
    label: str,
    config: Training,
    work: Workplace,
    checkpoint: Path | None,
    lengths: Sequence[int] | None = None,
) -> dict[str, JsonValue]:
    """Run a trainer under a progress bar, from the checkpoint it has; returns its steps and mean training loss.

    With `lengths`, rows of like lengths come together.
    """
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    if lengths is not None:
        from torch.utils.data import DataLoader

        # transformers' own grouping walks from long rows to short ones: a run shorter than an epoch never sees the short.
        loader: Any = DataLoader(
            trainer.train_dataset,
            batch_size=config.per_device_train_batch_size,
            sampler=_ByLength(lengths, config.per_device_train_batch_size, config.seed),
            collate_fn=trainer.data_collator,
        )
        trainer.get_train_dataloader = lambda: trainer.accelerator.prepare(loader)
    with ExitStack() as stack:

        class Progress(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                if work.first:
                    self.advance = stack.enter_context(bar(label, state.max_steps, "steps"))
                    self.advance(state.global_step)

            def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                if work.first:
                    self.advance(1)

        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress())
        trainer.add_callback(work.callback())
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    # transformers' own mean knows nothing of what was before a stop.
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    mean = sum(losses) / len(losses) if losses else result.training_loss
    return {"steps": result.global_step, "train_loss": mean}


class _ByLength:
    """Draw rows so that a batch holds like lengths and the batches come in random order, anew each epoch."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch next, also after a stop."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(self.seed)
        for _ in range(self.epoch):
            self._order(draw)
        return iter(self._order(draw))

    def _order(self, draw: random.Random) -> list[int]:
        order = list(range(len(self.lengths)))
        draw.shuffle(order)
        # Sorted whole, the same rows would meet in every epoch.
        pool = 50 * self.batch
        pooled = [sorted(order[i : i + pool], key=self.lengths.__getitem__) for i in range(0, len(order), pool)]
        order = [i for part in pooled for i in part]
        whole = len(order) // self.batch * self.batch
        batches = [order[i : i + self.batch] for i in range(0, whole, self.batch)]
        draw.shuffle(batches)
        return [i for batch in batches for i in batch] + order[whole:]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, advice and telemetry of the libraries below; errors are raised, not logged."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets
    import huggingface_hub.constants
    from transformers.utils import logging as chatter

    # Read once at import, and somebody may have imported it before.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    level, bars, data_bars = (
        chatter.get_verbosity(),
        chatter.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
    )
    loggers = [(logger, logger.level) for logger in map(logging.getLogger, ("trl", "peft", "accelerate"))]
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    datasets.disable_progress_bars()
    for logger, _ in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
        if not data_bars:
            datasets.enable_progress_bars()
        for logger, before in loggers:
            logger.setLevel(before)


def inputs(
    trainer: str, model: str, given: data.Data, config: Training, tokenized: Sequence[Sequence[object]]
) -> dict[str, JsonValue]:
    """Return all that decides the trained weights; no folder's place is in it."""
    ids = hashlib.sha256()
    for rows in tokenized:
        for row in rows:
            ids.update(f"{row!r}\n".encode())
    options = config.model_dump(mode="json", exclude={"save_steps", "logging_steps", "tensorboard"})
    options["eval_data"] = None if config.eval_data is None else data.title(config.eval_data)
    return {
        "trainer": trainer,
        "model": model,
        "data": data.title(given),
        "tokens": f"sha256:{ids.hexdigest()[:32]}",
        "config": options,
    }


def finished(work: Workplace, asked: dict[str, JsonValue]) -> dict[str, JsonValue] | None:
    """Return the record of a training that was done already, None where there is none.

    Raises:
        TrainError: The folder holds a training of something else, or its record cannot be read.
    """
    out = work.out
    if not (out / RECORD).is_file():
        return None
    try:
        record: dict[str, JsonValue] = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"a {type(record).__name__}")
    except (OSError, ValueError) as error:
        raise TrainError(
            f"{out / RECORD} is damaged ({brief(str(error), 80)}), so that nobody knows what is in {out.name}; "
            "give another folder, or delete it"
        ) from error
    if other := differences(record, asked):
        raise TrainError(f"{out} holds a training with {', '.join(other)}; give another folder, or delete it")
    work.remove()
    return record


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Workplace, record: dict[str, JsonValue]
) -> None:
    """Write a plain model folder with the training's logs, rename it into its place, and remove the workplace.

    Of several processes, the first does it.
    """
    if not work.first:
        return
    out = work.out
    # In the workplace, so that what a kill leaves is cleared with it.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=work.folder) as scratch:
        beside = Path(scratch) / out.name
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        for more in work.kept():
            if more.is_dir():
                shutil.copytree(more, beside / more.name)
            else:
                shutil.copyfile(more, beside / more.name)
        (beside / RECORD).write_text(json.dumps(record, indent=2, sort_keys=False) + "\n", encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        os.replace(beside, out)
    work.remove()


def merged(trainer: Trainer) -> PreTrainedModel:
    """Return the trained model, its adapters merged into the weights."""
    from peft import PeftModel

    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


@contextmanager
def _told(model: str | Path) -> Iterator[None]:
    """Raise what transformers says of a folder it cannot load as one line."""
    try:
        yield
    # Of damaged files, libraries raise whatever they like.
    except Exception as error:
        plain = isinstance(error, ModelError | OSError | ValueError | RuntimeError)
        reason = first_line(error) if plain else typed_line(error)
        raise TrainError(f"model {model} cannot be loaded: {reason}") from error
