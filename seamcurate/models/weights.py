"""Where weights lie, what they are, and where they run. The same weights have one identity in any folder.

Only safetensors are ever read: a folder that holds nothing but pickled weights is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from seamcurate import hashes
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


def folder(path: str, revision: str | None) -> Path:
    """Return the folder with the weights, fetched from the Hub at the pinned commit where it is not local."""
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    from huggingface_hub import snapshot_download

    commit = _commit(path, revision)
    try:
        return Path(snapshot_download(path, revision=commit, allow_patterns=list(FILES)))
    except Exception as error:
        raise ModelError(f"{path} at {commit}: cannot be fetched from the Hub ({type(error).__name__})") from error


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
    return hashes.sha256(file)


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


def templates(path: str, revision: str | None) -> str:
    """Return the text of a tokenizer's chat templates; empty where it has none."""
    local = Path(path).expanduser()
    return _templates(local) if local.is_dir() else _hub_templates(path, _commit(path, revision))


@cache
def _hub_templates(path: str, commit: str) -> str:
    """Read a Hub repository's templates; the weights are not fetched."""
    from huggingface_hub import snapshot_download

    try:
        return _templates(Path(snapshot_download(path, revision=commit, allow_patterns=list(TEMPLATES))))
    except Exception as error:
        raise ModelError(f"{path} at {commit}: cannot be fetched from the Hub ({type(error).__name__})") from error


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
    own = _as_ids(_object(local / "generation_config.json").get("eos_token_id"))
    return own or _as_ids(_object(local / "config.json").get("eos_token_id"))


def model_ends(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the ids that a loaded model's generation configuration ends answers by; a model's own code may have none."""
    return _as_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))


def _as_ids(value: object) -> tuple[int, ...]:
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
