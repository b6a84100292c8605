"""The attacks held against TextAttack 0.3.11's own, where it is installed: `pip install "seamcurate[attack]"`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from lexicons import vectors, wordnet_table

from benchmarks.attack import offline, peer
from seamcurate import Attack, FakeModel
from seamcurate.contrast.lexicon import Vectors, WordNet
from seamcurate.contrast.searches import Attempt, Lexicons, Text, search
from seamcurate.contrast.similar import stop_words
from seamcurate.contrast.textattack import RECIPES, Peer
from seamcurate.models.protocols import Rating

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
def textattack():
    with offline():
        yield


def texts(count, longest):
    draw = random.Random(0)
    return [" ".join(draw.choices(VOCABULARY, k=draw.randint(4, longest))) for _ in range(count)]


def theirs(method, text, threshold, lexicons, reward, budget, embed=None, masked=None):
    attack = peer(method, lexicons, lambda texts: [reward(one) for one in texts], threshold, budget, embed, masked)
    found = attack.attack(text, 0).perturbed_result
    return found.attacked_text.text, attack.goal_function.num_queries, found.output


def ours(method, text, threshold, lexicons, reward, budget, embed=None, masked=None):
    attempt = Attempt(text, threshold, budget)
    asked = search(method, attempt, lexicons, 0)
    try:
        ask = next(asked)
        while True:
            if ask.kind == "words":
                ask = asked.send(masked.likely(ask.texts, [ask.span]))
            else:
                ask = asked.send(embed(ask.texts) if ask.kind == "embeddings" else [reward(one) for one in ask.texts])
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
            best, queries, output = theirs("pwws", text, threshold, lexicons, reward, budget)
            assert (ended, attempt.queries) == (best, queries)
            same += best != text and output > threshold
    assert same > 5


def test_textfooler_succeeds_on_the_same_texts_by_as_many_queries(textattack, tmp_path):
    lexicons = Lexicons(WordNet(str(wordnet_table(tmp_path))), Vectors(str(vectors(tmp_path))), stop_words(), 5, 0.97)
    fake = FakeModel(path="4")
    reached = kept_back = 0
    for text in texts(40, 30):

        def reward(one, text=text):
            return fake.rewards([text], [[one]])[0][0]

        attempt, ended = ours("textfooler", text, 1.7, lexicons, reward, 10_000, fake.embed)
        best, queries, output = theirs("textfooler", text, 1.7, lexicons, reward, 10_000, fake.embed)
        assert (reward(ended) > 1.7, attempt.queries) == (output > 1.7, queries)
        # Of several that reach the goal TextAttack returns the most similar, we the best rewarded.
        assert ended == best or (output > 1.7 and attempt.seen[best] <= attempt.seen[ended])
        reached += output > 1.7
        free = ours("textfooler", text, 1.7, lexicons._replace(min_similarity=-1), reward, 10_000, fake.embed)[0]
        kept_back += free.queries != attempt.queries
    assert reached > 5 and kept_back > 0


def test_the_genetic_algorithm_succeeds_as_often(textattack, tmp_path):
    found = Lexicons(None, Vectors(str(vectors(tmp_path))), stop_words(), 5, -1)
    fake = FakeModel(path="2")
    mine = others = 0
    np.random.seed(0)
    for text in texts(25, 14):

        def reward(one, text=text):
            return fake.rewards([text], [[one]])[0][0]

        mine += reward(ours("ga", text, 1.6, found, reward, 300)[1]) > 1.6
        others += theirs("ga", text, 1.6, found, reward, 300)[2] > 1.6
    assert others > 3 and abs(mine - others) <= 4


def test_bert_attack_gives_the_same_texts_by_as_many_queries(textattack, masked_folder):
    import torch

    from seamcurate.models.masked import MaskedModel

    masked = MaskedModel(str(masked_folder), 8)
    # TextAttack would write "[PAD]" into an answer where a model as small as this one expects it; we never do.
    with torch.no_grad():
        for bias in {masked.model.cls.predictions.bias, masked.model.cls.predictions.decoder.bias}:
            bias[masked.barred[: len(bias)]] = -100
    draw = random.Random(0)
    words = [word for word in masked.words if word.isalpha() and len(word) > 3]
    fake = FakeModel(path="5")
    reached = kept_back = 0
    for text in [" ".join(draw.choices(words, k=draw.randint(5, 20))) for _ in range(40)]:
        found = Lexicons(None, None, stop_words(), 8, 0.5)

        def reward(one, text=text):
            return fake.rewards([text], [[one]])[0][0]

        attempt, ended = ours("bert_attack", text, 1.8, found, reward, 10_000, fake.embed, masked)
        best, queries, output = theirs("bert_attack", text, 1.8, found, reward, 10_000, fake.embed, masked)
        # Of several that reach the goal TextAttack returns the most similar, we the best rewarded.
        assert (reward(ended) > 1.8, attempt.queries) == (output > 1.8, queries)
        assert ended == best or (output > 1.8 and attempt.seen[best] <= attempt.seen[ended])
        reached += output > 1.8
        free = ours("bert_attack", text, 1.8, found._replace(min_similarity=-1), reward, 10_000, fake.embed, masked)[0]
        kept_back += free.queries != attempt.queries
    assert 5 < reached < 40 and kept_back > 0


def test_the_environment_is_left_as_it_was(textattack):
    before = dict(os.environ)
    with offline():
        assert os.environ["TA_CACHE_DIR"]
    assert dict(os.environ) == before


# The step that runs TextAttack's own recipes.

RUNNING = [name for name, recipe in RECIPES.items() if recipe.refused is None]


def options(folder, recipe, masked_folder):
    wordnet_table(folder)
    given = {
        "wordnet": str(folder / "synonyms.parquet"),
        "vectors": str(vectors(folder)),
        "masked_model": str(masked_folder),
    }
    return {name: given[name] for name in RECIPES[recipe].needs}


def rows_of(count, longest=9):
    answers = texts(count, longest)
    return pa.table({"prompt": [f"What is {i}?" for i in range(count)], "response": answers[::-1], "worse": answers})


def step(recipe, folder, masked_folder, **further):
    fake = FakeModel(path="5")
    return Attack(
        **{
            "method": "textattack",
            "recipe": recipe,
            "start": "worse",
            "k": 5,
            "query_budget": 60,
            "reward": fake,
            "encoder": fake,
            **options(folder, recipe, masked_folder),
            **further,
        }
    )


def test_the_table_has_textattacks_recipes(textattack):
    from textattack.attack_args import ATTACK_RECIPE_NAMES

    assert set(RECIPES) == set(ATTACK_RECIPE_NAMES)


@pytest.mark.parametrize("recipe", RUNNING)
def test_every_recipe_meets_the_contract_without_a_download(tmp_path, masked_folder, recipe):
    # A model of 40 words finds no similar sentences: what is tested is that all parts run.
    attack = step(recipe, tmp_path, masked_folder, min_similarity=-1)
    rows = rows_of(8)
    table = attack.load(tmp_path)(rows)
    assert table.schema.names == attack.adds.names
    attacked = [row for row in table.to_pylist() if row["worse_adv"]]
    assert len(attacked) >= 4
    for row in attacked:
        found = [entry["response"] for entry in row["worse_adv"]]
        assert len(set(found)) == len(found) <= 5 and 1 <= row["queries_adv"] <= 60
        assert (len(found) < 5) == (row["reason_adv"] is not None) and min(row["edits_adv"]) >= 1
        assert row["hacked_adv"] == sorted(row["hacked_adv"], reverse=True)
    for row, answer, golden in zip(
        table.to_pylist(), rows["worse"].to_pylist(), rows["response"].to_pylist(), strict=True
    ):
        for entry, hacked in zip(row["worse_adv"] or [], row["hacked_adv"] or [], strict=True):
            prompt = f"What is {table.to_pylist().index(row)}?"
            ((reward, goal),) = attack.reward.rewards([prompt], [[entry["response"], golden]])
            assert hacked == (reward > goal) and entry["response"] not in (answer, golden)
            assert "[UNK]" not in entry["response"]


@pytest.mark.parametrize("recipe", ["deepwordbug", "textbugger", "leap"])
def test_a_row_repeats_whatever_stands_beside_it(tmp_path, masked_folder, recipe):
    attack = step(recipe, tmp_path, masked_folder).load(tmp_path)
    rows = rows_of(6)
    whole = attack(rows)
    random.seed(7)
    np.random.seed(7)
    alone = pa.concat_tables([attack(rows.slice(i, 1)) for i in range(6)])
    assert alone.equals(whole)
    # Nobody else's random numbers were drawn.
    assert random.random() == random.Random(7).random() and np.random.rand() == np.random.RandomState(7).rand()


def test_deepwordbug_is_textattacks_own_text_by_as_many_queries(textattack, tmp_path):
    from textattack.attack_recipes import DeepWordBugGao2018

    fake = FakeModel(path="3")
    recipe = Peer("deepwordbug", Lexicons(None, None, stop_words(), 0, -1), None)
    reached = 0
    for seed, text in enumerate(texts(20, 10)):

        def reward(one, text=text):
            return fake.rewards([text], [[one]])[0][0]

        attempt = Attempt(text, 1.7, 500)
        asked = recipe.search(attempt, seed)
        try:
            ask = next(asked)
            while True:
                ask = asked.send([reward(one) for one in ask.texts])
        except StopIteration as stopped:
            ended = stopped.value
        plain = peer(
            "pwws", Lexicons(None, None, stop_words(), 0, -1), lambda texts: [reward(one) for one in texts], 1.7, 500
        )
        built = DeepWordBugGao2018.build(plain.goal_function.model)
        built.goal_function = plain.goal_function
        own = type(built)(
            plain.goal_function,
            [*built.pre_transformation_constraints, *built.constraints],
            built.transformation,
            built.search_method,
        )
        random.seed(seed)
        np.random.seed(seed)
        result = own.attack(text, 0).perturbed_result
        assert (ended, attempt.queries) == (result.attacked_text.text, plain.goal_function.num_queries)
        reached += reward(ended) > 1.7
    assert reached > 5


def test_a_row_that_is_given_up_leaves_no_thread_behind(tmp_path, masked_folder):
    transform = step("deepwordbug", tmp_path, masked_folder, reward=FakeModel()).load(tmp_path)
    before = threading.active_count()
    assert transform(rows_of(3)).num_rows == 3 and threading.active_count() == before

    class Rewardless(FakeModel):
        def ratings(self, prompts, responses, columns):
            return [[Rating(None if len(group) > 1 else 1.0) for _ in group] for group in responses]

    lost = step("deepwordbug", tmp_path, masked_folder, reward=Rewardless()).load(tmp_path)(rows_of(3))
    assert set(lost["reason_adv"].to_pylist()) == {
        "a perturbed answer has no reward, or does not fit the reward model's window"
    }
    # No thread waits for an answer that never comes.
    assert threading.active_count() == before


@pytest.mark.slow
def test_textattack_is_imported_on_a_machine_without_its_data_and_repeats_in_another_process(tmp_path):
    code = """
