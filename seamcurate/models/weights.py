"""Where weights lie, what they are, and where they run. The same weights have one identity in any folder.

Only safetensors are ever read: a folder that holds nothing but pickled weights is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from seamcurate.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja", "chat_template.json", "tokenizer_config.json")
"""Where a tokenizer's chat templates lie."""
FILES = (
    *("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*/config.json", "*/*.safetensors"),
    "additional_chat_templates/*.jinja",
)
"""What a model is made of on disk or on the Hub; pickled weights are not among it."""
NO_PART = ("training.json", "README.md")
"""What lies beside a model's files and decides none of its answers."""


def check(path: str, revision: str | None) -> None:
    """Look whether a model is there, without reading or fetching its weights.

    Raises:
        ModelError: It is neither a folder with safetensors nor a repository that the Hub knows.
    """
    local = Path(path).expanduser()
    if not local.is_dir():
        _commit(path, revision)
    elif not any(any(local.glob(pattern)) for pattern in ("*.safetensors", "*/*.safetensors")):
        raise ModelError(f"{path} holds no .safetensors weights; save them with save_pretrained(…)")


def identity(path: str, revision: str | None) -> str:
    """Hash a local folder's files, or name a Hub repository's commit."""
    local = Path(path).expanduser()
    if local.is_dir():
        found = {f for pattern in FILES for f in local.glob(pattern) if f.is_file()}
        files = sorted(f for f in found if f.name not in NO_PART)
        if not any(f.suffix == ".safetensors" for f in files):
            raise ModelError(f"{path} holds no .safetensors weights; save them with save_pretrained(…)")
        total = hashlib.sha256()
        for file in files:
            state = file.stat()
            total.update(f"{file.relative_to(local)}\0{_hash(file, state.st_size, state.st_mtime_ns)}\n".encode())
        return f"sha256:{total.hexdigest()[:32]}"
    return f"{path}@{_commit(path, revision)}"


def folder(path: str, revision: str | None, files: Sequence[str] = FILES) -> Path:
    """Return the folder with the weights, fetched from the Hub at the pinned commit where it is not local.

    Of a Hub repository only `files` are fetched.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    from huggingface_hub import snapshot_download

    commit = _commit(path, revision)
    try:
        return Path(snapshot_download(path, revision=commit, allow_patterns=list(files)))
    except Exception as error:
        raise ModelError(f"{path} at {commit}: cannot be fetched from the Hub ({type(error).__name__})") from error


def templates(path: str, revision: str | None) -> str:
    """Return the text of a tokenizer's chat templates; empty where it has none."""
    if Path(path).expanduser().is_dir():
        return _templates(folder(path, revision))
    return _hub_templates(path, _commit(path, revision))


@cache
def _hub_templates(path: str, commit: str) -> str:
    return _templates(folder(path, commit, TEMPLATES))


def _templates(local: Path) -> str:
    texts: list[str] = []
    for file in sorted(file for pattern in TEMPLATES for file in local.glob(pattern)):
        if file.suffix == ".jinja":
            texts.append(file.read_text(encoding="utf-8", errors="replace"))
        elif found := _object(file).get("chat_template"):
            texts.append(found if isinstance(found, str) else json.dumps(found))
    return "\n".join(texts)


def answer_ends(local: Path) -> tuple[int, ...]:
    """Return the ids that a model folder's generation configuration ends answers by, else those of its configuration."""
    own = as_ids(_object(local / "generation_config.json").get("eos_token_id"))
    return own or as_ids(_object(local / "config.json").get("eos_token_id"))


def as_ids(value: object) -> tuple[int, ...]:
    """Return token ids that a configuration gives as one number, as a list, or not at all."""
    given = value if isinstance(value, list) else [value]
    return tuple(token for token in given if isinstance(token, int))


def _object(file: Path) -> dict[str, object]:
    """Read a JSON object; nothing where there is none, of which loading the model then tells."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def device(asked: str) -> str:
    """Resolve `auto` to cuda, mps or cpu, whichever is there first."""
    import torch

    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def precision(asked: str, on: str) -> str:
    """Resolve `auto` to bfloat16 on a CUDA device, else float32."""
    if asked != "auto":
        return asked
    return "bfloat16" if device(on).startswith("cuda") else "float32"


def torch_dtype(asked: str, on: str) -> torch.dtype:
    """Resolve a dtype's name to torch's own."""
    import torch

    found = getattr(torch, precision(asked, on))
    assert isinstance(found, torch.dtype)
    return found


def window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the model can read at once.

    RoBERTa's position table starts behind the padding index, so its tokenizer's limit is the true one.
    """
    limits = [
        int(value)
        for value in (
            getattr(model.config, "max_position_embeddings", None),
            getattr(model.config, "n_positions", None),
            tokenizer.model_max_length,
        )
        if value is not None and 0 < value < 10**8
    ]
    found = min(limits) if limits else 2048
    if model.config.model_type in {"roberta", "xlm-roberta", "camembert"}:
        found = min(found, model.config.max_position_embeddings - model.config.pad_token_id - 1)
    return found


@cache
def _hash(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@cache
def _commit(repo: str, revision: str | None) -> str:
    """Pin a Hub revision to its commit; offline, to the one the local cache holds."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", repo):
        raise ModelError(f"model folder {repo} is not there; give a folder that save_pretrained(…) wrote, or a Hub id")
    try:
        commit = HfApi().model_info(repo, revision=revision).sha
        if commit:
            return commit
    except Exception as error:
        cached = try_to_load_from_cache(repo, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise ModelError(
            f"model {repo!r} is no folder here, and the Hub did not answer for it ({type(error).__name__}); "
            "check the name, or download it first"
        ) from error
    raise ModelError(f"the Hub names no commit for {repo!r}; give models a `revision`")
