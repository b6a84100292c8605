"""Adversarial answers: many rows' attacks sharing a reward model, against TextAttack's own loop over the rows.

TextAttack needs an environment of its own: `pip install "seamcurate[attack]"`.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import inputs
from benchmarks.race import Peer, race
from seamcurate import Attack, FakeModel, SequenceClassifier
from seamcurate.contrast.lexicon import WordNet
from seamcurate.contrast.searches import Lexicons, same_part
from seamcurate.contrast.similar import stop_words
from seamcurate.models.masked import MaskedModel

WORDNET = inputs.REAL / "lexicons" / "wordnet30_synonyms.parquet"
DEBIAN = Path("/usr/share/wordnet")
BUDGET = 400


@contextmanager
def offline() -> Iterator[None]:
    """Let TextAttack be imported without network, and leave the environment as it was."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "nltk" / "corpora" / "stopwords"
        words.mkdir(parents=True)
        (words / "english").write_text("\n".join(sorted(stop_words())) + "\n")
        (Path(folder) / "post_install_check_3").touch()
        os.environ |= {"TA_CACHE_DIR": folder, "NLTK_DATA": str(words.parents[1]), "HF_HUB_OFFLINE": "1"}
        import nltk

        nltk.data.path.insert(0, str(words.parents[1]))
        nltk.download = lambda *args, **options: True
        try:
            import textattack  # noqa: F401

            for name in ("textattack", "textattack.shared.utils.install"):
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def peer(
    method: str,
    lexicons: Lexicons,
    rewards: Callable[[Sequence[str]], list[float]],
    threshold: float,
    budget: int,
    embed: Callable[[Sequence[str]], Any] | None = None,
    masked: MaskedModel | None = None,
) -> Any:
    """Build TextAttack's attack on one row: its search, its constraints, and a goal of exceeding a reward.

    TextFooler's parts of speech are WordNet's here; its sentence encoder and BERT-Attack's is `embed`, as they are in ours.
    """
    import numpy as np
    import torch
    from textattack import Attack as TheirAttack
    from textattack.constraints import Constraint
    from textattack.constraints.overlap import MaxWordsPerturbed
    from textattack.constraints.pre_transformation import RepeatModification, StopwordModification
    from textattack.constraints.semantics import WordEmbeddingDistance
    from textattack.constraints.semantics.sentence_encoders import SentenceEncoder
    from textattack.goal_function_results import GoalFunctionResult
    from textattack.goal_functions import GoalFunction
    from textattack.models.wrappers import ModelWrapper
    from textattack.search_methods import GreedyWordSwapWIR, ImprovedGeneticAlgorithm
    from textattack.shared import WordEmbedding
    from textattack.transformations import WordSwapEmbedding, WordSwapMaskedLM
    from textattack.transformations.word_swaps.word_swap import WordSwap

    class Reward(ModelWrapper):  # type: ignore[misc]
        model = None

        def __call__(self, texts: Sequence[str], **options: object) -> list[float]:
            return rewards(texts)

    class Result(GoalFunctionResult):  # type: ignore[misc]
        def get_text_color_input(self) -> None: ...
        def get_text_color_perturbed(self) -> None: ...
        def get_colored_output(self, color_method: object = None) -> None: ...

    class Exceed(GoalFunction):  # type: ignore[misc]
        def _is_goal_complete(self, output: Any, text: object) -> bool:
            return float(output) > threshold

        def _get_score(self, output: Any, text: object) -> float:
            return float(output) - threshold

        def _goal_function_result_type(self) -> type:
            return Result

        def _process_model_outputs(self, texts: object, outputs: Any) -> list[float]:
            return [float(one) for one in outputs]

    class Synonyms(WordSwap):  # type: ignore[misc]
        def _get_replacement_words(self, word: str) -> list[str]:
            assert lexicons.wordnet is not None
            return lexicons.wordnet.synonyms(word)

    goal = Exceed(Reward(), query_budget=budget, allow_skip=False)
    stop = StopwordModification(stopwords=lexicons.stop_words)
    if method == "pwws":
        return TheirAttack(goal, [RepeatModification(), stop], Synonyms(), GreedyWordSwapWIR("weighted-saliency"))

    class Encoder(SentenceEncoder):  # type: ignore[misc]
        def encode(self, texts: Sequence[str]) -> Any:
            assert embed is not None
            return torch.tensor(np.asarray(embed(texts)))

    if method == "bert_attack":
        assert masked is not None
        swap = WordSwapMaskedLM(
            method="bert-attack",
            masked_language_model=masked.model,
            tokenizer=masked.tokenizer,
            max_length=masked.limit,
            max_candidates=masked.count,
        )
        alike = Encoder(lexicons.min_similarity, metric="cosine", compare_against_original=True, window_size=None)
        few = MaxWordsPerturbed(max_percent=0.4)
        return TheirAttack(goal, [RepeatModification(), stop, few, alike], swap, GreedyWordSwapWIR("unk"))
    assert lexicons.vectors is not None
    matrix, words = lexicons.vectors._matrix, lexicons.vectors._words
    order = np.argsort(-(matrix @ matrix.T), axis=1)
    embedding = WordEmbedding(matrix, {w: i for i, w in enumerate(words)}, dict(enumerate(words)), order)
    swap = WordSwapEmbedding(max_candidates=lexicons.neighbours, embedding=embedding)
    if method == "textfooler":

        class Part(Constraint):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(True)

            def _check_constraint(self, new: Any, old: Any) -> bool:
                changed = new.attack_attrs["newly_modified_indices"]
                return all(same_part(lexicons.wordnet, old.words[i].lower(), new.words[i].lower()) for i in changed)

        alike = Encoder(
            threshold=lexicons.min_similarity,
            metric="cosine",
            compare_against_original=False,
            window_size=15,
            skip_text_shorter_than_window=True,
        )
        near = WordEmbeddingDistance(embedding=embedding, min_cos_sim=0.5)
        return TheirAttack(goal, [RepeatModification(), stop, near, Part(), alike], swap, GreedyWordSwapWIR("delete"))
    near = WordEmbeddingDistance(embedding=embedding, max_mse_dist=0.5, compare_against_original=False)
    genes = ImprovedGeneticAlgorithm(post_crossover_check=False)
    return TheirAttack(goal, [stop, MaxWordsPerturbed(max_percent=0.2), near], swap, genes)


