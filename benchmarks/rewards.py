"""Rewards of 31 responses to one prompt: seamcurate against pipelines, cross-encoders, other runtimes and vLLM."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import inputs, runtimes, vllm_process, work
from benchmarks.race import Peer, missing, quickest, race
from seamcurate import SequenceClassifier

BATCH = 8
SIZES, TRIED = (4, 16), 8
"""Batch sizes that are tried for each peer, on so many texts; the quickest one races."""
Scores = list[float]
Scorer = Callable[[list[str], int], Scores]
"""Texts and a batch size → rewards."""


def main(scale: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = inputs.decoder(folder / "decoder", labels=1)
        ours = SequenceClassifier(path=str(made), dtype="float32", device="cpu").load()
        _decoder(made, ours, scale)
        made = inputs.encoder(folder / "encoder")
        _encoder(made, folder, scale)


def _decoder(made: Path, ours: Any, scale: float) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made)
    model = AutoModelForSequenceClassification.from_pretrained(made).eval()
    sized = {"transformers, length-sorted": _sorted(model, tokenizer)}
    with vllm_process.engine(made, "pooling", torch.get_num_threads()) as engine:
        served: dict[str, Callable[[list[str]], Scores]] = {}
        if engine is None:
            missing("rewards", "vLLM on this processor, classify", "not installed", vllm_process.INSTALL)
        else:

            def classify(texts: list[str]) -> Scores:
                assert engine is not None
                scores: Scores = engine.ask("rewards", ids=tokenizer(texts)["input_ids"])
                return scores

            served["vLLM on this processor, classify"] = classify
        _race("decoder", made, ours, scale, sized, {}, served)


def _encoder(made: Path, folder: Path, scale: float) -> None:
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made)
    model = AutoModelForSequenceClassification.from_pretrained(made).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
            return self.model(ids, attention_mask=mask, token_type_ids=kinds).logits

    def crossed(texts: list[str], size: int) -> Scores:
        return [float(score) for score in cross.predict(texts, batch_size=size, show_progress_bar=False)]

    cross: Any = CrossEncoder(str(made), device="cpu", activation_fn=torch.nn.Identity())
    # It reads whole texts too, so that all sides read the same tokens, but takes a list of them for one pair.
    cross.is_singular_input = lambda texts: False
    sized: dict[str, Scorer] = {"sentence-transformers CrossEncoder": crossed}
    reduced: dict[str, Scorer] = {}
    module = Logits().eval()
    runs = {"transformers, length-sorted": runtimes.by_torch(module)}
    some = [f"Question: {p}\n\nAnswer: {a}" for p, a in inputs.pairs()[:32]]
    runs |= runtimes.others("rewards", module, tokenizer, some, folder)
    for name, run in runs.items():

        def scorer(texts: list[str], size: int, run: runtimes.Run = run) -> Scores:
            return [float(row[0]) for row in runtimes.in_batches(tokenizer, texts, size, run)]

        (reduced if name.endswith("int8") else sized)[name] = scorer
    config = SequenceClassifier(path=str(made), dtype="float32", device="cpu")
    _race("encoder", made, config.load(), scale, sized, reduced, {})
    crossed_name = next(iter(sized))
    for named, runtime, ours in runtimes.own("rewards", config):
        own_peers = {name: score for name, score in sized.items() if name in (crossed_name, runtime)}
        if runtime.endswith("int8"):
            own_peers, own_reduced = {}, own_peers | {name: reduced[name] for name in reduced if name == runtime}
        else:
            own_reduced = {}
        _race("encoder", made, ours, scale, own_peers, own_reduced, {}, f"; {named}")


def _sorted(model: Any, tokenizer: Any) -> Scorer:
    import torch

    def score(texts: list[str], size: int) -> Scores:
        ids = tokenizer(texts)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        scores = [0.0] * len(ids)
        with torch.inference_mode():
            for start in range(0, len(order), size):
                some = order[start : start + size]
                batch = tokenizer.pad({"input_ids": [ids[i] for i in some]}, return_tensors="pt")
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
                for i, score in zip(some, logits.logits[:, 0].tolist(), strict=True):
                    scores[i] = score
        return scores

    return score


def _race(
    kind: str,
    made: Path,
    ours: Any,
    scale: float,
    sized: dict[str, Scorer],
    reduced: dict[str, Scorer],
    served: dict[str, Callable[[list[str]], Scores]],
    backend: str = "",
) -> None:
    """Race a reward model on two settings; `reduced` compute in lower precision, `served` choose their own batches.

    A `backend` of seamcurate's own ends the setting's name, and leaves the pipeline out.
    """
    from transformers import AutoConfig, AutoTokenizer, pipeline

    config, tokenizer = AutoConfig.from_pretrained(made), AutoTokenizer.from_pretrained(made)
    piped: Any = pipeline(
        "text-classification", model=str(made), device="cpu", batch_size=BATCH, function_to_apply="none"
    )
    for prompt_tokens, response_tokens, rows in ((300, 120, 3), (40, 60, 8)):
        rows = max(1, round(rows * scale))
        prompts, answers = inputs.groups(rows, 31, prompt_tokens, response_tokens)
        end = "<|end|>" if kind == "decoder" else ""
        texts = [f"Question: {p}\n\nAnswer: {a}{end}" for p, some in zip(prompts, answers, strict=True) for a in some]
        setting = f"{kind}, {rows} × 31 {inputs.source()}, prompts of {prompt_tokens}, responses of {response_tokens} tokens{backend}"

        def mine(prompts: list[str] = prompts, answers: list[list[str]] = answers) -> Scores:
            return [one for row in ours.rewards(prompts, answers) for one in row]

        def same(a: Scores, b: Scores) -> bool:
            return len(a) == len(b) and np.allclose(a, b, atol=1e-4)

        def difference(a: Scores, b: Scores) -> float:
            return float(np.abs(np.subtract(a, b)).max())

        peers: dict[str, Peer[Scores]] = {}
        for name, score in {**sized, **reduced}.items():
            tried = {
                str(size): lambda size=size, score=score, texts=texts: score(texts[:TRIED], size)
                for size in SIZES  # type: ignore[misc]
            }
            best = int(quickest(tried))
            peers[f"{name}, batch {best}"] = Peer(
                lambda score=score, texts=texts, best=best: score(texts, best),  # type: ignore[misc]
                precise=name not in reduced,
            )
        for name, serve in served.items():
            serve(texts)
            peers[name] = Peer(lambda serve=serve, texts=texts: serve(texts))  # type: ignore[misc]
        if not backend:
            peers[f"transformers pipeline, batch {BATCH}"] = Peer(
                lambda texts=texts: [float(one["score"]) for one in piped(texts, truncation=True)]  # type: ignore[misc]
            )
        if kind == "encoder":
            todo = work.of_encoder(config, map(len, tokenizer(texts, truncation=True)["input_ids"]), pooler=True)
        else:
            todo = work.of_decoder_rewards(
                config,
                [
                    (
                        len(tokenizer(f"Question: {p}\n\nAnswer:")["input_ids"]),
                        [len(tokenizer(f" {a}{end}")["input_ids"]) for a in some],
                    )
                    for p, some in zip(prompts, answers, strict=True)
                ],
            )
        race("rewards", setting, mine, peers, same, work=todo, difference=difference)
