"""Load a folder's weights into a model: whole weights, or an adapter's, merged in memory into its base.

One rule: no weight that the folder should have decided stays randomly initialised.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seamcurate import extras
from seamcurate.errors import ModelError, first_line
from seamcurate.models import gguf_file, quantised, weights
from seamcurate.progress import note

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_REFUSED = {"megatron_config": "has peft import a module that it names (megatron_core)"}
"""Settings of an adapter that would run code of its author's choice, and what they do."""
_HEADS = ("score", "classifier", "classification_head", "logits_proj", "sequence_summary", "pre_classifier")
"""What transformers calls the layers between a classifier's hidden states and its outputs."""


def open_model(
    auto: type[Any],
    origin: weights.Origin,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
    **options: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """Load the weights of a folder, Hub repository or GGUF file, an adapter's merged into its base.

    Args:
        auto: The class of transformers that loads this kind of model.
        origin: Where its files are.
        dtype: The precision to compute in; None leaves it to transformers.
        trust_remote_code: Whether Python code that comes with the weights may run.
        device: Where quantised weights are read to; others are read to the CPU.
        options: Further options of `from_pretrained`.

    Returns:
        The model, and the names of the weights that neither the folder nor a base holds.

    Raises:
        ModelError: An adapter cannot be merged.
    """
    path, folder, base = origin.path, weights.folder(origin), weights.base(origin)
    if origin.is_gguf:
        return gguf_file.open_model(auto, folder, dtype)
    options |= {} if dtype is None else {"dtype": dtype}
    check_packages(origin)
    quantisation = quantised.of(weights.configuration(origin), path)
    if quantisation is not None:
        options |= quantisation.options(device)
    if base is None:
        if (folder / weights.ADAPTER).is_file():
            raise ModelError(f"{path} holds an adapter whose base is not known; {weights.MERGE}")
        model, missing = _loaded(auto, folder, trust_remote_code, options)
        if quantisation is not None and dtype is not None:
            quantisation.settle(model, dtype, path)
        return model, missing
    adapter = _Adapter(path, folder, base, origin.base is not None)
    is_packed = quantisation is not None and not quantisation.dequantised
    if auto.__name__ == "AutoModelForSequenceClassification":
        options = adapter.outputs() | options
    model, missing = _loaded(auto, weights.folder(base), trust_remote_code, options)
    if quantisation is not None and dtype is not None:
        quantisation.settle(model, dtype, path)
    return adapter.merged(model, is_packed), [name for name in missing if name not in adapter.shapes]


def check_packages(origin: weights.Origin) -> None:
    """Refuse a model where a package is not installed that merges an adapter, or reads quantised weights.

    Raises:
        ModelError: One is not.
    """
    base = weights.base(origin)
    if base is not None and importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"{origin.path} holds an adapter of {base.path}, which peft merges, and that is not installed; "
            f"{extras.install('train')}, or {weights.MERGE}"
        )
    quantisation = quantised.of(weights.configuration(origin), origin.path)
    if quantisation is not None:
        quantisation.check(origin.path)


def head_outputs(origin: weights.Origin) -> int | None:
    """Return the number of outputs of the head that an adapter brings; None for whole weights, or without a head."""
    if weights.base(origin) is None:
        return None
    file = weights.folder(origin) / _FILE
    return _output_count(_shapes(file)) if file.is_file() else None


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of an adapter's weights, which are not read."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights_file:
        return {
            name.removeprefix(_PREFIX): tuple(weights_file.get_slice(name).get_shape())
            for name in weights_file.keys()  # noqa: SIM118
        }


