"""Locate weights, identify them, and choose their device. The same weights have one identity in any folder.

Only safetensors are read: a folder that has only pickled weights is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seamcurate import extras
from seamcurate.errors import ModelError
from seamcurate.models import eight_bit, gguf_file
from seamcurate.storage import hashes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja", "chat_template.json", "tokenizer_config.json")
"""The files that may hold a tokenizer's chat templates."""
FILES = (
    *("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*/config.json", "*/*.safetensors"),
    "additional_chat_templates/*.jinja",
    # The modules of a sentence-transformers model lie in folders such as `0_Transformer`, with a tokenizer of their own.
    *("[0-9]_*/*.json", "[0-9]_*/*.txt", "[0-9]_*/*.model"),
)
"""The files of a model, on disk or on the Hub; pickled weights are not among them."""
_SMALL = tuple(pattern for pattern in FILES if not pattern.endswith(".safetensors"))
"""Those of them that hold no weights."""
NO_PART = ("training.json", "README.md")
"""Files beside a model's own that do not decide its answers."""
ADAPTER = "adapter_config.json"
"""The file that PEFT writes beside an adapter's weights; it names the base model."""
_TOKENIZER_PARTS = (*TEMPLATES, "special_tokens_map.json", "added_tokens.json", "merges.txt")
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class Origin(NamedTuple):
    """Where the files of a model are."""

    path: str
    """A folder, or a Hub id."""
    revision: str | None = None
    """A Hub branch, tag or commit."""
    base: str | None = None
    """What an adapter was trained on, in place of what it names: a folder, a Hub id, or `id@revision`."""
    tokenizer_of: str | None = None
    """Whose tokenizer a GGUF file is read with, in place of its own: a folder, a Hub id, or `id@revision`."""

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return gguf_file.is_gguf(self.path)

    @property
    def local(self) -> Path:
        """The path on this machine; a Hub id is none."""
        return Path(self.path).expanduser()

    @property
    def title(self) -> str:
        """The path, with the revision where there is one."""
        return self.path if self.revision is None else f"{self.path}@{self.revision}"


def at_revision(name: str) -> Origin:
    """Read a folder, a Hub id, or a Hub id with its revision.

    Example:
        >>> at_revision("my-org/base-7b@v2").revision
        'v2'
    """
    path, _, revision = name.rpartition("@")
    return Origin(path, revision) if path and revision and not Path(name).expanduser().exists() else Origin(name)


def check(origin: Origin) -> None:
    """Refuse a model that does not exist, or an adapter without its base, without reading or fetching weights.

    Raises:
        ModelError: It is neither a folder with safetensors nor a repository that the Hub knows.
    """
    if origin.is_gguf:
        if origin.local.is_file():
            gguf_file.header(origin.local)
        else:
            _hub_gguf(origin)
        if origin.tokenizer_of is not None:
            _tokenizer_identity(at_revision(origin.tokenizer_of))
    elif not origin.local.is_dir():
        _commit(origin.path, origin.revision)
    elif not any(any(origin.local.glob(pattern)) for pattern in ("*.safetensors", "*/*.safetensors")):
        raise ModelError(_no_weights(origin))
    if (base_model := base(origin)) is not None:
        check(base_model)


def _no_weights(origin: Origin) -> str:
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in origin.local.glob(pattern))
    also = f", only {pickled[0]}, which is pickled and could run code" if pickled else ""
    return f"{origin.path} holds no .safetensors weights{also}; save them with save_pretrained(…)"


def identity(origin: Origin) -> str:
    """Return the hash of a local folder's files, or a Hub repository's commit; an adapter's includes its base's.

    A GGUF file's includes that of the tokenizer that is read in place of its own.
    """
    if origin.is_gguf:
        whole = f"sha256:{hashes.sha256(origin.local)[:32]}" if origin.local.is_file() else _hub_gguf(origin)
        tokenizer = origin.tokenizer_of
        return whole if tokenizer is None else f"{whole} with {_tokenizer_identity(at_revision(tokenizer))}"
    fingerprint = _own_identity(origin)
    base_model = base(origin)
    return fingerprint if base_model is None else f"{fingerprint} on {_own_identity(base_model)}"


def _hub_gguf(origin: Origin) -> str:
    """Return the name and commit of a GGUF file on the Hub."""
    repo, name = gguf_file.on_hub(origin.path)
    commit = _commit(repo, origin.revision, name)
    if not _hub_has(repo, name, commit):
        raise ModelError(f"{repo} at {commit[:12]} has no file {name}; see its list of files on the Hub")
    return f"{origin.path}@{commit}"


