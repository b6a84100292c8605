"""Encoders behind a server that speaks `/v1/embeddings`: vLLM, SGLang, Text Embeddings Inference, llama.cpp.

One rule: what the server may decide, it does not. Where the model's tokenizer is here, token ids are sent, cut as a local
encoder cuts them; embeddings are put in the order of the texts and scaled here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, JsonValue, model_validator

from seamcurate.errors import ModelError
from seamcurate.models import weights
from seamcurate.models.backend import NamedModel
from seamcurate.models.endpoint import Address
from seamcurate.models.local import model_errors
from seamcurate.models.protocols import Embedder
from seamcurate.models.scoring_client import Post, RefusedError, ScoringClient, UnreadError
from seamcurate.models.sentence_encoder import SentenceEncoder
from seamcurate.models.served import Served, listed_models, window_of
from seamcurate.models.vectors import normalised
from seamcurate.progress import note
from seamcurate.text import counted

Rows: TypeAlias = list[list[float]]
"""Embeddings as they came, in the order of the texts."""

_PATH = "/v1/embeddings"
_AT_ONCE = 32
"""Texts of one request."""
_LOOKS = 2
"""How often a first look at a server is repeated."""
_CHARACTERS_PER_TOKEN = 4.0
"""The average of English text, for estimates."""
_PROBE = "What is a set?"
"""What a server is asked first: until a request was answered, any failure is the server's."""


class EmbeddingServer(Served[SentenceEncoder], NamedModel):
    """Name an encoder behind a server that speaks OpenAI's `/v1/embeddings`.

    `path` is the server's address, without `/v1`. The value is frozen and asks nothing until a step runs. Before the server
    embeds the texts of a column, some are embedded by it and by the same weights here: see `same_as`. With `same_as: itself`
    there is no tokenizer here: texts are sent, and the server cuts or refuses those that are too long.

    Raises:
        ModelError: By `load`, where the server is not there, speaks another API, serves another model, or its window is
            shorter than the texts may be.

    Example:
        >>> from seamcurate import EmbeddingServer
        >>> encoder = EmbeddingServer(path="http://127.0.0.1:8000", model="BAAI/bge-base-en-v1.5")
        >>> encoder.title
        'embedding_server BAAI/bge-base-en-v1.5'
        >>> encoder.load().embed(["What is a set?"]).shape  # doctest: +SKIP
        (1, 768)
    """

    key: ClassVar[str] = "embedding_server"
    local_kind: ClassVar[type[SentenceEncoder]] = SentenceEncoder
    of_local: ClassVar[tuple[str, ...]] = ("normalise", "max_tokens", "truncation")

    path: Address
    """The server's address, such as `http://127.0.0.1:8000`, without `/v1`. Not part of a fingerprint."""
    normalise: bool = True
    """Scale embeddings to length 1. Without it, vLLM is asked for embeddings as they are (`use_activation: false`); whether
    another server scales them, the comparison shows."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longer texts are cut to this length. Default: the limit in the model's configuration."""
    truncation: Literal["right", "left"] = "right"
    """Which end of a long text is cut."""

    @model_validator(mode="after")
    def _said_once(self) -> EmbeddingServer:
        said = self.set_here()
        if said and self.same_as not in (None, "itself"):
            raise ValueError(f"{said[0]}: texts are embedded as by `same_as`; set it there, and leave it out here")
        if self.same_as == "itself" and (self.max_tokens or self.truncation != "right"):
            raise ValueError("max_tokens and truncation: `same_as: itself` leaves no tokenizer here to cut by")
        return self

    def normalises(self) -> bool:
        """Tell whether embeddings are scaled to length 1."""
        return self.same_as.normalise if isinstance(self.same_as, SentenceEncoder) else self.normalise

    def identity(self) -> JsonValue:
        """Return what decides an embedding: the weights that the server was shown to have, and the scaling."""
        scaled: dict[str, JsonValue] = {"normalise": self.normalise} if self.same_as == "itself" else {}
        return {self.key: _PATH, **self.weights_identity(), **scaled}

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count tokens by the model's own tokenizer; where it is not here, estimate them from characters."""
        local = self.local()
        return round(sum(map(len, texts)) / _CHARACTERS_PER_TOKEN) if local is None else local.count_tokens(texts)

    def check_server(self) -> None:
        """Refuse a server that is not there or serves another model; nothing is embedded."""
        _window(self)

    def load(self) -> Embedder:
        """Open the tokenizer, and ask the server for its model and for one embedding."""
        return _Asked(self)


def _window(config: EmbeddingServer) -> int | None:
    """Refuse a server that is not there or lists other models; return the window it reads, where it says so."""
    # Nothing is lost yet: a server that does not answer at once is told of at once.
    settings = config.model_copy(update={"retries": min(config.retries, _LOOKS)})
    client = ScoringClient(config.title, config.path, settings)
    listed = listed_models(client)
    # Some servers of embeddings list no models.
    return None if listed is None else window_of(client, config.model, listed)


