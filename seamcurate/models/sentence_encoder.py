"""Encoders: models of sentence-transformers or transformers, which turn a text into a vector."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from seamcurate.errors import ModelError, first_line
from seamcurate.models import allocator, checkpoint, eight_bit, probe, runtime, weights
from seamcurate.models.batching import Batches, accepted, freed, padded
from seamcurate.models.product import quicken
from seamcurate.models.protocols import Embedder
from seamcurate.models.unpadded import UnpaddedReader
from seamcurate.models.vectors import normalised
from seamcurate.progress import note
from seamcurate.text import brief

if TYPE_CHECKING:
    import torch

from seamcurate.models.local import EncodingModel, check_whole, files_state, model_errors, open_tokenizer, quietly


class SentenceEncoder(EncodingModel):
    """Name an encoder: any sentence-transformers model, or any transformers encoder with a pooling named here.

    The value is frozen and loads nothing until `load` is called. Embeddings are float32, texts × dimensions, by default of
    length 1. An embedding does not depend on the texts beside it.

    Raises:
        ModelError: By `load`, where the files are damaged or lack weights, or the same text is embedded in two ways.

    Example:
        >>> from seamcurate import FakeModel, SentenceEncoder
        >>> encoder = SentenceEncoder(path="facebook/contriever", pooling="mean", normalise=False)
        >>> encoder.load().embed(["What is a set?"]).shape  # doctest: +SKIP
        (1, 768)

        Without weights, and in the same form:

        >>> FakeModel(dimensions=8).load().embed(["What is a set?", "What is a list?"]).shape
        (2, 8)
    """

    key: ClassVar[str] = "sentence_encoder"
    kind: ClassVar[str] = "an encoder"
    normalise: bool = True
    """Scale embeddings to length 1, so that a dot product is a cosine."""
    pooling: Literal["default", "mean", "cls", "pooler"] = "default"
    """`default` follows the model's own configuration; SimCSE needs `pooler`, Contriever `mean`."""
    max_tokens: int | None = None
    """Longer texts are cut to this length. Default: the limit in the model's configuration."""
    truncation: Literal["right", "left"] = "right"
    """Which end of a long text is cut."""

    def load(self) -> Embedder:
        """Load tokenizer and weights."""
        loaded = _LoadedEncoder(self)
        if self.dtype == eight_bit.NAME and self.by_torch():
            # How it can be read was measured in single precision.
            eight_bit.quantise(loaded.backbone or loaded.model[0])
        return loaded


_MODULES = "modules.json"
"""The file that names the modules of a sentence-transformers model."""
_UNUSUAL = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What modules may raise that need more than tokens of texts; sentence-transformers' own `encode` then reads them."""
_KEPT: dict[tuple[object, ...], Any] = {}
"""The first tokenizer that sentence-transformers opened for the same files, side and length: later models share it."""


