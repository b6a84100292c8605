"""The encoder of `init` and `plan`, which embeds no text of their samples twice: embeddings are kept in the cache folder.

One rule: a run never reads them. The last digits of an embedding depend on the texts that share its batch, and no byte of a
store may depend on what was planned before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seamcurate.contrast import Embed
from seamcurate.errors import StoreError
from seamcurate.models import EncoderModel, SentenceEncoder
from seamcurate.progress import bar
from seamcurate.step import digest
from seamcurate.storage import shard
from seamcurate.storage.cache import cache_folder

Vector: TypeAlias = npt.NDArray[np.float32]

_AT_ONCE = 256
"""Texts that are embedded before their embeddings are kept: a plan that is stopped loses no more."""
_TEXTS, _ENCODERS = 8192, 8
"""How many texts are kept of an encoder, and of how many encoders, the latest of each: 13 MB an encoder of 384 dimensions."""


class SampleEncoder:
    """Embed texts, each once for all processes of this user; the encoder is loaded when a new text comes.

    Only encoders that are computed here are kept: at a server's address another model may answer by now.

    Example:
        >>> from seamcurate import FakeModel
        >>> SampleEncoder(FakeModel(dimensions=4)).embed(["What is a set?", "What is a list?"]).shape
        (2, 4)
    """

    def __init__(self, encoder: EncoderModel) -> None:
        self.encoder = encoder
        self.vectors: dict[bytes, Vector] = {}
        self.file: Path | None = None
        if isinstance(encoder, SentenceEncoder):
            self.fingerprint = digest([encoder.identity(), Embed.revision])
            self.file = cache_folder() / "embeddings" / f"{self.fingerprint}.parquet"
            # Without a readable file, the texts are embedded anew.
            with suppress(StoreError):
                columns = shard.read(self.file, self.fingerprint, 0)
                pairs = zip(columns["text"].to_pylist(), columns["vector"].to_pylist(), strict=True)
                self.vectors = {key: np.frombuffer(vector, np.float32) for key, vector in pairs}

    def embed(self, texts: Sequence[str]) -> Vector:
        """Return float32 embeddings, texts × dimensions."""
        keys = [_key(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.vectors}
        if new:
            embedder, unknown = self.encoder.load(), list(new)
            with bar("embedding a sample", len(unknown), "prompts") as advance:
                for start in range(0, len(unknown), _AT_ONCE):
                    block = unknown[start : start + _AT_ONCE]
                    self.vectors |= zip(block, embedder.embed([new[key] for key in block]), strict=True)
                    self._keep()
                    advance(len(block))
        return np.stack([self.vectors[key] for key in keys]) if keys else np.zeros((0, 0), np.float32)

    def _keep(self) -> None:
        if self.file is None:
            return
        latest = dict(list(self.vectors.items())[-_TEXTS:])
        columns = {
            "text": pa.array(list(latest), pa.binary()),
            "vector": pa.array([vector.tobytes() for vector in latest.values()], pa.binary()),
        }
        folder = self.file.parent
        # Without room for them, or with another process at work there, texts are embedded anew the next time.
        with suppress(StoreError, OSError):
            # For this user alone: prompts can be guessed from their embeddings.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            shard.write(self.file, pa.table(columns), self.fingerprint, 0)
            for older in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)[:-_ENCODERS]:
                older.unlink()


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