class _Asked:
    """The encoder that `EmbeddingServer.load` returns."""

    def __init__(self, config: EmbeddingServer) -> None:
        self.config = config
        self.client = ScoringClient(config.title, config.path, config)
        window = _window(config)
        local = config.local()
        self.texts = None if local is None else _Texts(local)
        self.scaled = config.normalises()
        if window is not None and self.texts is not None and self.texts.limit > window:
            raise ModelError(
                f"{config.title} at {config.path} reads {window:,} tokens, and texts may have {self.texts.limit:,}; "
                f"set `max_tokens: {window}`, or start it with a longer window"
            )
        self.width: int | None = None
        """Dimensions of an embedding, once one came."""
        self.answers_as: JsonValue = None
        """The name that the server gives of the model that answered; not every server's is that of the request."""
        try:
            list(self.client.post_all(_PATH, [self._post(self._sent([_PROBE]))]))
        except RefusedError as error:
            if error.status in (404, 405, 501):
                raise ModelError(
                    f"{error}; start vLLM with `--runner pooling`, SGLang with `--is-embedding`"
                ) from error
            raise

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed each text; NaN throughout where the server gives no embedding of it. See `Embedder`."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return np.zeros((0, 0), np.float32)
        sent = self._sent(unique)
        batches = [range(start, min(start + _AT_ONCE, len(sent))) for start in range(0, len(sent), _AT_ONCE)]
        rows: dict[int, list[float]] = {}
        failures: dict[int, str] = {}
        again: list[int] = []
        posts = (self._post([sent[i] for i in batch]) for batch in batches)
        for batch, received in zip(batches, self.client.post_all(_PATH, posts), strict=True):
            if received.value is not None:
                rows.update(zip(batch, received.value, strict=True))
            elif len(batch) == 1:
                failures[batch[0]] = str(received.failure)
            else:
                again += batch
        # One text of a request may be at fault, and the others not.
        for i, received in zip(again, self.client.post_all(_PATH, (self._post([sent[i]]) for i in again)), strict=True):
            if received.value is not None:
                rows[i] = received.value[0]
            else:
                failures[i] = str(received.failure)
        if failures:
            reason = next(iter(failures.values()))
            note(f"{self.config.title}: {counted(len(failures), 'text has', 'texts have')} no embedding: {reason}")
        assert self.width is not None
        vectors = np.full((len(unique), self.width), np.nan)
        for i, row in rows.items():
            vectors[i] = row
        if self.scaled:
            vectors = normalised(vectors)
        position = {text: i for i, text in enumerate(unique)}
        return vectors[[position[text] for text in texts]].astype(np.float32)

    def _sent(self, texts: Sequence[str]) -> list[Any]:
        # Servers refuse a text without a word, and a local encoder embeds one.
        return list(texts) if self.texts is None else self.texts.ids(texts)

    def _post(self, sent: list[Any]) -> Post[Rows]:
        body: dict[str, JsonValue] = {"model": self.config.model, "input": sent, "encoding_format": "float"}
        if not self.scaled:
            body["use_activation"] = False
        sizes = (len(text) for text in sent)
        return Post(body, lambda reply: self._read(reply, len(sent)), sum(sizes))

    def _read(self, reply: JsonValue, count: int) -> Rows:
        """Take a reply apart.

        Raises:
            UnreadError: It holds no embedding for each text.
            ModelError: Another model answered, or one of other dimensions.
        """
        data = reply.get("data") if isinstance(reply, Mapping) else None
        if not isinstance(reply, Mapping) or not isinstance(data, list):
            raise UnreadError("no data")
        by_index = {entry.get("index"): entry.get("embedding") for entry in data if isinstance(entry, Mapping)}
        if len(data) != count or set(by_index) != set(range(count)):
            raise UnreadError(
                f"{counted(len(data), 'embedding')} for {counted(count, 'text')}, or indices that do not count them"
            )
        rows = [_numbers(by_index[i]) for i in range(count)]
        where = f"{self.config.title} at {self.config.path}"
        if self.answers_as is None:
            self.answers_as = reply.get("model")
        elif reply.get("model") != self.answers_as:
            shown = self.client.shown(str(reply.get("model")), 60)
            raise ModelError(f"{where}: {shown} answered, and {self.answers_as} before; was the server started anew?")
        for row in rows:
            self.width = self.width or len(row)
            if len(row) != self.width:
                raise ModelError(f"{where}: it gives {len(row):,} numbers a text, and gave {self.width:,} before")
        return rows


def _numbers(row: object) -> list[float]:
    """Return an embedding's numbers; servers that cannot write NaN in JSON write null."""
    if not isinstance(row, list) or not row:
        raise UnreadError("an embedding that is no list of numbers")
    numbers = []
    for value in row:
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UnreadError("an embedding that is no list of numbers")
        numbers.append(math.nan if value is None else float(value))
    return numbers


class _Texts:
    """Turns texts into the ids that a local encoder reads; its weights are not read for that."""

    def __init__(self, config: SentenceEncoder) -> None:
        with model_errors(config.title):
            self.tokenizer: Any = config.tokenizer()
            folder = weights.tokenizer_folder(config.origin)
            settings = weights.configuration(config.origin)
        own_length = settings.get("max_position_embeddings")
        limits = [limit for limit in (own_length, self.tokenizer.model_max_length) if isinstance(limit, int)]
        window = min([*limits, 10**8])
        self.lower, self.prompt, length = False, "", None
        if config.pooling == "default":
            # What sentence-transformers reads from its own files beside the weights.
            own = _object(folder / "sentence_bert_config.json")
            length = own.get("max_seq_length")
            self.lower = own.get("do_lower_case") is True
            prompts = _object(folder / "config_sentence_transformers.json")
            named = prompts.get("prompts")
            prompt = named.get(str(prompts.get("default_prompt_name"))) if isinstance(named, dict) else None
            self.prompt = prompt if isinstance(prompt, str) else ""
        else:
            window = min(512, window)
        self.limit = int(
            config.max_tokens or (length if isinstance(length, int) else 0) or (window if window < 10**8 else 512)
        )
        self.tokenizer.truncation_side = config.truncation

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, special tokens included, cut to the limit."""
        written = [self.prompt + text for text in texts]
        written = [text.lower() for text in written] if self.lower else written
        return [list(ids) for ids in self.tokenizer(written, truncation=True, max_length=self.limit)["input_ids"]]


def _object(file: Path) -> dict[str, object]:
    """Read a JSON object; empty where there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
