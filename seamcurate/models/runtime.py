"""Encoders by ONNX Runtime or OpenVINO on a CPU: exported by torch once, kept in the cache, computed by the runtime.

One rule: an export is held against torch each time it is loaded, on texts read alone by torch and in a padded batch by the
runtime. It is refused where the numbers differ by more than rounding.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from seamcurate.errors import ModelError, first_line
from seamcurate.models import eight_bit, probe
from seamcurate.models.batching import accepted, batches
from seamcurate.progress import note
from seamcurate.storage.cache import cache_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from seamcurate.models.unpadded import Pool

Backend = Literal["torch", "onnx", "openvino"]
Result = Literal["last_hidden_state", "logits"]
"""What is exported of a model's output: texts × tokens × width of an encoder, texts × outputs of a classifier."""
Inputs: TypeAlias = Mapping[str, npt.NDArray[np.int64]]
Numbers: TypeAlias = npt.NDArray[np.float32]

TITLES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
BUDGET = 512
"""Tokens of a padded batch, or one longer text: both runtimes are quickest at 256 to 512 (MiniLM, short texts)."""
_REVISION = 1
"""Raised when a model would be exported otherwise."""
_FILE = "model.onnx"
_NAMES = ("input_ids", "attention_mask", "token_type_ids")
_OPSET = 17
_GROUP = 64
"""Numbers of a token that are rounded together in int8, by the largest of them; weights by that of each output."""
_LONGEST_TRIED = 4096
"""Tokens of the longest text that an export is tried on: one that was traced on short texts may cut longer ones."""
_FAR = 0.25
"""The share of the numbers' size, by root mean squares, that rounding to 8 bits may change."""


def check(backend: Backend, device: str, dtype: str, name: str) -> None:
    """Refuse a runtime where it cannot compute.

    Args:
        backend: The runtime.
        device: The device that the model would be read on.
        dtype: `int8`, or what is read in float32.
        name: The model's name, for the message.

    Raises:
        ModelError: The device is no CPU, or the CPU has no instructions for 8 bits.
    """
    if device != "cpu":
        raise ModelError(
            f"{name}: `backend: {backend}` is for a CPU, and it would be read on {device}; leave it out, or set `device: cpu`"
        )
    if dtype == eight_bit.NAME:
        eight_bit.check(device, name)


class Graph(ABC):
    """An exported model, loaded by a runtime."""

    inputs: frozenset[str]
    """The inputs that it reads: exporting drops those that change nothing."""

    @abstractmethod
    def run(self, inputs: Inputs) -> Numbers:
        """Return what the model gives for one padded batch, every input of texts × tokens."""

    def __call__(self, sequences: Sequence[Sequence[int]], pad: int, kinds: Sequence[Sequence[int]] = ()) -> Numbers:
        """Return what the model gives for one batch.

        Args:
            sequences: The ids of each text.
            pad: The id that stands after a shorter text.
            kinds: The segment of each token, where there are segments.
        """
        shape = len(sequences), max(map(len, sequences))
        ids, mask, segments = np.full(shape, pad), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        for row, kind in enumerate(kinds):
            segments[row, : len(kind)] = kind
        given = {"input_ids": ids.astype(np.int64), "attention_mask": mask, "token_type_ids": segments}
        return self.run({name: given[name] for name in self.inputs})