@cache
def _hub_has(repo: str, name: str, commit: str) -> bool:
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, name, revision=commit), str):
        return True
    try:
        return HfApi().file_exists(repo, name, revision=commit)
    except Exception as error:
        raise ModelError(
            f"{repo}: the Hub did not answer for {name} ({type(error).__name__}); download it first"
        ) from error


def _tokenizer_identity(origin: Origin) -> str:
    """Return the hash of the files of a tokenizer alone, or a Hub repository's commit."""
    local = origin.local
    if not local.is_dir():
        return f"{origin.path}@{_commit(origin.path, origin.revision)}"
    files = sorted({file for pattern in (*_TOKENIZER, *_TOKENIZER_PARTS) for file in local.glob(pattern)})
    if not any(file.name in _TOKENIZER for file in files):
        raise ModelError(
            f"{origin.path} holds no tokenizer; give `tokenizer_of` a folder that save_pretrained(…) wrote"
        )
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(local)}\0{hashes.sha256(file)}\n".encode())
    return f"sha256:{total.hexdigest()[:32]}"


def _own_identity(origin: Origin) -> str:
    path, local = origin.path, origin.local
    if local.is_dir():
        candidates = {f for pattern in FILES for f in local.glob(pattern) if f.is_file()}
        files = sorted(f for f in candidates if f.name not in NO_PART)
        if not any(f.suffix == ".safetensors" for f in files):
            raise ModelError(_no_weights(origin))
        total = hashlib.sha256()
        for file in files:
            # An adapter's configuration has its base's path, which does not decide an answer; the base's weights do.
            content = _settings(file) if file.name == ADAPTER else hashes.sha256(file)
            total.update(f"{file.relative_to(local)}\0{content}\n".encode())
        return f"sha256:{total.hexdigest()[:32]}"
    return f"{path}@{_commit(path, origin.revision)}"


def base(origin: Origin) -> Origin | None:
    """Return the model that an adapter folder, or an adapter on the Hub, was trained on; None for whole weights.

    A relative path is tried from the working folder, as PEFT does, then beside the adapter's folder, then in it. An adapter on
    the Hub names its base by a Hub id.

    Raises:
        ModelError: The base does not exist, is an adapter itself, or whole weights stand beside the adapter.
    """
    if origin.is_gguf:
        return None
    path, local, on_hub = origin.path, origin.local, not origin.local.is_dir()
    file = _hub_adapter(path, _commit(path, origin.revision)) if on_hub else local / ADAPTER
    if file is None or not file.is_file():
        if origin.base is not None:
            raise ModelError(f"{path} holds no adapter ({ADAPTER}), so that it has no base; leave `base` out")
        return None
    if not on_hub and any(not f.name.startswith("adapter_") for f in local.glob("*.safetensors")):
        raise ModelError(
            f"{path} holds an adapter beside whole weights, so that either could be meant; "
            f"move {ADAPTER} and the adapter's weights, or the whole weights, to a folder of their own"
        )
    settings = adapter_settings(file)
    model = _named_base(origin, settings) if origin.base is None else at_revision(origin.base)
    try:
        is_adapter = (
            (model.local / ADAPTER).is_file()
            if model.local.is_dir()
            else _hub_adapter(model.path, _commit(model.path, model.revision)) is not None
        )
    except ModelError as error:
        raise ModelError(
            f"{path} holds an adapter of {model.path}, which is neither a folder here nor reached on the Hub; put it "
            f"there, name it by `base`, or {MERGE}"
        ) from error
    if is_adapter:
        raise ModelError(f"{path} holds an adapter of {model.path}, which is an adapter itself; {MERGE}")
    return model


def _named_base(origin: Origin, settings: Mapping[str, object]) -> Origin:
    """Return the base that an adapter's configuration names."""
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{origin.path} holds an adapter that does not name its base (base_model_name_or_path); name it by `base`, "
            f"or {MERGE}"
        )
    if origin.local.is_dir():
        candidates = [Path(name).expanduser(), origin.local.resolve().parent / name, origin.local / name]
        for candidate in candidates:
            if candidate.is_dir() and candidate.resolve() != origin.local.resolve():
                return Origin(str(candidate))
    elif Path(name).is_absolute() or name.startswith("."):
        raise ModelError(
            f"{origin.path} holds an adapter of {name}, a folder of whoever made it; name it by `base`, or {MERGE}"
        )
    return Origin(name, revision if isinstance(revision, str) else None)


MERGE = (
    "merge it where its base is (PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)) "
    "and give that folder"
)
"""What to do about an adapter that cannot be loaded with its base."""


