"""The attacks held against TextAttack 0.3.11's own, where it is installed: `pip install "seamcurate[attack]"`."""

from __future__ import annotations

import importlib.util
import logging
import os
import random

import numpy as np
import pytest
from lexicons import vectors, wordnet_table

from seamcurate import FakeModel
from seamcurate.contrast.lexicon import Vectors, WordNet, stop_words
from seamcurate.contrast.searches import Attempt, Lexicons, Text, search

pytestmark = pytest.mark.skipif(importlib.util.find_spec("textattack") is None, reason="TextAttack is not installed")

VOCABULARY = [
    "sort",
    "order",
    "list",
    "array",
    "queue",
    "line",
    "fast",
    "quick",
    "merge",
    "join",
    "cache",
    "store",
    "the",
    "of",
    "it,",
    "with.",
    "(don't)",
    "well-known",
]


@pytest.fixture(scope="module")
def textattack(tmp_path_factory):
    """Import TextAttack without network, and leave the environment as it was."""
    folder, before = tmp_path_factory.mktemp("textattack"), dict(os.environ)
    words = folder / "nltk" / "corpora" / "stopwords"
    words.mkdir(parents=True)
    (words / "english").write_text("\n".join(sorted(stop_words())) + "\n")
    (folder / "post_install_check_3").touch()
    os.environ |= {"TA_CACHE_DIR": str(folder), "NLTK_DATA": str(folder / "nltk"), "HF_HUB_OFFLINE": "1"}
    import nltk

    nltk.data.path.insert(0, str(folder / "nltk"))
    nltk.download = lambda *args, **options: True
    try:
        import textattack

        logging.getLogger("textattack").setLevel(logging.ERROR)
        logging.getLogger("textattack.shared.utils.install").setLevel(logging.ERROR)
        yield textattack
    finally:
        os.environ.clear()
        os.environ.update(before)


def texts(count, longest):
    draw = random.Random(0)
    return [" ".join(draw.choices(VOCABULARY, k=draw.randint(4, longest))) for _ in range(count)]


def theirs(textattack, method, text, threshold, lexicons, reward, budget):
    """Attack one text with TextAttack's own search, constraints and bookkeeping; returns the best text and the queries."""
    from textattack import Attack
    from textattack.constraints.overlap import MaxWordsPerturbed
    from textattack.constraints.pre_transformation import RepeatModification, StopwordModification
    from textattack.constraints.semantics import WordEmbeddingDistance
    from textattack.goal_function_results import GoalFunctionResult
    from textattack.goal_functions import GoalFunction
    from textattack.models.wrappers import ModelWrapper
    from textattack.search_methods import GreedyWordSwapWIR, ImprovedGeneticAlgorithm
    from textattack.shared import WordEmbedding
    from textattack.transformations import WordSwapEmbedding
    from textattack.transformations.word_swaps.word_swap import WordSwap

    class Reward(ModelWrapper):
        model = None

        def __call__(self, inputs, **options):
            return [reward(one) for one in inputs]

    class Result(GoalFunctionResult):
        def get_text_color_input(self): ...
        def get_text_color_perturbed(self): ...
        def get_colored_output(self, color_method=None): ...

    class Exceed(GoalFunction):
        def _is_goal_complete(self, output, text):
            return float(output) > threshold

        def _get_score(self, output, text):
            return float(output) - threshold

        def _goal_function_result_type(self):
            return Result

        def _process_model_outputs(self, inputs, outputs):
            return [float(one) for one in outputs]

    class Synonyms(WordSwap):
        def _get_replacement_words(self, word):
            return lexicons.wordnet.synonyms(word)

    goal = Exceed(Reward(), query_budget=budget, allow_skip=False)
    stop = StopwordModification(stopwords=lexicons.stop_words)
    if method == "pwws":
        attack = Attack(goal, [RepeatModification(), stop], Synonyms(), GreedyWordSwapWIR("weighted-saliency"))
    else:
        matrix = lexicons.vectors._matrix
        words = lexicons.vectors._words
        order = np.argsort(-(matrix @ matrix.T), axis=1)
        embedding = WordEmbedding(matrix, {w: i for i, w in enumerate(words)}, dict(enumerate(words)), order)
        near = WordEmbeddingDistance(embedding=embedding, max_mse_dist=0.5, compare_against_original=False)
        swap = WordSwapEmbedding(max_candidates=lexicons.neighbours, embedding=embedding)
        genes = ImprovedGeneticAlgorithm(post_crossover_check=False)
        attack = Attack(goal, [stop, MaxWordsPerturbed(max_percent=0.2), near], swap, genes)
    found = attack.attack(text, 0)
    return found.perturbed_result.attacked_text.text, goal.num_queries, found.perturbed_result.output


def ours(method, text, threshold, lexicons, reward, budget):
    attempt = Attempt(text, threshold, budget)
    asked = search(method, attempt, lexicons, 0)
    try:
        ask = next(asked)
        while True:
            ask = asked.send([reward(one) for one in ask.texts])
    except StopIteration as ended:
        return attempt, ended.value


def test_words_are_textattacks_words(textattack):
    from textattack.shared import AttackedText

    for text in [
        *texts(40, 12),
        "'It's' a well-known @user_name, (isn't it?) -- yes*",
        "a  b\n\nc\td",
        "naïve café 3.5 %",
    ]:
        parts, other = Text(text), AttackedText(text)
        assert parts.words == other.words
        for at in range(len(parts.words)):
            assert parts.without(parts.words, at) == other.delete_word_at_index(at).text
            assert (
                parts.written([*parts.words[:at], "X", *parts.words[at + 1 :]])
                == other.replace_word_at_index(at, "X").text
            )


@pytest.mark.parametrize("budget", [10_000, 37])
def test_pwws_gives_the_same_texts_by_as_many_queries(textattack, tmp_path, budget):
    lexicons = Lexicons(WordNet(str(wordnet_table(tmp_path))), None, stop_words(), 0, -1)
    fake = FakeModel(path="1")
    same = 0
    for text in texts(40, 14):
        for threshold in (1.0, 9.0):

            def reward(one, text=text):
                return fake.rewards([text], [[one]])[0][0]

            attempt, ended = ours("pwws", text, threshold, lexicons, reward, budget)
            best, queries, output = theirs(textattack, "pwws", text, threshold, lexicons, reward, budget)
            assert (ended, attempt.queries) == (best, queries)
            same += best != text and output > threshold
    assert same > 5


def test_the_genetic_algorithm_succeeds_as_often(textattack, tmp_path):
    found = Lexicons(None, Vectors(str(vectors(tmp_path))), stop_words(), 5, -1)
    fake = FakeModel(path="2")
    mine = others = 0
    np.random.seed(0)
    for text in texts(25, 14):

        def reward(one, text=text):
            return fake.rewards([text], [[one]])[0][0]

        mine += reward(ours("ga", text, 1.6, found, reward, 300)[1]) > 1.6
        others += theirs(textattack, "ga", text, 1.6, found, reward, 300)[2] > 1.6
    assert others > 3 and abs(mine - others) <= 4