def main(scale: float) -> None:
    where = next((place for place in (WORDNET, DEBIAN) if place.exists()), None)
    if where is None:
        raise SystemExit("attack: there is no WordNet; install Debian's wordnet-base")
    with tempfile.TemporaryDirectory() as folder, offline():
        for kind in ("encoder", "decoder"):
            place = Path(folder) / kind
            made = inputs.decoder(place, labels=1) if kind == "decoder" else inputs.encoder(place)
            _race(kind, made, where, max(2, round(16 * scale)))


def _race(kind: str, model: Path, wordnet: Path, count: int) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    config = SequenceClassifier(path=str(model), dtype="float32", device="cpu")
    answers = [answer for answer in inputs.responses(4 * count, 40, 0) if 12 <= len(answer.split()) <= 60][: 2 * count]
    prompts = [inputs.prompt_of(40, 7 * i) for i in range(len(answers) // 2)]
    table = pa.table({"prompt": prompts, "response": answers[::2][: len(prompts)], "worse": answers[1::2]})
    step = Attack(
        start="worse", query_budget=BUDGET, reward=config, encoder=FakeModel(), wordnet=str(wordnet), method="pwws"
    )
    attack = step.load(Path())
    lexicons = Lexicons(WordNet(str(wordnet)), None, stop_words(), 0, -1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    theirs_model = AutoModelForSequenceClassification.from_pretrained(model).eval()
    end = "<|end|>" if kind == "decoder" else ""

    def rewards(prompt: str, texts: Sequence[str]) -> list[float]:
        whole = [f"Question: {prompt}\n\nAnswer: {text}{end}" for text in texts]
        with torch.inference_mode():
            found = theirs_model(**tokenizer(whole, return_tensors="pt", padding=True, truncation=True)).logits[:, 0]
        return [float(one) for one in found]

    from textattack.models.wrappers import HuggingFaceModelWrapper

    # What TextAttack gives everybody: it pads each text to the window, here 512 tokens for both.
    tokenizer.model_max_length = 512
    wrapper = HuggingFaceModelWrapper(theirs_model, tokenizer)

    def wrapped(prompt: str, texts: Sequence[str]) -> list[float]:
        return [float(one) for one in wrapper([f"Question: {prompt}\n\nAnswer: {text}{end}" for text in texts])[:, 0]]

    def mine() -> list[tuple[int, bool]]:
        done = attack(table)
        return [
            (queries, any(hacked))
            for queries, hacked in zip(done["queries_adv"].to_pylist(), done["hacked_adv"].to_pylist(), strict=True)
        ]

    def theirs(score: Callable[[str, Sequence[str]], list[float]]) -> list[tuple[int, bool]]:
        found = []
        for row in table.to_pylist():
            goal = score(row["prompt"], [row["response"]])[0]
            one = peer("pwws", lexicons, lambda texts, p=row["prompt"]: score(p, texts), goal, BUDGET)
            result = one.attack(row["worse"], 0)
            found.append((one.goal_function.num_queries, float(result.perturbed_result.output) > goal))
        return found

    def same(a: list[tuple[int, bool]], b: list[tuple[int, bool]]) -> bool:
        # Rounding may part two words of almost the same worth, and with them all that follows in that row.
        equal = sum(x == y for x, y in zip(a, b, strict=True))
        return equal >= 0.9 * len(a) and abs(sum(x[1] for x in a) - sum(x[1] for x in b)) <= 0.05 * len(a)

    setting = f"{kind}, pwws, {len(prompts)} {inputs.source()}, answers of 12 to 60 words, at most {BUDGET} queries"
    hacked = sum(fooled for _, fooled in mine())
    for against, score in (("TextAttack", wrapped), ("TextAttack, padded to the longest", rewards)):
        peers = {against: Peer(lambda s=score: theirs(s))}
        race("attack", setting, mine, peers, same, 1, more=lambda a, b: {"hacked": hacked})
