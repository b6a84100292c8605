"""Quantised weights: what `quantization_config` in a model's `config.json` asks for, and whether it can be had here.

One rule: transformers reads weights that it does not know to be quantised as if they were not; they are refused.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from seamcurate.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

KEY = "quantization_config"
"""Where a model's configuration says how its weights were quantised."""


class Quantisation(NamedTuple):
    """One way to quantise weights."""

    name: str
    """As `quant_method` has it."""
    packages: tuple[str, ...]
    """What pip calls the packages that transformers reads such weights by."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    """The precisions that the rest can be computed in; the first is the default where the default's own is not among them."""
    dequantised: bool = False
    """Whether the weights are dequantised when they are read: the kernels for them would be downloaded, and are not."""

    def dtype(self, asked: str, default: str, model: str) -> str:
        """Return the precision to compute in.

        Args:
            asked: The model's `dtype`.
            default: What `auto` would be for whole weights.
            model: The model's name, for the message.

        Raises:
            ModelError: Such weights are not computed in the precision that is asked for.
        """
        if asked == "auto":
            return default if default in self.dtypes else self.dtypes[0]
        if asked not in self.dtypes:
            raise ModelError(
                f"{model} is quantised by {self.name}, which is not computed in {asked}; give it `dtype: {self.dtypes[0]}`, "
                "or leave dtype out"
            )
        return asked

    def check(self, model: str) -> None:
        """Refuse where a package is not installed.

        Raises:
            ModelError: One is not.
        """
        missing = [package for package in self.packages if not _is_installed(package)]
        if missing:
            raise ModelError(
                f"{model} is quantised by {self.name}, which needs {' and '.join(missing)}; pip install {' '.join(missing)}, "
                "or give the weights that are not quantised"
            )

    def options(self, device: str) -> dict[str, object]:
        """Return options of `from_pretrained`: such weights are read where they are computed.

        Raises:
            ModelError: They are to be dequantised, and this version of transformers does not.
        """
        options: dict[str, Any] = {"device_map": {"": device}}
        if self.dequantised:
            import transformers

            kind = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}[self.name]
            settings = getattr(transformers, kind, None)
            if settings is None or "dequantize" not in inspect.signature(settings.__init__).parameters:
                raise ModelError(
                    f"weights that are quantised by {self.name} are dequantised by a newer transformers than "
                    f"{transformers.__version__}; upgrade it, or give the weights that are not quantised"
                )
            options[KEY] = settings(dequantize=True)
        return options

    def settle(self, model: PreTrainedModel, dtype: torch.dtype, name: str) -> None:
        """Have what is not quantised of a model computed in a precision; bitsandbytes leaves it in that of the file.

        Args:
            model: The model, read.
            dtype: The precision.
            name: The model's name, for the message.

        Raises:
            ModelError: It is computed in another all the same.
        """
        import torch

        if self.name == "bitsandbytes":
            for parameter in model.parameters():
                # Quantised weights are of a class of their own.
                if type(parameter) is torch.nn.Parameter and parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)
        computed = model.get_input_embeddings().weight.dtype
        if computed != dtype:
            own = str(computed).removeprefix("torch.")
            raise ModelError(f"{name} is quantised by {self.name} and computed in {own}; give it `dtype: {own}`")


_HALF = ("float16",)
QUANTISATIONS = {
    quantisation.name: quantisation
    for quantisation in (
        Quantisation("awq", ("accelerate", "gptqmodel"), _HALF),
        Quantisation("bitsandbytes", ("accelerate", "bitsandbytes")),
        Quantisation("compressed-tensors", ("accelerate", "compressed-tensors")),
        Quantisation("fp8", ("accelerate",), dequantised=True),
        Quantisation("gptq", ("gptqmodel", "optimum"), (*_HALF, "bfloat16")),
        Quantisation("mxfp4", ("accelerate",), dequantised=True),
        Quantisation("torchao", ("accelerate", "torchao")),
    )
}
"""The ways to quantise that are read, by name."""


def of(settings: Mapping[str, object], model: str) -> Quantisation | None:
    """Return how a model's weights were quantised; None where they were not.

    Args:
        settings: The model's configuration.
        model: The model's name, for the message.

    Raises:
        ModelError: They were quantised in a way that is not read.

    Example:
        >>> of({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "my-org/policy").packages
        ('gptqmodel', 'optimum')
        >>> of({"hidden_size": 64}, "my-org/policy") is None
        True
    """
    text = settings.get("text_config")
    stated = settings.get(KEY) or (text.get(KEY) if isinstance(text, Mapping) else None)
    if not stated:
        return None
    method = stated.get("quant_method") if isinstance(stated, Mapping) else None
    if isinstance(stated, Mapping) and (stated.get("load_in_4bit") or stated.get("load_in_8bit")):
        method = "bitsandbytes"
    if not isinstance(method, str) or method not in QUANTISATIONS:
        raise ModelError(
            f"{model} is quantised by {str(method)[:40]}, which is not read; of {', '.join(QUANTISATIONS)} or GGUF, or give "
            "the weights that are not quantised"
        )
    return QUANTISATIONS[method]


_PARTS = re.compile(
    r"(scales?|scale_inv|zeros|zero_point|qweight|qzeros|g_idx|absmax|quant_map|weight_packed|_blocks|SCB)$"
)
"""What the names of the parts end in that quantised weights are stored in."""


def check_read(unread: Iterable[str], model: str) -> None:
    """Refuse quantised weights whose parts were left unread, as they are without a `quantization_config`.

    Args:
        unread: The names of the weights in the files that no layer took.
        model: The model's name, for the message.

    Raises:
        ModelError: There are some.

    Example:
        >>> check_read(["rotary.inv_freq"], "my-org/policy")
    """
    parts = sorted(name for name in unread if _PARTS.search(name))
    if parts:
        raise ModelError(
            f"{model} holds quantised weights ({parts[0]}), and its config.json does not say how they are read "
            f"({KEY}); give the folder as its author published it, or the weights that are not quantised"
        )


_MODULES = {"compressed-tensors": "compressed_tensors"}


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(_MODULES.get(package, package)) is not None
