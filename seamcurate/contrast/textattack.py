"""TextAttack's recipes against the goal R(I∘r') > R(I∘r⁺): its searches and constraints, our models, and no download.

TextAttack calls its models, and ours are asked in batches of many rows. So each row's attack runs in a thread of its own,
which waits while its question is answered: one thread runs at a time, each with its own random numbers. What a recipe would
download is made of what the step names, or the recipe is refused.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seamcurate import extras
from seamcurate.contrast import coroutine, similar
from seamcurate.contrast.searches import Ask, Attempt, Lexicons, Search, same_part
from seamcurate.errors import StepError, typed_line
from seamcurate.models.masked import MaskedModel
from seamcurate.text import suggestion


class Recipe(NamedTuple):
    """What an attack of TextAttack needs here: a row of `RECIPES`."""

    needs: tuple[str, ...] = ()
    """Fields of the step that replace what TextAttack would download."""
    refused: str | None = None
    """Why it cannot run, where nothing replaces it."""


_TAGGER = "it reads flair's taggers, which are downloaded and unpickled"
_GRADIENT = "it follows the gradients of a classifier, and a reward is asked for values alone"
RECIPES: dict[str, Recipe] = {
    "a2t": Recipe(refused=_GRADIENT),
    "alzantot": Recipe(refused="it reads Google's language model of a billion words, by TensorFlow; take iga"),
    "bad-characters": Recipe(refused="TextAttack 0.3.11 is installed without the list of homoglyphs that it reads"),
    "bae": Recipe(("masked_model", "wordnet")),
    "bert-attack": Recipe(("masked_model",)),
    "checklist": Recipe(refused=_TAGGER),
    "clare": Recipe(refused=_TAGGER),
    "deepwordbug": Recipe(),
    "faster-alzantot": Recipe(refused="it reads a language model that TextAttack downloads; take iga"),
    "hotflip": Recipe(refused=_GRADIENT),
    "iga": Recipe(("vectors",)),
    "input-reduction": Recipe(),
    "kuleshov": Recipe(refused="it reads GPT-2, which TextAttack downloads; take seq2sick"),
    "leap": Recipe(("wordnet",)),
    "morpheus": Recipe(refused=_TAGGER),
    "pruthi": Recipe(),
    "pso": Recipe(refused="it reads HowNet, which TextAttack downloads; take leap"),
    "pwws": Recipe(("wordnet",)),
    "seq2sick": Recipe(("vectors",)),
    "textbugger": Recipe(("vectors",)),
    "textfooler": Recipe(("vectors", "wordnet")),
}
"""TextAttack 0.3.11's `ATTACK_RECIPE_NAMES`; a test holds the two equal."""


def check(name: str | None) -> Recipe:
    """Return what a recipe needs.

    Raises:
        ValueError: There is no such recipe, or it cannot run here.
    """
    running = ", ".join(known for known, recipe in RECIPES.items() if recipe.refused is None)
    if name is None:
        raise ValueError(f"method textattack needs `recipe`: name one of {running}")
    if name not in RECIPES:
        raise ValueError(
            f"unknown recipe {name!r}; of TextAttack's there are here: {running}{suggestion(name, RECIPES)}"
        )
    if (reason := RECIPES[name].refused) is not None:
        raise ValueError(f"recipe {name} cannot run here: {reason}; there are: {running}")
    return RECIPES[name]


def version() -> str:
    """Return TextAttack's version.

    Raises:
        StepError: It is not installed.
    """
    try:
        return importlib.metadata.version("textattack")
    except importlib.metadata.PackageNotFoundError as error:
        raise StepError(
            f"method textattack needs TextAttack, which is not installed; {extras.install('attack')} {_APART}"
        ) from error


_APART = "in an environment of its own, since TextAttack needs transformers below 5"


