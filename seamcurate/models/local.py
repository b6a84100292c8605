"""Models that run in this process, by transformers or sentence-transformers: what their configurations share.

`CausalLM`, `SequenceClassifier` and `SentenceEncoder` are values and import nothing heavy; `load()` returns the model
with its weights. A score depends neither on the size of a batch nor on the other texts in it. Decoders read each prompt
once, see `prefix`; encoders read batches of texts of similar length, padded and masked, see `batching`.
"""

from __future__ import annotations

import datetime
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from seamcurate import extras
from seamcurate.errors import ModelError, first_line, typed_line
from seamcurate.models import allocator, checkpoint, eight_bit, quantised, runtime, tokens, weights
from seamcurate.models.backend import NamedModel
from seamcurate.models.product import quicken
from seamcurate.models.template import CLOCK, Form, FormSettings
from seamcurate.progress import note

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]


_NO_PART = frozenset({"revision", "base", "tokenizer_of", "device", "batch_tokens"})
"""Settings that are not part of an identity: they decide no score, or what they name is identified by its content."""


class LocalModel(NamedModel):
    """Hold the settings that all local models share: the source of the weights, and the device they run on."""

    kind: ClassVar[str]
    """What its weights were trained as, for messages."""
    reads_gguf: ClassVar[bool] = False
    """Whether a GGUF file may hold it: transformers reads no classifier's head from one, and no encoder."""
    texts: ClassVar[dict[str, JsonValue]] = {}
    """The version of the rules by which texts become ids, where this package decides them: part of the fingerprint."""

    revision: str | None = None
    """A Hub branch, tag or commit; the commit is pinned and recorded. Not for folders."""
    dtype: Precision = "auto"
    """By default bfloat16 on a GPU that has it, else float32. `int8` rounds weights and tokens to 8 bits, on a CPU alone; the
    scores of bfloat16 and int8 on a CPU are held against float32's on a sample of rows, and `columns` tells the difference."""
    device: str = "auto"
    """`cuda`, `cuda:1`, `mps`, `cpu`; by default the first of these that the machine has. Never part of a fingerprint."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """The most tokens of a forward pass: it decides memory and speed, never a score, and is not part of a fingerprint. The
    default follows the device. It is halved whenever a GPU's memory runs out."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the weights may run; it is recorded."""

    @abstractmethod
    def load(self) -> object:
        """Load tokenizer and weights."""

    @model_validator(mode="after")
    def _whole_or_gguf(self) -> Self:
        if weights.Origin(self.path).is_gguf and not self.reads_gguf:
            raise ValueError(f"a GGUF file is read as a policy (causal_lm); give {self.kind} as a folder, or a Hub id")
        return self

    @property
    def origin(self) -> weights.Origin:
        """Where its files are."""
        return weights.Origin(self.path, self.revision)

    def named_paths(self) -> list[str]:
        """List the folders and Hub ids that a recipe names for it."""
        return [self.path]

    def exact(self) -> Self | None:
        """Return the model in float32, which a precision named for speed on a CPU is held against; None for any other."""
        if self.dtype not in ("bfloat16", "float16", eight_bit.NAME) or weights.device(self.device) != "cpu":
            return None
        return None if self._quantisation() is not None else self.model_copy(update={"dtype": "float32"})

    def by_torch(self) -> bool:
        """Tell whether torch computes it, and no other runtime."""
        return True

    def arithmetic(self) -> str:
        """Name the precision, and the runtime where it is not torch, for messages."""
        return self.precision()

    def identity(self) -> JsonValue:
        """Return everything that decides a score: the weights' hash or Hub commit, the resolved dtype, the settings."""
        self.check_packages()
        moves = self.model_dump(mode="json") | {
            self.key: weights.identity(self.origin),
            "dtype": self.precision(),
            **self.texts,
        }
        if (quantisation := self._quantisation()) is not None and quantisation.dequantised:
            moves["dequantised"] = True
        return {key: value for key, value in moves.items() if key not in _NO_PART}

    def precision(self) -> str:
        """Return the precision that scores are computed in.

        Raises:
            ModelError: The weights are quantised, and not computed in the precision that `dtype` names.
        """
        quantisation = self._quantisation()
        if quantisation is None:
            return weights.precision(self.dtype, self.device)
        return quantisation.dtype(self.dtype, weights.precision("auto", self.device), self.title)

    def _quantisation(self) -> quantised.Quantisation | None:
        return quantised.of(weights.configuration(self.origin), self.title)

    def check_packages(self) -> None:
        """Refuse where a package is not installed that every local model needs."""
        extras.require("local", self.title, ModelError)

    def check_here(self) -> None:
        """Refuse what this machine lacks for the model: its device, its files, and the packages that read them."""
        self.check_device()
        weights.check(self.origin)
        checkpoint.check_packages(self.origin)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count tokens by the model's own tokenizer; the weights are not loaded."""
        tokenizer = self.tokenizer()
        return sum(len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer alone."""
        self.check_packages()
        with model_errors(self.title):
            return checkpoint.read_tokenizer(self.origin, self.trust_remote_code)

    def check_device(self) -> None:
        """Refuse a device that is not on this machine."""
        self.check_packages()
        with model_errors(self.title):
            weights.check_device(self.device)
            if self.dtype == eight_bit.NAME:
                eight_bit.check(weights.device(self.device), self.title)

    def fetch_folder(self) -> Path:
        """Return the folder with the weights, fetched from the Hub where they are not local; warn of remote code."""
        self.check_device()
        if self.trust_remote_code:
            note(f"warning: {self.title}: Python code that comes with the weights runs (trust_remote_code)")
        return weights.folder(self.origin)

    def open_weights(
        self, auto: type[Any], truncation: str | None = None, unread: tuple[str, ...] = ()
    ) -> tuple[Any, Any]:
        """Load tokenizer and model; refuse missing weights, except those whose names start with one of `unread`."""
        self.fetch_folder()
        device = weights.device(self.device)
        dtype = weights.torch_dtype(self.precision(), self.device)
        with model_errors(self.title), quietly():
            tokenizer = open_tokenizer(self.origin, self.trust_remote_code, truncation)
            model, lacking = checkpoint.open_model(auto, self.origin, dtype, self.trust_remote_code, device)
        check_whole(self.title, self.kind, lacking, unread)
        # Quantised weights are on the device, and some of them refuse to be moved.
        model = (model if self._quantisation() is not None else model.to(device)).eval()
        if self.by_torch():
            quicken(model)
            if device == "cpu":
                allocator.keep_freed()
        return tokenizer, model


class EncodingModel(LocalModel):
    """Hold the setting of models that another runtime than torch may compute."""

    backend: runtime.Backend = "torch"
    """What computes it. `onnx` (ONNX Runtime) and `openvino` are faster on some CPUs: `plan` times them. The model is exported once, into the
    cache; its numbers are held against torch's when it is loaded, and on a sample of rows, which `columns` tells of. For
    encoders in float32; `openvino` also in int8."""

    @model_validator(mode="after")
    def _exportable(self) -> Self:
        if self.by_torch():
            return self
        named = f"backend: {self.backend}"
        if self.dtype in ("bfloat16", "float16"):
            raise ValueError(f"{named} computes in float32; leave `dtype: {self.dtype}` out, or the backend")
        if self.backend == "onnx" and self.dtype == eight_bit.NAME:
            raise ValueError(
                f"{named} rounds a batch to 8 bits by its largest number, so that a score would depend on the texts beside "
                "it; write `backend: openvino` with int8, or leave one of the two out"
            )
        if self.trust_remote_code:
            raise ValueError(
                f"{named} is for models of transformers' own; leave `trust_remote_code` out, or the backend"
            )
        return self

    def by_torch(self) -> bool:
        """Tell whether torch computes it, and no other runtime."""
        return self.backend == "torch"

    def arithmetic(self) -> str:
        """Name the precision, and the runtime where it is not torch, for messages."""
        return self.precision() if self.by_torch() else f"{self.precision()} by {runtime.TITLES[self.backend]}"

    def exact(self) -> Self | None:
        """Return the model in float32 by torch, which others are held against; None for one that is so computed, or on a GPU."""
        if self.by_torch():
            return super().exact()
        return self.model_copy(update={"dtype": "float32", "backend": "torch"})

    def identity(self) -> JsonValue:
        """Return everything that decides a score; the runtime, where it is not torch."""
        moves = super().identity()
        assert isinstance(moves, dict)
        return {key: value for key, value in moves.items() if key != "backend" or not self.by_torch()}

    def check_packages(self) -> None:
        """Refuse where a package is not installed that the model needs, or its runtime."""
        super().check_packages()
        if not self.by_torch():
            extras.require(self.backend, f"{self.title}, `backend: {self.backend}`,", ModelError)

    def check_device(self) -> None:
        """Refuse a device that is not on this machine, or on which the runtime does not compute."""
        super().check_device()
        if not self.by_torch():
            if self._quantisation() is not None:
                raise ModelError(
                    f"{self.title}: quantised weights are not exported; leave `backend: {self.backend}` out"
                )
            runtime.check(self.backend, weights.device(self.device), self.dtype, self.title)


class PromptedModel(LocalModel, FormSettings):
    """Hold the settings that policies and reward models share: how prompts and responses become the text they read."""

    texts: ClassVar[dict[str, JsonValue]] = {"tokens": tokens.REVISION}

    base: str | None = None
    """What an adapter was trained on, where it does not lie where the adapter says: a folder, a Hub id, or `id@revision`."""

    @property
    def origin(self) -> weights.Origin:
        """Where its files are."""
        return weights.Origin(self.path, self.revision, self.base)

    def named_paths(self) -> list[str]:
        """List the folders and Hub ids that a recipe names for it."""
        return [self.path] if self.base is None else [self.path, self.base, weights.at_revision(self.base).path]

    def identity(self) -> JsonValue:
        """Return everything that decides a score, the form included where one is set.

        Raises:
            ModelError: The form, its arguments or its date need a chat template, and there is none.
        """
        moves = super().identity()
        assert isinstance(moves, dict)
        if self.form == "chat" or self.template or self.date:
            self._check_template()
        return {key: value for key, value in moves.items() if value or key not in ("form", "template", "date")}

    def prompt_form(self, tokenizer: PreTrainedTokenizerBase | None = None, ends: Sequence[int] | None = None) -> Form:
        r"""Return how prompts become the text that the model reads; settings that are missing come from its files.

        Args:
            tokenizer: The model's own.
            ends: The ids that its generation configuration ends answers by.

        Example:
            >>> CausalLM(path="my-org/sft-7b", form="plain").prompt_form().prompt("What is a set?")  # doctest: +SKIP
            'Question: What is a set?\n\nAnswer:'

        Raises:
            ModelError: The form, or its arguments, need a chat template that the tokenizer does not have.
        """
        if ends is None:
            ends = weights.answer_ends(self.origin)
        return tokens.form_of(tokenizer or self.tokenizer(), self, ends)

    def dated(self, day: datetime.date) -> Self:
        """Return the model with `day` as its chat template's date; itself where a date is set or none is written."""
        if self.date is not None or not self._writes_date:
            return self
        return self.model_copy(update={"date": day})

    @property
    def _writes_date(self) -> bool:
        return self.form in (None, "chat") and CLOCK in weights.templates(self.origin)

    def _check_template(self) -> None:
        """Refuse settings of a chat template where there is none."""
        model, templates = self.title, weights.templates(self.origin)
        if self.form in (None, "chat") and not templates:
            setting = "form: chat" if self.form else "template" if self.template else "date"
            raise ModelError(
                f"{model}: `{setting}` needs a chat template, and its tokenizer has none; "
                "leave it out, or save a template with the tokenizer"
            )
        if self.date and not self._writes_date:
            raise ModelError(f"{model}: its prompts hold no date; leave `date` out")


def open_tokenizer(origin: weights.Origin, trust_remote_code: bool, truncation: str | None) -> Any:
    """Open a tokenizer once in a process for each truncation side, as long as its files stay the same.

    A tokenizer that is dropped after use leaks its cache of words, hundreds of kilobytes each (tokenizers 0.23).
    """
    return _kept_tokenizer(origin, files_state(weights.tokenizer_folder(origin)), trust_remote_code, truncation)


@lru_cache(maxsize=4)
def _kept_tokenizer(
    origin: weights.Origin, state: tuple[tuple[str, int, int], ...], trust_remote_code: bool, truncation: str | None
) -> Any:
    return checkpoint.read_tokenizer(origin, trust_remote_code)


def files_state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return the name, size and time of change of a folder's files but the weights: equal states mean equal files."""
    # A GGUF file holds its tokenizer.
    files = (file for file in ([folder] if folder.is_file() else folder.iterdir()) if file.suffix != ".safetensors")
    return tuple(sorted((file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files))


@contextmanager
def quietly() -> Iterator[None]:
    """Hide transformers' own progress bars while weights are read: a step shows one bar, its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_whole(model: str, kind: str, missing: Iterable[str], unused: tuple[str, ...] = ()) -> None:
    """Refuse a model some of whose weights are missing: transformers initialises them at random and only logs it.

    Args:
        model: The model's name, for the message.
        kind: What it should have been trained as.
        missing: The names of the weights that its files lack.
        unused: Prefixes of the names of weights that no output is computed by.

    Raises:
        ModelError: A weight that an output is computed by is missing.
    """
    if missing_names := sorted(name for name in missing if not name.startswith(unused)):
        raise ModelError(
            f"{model} has no {missing_names[0]}, which would be initialised at random; give a model that was trained as {kind}"
        )


@contextmanager
def model_errors(model: str) -> Iterator[None]:
    """Turn errors into a ModelError of one line: for damaged files, libraries raise errors of any type."""
    try:
        yield
    except ModelError:
        raise
    except ModuleNotFoundError as error:
        raise ModelError(f"{model}: {extras.hint(error) or typed_line(error)}") from error
    except Exception as error:
        plain = isinstance(error, OSError | ValueError | RuntimeError)
        raise ModelError(f"{model}: {first_line(error) if plain else typed_line(error)}") from error
