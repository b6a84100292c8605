"""GGUF files: one file with a model's weights, mostly quantised, and its tokenizer, as llama.cpp reads it.

transformers reads them, too: it dequantises all weights to the model's `dtype`, and they are computed as any other's. One
rule: what transformers would read otherwise than the file means it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seamcurate import extras
from seamcurate.errors import ModelError, first_line
from seamcurate.progress import note

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUFFIX = ".gguf"
_CONTROL = 3
"""The type of tokens that are no text, such as those around a turn."""


class Header(NamedTuple):
    """What a GGUF file says of itself, beside its weights."""

    has_tokenizer: bool
    splits: str | None
    """How a byte-level tokenizer cuts a text before it merges, by llama.cpp's name; None for other tokenizers."""
    template: str
    """The chat template; empty where there is none."""
    end: int | None
    """The id that ends a text."""
    ends: tuple[int, ...]
    """The ids that end an answer, that one first."""
    controls: tuple[tuple[str, int], ...]
    """The control tokens that end an answer or that the template writes, with their ids."""


def is_gguf(path: str) -> bool:
    """Tell whether a path, or a name on the Hub, is a GGUF file's.

    Example:
        >>> is_gguf("my-org/my-model/model-Q4_K_M.gguf"), is_gguf("my-org/my-model")
        (True, False)
    """
    return path.lower().endswith(SUFFIX)


def on_hub(path: str) -> tuple[str, str]:
    """Return the repository and the file of a GGUF file's name on the Hub.

    Example:
        >>> on_hub("my-org/my-model/q4/model.gguf")
        ('my-org/my-model', 'q4/model.gguf')

    Raises:
        ModelError: It is no such name.
    """
    parts = path.split("/")
    if len(parts) < 3 or not all(parts):
        raise ModelError(
            f"GGUF file {path} is not there; give the path of a file, or org/repository/file.gguf for one on the Hub"
        )
    return "/".join(parts[:2]), "/".join(parts[2:])


def header(file: Path) -> Header:
    """Read what a file says of itself.

    Raises:
        ModelError: The file is damaged, cut short or a part of a model, or the package that reads it is missing.
    """
    state = file.stat()
    return _header(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _header(file: Path, size: int, modified: int) -> Header:
    reader = _reader(file)

    def value(key: str, default: Any) -> Any:
        field = reader.fields.get(key)
        return default if field is None else field.contents()

    with _damage(file):
        parts = value("split.count", 1)
        tokens, types = value("tokenizer.ggml.tokens", []), value("tokenizer.ggml.token_type", [])
        template = value("tokenizer.chat_template", "")
        end, turn = (value(f"tokenizer.ggml.{name}_token_id", None) for name in ("eos", "eot"))
        ends = tuple(dict.fromkeys(int(number) for number in (end, turn) if number is not None))
        controls = tuple(
            (str(token), number)
            for number, (token, kind) in enumerate(zip(tokens, types, strict=False))
            if kind == _CONTROL and (number in ends or (token and token in template))
        )
        byte_level = value("tokenizer.ggml.model", "") == "gpt2"
        splits = str(value("tokenizer.ggml.pre", "default")) if byte_level else None
        read = Header(bool(tokens), splits, str(template), end, ends, controls)
    if parts > 1:
        raise ModelError(
            f"{file} is one of {parts} parts of a model; join them by `llama-gguf-split --merge`, and give that file"
        )
    return read


def _reader(file: Path) -> Any:
    """Open a file; its weights are not read, but where they lie must be inside it."""
    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{file} is no GGUF file: it does not begin with GGUF")
    _check_packages(file)
    import gguf

    with _damage(file):
        return gguf.GGUFReader(file)


def _check_packages(file: Path) -> None:
    """Refuse where a package is missing that transformers reads such files by."""
    for package in ("gguf", "accelerate"):
        try:
            __import__(package)
        except ImportError as error:
            raise ModelError(
                f"{file} is read by the package {package}, which is not installed; {extras.install('gguf')}"
            ) from error


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ModelError(
            f"{file} is damaged or cut short ({type(error).__name__}: {first_line(error)}); copy or download it again"
        ) from error


def open_model(auto: type[Any], file: Path, dtype: torch.dtype | None) -> tuple[PreTrainedModel, list[str]]:
    """Load the weights, dequantised.

    Args:
        auto: The class of transformers that loads this kind of model.
        file: The GGUF file.
        dtype: The precision to compute in; None leaves it to transformers.

    Returns:
        The model, and the names of the weights that the file lacks.
    """
    ends = header(file).ends
    options: dict[str, object] = {} if dtype is None else {"dtype": dtype}
    # Newer versions would leave weights packed, and compute by kernels that they download.
    import transformers

    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _without_bar():
        model, info = auto.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False, output_loading_info=True, **options
        )
    if ends and getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = list(ends)
    return model, sorted(info["missing_keys"])


@contextmanager
def _without_bar() -> Iterator[None]:
    """Hide the bar over dequantised tensors, which no setting of transformers hides: a step shows one bar, its own."""
    import transformers.modeling_gguf_pytorch_utils as reading

    shown = reading.tqdm
    reading.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        reading.tqdm = shown


def _known_splits() -> set[str]:
    """Return the names of the ways to cut texts that transformers knows."""
    known = {"gpt-2", "gpt2", "default"}
    with suppress(ImportError):
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        known |= set(GGUF_PRE_TOKENIZER_SPLITS)
    return known


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the file describes.

    Raises:
        ModelError: It describes none, or transformers would cut a control token into pieces, or end texts otherwise.
    """
    from transformers import AutoTokenizer

    about = header(file)
    if not about.has_tokenizer:
        raise ModelError(
            f"{file} holds no tokenizer; name the folder, or the Hub id, that it was made from by `tokenizer_of`"
        )
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False
    )
    if about.splits is not None and about.splits not in _known_splits():
        note(
            f"warning: {file}: transformers cuts texts as GPT-2 does, where this tokenizer says {about.splits!r}; numbers and "
            "signs may become other tokens than the model learned: name the folder that it was made from by `tokenizer_of`"
        )
    if about.end is not None and tokenizer.eos_token_id != about.end:
        raise ModelError(
            f"{file}: transformers ends texts by the token {tokenizer.eos_token_id}, where the file says {about.end}; name "
            "the folder, or the Hub id, that it was made from by `tokenizer_of`"
        )
    for token, number in about.controls:
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if ids != [number]:
            raise ModelError(
                f"{file}: transformers reads the control token {token!r} of its tokenizer as {len(ids)} others; name the "
                "folder, or the Hub id, that it was made from by `tokenizer_of`"
            )
    return tokenizer
