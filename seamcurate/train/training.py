"""What the trainers share: opening a model, one quiet run of a TRL trainer, and saving a whole model folder.

The same model, rows and options give the same weights, so a finished folder is returned and never trained again.
"""

from __future__ import annotations

import hashlib
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

from seamcurate import extras
from seamcurate.errors import ModelError, TrainError, first_line, typed_line
from seamcurate.models import checkpoint, gguf_file, probe, quantised, tokens, weights
from seamcurate.models.protocols import Prompt
from seamcurate.models.template import CLOCK, Form, FormSettings, prompt_text
from seamcurate.progress import bar, note
from seamcurate.storage import objects
from seamcurate.text import brief, counted
from seamcurate.train import curves, data
from seamcurate.train.options import Training
from seamcurate.train.workplace import RECORD, Workplace, differences, first_day

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer


def read(
    training_data: data.TrainingData, answers: Sequence[Sequence[str]], config: Training
) -> tuple[list[data.TrainingRow], list[data.TrainingRow]]:
    """Return the rows to train on and the rows to measure on."""
    rows = data.rows(training_data, answers)
    if config.eval_data is not None:
        return rows, data.rows(config.eval_data, answers)
    return data.held_out(rows, config.eval_rows, config.seed)


def prepare(out: str | Path) -> Workplace:
    """Refuse to write over anything but an empty folder or a finished training, or to start without the libraries."""
    folder = objects.folder(out, "train").expanduser()
    extras.require("train", "training", TrainError)
    if folder.exists() and not ((folder / RECORD).is_file() or (folder.is_dir() and not any(folder.iterdir()))):
        raise TrainError(f"{folder} exists and is no finished training; give another folder, or delete it")
    return Workplace(folder)


Encoded = TypeVar("Encoded")
Options = TypeVar("Options", bound=Training)


def encode(
    trainer: str,
    rows: Sequence[data.TrainingRow],
    held_out_rows: Sequence[data.TrainingRow],
    limit: int,
    encode_row: Callable[[data.TrainingRow, int], tuple[Encoded, bool] | None],
) -> tuple[list[Encoded], list[Encoded], dict[str, JsonValue]]:
    """Return the ids of the rows to train on and to measure on that fit into `limit` tokens, and how many did.

    Args:
        trainer: Name of the trainer, for the note about skipped rows.
        rows: Rows to train on.
        held_out_rows: Rows to measure on.
        limit: Most tokens of a row.
        encode_row: Returns a row's ids and whether they were cut to fit; None where the prompt alone does not fit.

    Raises:
        TrainError: No row to train on fits, or the chat template refuses one.
    """
    sets_of_ids = []
    with bar("tokenize", len(rows) + len(held_out_rows)) as advance:
        for set_of_rows in (rows, held_out_rows):
            encoded = []
            for row in set_of_rows:
                with rendered(row.prompt):
                    ids = encode_row(row, limit)
                if ids is not None:
                    encoded.append(ids)
                advance(1)
            sets_of_ids.append(encoded)
    training_ids, held_out_ids = sets_of_ids
    if not training_ids:
        raise TrainError(
            f"none of {len(rows)} prompts leaves room for an answer in {limit} tokens; "
            "raise max_length if the model reads more, or give shorter prompts"
        )
    note_skipped(
        trainer,
        len(rows) + len(held_out_rows) - len(training_ids) - len(held_out_ids),
        f"no token of {limit} for an answer",
    )
    counts: dict[str, JsonValue] = {
        "rows": len(rows),
        "rows_used": len(training_ids),
        "rows_cut": sum(cut for _, cut in training_ids),
        "rows_skipped": len(rows) - len(training_ids),
        "rows_held_out": len(held_out_ids),
    }
    return [ids for ids, _ in training_ids], [ids for ids, _ in held_out_ids], counts


@contextmanager
def rendered(prompt: Prompt) -> Iterator[None]:
    """Name the prompt that a chat template refuses, such as one with a system turn, or with two turns of one role in a row."""
    from jinja2 import TemplateError

    try:
        yield
    except TemplateError as error:
        raise TrainError(
            f"the model's chat template refuses the prompt “{brief(prompt_text(prompt), 60)}”: "
            f"{brief(str(error), 120)}; leave such rows out, or write their turns as it wants them"
        ) from error


def note_skipped(trainer: str, skipped: int, reason: str) -> None:
    """Note how many prompts are too long; of several processes, the first does."""
    if skipped and os.environ.get("RANK", "0") == "0":
        note(f"{trainer}: {counted(skipped, 'prompt')} skipped for leaving {reason}")


