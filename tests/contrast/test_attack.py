"""Adversarial answers: words and their substitutes, the searches, and the step over real models."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions
from hypothesis import given
from hypothesis import strategies as st
from lexicons import vectors, wordnet_files, wordnet_table
from pydantic import ValidationError

from seamcurate import (
    Attack,
    FakeModel,
    Models,
    Recipe,
    Reward,
    RewardEnsemble,
    RewardFunction,
    SentenceEncoder,
    SequenceClassifier,
    Source,
    Store,
    query,
    run_local,
    seam,
)
from seamcurate.contrast.attack import _edits
from seamcurate.contrast.lexicon import Vectors, WordNet
from seamcurate.contrast.searches import Attempt, Lexicons, Text, search
from seamcurate.contrast.similar import stop_words
from seamcurate.errors import ModelError, RecipeError, SeamcurateError, StepError


@given(st.text(max_size=80))
def test_a_text_is_its_words_and_what_stands_between(text):
    parts = Text(text)
    assert parts.written(parts.words) == text
    for at, word in enumerate(parts.words):
        start, end = parts.span(parts.words, at)
        assert text[start:end] == word


def test_words_keep_their_inner_marks_and_lose_the_outer_ones():
    text = Text("'It's' a well-known @user_name, (isn't it?) -- yes*")
    assert text.words == ["It's", "a", "well-known", "user_name", "isn't", "it", "yes"]
    assert text.without(text.words, 0) == "'' a well-known @user_name, (isn't it?) -- yes*"
    assert text.without(text.words, 1) == "'It's' well-known @user_name, (isn't it?) -- yes*"
    assert Text("one two three").without(["one", "two", "three"], 0) == "two three"
    assert Text("a, b c; d e").window(["a", "b", "c", "d", "e"], 2, 3) == "b c; d"
    assert Text("a, b c; d e").window(["a", "b", "c", "d", "e"], 4, 3) == "c; d e"


def test_wordnets_own_files_give_synonyms_forms_and_no_antonyms(tmp_path):
    words = WordNet(str(wordnet_files(tmp_path / "wordnet")))
    assert words.synonyms("Fast") == ["quick"] and words.antonyms("fast") == {"slow"} == words.antonyms("quick")
    assert words.synonyms("sorted") == ["order", "sort"] and words.synonyms("sorts") == ["order", "sort"]
    assert words.parts_of_speech("sorts") == {"v"} and words.parts_of_speech("lists") == {"n"}
    assert words.synonyms("unheard-of") == [] and words.parts_of_speech("unheard-of") == set()


def test_an_antonym_among_the_synonyms_is_left_out(tmp_path):
    table = wordnet_table(tmp_path)
    assert WordNet(str(table)).synonyms("fast") == ["quick", "rapid", "slow"]
    assert WordNet(str(table), str(tmp_path / "antonyms.parquet")).synonyms("fast") == ["quick", "rapid"]


def test_vectors_give_the_nearest_words_first(tmp_path):
    found = Vectors(str(vectors(tmp_path)))
    assert set(found.nearest("sort", 2)) == {"order", "arrange"} and found.nearest("unheard-of", 3) == []
    near = [found.cosine("sort", word) for word in found.nearest("sort", 5)]
    assert near == sorted(near, reverse=True) and found.cosine("sort", "unheard-of") is None


def answered(attempt, method, lexicons, reward, seed=0):
    """Run one search against a function of the text."""
    asked = search(method, attempt, lexicons, seed)
    try:
        ask = next(asked)
        while True:
            assert ask.kind == "rewards"
            ask = asked.send([reward(text) for text in ask.texts])
    except StopIteration:
        return attempt


def test_pwws_changes_the_weightiest_word_first_and_stops_at_the_goal(tmp_path):
    """By hand: [UNK] for `fast` costs most, so it is first; `rapid` is worth 2, `arrange` 1."""
    worth = {
        "sort": 0,
        "order": -1,
        "arrange": 1,
        "fast": 0.5,
        "quick": 0,
        "rapid": 2.5,
        "list": 0,
        "array": 0,
        "sequence": 0,
        "UNK": 0,
    }

    def reward(text):
        return sum(worth[word] for word in Text(text).words if word in worth)

    table = WordNet(str(wordnet_table(tmp_path)), str(tmp_path / "antonyms.parquet"))
    lexicons = Lexicons(table, None, stop_words(), 0, -1)
    attempt = answered(Attempt("sort the list, fast!", 2.0, 1000), "pwws", lexicons, reward)
    # 1 start, 3 probes, 2 synonyms for each of 3 words, then the 2 for `fast`, which reach 2.5.
    assert attempt.queries == 1 + 3 + 6 + 2
    assert max(attempt.seen, key=attempt.seen.get) == "sort the list, rapid!" and len(attempt.seen) == 6
    out_of_reach = answered(Attempt("sort the list, fast!", 99.0, 1000), "pwws", lexicons, reward)
    assert max(out_of_reach.seen, key=out_of_reach.seen.get) == "arrange the list, rapid!"
    short = answered(Attempt("sort the list, fast!", 99.0, 7), "pwws", lexicons, reward)
    assert short.queries == 7 and not any("UNK" in text for text in short.seen)


@pytest.mark.parametrize("method", ["textfooler", "ga"])
def test_neighbours_are_near_alike_and_few(tmp_path, method):
    lexicons = Lexicons(
        WordNet(str(wordnet_table(tmp_path)), str(tmp_path / "antonyms.parquet")),
        Vectors(str(vectors(tmp_path))),
        stop_words(),
        5,
        0.7,
    )
    attempt = answered(
        Attempt("Sort the list fast and keep the queue", 99.0, 500), method, lexicons, lambda text: len(text) % 7
    )
    assert attempt.seen
    changes = [
        (a, b) for text in attempt.seen for a, b in zip(attempt.original, Text(text).words, strict=True) if a != b
    ]
    assert ("Sort", "Order") in changes and all(
        lexicons.vectors.cosine(a.lower(), b.lower()) >= 0.5 for a, b in changes
    )
    if method == "ga":
        most = max(
            sum(a != b for a, b in zip(attempt.original, Text(text).words, strict=True)) for text in attempt.seen
        )
        assert most <= 2
        again = answered(
            Attempt("Sort the list fast and keep the queue", 99.0, 500), method, lexicons, lambda text: len(text) % 7
        )
        assert again.seen == attempt.seen


@pytest.fixture
def rows(tmp_path):
    table = [{"prompt": q["prompt"], "response": q["response"]} for q in questions(12)]
    table[3]["response"] = "the of and"
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
    wordnet_table(tmp_path)
    vectors(tmp_path)
    return tmp_path


def options(rows, method, masked_folder):
    return {
        "method": method,
        "wordnet": str(rows / "synonyms.parquet"),
        "antonyms": str(rows / "antonyms.parquet"),
        "vectors": str(rows / "vectors.txt"),
        "masked_model": str(masked_folder),
        "query_budget": 300,
    }


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pwws", "textfooler", "ga", "bert_attack"])
def test_every_attack_runs_on_real_models_and_meets_the_contract(
    rows, method, masked_folder, policy_folder, decoder_reward_folder, encoder_reward_folder
):
    from seamcurate import CausalLM

    models = Models(
        policy=CausalLM(path=str(policy_folder)),
        reward=SequenceClassifier(path=str(decoder_reward_folder)),
        encoder=SentenceEncoder(path=str(encoder_reward_folder), pooling="mean"),
    )
    attack = Attack(k=5, min_similarity=-1, **options(rows, method, masked_folder))
    recipe = Recipe(rows=Source(parquet=str(rows / "rows.parquet")), models=models, steps=(attack, *seam("adv")))
    report = run_local(recipe, rows / "store")
    found = query(Store(rows / "store"), "SELECT * FROM rows ORDER BY row_id").to_pylist()
    assert found[3]["worse_adv"] is None and found[3]["seam_adv"] is None
    assert found[3]["reason_adv"] == "the answer has no word that may be changed"
    made = [row for row in found if row["worse_adv"]]
    assert len(made) >= 8
    for row in made:
        texts = [one["response"] for one in row["worse_adv"]]
        assert len(set(texts)) == len(texts) <= 5 and row["response"] not in texts and row["queries_adv"] <= 300
        assert row["rewards_adv"] == sorted(row["rewards_adv"], reverse=True) or np.allclose(
            row["rewards_adv"], sorted(row["rewards_adv"], reverse=True), atol=1e-4
        )
        for hacked, edits, reward in zip(row["hacked_adv"], row["edits_adv"], row["rewards_adv"], strict=True):
            assert edits >= 1 and (hacked == (reward > row["reward"]) or abs(reward - row["reward"]) < 1e-4)
        assert (len(texts) < 5) == (row["reason_adv"] is not None)
        assert all(-1.001 <= one["similarity"] <= 1.001 for one in row["worse_adv"])
    assert any(line.startswith(f"worse_adv: {method} fooled the reward model on ") for line in report.lines)
    assert sum(any(row["hacked_adv"]) for row in made) >= 3


@pytest.mark.slow
def test_a_rows_attack_does_not_depend_on_the_rows_beside_it(rows, masked_folder, monkeypatch):
    fake = FakeModel(path="5")
    found = []
    for size in (1, 64):
        monkeypatch.setattr(Attack, "rows_per_call", size)
        recipe = Recipe(
            rows=Source(parquet=str(rows / "rows.parquet")),
            models=Models(reward=fake, encoder=fake),
            steps=(Attack(k=9, **options(rows, "ga", masked_folder)),),
        )
        run_local(recipe, rows / f"store-{size}")
        found.append(query(Store(rows / f"store-{size}"), "SELECT worse_adv, queries_adv FROM rows ORDER BY row_id"))
    assert found[0].equals(found[1])


def test_an_attack_on_an_ensemble_is_on_the_scales_of_its_golden_rewards(rows):
    ensemble = RewardEnsemble(
        ensemble=[FakeModel(path="a"), FakeModel(path="b")], combine="min", normalise="standardise"
    )
    attack = Attack(k=3, wordnet=str(rows / "synonyms.parquet"))
    recipe = Recipe(
        rows=Source(parquet=str(rows / "rows.parquet")),
        models=Models(reward=ensemble, encoder=FakeModel(), policy=FakeModel()),
        steps=(Reward(), attack, *seam("adv")),
    )
    run_local(recipe, rows / "store")
    found = query(Store(rows / "store"), "SELECT * FROM rows WHERE worse_adv IS NOT NULL").to_pylist()
    hacked = [
        (h, r > row["reward"]) for row in found for h, r in zip(row["hacked_adv"], row["rewards_adv"], strict=True)
    ]
    assert len(found) >= 8 and any(h for h, _ in hacked) and all(h == higher for h, higher in hacked)
    assert all(row["reward"] == min(row["reward_members"]) for row in found)


def test_what_is_perturbed_may_be_another_column_or_a_set(rows, tmp_path):
    table = pq.read_table(rows / "rows.parquet")
    table = table.append_column("rejected", pa.array([None, *["queue the fast list"] * 11]))
    pq.write_table(table, tmp_path / "more.parquet")
    fake = FakeModel(path="5")
    attack = Attack(k=3, start="rejected", wordnet=str(rows / "synonyms.parquet"))
    run_local(
        Recipe(
            rows=Source(parquet=str(tmp_path / "more.parquet")),
            models=Models(reward=fake, encoder=fake),
            steps=(attack,),
        ),
        tmp_path / "store",
    )
    first, second, *_ = query(Store(tmp_path / "store"), "SELECT * FROM rows ORDER BY row_id").to_pylist()
    assert first["worse_adv"] is None and first["reason_adv"] == "there is no answer in rejected to perturb"
    assert all(one["response"].split()[1] == "the" for one in second["worse_adv"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "pwws"}, "needs `wordnet`: give a folder with WordNet 3.0's files"),
        ({"method": "textfooler", "wordnet": "x"}, "needs `vectors`: give a text file"),
        ({"method": "ga"}, "needs `vectors`"),
        ({"method": "bert_attack"}, "needs `masked_model`"),
        ({"method": "textattack"}, "method textattack needs `recipe`: name one of bae, bert-attack, deepwordbug, iga"),
        ({"method": "textattack", "recipe": "deepwordbg"}, "; did you mean `deepwordbug`?"),
        ({"method": "textattack", "recipe": "hotflip"}, "cannot run here: it follows the gradients of a classifier"),
        ({"method": "textattack", "recipe": "leap"}, "textattack, recipe leap, needs `wordnet`: give a folder"),
        ({"method": "pwws", "recipe": "pwws", "wordnet": "x"}, "`recipe` is one of TextAttack's; give it with"),
    ],
)
def test_an_attack_says_what_it_needs_and_where_it_is_to_be_had(tmp_path, given, message):
    with pytest.raises(ValidationError) as caught:
        Attack(**given)
    assert message in caught.value.errors()[0]["msg"]
    (tmp_path / "recipe.yaml").write_text(f"rows: {{jsonl: x}}\nsteps:\n  - attack: {json.dumps(given)}\n")
    with pytest.raises(RecipeError) as refused:
        Recipe.load(tmp_path / "recipe.yaml")
    assert "recipe.yaml:3: steps[0].attack: " in str(refused.value) and message in str(refused.value)


@pytest.mark.skipif(importlib.util.find_spec("textattack") is not None, reason="TextAttack is installed")
def test_without_textattack_its_recipes_say_how_to_install_it(tmp_path):
    fake = FakeModel()
    step = Attack(method="textattack", recipe="deepwordbug", reward=fake, encoder=fake)
    for needs in (step.identity, lambda: step.load(tmp_path)):
        with pytest.raises(
            StepError, match=r'not installed; .*pip install .*\[attack\].*" .* needs transformers below 5$'
        ):
            needs()


def test_edits_are_words_replaced_put_in_and_left_out():
    words = ["sort", "the", "list", "fast"]
    assert _edits(words, ["order", "the", "list", "fast"], "pwws") == 1
    assert _edits(words, ["sort", "list", "fast"], "textattack") == 1
    assert _edits(words, ["please", "sort", "the", "queue", "fast", "now"], "textattack") == 3
    assert _edits(words, [], "textattack") == 4 == _edits([], words, "textattack")


def test_lexicons_that_cannot_be_read_are_one_line(tmp_path, masked_folder):
    (tmp_path / "vectors.txt").write_text("word one two\n")
    (tmp_path / "empty").mkdir()
    fake = FakeModel()
    for lacking in (
        {"method": "ga", "vectors": str(tmp_path / "vectors.txt")},
        {"method": "pwws", "wordnet": str(tmp_path / "empty")},
        {"method": "pwws", "wordnet": str(tmp_path / "vectors.txt")},
        {"method": "bert_attack", "masked_model": str(tmp_path / "empty")},
    ):
        with pytest.raises(SeamcurateError) as caught:
            Attack(reward=fake, encoder=fake, **lacking).load(tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(StepError, match="is not there"):
        Attack(wordnet=str(tmp_path / "nowhere")).identity()
    with pytest.raises(ModelError, match="no encoder"):
        Attack(reward=fake, wordnet=str(tmp_path)).load(tmp_path)


def test_of_rewards_of_0_and_1_an_attack_looks_for_answers_that_pass(tmp_path):
    table = wordnet_table(tmp_path)
    reward = RewardFunction(path="regex_match", arguments={"pattern": "quick|golden"})
    step = Attack(method="pwws", wordnet=str(table), start="worse", reward=reward, encoder=FakeModel(), k=3)
    rows = pa.table(
        {
            "prompt": ["p"] * 4,
            "response": ["golden", "golden", "fails", "golden"],
            "worse": ["sort the list, fast!", "sort the quick list", "sort the list, fast!", "sort the list"],
        }
    )
    made = step.load(tmp_path)(rows)
    assert made["already_adv"].to_pylist() == [False, True, None, False]
    assert made["reason_adv"].to_pylist()[2] == "the golden response fails the reward"
    first, second, _, last = made["hacked_adv"].to_pylist()
    texts = [entry["response"] for entry in made["worse_adv"].to_pylist()[0]]
    assert "quick" in texts[0] and first == ["quick" in text for text in texts]
    assert any(second) and not any(last)