class Peer:
    """One of TextAttack's recipes, made of our lexicons and models.

    Args:
        name: A key of `RECIPES` that is not refused.
        lexicons: Replacement words and stop words; a `min_similarity` that is a number takes the place of the recipe's own
            threshold, as a cosine.
        masked: A masked language model, for recipes that need one.
        min_similarity: Least cosine of sentence embeddings, None for the recipe's own threshold and measure.

    Raises:
        StepError: TextAttack is not installed, or cannot be imported.
    """

    def __init__(
        self, name: str, lexicons: Lexicons, masked: MaskedModel | None, min_similarity: float | None = None
    ) -> None:
        self.name, self.lexicons, self.masked, self.min_similarity = name, lexicons, masked, min_similarity
        version()
        with _untouched():
            try:
                from textattack.attack_args import ATTACK_RECIPE_NAMES

                module, _, recipe = ATTACK_RECIPE_NAMES[name].rpartition(".")
                self.recipe: Any = getattr(importlib.import_module(module), recipe)
            # It imports sixty packages, any of which may fail beside a version that it does not know.
            except Exception as error:
                raise StepError(
                    f"TextAttack cannot be imported: {typed_line(error)}; {extras.install('attack')} {_APART}"
                ) from error

    def search(self, attempt: Attempt, seed: int) -> Search:
        """Attack one row; every text that the recipe's constraints allow is added to `attempt.seen`."""
        return coroutine.in_thread(lambda ask: self._attack(attempt, ask), seed, f"TextAttack's recipe {self.name}")

    def _attack(self, attempt: Attempt, ask: Callable[[Ask], Any]) -> str:
        import textattack

        goal = _goal(attempt, ask)
        module: Any = sys.modules[self.recipe.__module__]
        with _replaced(module, self._replacements(ask)):
            built = self.recipe.build(goal.model)
        attack = textattack.Attack(
            goal, [*built.pre_transformation_constraints, *built.constraints], built.transformation, built.search_method
        )
        goal.watch(attack.search_method)
        try:
            result = attack.attack(attempt.text.written(attempt.original), 0)
        except _Spent:
            return max(attempt.seen, key=attempt.seen.__getitem__, default=attempt.text.written(attempt.original))
        return str(result.perturbed_result.attacked_text.text)

    def _replacements(self, ask: Callable[[Ask], Any]) -> Mapping[str, Any]:
        """Return what stands for the names by which recipes make what TextAttack would download."""
        import torch
        from textattack import transformations
        from textattack.constraints import Constraint
        from textattack.constraints.pre_transformation import StopwordModification
        from textattack.constraints.semantics import WordEmbeddingDistance
        from textattack.constraints.semantics.sentence_encoders import SentenceEncoder
        from textattack.shared import AbstractWordEmbedding
        from textattack.transformations.word_swaps.word_swap import WordSwap

        lexicons, min_similarity = self.lexicons, self.min_similarity

        class Encoder(SentenceEncoder):
            def __init__(
                self, threshold: float = 0.8, large: bool = False, metric: str = "angular", **options: Any
            ) -> None:
                if min_similarity is not None:
                    threshold, metric = min_similarity, "cosine"
                super().__init__(threshold=threshold, metric=metric, **options)
                self.model = self

            def encode(self, texts: Sequence[str]) -> Any:
                return torch.tensor(np.asarray(ask(Ask("embeddings", list(texts)))))

        class Part(Constraint):
            def __init__(self, allow_verb_noun_swap: bool = True) -> None:
                super().__init__(True)

            def _check_constraint(self, new: Any, old: Any) -> bool:
                changed = new.attack_attrs["newly_modified_indices"]
                return all(same_part(lexicons.wordnet, old.words[i].lower(), new.words[i].lower()) for i in changed)

        class Synonyms(WordSwap):
            def _get_replacement_words(self, word: str) -> list[str]:
                return [] if lexicons.wordnet is None else lexicons.wordnet.synonyms(word)

        class Homoglyphs(transformations.WordSwapHomoglyphSwap):
            """TextBugger's letters that look alike; another recipe's list of them is missing in what is installed."""

            def __init__(self) -> None:
                with contextlib.suppress(FileNotFoundError):
                    super().__init__()

        class Neighbours(AbstractWordEmbedding):
            """Words are their own indices."""

            def __getitem__(self, index: str) -> None:
                return None

            def word2index(self, word: str) -> str:
                if lexicons.vectors is None or lexicons.vectors.cosine(word, word) is None:
                    raise KeyError(word)
                return word

            def index2word(self, index: str) -> str:
                return index

            def get_cos_sim(self, a: str, b: str) -> float:
                return (lexicons.vectors and lexicons.vectors.cosine(a, b)) or 0.0

            def get_mse_dist(self, a: str, b: str) -> float:
                return 2 - 2 * self.get_cos_sim(a, b)

            def nearest_neighbours(self, index: str, topn: int) -> list[str]:
                return [] if lexicons.vectors is None else lexicons.vectors.nearest(index, topn)

        def by_vectors(kind: Any) -> Callable[..., Any]:
            return lambda **options: kind(**{**options, "embedding": Neighbours()})

        def by_masked(**options: Any) -> Any:
            assert self.masked is not None
            own = {"masked_language_model": self.masked.model, "tokenizer": self.masked.tokenizer}
            return transformations.WordSwapMaskedLM(**{**options, **own, "max_length": self.masked.limit})

        return {
            "StopwordModification": lambda stopwords=None: StopwordModification(stopwords or lexicons.stop_words),
            "UniversalSentenceEncoder": Encoder,
            "PartOfSpeech": Part,
            "WordSwapHomoglyphSwap": Homoglyphs,
            "WordSwapWordNet": Synonyms,
            "WordSwapEmbedding": by_vectors(transformations.WordSwapEmbedding),
            "WordEmbeddingDistance": by_vectors(WordEmbeddingDistance),
            "WordSwapMaskedLM": by_masked,
        }