def identity(model: str | Path, config: Training) -> str:
    """Return the content hash or Hub commit of the model to start from; refuses what is not there."""
    name = str(model)
    if isinstance(model, Path) and not model.expanduser().is_dir():
        raise TrainError(f"model folder {name} is not there; give a folder that save_pretrained(…) wrote, or a Hub id")
    if gguf_file.is_gguf(name):
        raise TrainError(f"{name} is a GGUF file, which can only score; give the folder that it was made from")
    try:
        return weights.identity(weights.Origin(name, config.revision))
    except ModelError as error:
        raise TrainError(str(error)) from error


def open_tokenizer(model: str | Path, config: Training) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model to start from."""
    with _model_errors(model):
        return checkpoint.read_tokenizer(weights.Origin(str(model), config.revision))


def pinned(config: Options, tokenizer: PreTrainedTokenizerBase, out: Path) -> Options:
    """Return the options with the date that the model's chat template writes, where it writes one; see `first_day`."""
    if config.date is not None or config.form not in (None, "chat") or CLOCK not in str(tokenizer.chat_template):
        return config
    return config.model_copy(update={"date": first_day(out)})


def prompt_form(
    tokenizer: PreTrainedTokenizerBase, settings: FormSettings, policy: PreTrainedModel | None = None
) -> Form:
    """Return how prompts become text; one that no chat template decides is saved with the tokenizer, so that scoring reads it too.

    Args:
        tokenizer: Tokenizer of the model.
        settings: Options of the trainer.
        policy: Model that is trained, where it writes answers and so ends them.

    Raises:
        TrainError: The form, or its arguments, need a chat template that the tokenizer does not have.
    """
    end_ids = () if policy is None else weights.model_ends(policy)
    try:
        form = tokens.form_of(tokenizer, settings, end_ids)
    except ModelError as error:
        raise TrainError(str(error)) from error
    if settings.form or settings.template or not tokenizer.chat_template:
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
            f"model {model} is no causal language model: it has no {lacking[0]}, which would be initialised at random; "
            "give a policy, not a reward model or an encoder"
        )
    with _model_errors(model):
        probe.check_causal(opened.eval(), f"model {model}")
    return tokenizer, opened


def open_model(
    model: str | Path, auto: type[Any], config: Training, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load the weights to start from, and return the names of those it lacks, which are initialised by the seed."""
    import torch
    from transformers import set_seed

    # Adapters leave the weights as they are, so half the bytes do; full training needs the small steps of float32.
    dtype = weights.torch_dtype("auto", "auto") if config.lora else torch.float32
    set_seed(config.seed)
    with _model_errors(model):
        origin = weights.Origin(str(model), config.revision)
        if (quantisation := quantised.of(weights.configuration(origin), str(model))) is not None:
            raise TrainError(
                f"model {model} is quantised by {quantisation.name}, and trained are whole weights; give those that it was "
                "made from"
            )
        return checkpoint.open_model(auto, origin, dtype, **options)


def adapted(model: PreTrainedModel, task: Literal["CAUSAL_LM", "SEQ_CLS"], config: Training) -> PreTrainedModel:
    """Wrap the model in LoRA adapters if `lora` is set; a newly initialised head beside its backbone trains in full."""
    if not config.lora:
        return model
    from peft import LoraConfig, get_peft_model
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
    from transformers import set_seed

    heads = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
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
            # Small steps of AdamW vanish in bfloat16: what is trained is in float32, the rest is not.
            parameter.data = parameter.data.float()
    return wrapped


def arguments(config: Training, scratch: str) -> dict[str, Any]:
    """Return the arguments of TRL's own configuration."""
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
        # Few processors have bfloat16 arithmetic; the others are several times slower in it.
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "dataloader_pin_memory": gpu,
        # Rewards read columns that no model takes.
        "remove_unused_columns": False,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 500,
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
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
    # transformers' own mean covers only the updates since the last start.
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    mean = sum(losses) / len(losses) if losses else result.training_loss
    return {"steps": result.global_step, "train_loss": mean}


class _ByLength:
    """Order rows so that a batch holds rows of similar length and batches come in random order, another one each epoch."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Use the order of this epoch next, also after a stop."""
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
        pool_size = 50 * self.batch
        sorted_pools = [
            sorted(order[i : i + pool_size], key=self.lengths.__getitem__) for i in range(0, len(order), pool_size)
        ]
        order = [i for pool in sorted_pools for i in pool]
        whole_batches_end = len(order) // self.batch * self.batch
        batches = [order[i : i + self.batch] for i in range(0, whole_batches_end, self.batch)]
        draw.shuffle(batches)
        return [i for batch in batches for i in batch] + order[whole_batches_end:]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, advice and telemetry of the libraries below; errors are raised, not logged."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets
    import huggingface_hub.constants
    from transformers.utils import logging as transformers_logging

    # Read once at import, and somebody may have imported it before.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    level, bars_enabled, data_bars_disabled = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
    )
    loggers = [(logger, logger.level) for logger in map(logging.getLogger, ("trl", "peft", "accelerate"))]
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for logger, _ in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars_enabled:
            transformers_logging.enable_progress_bar()
        if not data_bars_disabled:
            datasets.enable_progress_bars()
        for logger, logger_level in loggers:
            logger.setLevel(logger_level)