class ExportedReader:
    """Read texts by an exported encoder, in padded batches of texts of like lengths; in place of `UnpaddedReader`.

    Args:
        graph: The encoder.
        pad: The id that stands after a shorter text.
        budget: Tokens of a batch, padding included.
    """

    def __init__(self, graph: Graph, pad: int, budget: int) -> None:
        self.graph, self.pad, self.budget = graph, pad, budget

    def read(
        self,
        texts: Sequence[torch.Tensor],
        pool: Pool,
        token_inputs: Mapping[str, Sequence[torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """Return what `pool` makes of each text's hidden states, a row a text; see `UnpaddedReader.read`."""
        import torch

        if unread := set(token_inputs or {}) - set(_NAMES):
            raise ValueError(f"an input of each token that is not exported: {min(unread)}")
        kinds = (token_inputs or {}).get("token_type_ids")
        rows: list[Any] = [None] * len(texts)
        with torch.inference_mode():
            for batch in batches([len(text) for text in texts], self.budget):
                segments = () if kinds is None else [kinds[i].tolist() for i in batch]
                hidden = torch.from_numpy(self.graph([texts[i].tolist() for i in batch], self.pad, segments))
                start = 0
                # A batch is sorted by length, so that texts of equal length are neighbours.
                for length, group in groupby(batch, key=lambda i: len(texts[i])):
                    alike = list(group)
                    for i, row in zip(alike, pool(hidden[start : start + len(alike), :length], alike), strict=True):
                        rows[i] = row
                    start += len(alike)
        return torch.stack(rows)


def open_graph(
    backend: Backend, dtype: str, model: PreTrainedModel, result: Result, identity: str, limit: int, pad: int, name: str
) -> Graph:
    """Export a model, unless the cache has it, load it by a runtime, and hold it against torch.

    Args:
        backend: The runtime.
        dtype: `float32` or `int8`.
        model: The model, with its weights, as transformers loads it; its weights are given up.
        result: What is exported of its output.
        identity: What identifies the weights.
        limit: Tokens of the longest text that will be read.
        pad: The id that stands after a shorter text.
        name: The model's name, for messages.

    Raises:
        ModelError: It cannot be exported, the runtime cannot load it, or it gives other numbers than torch.
    """
    if probe.longest_alike(model.config) < limit:
        raise ModelError(refused(name, backend, "its positions count otherwise in long texts"))
    file = _exported(backend, model, result, identity, pad, name)
    try:
        graph: Graph = _OnnxRuntime(file) if backend == "onnx" else _OpenVino(file, dtype)
        _hold(graph, model, result, dtype, limit, pad, backend, name)
    except ModelError:
        raise
    # A runtime has errors of its own.
    except Exception as error:
        raise ModelError(
            f"{name}: {TITLES[backend]} cannot compute {file} ({first_line(error)}); remove its folder to have it "
            "exported again, or leave `backend` out"
        ) from error
    return graph


def give_up_weights(model: PreTrainedModel, kept: Sequence[str] = ("pooler",)) -> None:
    """Free the weights of a model that a runtime computes, but those of the named parts."""
    for part, module in model.named_children():
        if part not in kept:
            module.to("meta")


def refused(name: str, backend: str, why: str) -> str:
    """Say that a runtime cannot compute a model, and why."""
    return f"{name} cannot be computed by {TITLES[backend]}: {why}; leave `backend: {backend}` out"


def _exported(backend: str, model: PreTrainedModel, result: Result, identity: str, pad: int, name: str) -> Path:
    """Return the file of an export; it is made where the cache has none of these weights by these exporters."""
    moves = {
        "weights": identity,
        "class": type(model).__name__,
        "result": result,
        "revision": _REVISION,
        "opset": _OPSET,
        **{package: importlib.metadata.version(package) for package in ("torch", "transformers", "onnx")},
    }
    key = hashlib.sha256(json.dumps(moves, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / "exports" / key
    if (folder / _FILE).is_file():
        return folder / _FILE
    note(f"{name}: exported once for {TITLES[backend]}, into {folder}")
    scratch = folder.with_name(f".{key}.{uuid4().hex}.tmp")
    scratch.mkdir(parents=True)
    try:
        _export(model, result, pad, scratch / _FILE)
        # Another process may have been quicker; its folder is as good.
        with contextlib.suppress(OSError):
            scratch.rename(folder)
    # The exporter raises errors of many types for what it does not know.
    except Exception as error:
        raise ModelError(refused(name, backend, f"it cannot be exported ({first_line(error)})")) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder / _FILE


def _export(model: PreTrainedModel, result: Result, pad: int, file: Path) -> None:
    import torch

    class Exported(torch.nn.Module):
        """The model with its inputs in one order, and one output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = getattr(self.model(**dict(zip(names, tensors, strict=True))), result)
            return output

    names = list(accepted(model, **dict.fromkeys(_NAMES)))
    ids = torch.tensor([probe.tokens(model, 8), [*probe.tokens(model, 5, start=8), pad, pad, pad]])
    # One text is padded, so that no mask is left out.
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    axes = {name: {0: "texts", 1: "tokens"} for name in names}
    axes["output"] = {0: "texts", 1: "tokens"} if result == "last_hidden_state" else {0: "texts"}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            # torch's newer exporter needs two further packages.
            torch.onnx.export(
                Exported().eval(),
                tuple(example[name] for name in names),
                str(file),
                input_names=names,
                output_names=["output"],
                dynamic_axes=axes,
                opset_version=_OPSET,
                dynamo=False,
            )
    finally:
        logger.setLevel(level)


class _OnnxRuntime(Graph):
    def __init__(self, file: Path) -> None:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads sleep while they wait, as torch's do here; see `docs/how-to/configure-models.md`.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = frozenset(argument.name for argument in self.session.get_inputs())

    def run(self, inputs: Inputs) -> Numbers:
        output: Numbers = self.session.run(None, dict(inputs))[0]
        return output


class _OpenVino(Graph):
    def __init__(self, file: Path, dtype: str) -> None:
        import openvino
        import torch

        core = openvino.Core()
        model = core.read_model(str(file))
        if dtype == eight_bit.NAME:
            _round_weights(model)
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            # Two runs would be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
            # bfloat16 is its default where a processor has it.
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if dtype == eight_bit.NAME else 0,
        }
        self.compiled = core.compile_model(model, "CPU", settings)
        self.inputs = frozenset(argument.get_any_name() for argument in self.compiled.inputs)

    def run(self, inputs: Inputs) -> Numbers:
        output: Numbers = self.compiled(dict(inputs))[0]
        return output


def _round_weights(model: Any) -> None:
    """Replace the weights of an OpenVINO model's products by 8 bits and a scale for each output, in place.

    It then rounds tokens itself, by groups of their numbers, so that no score depends on the texts beside it.
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        settings, matrix = node.get_attributes(), node.input_value(1).get_node().data
        if matrix.ndim != 2:
            continue
        weights = matrix if settings["transpose_b"] else matrix.T  # (outputs, inputs)
        largest = np.abs(weights).max(1, keepdims=True)
        scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        whole = opset13.constant(np.round(weights / scales).astype(np.int8))
        restored = opset13.multiply(opset13.convert(whole, "f32"), opset13.constant(scales))
        product = opset13.matmul(node.input_value(0), restored, settings["transpose_a"], True)
        node.output(0).replace(product.output(0))


def _hold(
    graph: Graph,
    model: PreTrainedModel,
    result: Result,
    dtype: str,
    limit: int,
    pad: int,
    backend: str,
    name: str,
) -> None:
    """Refuse an export that does not give torch's numbers, measured on arbitrary tokens.

    Raises:
        ModelError: The numbers differ by more than rounding.
    """
    import torch

    lengths = [min(limit, length) for length in (_LONGEST_TRIED, 24, 9, 2)]
    starts = np.cumsum([0, *lengths])
    sequences = [probe.tokens(model, n, int(start)) for n, start in zip(lengths, starts, strict=False)]
    # The longest is alone in its batch, as it will be.
    read = [graph(sequences[:1], pad)[0], *graph(sequences[1:], pad)]
    with torch.inference_mode():
        for sequence, numbers in zip(sequences, read, strict=True):
            ids = torch.tensor([sequence])
            alone = getattr(model(**accepted(model, input_ids=ids, attention_mask=torch.ones_like(ids))), result)[0]
            # Of hidden states, those of padding tell nothing.
            seen = numbers if result == "logits" else numbers[: len(sequence)]
            check_near(seen, alone.float().numpy(), dtype, backend, name)


def check_near(numbers: Numbers, expected: Numbers, dtype: str, backend: str, name: str) -> None:
    """Refuse numbers that differ from torch's by more than rounding to the precision.

    Raises:
        ModelError: They do, or there are more or fewer of them.
    """
    import torch

    if numbers.shape != expected.shape:
        raise ModelError(refused(name, backend, f"it gives {numbers.shape} numbers where torch gives {expected.shape}"))
    if dtype == eight_bit.NAME:
        near = float(np.linalg.norm(numbers - expected)) <= _FAR * max(float(np.linalg.norm(expected)), 1e-6)
    else:
        near = probe.close(torch.from_numpy(numbers), torch.from_numpy(expected), torch.float32)
    if not near:
        apart = float(np.abs(numbers - expected).max())
        raise ModelError(refused(name, backend, f"its numbers differ from torch's by up to {apart:.2g}"))