class _LoadedEncoder:
    def __init__(self, config: SentenceEncoder) -> None:
        from sentence_transformers import SentenceTransformer

        self.config = config
        options = {"dtype": weights.torch_dtype(config.dtype, config.device), "use_safetensors": True}
        with model_errors(f"sentence_encoder {config.path}"):
            if config.pooling == "default":
                folder = config.fetch_folder()
                _refuse_pickled(config, folder)
                with quietly(), _whole(config, folder) as model_folder:
                    self.model: Any = SentenceTransformer(
                        str(model_folder),
                        device=weights.device(config.device),
                        trust_remote_code=config.trust_remote_code,
                        model_kwargs=options,
                    )
                    _check_read(config, self.model[0], model_folder)
                _tell_defaults(config, self.model, folder)
                if config.by_torch():
                    quicken(self.model)
                    if weights.device(config.device) == "cpu":
                        allocator.keep_freed()
                first_module = self.model[0]
                # sentence-transformers has its tokenizer in `tokenizer` up to version 5, and in `processor` in version 6.
                attribute = "processor" if "processor" in vars(first_module) else "tokenizer"
                key = (folder, files_state(folder), config.trust_remote_code, config.truncation, config.max_tokens)
                setattr(first_module, attribute, _KEPT.setdefault(key, getattr(first_module, attribute)))
                self.backbone, self.tokenizer = None, self.model.tokenizer
                self.limit = config.max_tokens or self.model.max_seq_length or 512
                self.model.max_seq_length = self.limit
            else:
                from transformers import AutoModel

                self.tokenizer, self.backbone = config.open_weights(
                    AutoModel, config.truncation, unread=() if config.pooling == "pooler" else ("pooler.",)
                )
                self.limit = config.max_tokens or min(512, weights.window(self.backbone, self.tokenizer))
            device = self.model.device if self.backbone is None else self.backbone.device
            self.batches = Batches(config.batch_tokens or 8192, device)
            self.tokenizer.truncation_side = config.truncation
            self.reader: UnpaddedReader | runtime.ExportedReader | None = None
            """What reads texts in place of the model's own forward pass."""
            self.batches.longest_batched = self._longest_batched(f"sentence_encoder {config.path}")

    def _longest_batched(self, name: str) -> float:
        """Return the longest text, in tokens, that may share a batch, measured on two texts of unlike lengths.

        Raises:
            ModelError: The model gives the same text another embedding each time.
        """
        import torch

        # A sentence-transformers model may start with a table of words, in which no text affects another.
        body = getattr(self.model[0], "auto_model", None) if self.backbone is None else self.backbone
        if body is None:
            if not self.config.by_torch():
                raise ModelError(f"{name} has no transformer to export; leave `backend: {self.config.backend}` out")
            return math.inf
        probe.forget_lengths(body)
        texts = ["A text that is longer than the other one, by some words", "Why"]
        read = self._encoded if self.backbone is None else self._pooled
        one_by_one, repeated = (torch.from_numpy(np.concatenate([read([text]) for text in texts])) for _ in range(2))
        if not probe.close(one_by_one, repeated, body.dtype):
            raise ModelError(
                f"{name} gives the same text another embedding each time; it cannot be used to compare texts"
            )
        if not self.config.by_torch():
            self._export(body, texts, one_by_one)
            return math.inf
        if self._reads_unpadded(body, texts, one_by_one):
            return math.inf
        with suppress(RuntimeError, ValueError):
            if probe.close(torch.from_numpy(read(texts)), one_by_one, body.dtype):
                longest = probe.longest_alike(body.config)
                probe.tell_longer(name, longest, self.limit)
                return longest
        probe.tell_alone(name)
        return 0

    def _reads_unpadded(self, body: Any, texts: list[str], expected: torch.Tensor) -> bool:
        """Read texts end to end from now on, if that gives the embeddings of two texts that were read alone."""
        import torch

        # Where the angles of positions follow the length of what is read, a text would depend on those beside it.
        if probe.longest_alike(body.config) < self.limit:
            return False
        reader = UnpaddedReader(body)
        self.reader = reader
        with suppress(*_UNUSUAL):
            if reader.agrees and probe.close(torch.from_numpy(self._read(texts)), expected, body.dtype):
                return True
        self.reader = None
        return False

    def _export(self, body: Any, texts: list[str], expected: torch.Tensor) -> None:
        """Leave the transformer to the runtime from now on; all that comes after it is torch's.

        Raises:
            ModelError: The model cannot be exported, or gives other embeddings than torch.
        """
        config = self.config
        pad = self.tokenizer.pad_token_id or 0
        graph = runtime.open_graph(
            config.backend,
            config.precision(),
            body,
            "last_hidden_state",
            weights.identity(config.origin),
            self.limit,
            pad,
            config.title,
        )
        self.reader = runtime.ExportedReader(graph, pad, config.batch_tokens or runtime.BUDGET)
        try:
            vectors = self._read(texts)
        except _UNUSUAL as error:
            raise ModelError(runtime.refused(config.title, config.backend, first_line(error))) from error
        # What comes after the transformer may be the model's own, and read more than its hidden states.
        runtime.check_near(vectors, expected.numpy(), config.precision(), config.backend, config.title)
        runtime.give_up_weights(body)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed each text; see `Embedder`."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.zeros((0, 0), np.float32)
        vectors = self._read(unique)
        if self.config.normalise:
            # The square of a large number overflows single precision.
            vectors = normalised(vectors.astype(np.float64)).astype(np.float32)
        position = {text: i for i, text in enumerate(unique)}
        result: npt.NDArray[np.float32] = vectors[[position[text] for text in texts]].astype(np.float32)
        return result

    def _read(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Return an embedding for each text, as the model gives it."""
        if self.reader is None:
            return self._encoded(texts) if self.backbone is None else self._pooled(texts)
        if self.backbone is None:
            return self._encoded_by(self.reader, texts)
        import torch

        ids = self.tokenizer(texts, truncation=True, max_length=self.limit, verbose=False)["input_ids"]
        backbone = self.backbone

        def pool(hidden: torch.Tensor, _: list[int]) -> torch.Tensor:
            if self.config.pooling == "pooler":
                pooled: torch.Tensor = backbone.pooler(hidden)
                return pooled
            return hidden[:, 0] if self.config.pooling == "cls" else hidden.mean(1)

        rows = self.reader.read([torch.tensor(text) for text in ids], pool)
        vectors: npt.NDArray[np.float32] = rows.float().numpy()
        return vectors

    def _encoded_by(self, reader: UnpaddedReader | runtime.ExportedReader, texts: list[str]) -> npt.NDArray[np.float32]:
        """Return what sentence-transformers' `encode` returns: its tokenizer and all modules after the first are its own."""
        import torch

        name = self.model.default_prompt_name
        prompt = self.model.prompts.get(name) if name is not None else None
        # In version 5 of sentence-transformers it is `encode` that puts a prompt before the texts.
        preprocess = getattr(self.model, "preprocess", None)
        if prompt and preprocess is None:
            if not self.config.by_torch():
                raise ValueError("it puts a prompt before texts, which takes sentence-transformers 6")
            return self._encoded(texts)
        features = self.model.tokenize(texts) if preprocess is None else preprocess(texts, prompt=prompt)
        is_token = features["attention_mask"].bool()  # (texts, longest)
        per_token = {
            key: [row[token_mask] for row, token_mask in zip(value, is_token, strict=True)]
            for key, value in features.items()
            if isinstance(value, torch.Tensor) and value.shape == is_token.shape and key != "attention_mask"
        }
        shared_features = {key: value for key, value in features.items() if key not in (*per_token, "attention_mask")}
        ids = per_token.pop("input_ids")
        later_modules = list(self.model)[1:]

        def pool(hidden: torch.Tensor, numbers: list[int]) -> torch.Tensor:
            read = {
                **shared_features,
                "input_ids": torch.stack([ids[i] for i in numbers]),
                "attention_mask": torch.ones(hidden.shape[:2], dtype=torch.long),
                "token_embeddings": hidden,
            }
            for module in later_modules:
                read = module(read)
            embeddings: torch.Tensor = read["sentence_embedding"]
            return embeddings[:, : self.model.truncate_dim]

        vectors: npt.NDArray[np.float32] = reader.read(ids, pool, per_token).float().numpy()
        return vectors

    def _encoded(self, texts: list[str]) -> npt.NDArray[np.float32]:
        import torch

        while True:
            # sentence-transformers sorts by length itself; the batch size allows for the longest possible text.
            size = max(1, self.batches.budget // self.limit) if self.limit <= self.batches.longest_batched else 1
            try:
                encoded: npt.NDArray[np.float32] = self.model.encode(
                    texts, batch_size=size, normalize_embeddings=False, convert_to_numpy=True, show_progress_bar=False
                )
                return encoded.astype(np.float32).reshape(len(texts), -1)
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise ModelError(
                        f"sentence_encoder {self.config.path}: a text does not fit in the memory of "
                        f"{self.batches.device}; free some, or lower the model's max_tokens"
                    ) from error
            self.batches.budget = size // 2 * self.limit
            freed(self.batches.device)

    def _pooled(self, texts: list[str]) -> npt.NDArray[np.float32]:
        import torch

        backbone = self.backbone
        assert backbone is not None
        ids = [self.tokenizer(t, truncation=True, max_length=self.limit)["input_ids"] for t in texts]

        def pool(batch: list[int]) -> npt.NDArray[np.float32]:
            inputs = padded([ids[b] for b in batch], self.tokenizer.pad_token_id or 0, backbone.device)
            output = backbone(**accepted(backbone, **inputs))
            if self.config.pooling == "pooler":
                pooled = output.pooler_output
            elif self.config.pooling == "cls":
                pooled = output.last_hidden_state[:, 0]
            else:
                # (texts, tokens, 1) against hidden states of (texts, tokens, width): the mean over tokens that are no padding.
                mask = inputs["attention_mask"][:, :, None].to(output.last_hidden_state.dtype)
                pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
            result: npt.NDArray[np.float32] = pooled.float().cpu().numpy()
            return result

        rows: list[Any] = [None] * len(ids)
        with torch.inference_mode():
            for batch, embeddings in self.batches.read([len(i) for i in ids], pool):
                for b, row in zip(batch, embeddings, strict=True):
                    rows[b] = row
        if any(row is None for row in rows):
            raise ModelError(
                f"sentence_encoder {self.config.path}: a text does not fit in the memory of {self.batches.device}; "
                "free some, or lower the model's max_tokens"
            )
        return np.asarray(rows, np.float32).reshape(len(texts), -1)


def _module_folders(folder: Path) -> list[Path]:
    """List the folders of the modules that a sentence-transformers model is made of; its own alone where it names none."""
    try:
        modules = json.loads((folder / _MODULES).read_text(encoding="utf-8"))
        return [folder / str(module["path"]) for module in modules]
    except (OSError, ValueError, KeyError, TypeError):
        # sentence-transformers says what is wrong with a damaged file.
        return [folder]


def _refuse_pickled(config: SentenceEncoder, folder: Path) -> None:
    """Refuse a module whose weights are pickled: they are part of no fingerprint, and sentence-transformers would read them."""
    for module in _module_folders(folder):
        for file in sorted(module.glob("*.bin")) if module != folder else ():
            if not any(module.glob("*.safetensors")):
                raise ModelError(
                    f"{config.title}: the weights of {file.relative_to(folder)} are pickled, and nothing is read of them; "
                    "save the model anew with SentenceTransformer(folder).save(new_folder), which writes safetensors"
                )


def _check_read(config: SentenceEncoder, first_module: Any, folder: Path) -> None:
    """Refuse a transformer some of whose weights its folder lacks: sentence-transformers does not tell."""
    body = getattr(first_module, "auto_model", None)
    body_folder = _module_folders(folder)[0]
    if body is None or not hasattr(body, "base_model_prefix") or not any(body_folder.glob("*.safetensors")):
        return
    if weights.base(config.origin) is None:
        check_whole(config.title, config.kind, checkpoint.lacking(body, body_folder), ("pooler.",))
    checkpoint.check_biases(body, body_folder)


def _tell_defaults(config: SentenceEncoder, model: Any, folder: Path) -> None:
    """Say what is decided for a model that does not decide it: how tokens become a vector, and which prompt stands before texts."""
    if not (folder / _MODULES).is_file():
        note(
            f"{config.title}: no {_MODULES} says how the vectors of a text's tokens become one; their mean is taken. Write "
            "`pooling: mean` if that is right, else `cls` or `pooler`"
        )
    prompts = {name: prompt for name, prompt in (model.prompts or {}).items() if prompt}
    if prompts and model.default_prompt_name is None:
        said = ", ".join(f"{name} ({brief(prompt, 40)!r})" for name, prompt in prompts.items())
        note(
            f"{config.title}: texts are read as they are, though the model has prompts to put before them: {said}; "
            "`default_prompt_name` in its config_sentence_transformers.json names the one to use"
        )


@contextmanager
def _whole(config: SentenceEncoder, folder: Path) -> Iterator[Path]:
    """Yield a folder with whole weights for sentence-transformers: for an adapter, a temporary one with it merged."""
    if weights.base(config.origin) is None:
        yield folder
        return
    from transformers import AutoModel

    dtype = weights.torch_dtype(config.dtype, config.device)
    model, lacking = checkpoint.open_model(AutoModel, config.origin, dtype, config.trust_remote_code)
    check_whole(f"sentence_encoder {config.path}", config.kind, lacking, ("pooler.",))
    with tempfile.TemporaryDirectory(prefix="seamcurate-merged-") as scratch:
        merged = Path(scratch) / "model"
        parts = shutil.ignore_patterns("adapter_*", "checkpoint-*")
        shutil.copytree(folder, merged, ignore=parts)
        if weights.tokenizer_folder(config.origin) != folder:
            open_tokenizer(config.origin, config.trust_remote_code, None).save_pretrained(merged)
        model.save_pretrained(merged)
        yield merged