def _output_count(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    counts = [shape[0] for name, shape in sorted(shapes.items()) if name.split(".")[0] in _HEADS and len(shape) == 2]
    return counts[-1] if counts else None


def read_tokenizer(origin: weights.Origin, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or Hub repository, an adapter's base's where the adapter has none of its own."""
    from transformers import AutoConfig, AutoTokenizer

    folder, base = weights.tokenizer_folder(origin), weights.base(origin)
    if gguf_file.is_gguf(folder.name):
        return gguf_file.read_tokenizer(folder)
    options = {}
    if base is not None and not (folder / "config.json").is_file():
        # transformers chooses the tokenizer's class by the kind of model too, which an adapter's folder does not tell.
        options["config"] = AutoConfig.from_pretrained(weights.small_folder(base), trust_remote_code=trust_remote_code)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=trust_remote_code, **options
    )
    return tokenizer


def _loaded(
    auto: type[Any], folder: Path, trust_remote_code: bool, options: Mapping[str, object]
) -> tuple[PreTrainedModel, list[str]]:
    model, info = auto.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True, **options
    )
    quantised.check_read(info["unexpected_keys"], str(folder))
    check_biases(model, folder)
    return model, sorted(info["missing_keys"])


def check_biases(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a folder that holds a bias which the model has no place for: transformers leaves it out, and only logs it.

    Its config.json is then not that of its weights, or it is another kind of model, such as a token classifier, whose head
    has one. A bias of zeros changes nothing, and some programs write it.

    Raises:
        ModelError: A bias is not read.
    """
    import torch
    from safetensors import safe_open

    prefix = f"{model.base_model_prefix}."
    modules = {**dict(model.base_model.named_modules()), **dict(model.named_modules())}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights_file:
            for name in _names(file):
                owner, _, part = name.rpartition(".")
                module = modules.get(owner, modules.get(owner.removeprefix(prefix)))
                is_unread = part == "bias" and isinstance(getattr(module, "weight", None), torch.Tensor)
                if is_unread and getattr(module, "bias", None) is None and weights_file.get_tensor(name).any():
                    raise ModelError(
                        f"{folder} holds {name}, which {type(model).__name__} has no place for, so that its numbers would "
                        "be others than those it was trained to give; mend its config.json, or give a model of the kind "
                        "it is used as"
                    )


def lacking(model: PreTrainedModel, folder: Path) -> list[str]:
    """Return the names of a loaded model's weights that its folder does not hold.

    Names are compared first; only where one is not found as it is does transformers, which knows other spellings, read the
    folder once more.
    """
    held = {name for file in sorted(folder.glob("*.safetensors")) for name in _names(file)}
    prefix = f"{model.base_model_prefix}."
    if all(name in held or prefix + name in held for name, _ in model.named_parameters()):
        return []
    _, info = type(model).from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    return sorted(info["missing_keys"])


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights_file:
        return list(weights_file.keys())


class _Adapter:
    """An adapter's folder, with the names and shapes of its weights."""

    def __init__(self, path: str, folder: Path, base: weights.Origin, given: bool) -> None:
        self.folder, self.name = folder, f"{path} holds an adapter of {base.path}"
        import peft

        if not (folder / _FILE).is_file():
            pickled = "adapter_model.bin"
            also = f" (of {pickled}, which is pickled, nothing is read)" if (folder / pickled).is_file() else ""
            raise ModelError(f"{self.name} without {_FILE}{also}; save it with save_pretrained(…), or {weights.MERGE}")
        settings = weights.adapter_settings(folder / weights.ADAPTER)
        for key, does in _REFUSED.items():
            if settings.get(key):
                raise ModelError(f"{self.name} whose {key} {does}; it is not loaded")
        if str(settings.get("peft_type", "")).upper() == "XLORA":
            raise ModelError(f"{self.name} of the kind XLORA, which loads adapters from elsewhere; {weights.MERGE}")
        named = settings.get("base_model_name_or_path")
        if given and isinstance(named, str) and Path(named).name != Path(base.path).name:
            note(f"warning: {self.name}, as `base` says; it was trained on {named}")
        self.config = peft.PeftConfig.from_pretrained(str(folder))
        self.config.inference_mode = True
        if self.config.is_prompt_learning or self.config.is_adaption_prompt:
            raise ModelError(
                f"{self.name} of the kind {self.config.peft_type.value}, which is part of no weights and cannot be merged; "
                "give a model that was trained with LoRA, or whole"
            )
        self.shapes = _shapes(folder / _FILE)

    def outputs(self) -> dict[str, object]:
        """Return the number of outputs of a classifier whose head the adapter holds: its base may have no head."""
        count = _output_count(self.shapes)
        return {} if count is None else {"num_labels": count}

    def merged(self, model: PreTrainedModel, is_packed: bool = False) -> PreTrainedModel:
        """Return the base with the adapter added to its weights, or beside them where they are quantised.

        Quantised weights would be rounded again with the adapter in them, and give other scores.

        Args:
            model: The base.
            is_packed: Whether its weights are quantised.

        Raises:
            ModelError: The adapter is of another kind of model, or cannot be merged.
        """
        import peft

        self._fit(model)
        try:
            with warnings.catch_warnings():
                # peft warns of what is checked below.
                warnings.simplefilter("ignore")
                wrapped = peft.get_peft_model(model, self.config)
                read = wrapped.load_adapter(str(self.folder), "default", torch_device=str(model.device))
                # peft saves embeddings that were resized and trained twice, the second time under this name.
                unknown = [name for name in read.unexpected_keys if ".modules_to_save." not in name]
                if strange := [*unknown, *read.missing_keys]:
                    raise ModelError(
                        f"{self.name} that is of another kind of model: {len(strange)} weights do not match, the first "
                        f"is {strange[0].removeprefix(_PREFIX)}; give a model that was trained as what it is used for"
                    )
                merged: PreTrainedModel = wrapped.get_base_model() if is_packed else wrapped.merge_and_unload()
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self.name} that cannot be merged in memory ({first_line(error)}); {weights.MERGE}"
            ) from error
        return merged.eval()

    def _fit(self, model: PreTrainedModel) -> None:
        """Resize the base's embeddings to the adapter's, where tokens were added in training."""
        for name, embedding in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
            if embedding is None:
                continue
            parameter_name = next((key for key, value in model.named_parameters() if value is embedding.weight), None)
            shape = self.shapes.get(parameter_name or name)
            if shape is not None and shape[0] != embedding.weight.shape[0]:
                model.resize_token_embeddings(shape[0], mean_resizing=False)
                return