def tokenizer_folder(origin: Origin) -> Path:
    """Return the folder with the tokenizer: an adapter's own where it has one, else its base's; a GGUF file is its own."""
    if origin.is_gguf:
        other = origin.tokenizer_of
        return folder(origin) if other is None else small_folder(at_revision(other))
    own_folder = small_folder(origin)
    if any((own_folder / name).is_file() for name in _TOKENIZER):
        return own_folder
    base_model = base(origin)
    return own_folder if base_model is None else small_folder(base_model)


def adapter_settings(file: Path) -> dict[str, object]:
    """Read an adapter's configuration.

    Raises:
        ModelError: The file is damaged.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"a {type(settings).__name__}")
    except (OSError, RecursionError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as an adapter's configuration: {error}") from error
    return settings


def _settings(file: Path) -> str:
    """Return an adapter's settings without its base's path, in sorted order."""
    settings = adapter_settings(file)
    own_settings = {key: value for key, value in settings.items() if key not in ("base_model_name_or_path", "revision")}
    return json.dumps(own_settings, sort_keys=True)


@cache
def _hub_adapter(repo: str, commit: str) -> Path | None:
    """Return an adapter's configuration from the Hub, None where the repository holds whole weights."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if isinstance(try_to_load_from_cache(repo, "config.json", revision=commit), str):
        return None
    try:
        return Path(hf_hub_download(repo, ADAPTER, revision=commit))
    except (EntryNotFoundError, OSError):
        return None


def folder(origin: Origin) -> Path:
    """Return the folder with the weights, or the GGUF file, fetched from the Hub at the pinned commit if not local."""
    if origin.is_gguf:
        return origin.local if origin.local.is_file() else _fetched_gguf(origin)
    if origin.local.is_dir():
        return origin.local
    from huggingface_hub import snapshot_download

    path, commit = origin.path, _commit(origin.path, origin.revision)
    try:
        return Path(snapshot_download(path, revision=commit, allow_patterns=list(FILES)))
    except Exception as error:
        raise ModelError(f"{path} at {commit}: cannot be fetched from the Hub ({type(error).__name__})") from error


def _fetched_gguf(origin: Origin) -> Path:
    from huggingface_hub import hf_hub_download

    repo, name = gguf_file.on_hub(origin.path)
    commit = _hub_gguf(origin).rpartition("@")[2]
    try:
        return Path(hf_hub_download(repo, name, revision=commit))
    except Exception as error:
        raise ModelError(
            f"{origin.path} at {commit}: cannot be fetched from the Hub ({type(error).__name__})"
        ) from error


def small_folder(origin: Origin) -> Path:
    """Return the folder with a model's configuration and tokenizer; weights are not fetched from the Hub for it."""
    if origin.local.is_dir():
        return origin.local
    from huggingface_hub import snapshot_download

    path, commit = origin.path, _commit(origin.path, origin.revision)
    try:
        return Path(snapshot_download(path, revision=commit, allow_patterns=list(_SMALL)))
    except Exception as error:
        raise ModelError(f"{path} at {commit}: cannot be fetched from the Hub ({type(error).__name__})") from error


def small_identity(origin: Origin) -> str:
    """Return the hash of a folder's configuration and tokenizer, or a Hub repository's commit; weights are not read."""
    if not origin.local.is_dir():
        return f"{origin.path}@{_commit(origin.path, origin.revision)}"
    files = {f for pattern in _SMALL for f in origin.local.glob(pattern) if f.is_file() and f.name not in NO_PART}
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.relative_to(origin.local)}\0{hashes.sha256(file)}\n".encode())
    return f"sha256:{total.hexdigest()[:32]}"


def check_device(name: str) -> None:
    """Refuse a device that is not on this machine.

    Raises:
        ModelError: The device does not exist here, or no device has such a name.
    """
    import torch

    if name in ("auto", "cpu"):
        return
    try:
        named = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r} is none; use cuda, cuda:1, mps, cpu or auto") from error
    accelerator: Any = getattr(torch.backends if named.type == "mps" else torch, named.type, None)
    available = named.type == "cpu" or (hasattr(accelerator, "is_available") and accelerator.is_available())
    count = int(accelerator.device_count()) if available and hasattr(accelerator, "device_count") else 1
    if not available:
        raise ModelError(
            f"device {name!r} is not on this machine: torch {torch.__version__} sees none; use `device: auto`, or "
            "install a torch that is built for it"
        )
    if (named.index or 0) >= count:
        raise ModelError(f"device {name!r} is not on this machine, which has {count}, from 0; use `device: auto`")


def device(name: str) -> str:
    """Resolve `auto` to the first of cuda, mps and cpu that this machine has."""
    import torch

    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def precision(name: str, device_name: str) -> str:
    """Resolve `auto` to bfloat16 on a CUDA device, else float32."""
    if name != "auto":
        return name
    return "bfloat16" if device(device_name).startswith("cuda") else "float32"


