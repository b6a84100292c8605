"""Embeddings of a corpus of short texts: seamcurate against sentence-transformers, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import inputs, runtimes, work
from benchmarks.race import Peer, quickest, race
from seamcurate import SentenceEncoder

Floats = npt.NDArray[np.float32]
DEFAULT = 32
"""The batch size of sentence-transformers where none is given."""
SIZES, TRIED = (8, 128), 128
"""Batch sizes that are tried for each peer beside the default, on so many texts; the quickest one races."""


def main(scale: float) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    from seamcurate.demo.corpus import encoder_folder

    folder = encoder_folder()
    texts = list(dict.fromkeys(prompt for prompt, _ in inputs.pairs()))[: max(200, round(4000 * scale))]
    config = SentenceEncoder(path=str(folder), dtype="float32", device="cpu")
    peer: Any = SentenceTransformer(str(folder), device="cpu")
    backbone, tokenizer = peer[0].auto_model, peer.tokenizer
    tokenizer.model_max_length = peer.max_seq_length

    class Pooled(torch.nn.Module):
        """The mean over tokens, of length 1."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
            states = self.backbone(ids, attention_mask=mask, token_type_ids=kinds).last_hidden_state
            weights = mask[:, :, None].to(states.dtype)
            return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1)

    def encoded(texts: list[str], size: int) -> Floats:
        found: Floats = peer.encode(texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False)
        return found

    def best(name: str, run: Callable[[list[str], int], Floats]) -> int:
        size = quickest({str(size): lambda size=size: run(texts[:TRIED], size) for size in (DEFAULT, *SIZES)})  # type: ignore[misc]
        return int(size)

    name = "sentence-transformers"
    peers = {f"{name}, batch {DEFAULT} (its default)": Peer(lambda: encoded(texts, DEFAULT))}
    if (size := best(name, encoded)) != DEFAULT:
        peers[f"{name}, batch {size} (its best)"] = Peer(lambda: encoded(texts, size))
    with tempfile.TemporaryDirectory() as scratch:
        for name, run in runtimes.others("embedding", Pooled().eval(), tokenizer, texts, Path(scratch)).items():

            def embed(texts: list[str], size: int, run: runtimes.Run = run) -> Floats:
                return runtimes.in_batches(tokenizer, texts, size, run)

            chosen = best(name, embed)
            peers[f"{name}, batch {chosen}"] = Peer(
                lambda embed=embed, chosen=chosen: embed(texts, chosen),  # type: ignore[misc]
                precise=not name.endswith("int8"),
            )
        lengths = [len(ids) for ids in tokenizer(texts, truncation=True)["input_ids"]]
        setting = f"{len(texts):,} {inputs.source()}, {np.mean(lengths):.0f} tokens on average, all-MiniLM-L6-v2"

        def against(setting: str, model: Any, peers: dict[str, Peer[Floats]]) -> None:
            race(
                "embedding",
                setting,
                lambda: model.embed(texts),
                peers,
                lambda a, b: bool(np.allclose(a, b, atol=1e-5)),
                work=work.of_encoder(backbone.config, lengths, pooler=False),
                # Cosines of embeddings that are the same text's.
                difference=lambda a, b: float(1 - (a * b).sum(1).min()),
            )

        against(setting, config.load(), peers)
        for named, runtime, model in runtimes.own("embedding", config):
            # The first is sentence-transformers' default.
            chosen_peers = {
                name: peer for i, (name, peer) in enumerate(peers.items()) if not i or name.startswith(runtime)
            }
            if runtime.endswith("int8"):
                chosen_peers = {name: Peer(peer.run, precise=False) for name, peer in chosen_peers.items()}
            against(f"{setting}; {named}", model, chosen_peers)
