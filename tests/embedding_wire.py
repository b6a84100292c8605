"""A server of embeddings on loopback, as OpenAI documents it, with a real encoder: token ids or texts are its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from endpoint import Endpoint, serving


@contextmanager
def embedding_serving(folder: Path, name: str = "encoder", window: int | None = 512) -> Iterator[Endpoint]:
    """Serve a BERT's mean-pooled embeddings, scaled as most servers do; `change` changes what is answered."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def embedded(text: str | list[int]) -> list[float]:
        ids = tokenizer(text)["input_ids"] if isinstance(text, str) else text
        with torch.inference_mode():
            vector = model(torch.tensor([ids])).last_hidden_state[0].mean(0).double().numpy()
        return at.change(vector).tolist()

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["encoding_format"] == "float"
        rows = [embedded(text) for text in asked["input"]]
        data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
        return {"object": "list", "model": asked["model"], "data": data[::-1], "usage": {}}

    with serving() as at:
        at.url = at.url.removesuffix("/v1")
        at.change = lambda vector: vector / np.linalg.norm(vector)
        at.path, at.complete = "/v1/embeddings", answer
        if window is not None:
            at.pages["/v1/models"] = {"object": "list", "data": [{"id": name, "max_model_len": window}]}
        yield at