def torch_dtype(name: str, device_name: str) -> torch.dtype:
    """Resolve a dtype's name to torch's own."""
    import torch

    resolved = precision(name, device_name)
    # Weights of 8 bits are rounded from single precision once they are read.
    dtype = torch.float32 if resolved == eight_bit.NAME else getattr(torch, resolved)
    assert isinstance(dtype, torch.dtype)
    return dtype


def window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the model can read at once.

    Where positions count from the padding index on, as RoBERTa's do, this is less than the configuration says.
    """
    import torch

    configs = (model.config, model.config.get_text_config())
    named = (getattr(config, name, None) for config in configs for name in _WINDOWS)
    limits = [
        int(value)
        for value in (*named, tokenizer.model_max_length)
        if isinstance(value, int | float) and 0 < value < 10**8
    ]
    tables = (module for name, module in model.named_modules() if name.rpartition(".")[2] in _POSITIONS)
    limits += [
        module.num_embeddings - module.padding_idx - 1
        for module in tables
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None
    ]
    return min(limits, default=2048)


_WINDOWS = ("max_position_embeddings", "n_positions")
_POSITIONS = ("position_embeddings", "embed_positions")


@cache
def _commit(repo: str, revision: str | None, file: str | None = None) -> str:
    """Pin a Hub revision to its commit; offline, to the one the local cache holds, of `file` where it is given."""
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", repo):
        raise ModelError(f"model folder {repo} is not there; give a folder that save_pretrained(…) wrote, or a Hub id")
    extras.require("local", f"model {repo}", ModelError)
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        commit = HfApi().model_info(repo, revision=revision).sha
        if commit:
            return commit
    except Exception as error:
        for name in ("config.json", ADAPTER, "tokenizer_config.json") if file is None else (file,):
            cached = try_to_load_from_cache(repo, name, revision=revision)
            if isinstance(cached, str):
                return Path(cached).parents[name.count("/")].name
        raise ModelError(
            f"model {repo!r} is no folder here, and the Hub did not answer for it ({type(error).__name__}); "
            "check the name, or download it first"
        ) from error
    raise ModelError(f"the Hub names no commit for {repo!r}; give models a `revision`")


def templates(origin: Origin) -> str:
    """Return the text of a tokenizer's chat templates, an adapter's base's where it has none; empty where there is none."""
    if origin.is_gguf:
        other = origin.tokenizer_of
        return gguf_file.header(folder(origin)).template if other is None else templates(at_revision(other))
    path, local = origin.path, origin.local
    own_text = _templates(local) if local.is_dir() else _hub_templates(path, _commit(path, origin.revision))
    if own_text or any((local / name).is_file() for name in _TOKENIZER):
        return own_text
    base_model = base(origin)
    return "" if base_model is None else templates(base_model)


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
        elif template := _object(file).get("chat_template"):
            texts.append(template if isinstance(template, str) else json.dumps(template))
    return "\n".join(texts)


def configuration(origin: Origin) -> dict[str, object]:
    """Return a model's `config.json`, an adapter's base's; empty where there is none. No weights are fetched."""
    if origin.is_gguf:
        return {}
    whole = base(origin) or origin
    local = whole.local
    if not local.is_dir():
        local = _hub_configuration(whole.path, _commit(whole.path, whole.revision))
    return _object(local / "config.json")


@cache
def _hub_configuration(path: str, commit: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=commit, allow_patterns=["config.json"]))
    except Exception as error:
        raise ModelError(f"{path} at {commit}: cannot be fetched from the Hub ({type(error).__name__})") from error


def answer_ends(origin: Origin) -> tuple[int, ...]:
    """Return the ids that a model's generation configuration ends answers by, else its configuration; an adapter's base's."""
    if origin.is_gguf:
        return gguf_file.header(folder(origin)).ends
    local = small_folder(base(origin) or origin)
    ids = _as_ids(_object(local / "generation_config.json").get("eos_token_id"))
    return ids or _as_ids(_object(local / "config.json").get("eos_token_id"))


def model_ends(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the ids that end answers by a loaded model's generation configuration; a model with its own code may have none."""
    return _as_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))


def _as_ids(value: object) -> tuple[int, ...]:
    """Return token ids from a configuration's value: one number, a list, or nothing."""
    values = value if isinstance(value, list) else [value]
    return tuple(token for token in values if isinstance(token, int))


def _object(file: Path) -> dict[str, object]:
    """Read a JSON object; empty where the file is missing or damaged, which loading the model then reports."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
