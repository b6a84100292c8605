"""An encoder by other runtimes: ONNX Runtime and OpenVINO, in single precision and in int8.

The model is exported by torch and not by optimum, whose releases for these runtimes need an older transformers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.race import missing
from seamcurate import extras
from seamcurate.errors import ModelError
from seamcurate.models.runtime import TITLES

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[np.int64]]
Run = Callable[[Arrays], Floats]
"""The inputs of one padded batch → one row of outputs a text."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


OWN = (("onnx", "float32"), ("openvino", "float32"), ("openvino", "int8"))
"""Backends and precisions that seamcurate itself computes encoders by."""


def own(benchmark: str, config: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield how a setting names each backend of `OWN`, what its peers' names begin with, and the model.

    Args:
        benchmark: The race's name, for what is not installed.
        config: The model, by torch.
    """
    for backend, dtype in OWN:
        named = f"`backend: {backend}`" + (", `dtype: int8`" if dtype == "int8" else "")
        if extras.missing(backend):
            missing(benchmark, f"seamcurate by {named}", "not installed", f'pip install -e ".[{backend}]"')
            continue
        try:
            model = config.model_copy(update={"backend": backend, "dtype": dtype}).load()
        except ModelError as error:
            missing(benchmark, f"seamcurate by {named}", str(error))
            continue
        yield named, f"{TITLES[backend]}, {dtype}", model


def in_batches(tokenizer: Any, texts: Sequence[str], size: int, run: Run) -> Floats:
    """Run padded batches of texts of like lengths, longest first, and return the outputs in the order of the texts."""
    ids = tokenizer(list(texts), truncation=True)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    found: list[Any] = [None] * len(ids)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        shape = (len(batch), len(ids[batch[0]]))
        arrays = {name: np.zeros(shape, np.int64) for name in INPUTS}
        for row, i in enumerate(batch):
            arrays["input_ids"][row, : len(ids[i])] = ids[i]
            arrays["attention_mask"][row, : len(ids[i])] = 1
        for i, output in zip(batch, run(arrays), strict=True):
            found[i] = output
    return np.array(found, np.float32)


def by_torch(model: Any) -> Run:
    """Run a module that returns one tensor."""
    import torch

    def run(arrays: Arrays) -> Floats:
        with torch.inference_mode():
            return model(*(torch.from_numpy(arrays[name]) for name in INPUTS)).numpy()

    return run


def others(benchmark: str, model: Any, tokenizer: Any, texts: Sequence[str], folder: Path) -> dict[str, Run]:
    """Return what runs a module's exports, by name; what is not installed is recorded as not run.

    Args:
        benchmark: The race's name, for what is not installed.
        model: A module of three inputs and one output a text.
        tokenizer: The model's.
        texts: Some texts, by which int8 is calibrated.
        folder: Where the exports go.
    """
    import torch

    runs: dict[str, Run] = {}
    installed = {name: find_spec(name) is not None for name in ("onnx", "onnxruntime", "openvino", "nncf")}
    for name, needs, packages in (
        ("ONNX Runtime", ("onnx", "onnxruntime"), "onnx onnxruntime"),
        ("OpenVINO", ("onnx", "openvino", "nncf"), "onnx openvino nncf"),
    ):
        if not all(installed[need] for need in needs):
            for precision in ("float32", "int8"):
                missing(benchmark, f"{name}, {precision}", "not installed", f"pip install {packages}")
    if not installed["onnx"]:
        return runs
    whole = folder / "model.onnx"
    example = tuple(torch.ones(2, 8, dtype=torch.long) for _ in INPUTS)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            example,
            str(whole),
            input_names=list(INPUTS),
            output_names=["output"],
            dynamic_axes={name: {0: "texts", 1: "tokens"} for name in INPUTS} | {"output": {0: "texts"}},
            opset_version=17,
            dynamo=False,
        )
    if installed["onnxruntime"]:
        runs |= _onnx_runtime(whole, torch.get_num_threads())
    if installed["openvino"] and installed["nncf"]:
        runs |= _openvino(whole, torch.get_num_threads(), tokenizer, texts)
    return runs


def _onnx_runtime(whole: Path, threads: int) -> dict[str, Run]:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)
    small = whole.with_name("int8.onnx")
    quantize_dynamic(str(whole), str(small), weight_type=QuantType.QInt8)

    def run_of(file: Path) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        return lambda arrays: session.run(None, {name: arrays[name] for name in names})[0]

    return {"ONNX Runtime, float32": run_of(whole), "ONNX Runtime, int8": run_of(small)}


def _openvino(whole: Path, threads: int, tokenizer: Any, texts: Sequence[str]) -> dict[str, Run]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import nncf
        import openvino

        logging.getLogger("nncf").setLevel(logging.ERROR)
        core = openvino.Core()
        model = openvino.convert_model(str(whole))

        def batch(text: str) -> Arrays:
            ids = np.array([tokenizer(text, truncation=True)["input_ids"]], np.int64)
            return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}

        sample = [batch(text) for text in texts[:32]]
        small = nncf.quantize(
            model, nncf.Dataset(sample), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(sample)
        )

    def run_of(graph: Any) -> Run:
        # bfloat16 is the default where a processor has it, and would be another precision than its name here says.
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(graph, "CPU", settings)
        names = [each.get_any_name() for each in compiled.inputs]
        return lambda arrays: compiled({name: arrays[name] for name in names})[0]

    return {"OpenVINO, float32": run_of(model), "OpenVINO, int8": run_of(small)}