import os, sys
from pathlib import Path
import nltk, pyarrow as pa
from seamcurate import Attack, FakeModel
nltk.data.path[:] = []
before = dict(os.environ)
fake = FakeModel(path="5")
step = Attack(method="textattack", recipe="deepwordbug", k=3, query_budget=60, reward=fake, encoder=fake)
made = step.load(Path())(pa.table({"prompt": ["p"], "response": ["quickly sort the ordered list, please"]}))
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
print(made["worse_adv"].to_pylist())
"""
    cache = tmp_path / "cache"
    environment = {**os.environ, "TA_CACHE_DIR": str(cache), "HOME": str(tmp_path), "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    fake = FakeModel(path="5")
    step = Attack(method="textattack", recipe="deepwordbug", k=3, query_budget=60, reward=fake, encoder=fake)
    here = step.load(tmp_path)(pa.table({"prompt": ["p"], "response": ["quickly sort the ordered list, please"]}))
    assert done.stdout == f"{here['worse_adv'].to_pylist()}\n" and done.stdout.count("response") == 3
    # It was not set up: somebody's own TextAttack still downloads what it wants.
    assert not (cache / "post_install_check_3").exists()


def test_the_step_leaves_the_environment_alone(tmp_path, masked_folder):
    before = dict(os.environ)
    attack = step("deepwordbug", tmp_path, masked_folder)
    attack.load(tmp_path)
    assert dict(os.environ) == before
    assert attack.identity()["textattack"] == importlib.metadata.version("textattack") == "0.3.11"
    assert attack.identity()["recipe"] == "deepwordbug"
