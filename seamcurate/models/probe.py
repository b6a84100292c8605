"""Probe what a loaded model's answers depend on besides the text: later tokens, other texts of the batch, a text's length.

It is measured on a few arbitrary tokens where a few show it, and read from the configuration where it takes thousands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from seamcurate.errors import ModelError
from seamcurate.progress import note

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_LENGTH = 12
_BY_LENGTH = ("longrope", "su", "dynamic")
"""Rotary embeddings that use another angle for texts longer than the model was first trained on."""


def tokens(model: PreTrainedModel, count: int, start: int = 0) -> list[int]:
    """Return `count` ids of tokens that the model has embeddings for, none of them special."""
    size = vocabulary(model)
    special = {
        value
        for config in (model.config, model.config.get_text_config())
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
        for value in _flat(getattr(config, name, None))
    }
    plain = [i for i in range(min(size, 4096)) if i not in special] or [0]
    return [plain[(11 * (start + i) + 5) % len(plain)] for i in range(count)]


def vocabulary(model: PreTrainedModel) -> int:
    """Return how many tokens the model has embeddings for; 2³¹ where it makes them by hashing and has no table."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except NotImplementedError:
        return 2**31


def is_readable(model: PreTrainedModel, ids: list[int]) -> bool:
    """Tell whether a model has an embedding for every token; a tokenizer may know more, and a GPU would be lost."""
    return max(ids, default=0) < vocabulary(model)


def check_causal(model: PreTrainedModel, name: str) -> None:
    """Refuse a model that predicts a token from the tokens after it: the sum of such predictions is no likelihood.

    Raises:
        ModelError: A prediction changes with later tokens, or from one reading to the next.
    """
    import torch

    first_ids, other_ids = tokens(model, _LENGTH), tokens(model, _LENGTH, start=_LENGTH)
    half = _LENGTH // 2
    with torch.inference_mode():
        read = [
            model(input_ids=torch.tensor([ids], device=model.device)).logits[0, :half].float()
            for ids in (first_ids, first_ids, first_ids[:half] + other_ids[half:])
        ]
    if not close(read[0], read[1], model.dtype):
        raise ModelError(f"{name} gives the same text another score each time; it cannot be used to score")
    if not close(read[0], read[2], model.dtype):
        if getattr(model, "is_loaded_in_8bit", False):
            raise ModelError(
                f"{name}: in 8 bit, bitsandbytes rounds a token by what stands beside it in the batch, so that it gives no "
                "likelihood; set llm_int8_threshold to 0.0 in its config.json, or quantise it to 4 bit"
            )
        raise ModelError(
            f"{name} is no policy: each token sees the ones after it, so that it gives no likelihood; "
            f"give a causal language model ({type(model).__name__} reads both ways)"
        )


def close(values: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Tell whether two readings of the same tokens differ only by rounding; NaN equals NaN."""
    import torch

    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    scale = max(1.0, float(torch.nan_to_num(expected, posinf=0.0, neginf=0.0).abs().max()))
    return bool(torch.allclose(values, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True))


def longest_alike(config: PreTrainedConfig) -> float:
    """Return the longest text, in tokens, whose rotary angles are fixed; beyond, texts of one batch change each other."""
    lengths = [math.inf]
    for model_config in (config, config.get_text_config()):
        for settings in _rotary(
            getattr(model_config, "rope_parameters", None) or getattr(model_config, "rope_scaling", None)
        ):
            if (settings.get("rope_type") or settings.get("type")) in _BY_LENGTH:
                limits = (
                    settings.get("original_max_position_embeddings"),
                    getattr(model_config, "original_max_position_embeddings", None),
                    getattr(model_config, "max_position_embeddings", None),
                )
                lengths.append(next((float(limit) for limit in limits if limit), math.inf))
    return min(lengths)


def forget_lengths(model: PreTrainedModel) -> None:
    """Reset `dynamic` rotary embeddings before each reading, in place: they remember the longest text that they read."""

    def begin(module: Any, _: object) -> None:
        # The base of the angles is a buffer in some releases of transformers, and an attribute in others.
        for name in [*vars(module), *(name for name, _ in module.named_buffers(recurse=False))]:
            if name.endswith("original_inv_freq"):
                current_name = name.replace("original_inv_freq", "inv_freq")
                setattr(module, current_name, getattr(module, name).to(getattr(module, current_name).device))
            elif name.endswith("max_seq_len_cached"):
                setattr(module, name, module.original_max_seq_len)

    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if "dynamic" in (kinds.values() if isinstance(kinds, dict) else [kinds]):
            module.register_forward_pre_hook(begin)


def tell_alone(name: str) -> None:
    """Say that a model's scores depend on the other texts of a batch, and that each text is read alone."""
    note(f"{name}: a score moves with the texts it is read beside, so that each is read alone, which is slower")


def tell_longer(name: str, limit: float, window: int) -> None:
    """Say above which length texts are read alone, where the window admits longer ones."""
    if limit < window:
        note(f"{name}: counts positions otherwise beyond {limit:,.0f} tokens; longer texts are read alone")


@cache
def tell_cut(name: str, limit: int, setting: str) -> None:
    """Say, once a process, that answers which do not fit into a model's limit are scored without their end."""
    note(
        f"{name}: long answers are scored without their end, beyond {limit:,} tokens (`{setting}`, at most the model's window)"
    )


def _rotary(settings: object) -> Iterator[dict[str, Any]]:
    """Yield the settings of rotary embeddings; some models have one for each kind of layer."""
    if isinstance(settings, dict):
        if "rope_type" in settings or "type" in settings:
            yield settings
        else:
            for inner in settings.values():
                yield from _rotary(inner)


def _flat(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]