def inputs(
    trainer: str, model: str, training_data: data.TrainingData, config: Training, tokenized: Sequence[Sequence[object]]
) -> dict[str, JsonValue]:
    """Return everything that decides the trained weights; the paths of folders are left out."""
    ids = hashlib.sha256()
    for rows in tokenized:
        for row in rows:
            ids.update(f"{row!r}\n".encode())
    options = config.model_dump(mode="json", exclude={"save_steps", "logging_steps", "tensorboard", "trained_rows"})
    options["eval_data"] = None if config.eval_data is None else data.title(config.eval_data)
    return {
        "trainer": trainer,
        "model": model,
        "data": data.title(training_data),
        "tokens": f"sha256:{ids.hexdigest()[:32]}",
        "config": options,
    }


def finished(work: Workplace, inputs: dict[str, JsonValue]) -> dict[str, JsonValue] | None:
    """Return the record of a training that is finished already, None where there is none.

    Raises:
        TrainError: The folder holds a training of something else, or its record cannot be read.
    """
    folder = work.out
    if not (folder / RECORD).is_file():
        return None
    try:
        record: dict[str, JsonValue] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"a {type(record).__name__}")
    except (OSError, ValueError) as error:
        raise TrainError(
            f"{folder / RECORD} is damaged ({brief(str(error), 80)}), so that nobody knows what is in {folder.name}; "
            "give another folder, or delete it"
        ) from error
    if changes := differences(record, inputs):
        raise TrainError(f"{folder} holds a training with {', '.join(changes)}; give another folder, or delete it")
    work.remove()
    return record


def agreed(work: Workplace, verdict: Callable[[], str]) -> str:
    """Return a verdict on what the log holds, the same to every process: the first reads it, as it is the one that writes it."""
    from accelerate.utils import broadcast_object_list

    sentences = [verdict() if work.first else ""]
    broadcast_object_list(sentences)
    return sentences[0]


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Workplace, record: dict[str, JsonValue]
) -> None:
    """Write a plain model folder with the training's logs, rename it to `out`, and remove the workplace.

    Of several processes, the first does it.
    """
    if not work.first:
        return
    folder = work.out
    # In the workplace, so that what a kill leaves is cleared with it.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=work.folder) as scratch:
        new_folder = Path(scratch) / folder.name
        model.save_pretrained(new_folder)
        tokenizer.save_pretrained(new_folder)
        for log_file in work.kept():
            if log_file.is_dir():
                shutil.copytree(log_file, new_folder / log_file.name)
            else:
                shutil.copyfile(log_file, new_folder / log_file.name)
        curves.draw(work.lines(), new_folder / curves.FILE, str(record["verdict"]))
        (new_folder / RECORD).write_text(json.dumps(record, indent=2, sort_keys=False) + "\n", encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        os.replace(new_folder, folder)
    work.remove()


def merged(trainer: Trainer) -> PreTrainedModel:
    """Return the trained model, its adapters merged into the weights."""
    from peft import PeftModel

    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


@contextmanager
def _model_errors(model: str | Path) -> Iterator[None]:
    """Raise an error of transformers about a folder it cannot load as one line."""
    try:
        yield
    # Libraries raise errors of any kind for damaged files.
    except Exception as error:
        is_plain = isinstance(error, ModelError | OSError | ValueError | RuntimeError)
        reason = first_line(error) if is_plain else typed_line(error)
        raise TrainError(f"model {model} cannot be loaded: {reason}") from error