class _Spent(Exception):
    """The query budget is spent, and the search asks for more."""


def _goal(attempt: Attempt, ask: Callable[[Ask], Any]) -> Any:
    """Return the goal R(I∘r') > R(I∘r⁺), which TextAttack has not: rewards are numbers, and more is better."""
    from textattack.goal_function_results import GoalFunctionResult
    from textattack.goal_functions import GoalFunction
    from textattack.models.wrappers import ModelWrapper

    class Wrapper(ModelWrapper):
        model = None
        tokenizer = None

        def __call__(self, texts: Sequence[str], **options: object) -> list[float]:
            raise NotImplementedError("rewards are asked for by the goal")

    class Result(GoalFunctionResult):
        def get_text_color_input(self) -> str:
            return "red"

        def get_text_color_perturbed(self) -> str:
            return "blue"

        def get_colored_output(self, color_method: object = None) -> str:
            return str(self.output)

    class Exceed(GoalFunction):
        def __init__(self) -> None:
            # The attempt remembers rewards, counts as TextAttack does, and has the budget.
            super().__init__(Wrapper(), use_cache=False, allow_skip=False, query_budget=attempt.budget)
            self.batch_size = attempt.budget
            self.ranking, self.allowed = False, set[str]()

        def watch(self, search_method: Any) -> None:
            """Tell candidates from probes: texts with a word left out or unknown, by which words are ranked."""
            transformed = search_method.get_transformations

            def get_transformations(*arguments: Any, **options: Any) -> Any:
                texts = transformed(*arguments, **options)
                self.allowed.update(text.text for text in texts)
                return texts

            search_method.get_transformations = get_transformations
            if (rank := getattr(search_method, "_get_index_order", None)) is not None:

                def ranked(*arguments: Any, **options: Any) -> Any:
                    self.ranking = True
                    try:
                        return rank(*arguments, **options)
                    finally:
                        self.ranking = False

                search_method._get_index_order = ranked

        def get_results(self, attacked_text_list: Any, check_skip: bool = False) -> Any:
            if attacked_text_list and attempt.over:
                raise _Spent
            return super().get_results(attacked_text_list, check_skip)

        def _call_model(self, attacked_text_list: Any) -> list[float]:
            texts = [text.text for text in attacked_text_list]
            is_first = attempt.queries == 0
            probes = is_first or (self.ranking and not self.allowed.issuperset(texts))
            scores = coroutine.driven(attempt.score(texts, probes=probes), ask)
            if is_first:
                attempt.start = float(scores[0])
            return [float(score) for score in scores]

        def _is_goal_complete(self, output: float, text: object) -> bool:
            return output > 0

        def _get_score(self, output: float, text: object) -> float:
            return output

        def _goal_function_result_type(self) -> type:
            return Result

        def _process_model_outputs(self, texts: object, outputs: Any) -> Any:
            return outputs

    return Exceed()


@contextmanager
def _replaced(module: Any, replacements: Mapping[str, Any]) -> Iterator[None]:
    """Give a module other values for those of the names that it has."""
    before = {name: getattr(module, name) for name in replacements if hasattr(module, name)}
    for name in before:
        setattr(module, name, replacements[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextmanager
def _untouched() -> Iterator[None]:
    """Import TextAttack without what it does beside: downloads of NLTK's data, variables of the environment, messages."""
    before = dict(os.environ)
    marker = Path(os.environ.get("TA_CACHE_DIR", Path("~/.cache/textattack").expanduser())) / "post_install_check_3"
    was_set_up, level = marker.exists(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if importlib.util.find_spec("nltk") is not None:
            # Read by the defaults of an augmenter, which nobody here uses.
            stop_words = types.SimpleNamespace(words=lambda language: sorted(similar.stop_words()))
            for module, replacements in (
                ("nltk", {"download": lambda *names, **options: True}),
                ("nltk.corpus", {"stopwords": stop_words}),
            ):
                stack.enter_context(_replaced(importlib.import_module(module), replacements))
        # It would download models, too; `None` is how Python is told that a module is not there.
        if hides_stanza := "stanza" not in sys.modules:
            sys.modules["stanza"] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            if hides_stanza:
                del sys.modules["stanza"]
            logging.disable(level)
            for logger in ("textattack", "textattack.shared.utils.install"):
                logging.getLogger(logger).setLevel(logging.ERROR)
            os.environ.clear()
            os.environ.update(before)
            if not was_set_up:
                # Whoever uses TextAttack by itself still gets its data.
                marker.unlink(missing_ok=True)
