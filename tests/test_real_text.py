"""The measurement on real text: its pairs keep apart what they must, a tiny run is whole and resumable, its page is its files'."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.real_text import data, models, page, replies, training
from examples.real_text.data import Sizes
from examples.real_text.experiment import Work
from seamcurate import Store, query

TINY = Sizes(
    questions=24,
    prompts=24,
    minilm=(20, 60),
    words=(20, 60),
    smol=(20, 60),
    held_out=20,
    corpus=20,
    verdicts=20,
    candidates=3,
    sampled=24,
    samples=3,
    sample_tokens=8,
    written=0,
    written_more=0,
    attacked=24,
    queries=20,
    lora=(20, 60),
    ppo_updates=4,
    ppo_batch=4,
    ppo_tokens=6,
    ppo_held_out=6,
    ppo_seeds=(0, 1),
    longer_updates=4,
    longer_tokens=6,
    layers=2,
)
MEASURES, ENDS = ("gain", "above_length"), (("", 0.0), ("_low", -0.1), ("_high", 0.1))
TOPICS = ("tea", "bread", "bicycles", "maps", "rivers", "paint", "clocks", "birds", "soap", "lamps")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Return a folder with the four files, in which the longer answer has more votes, but for a fourth of them."""
    folder, draw = tmp_path_factory.mktemp("given"), random.Random(0)
    questions = [f"How do people use {a} with {b}?" for a, b in itertools.permutations(TOPICS, 2)]
    preferences: dict[str, list[dict[str, object]]] = {"preferences": [], "preferences_test": []}
    human = []
    for i, question in enumerate(questions):
        answers = [" ".join(draw.choices(TOPICS, k=n)) for n in (3, 6, 9, 12)]
        votes = draw.sample(range(4), 4) if i % 4 == 0 else list(range(4))
        for a, b in itertools.combinations(sorted(range(4), key=votes.__getitem__), 2):
            pair = {"prompt": question, "chosen": answers[b], "rejected": answers[a], "dataset": "stackexchange"}
            scores = {"score_chosen": votes[b], "score_rejected": votes[a], "n_human_turns": 1}
            preferences["preferences_test" if i % 5 == 0 else "preferences"].append({**pair, **scores})
            verdict = {"prompt": question, "response_a": answers[a], "response_b": answers[b], "label": "b"}
            source = ("qa-feedback", "pandalm-test", "tulu1-human-eval")[i % 3]
            human.append({**verdict, "source": source})
    corpus = [
        {"instruction": f"What of {t}, {u}?", "response": f"{t} and {u}", "source": "stackexchange"}
        for t, u in itertools.product(TOPICS, TOPICS)
    ]
    for name, rows in {**preferences, "human_pairs": human, "sft_corpus": corpus}.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    synonyms = [{"word": word, "pos": "n", "synonym": other} for word, other in itertools.permutations(TOPICS, 2)]
    (folder / "lexicons").mkdir()
    pq.write_table(pa.Table.from_pylist(synonyms), folder / "lexicons/wordnet30_synonyms.parquet")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Return the folder of a tiny policy with random weights."""
    from seamcurate.demo.corpus import untrained

    folder = tmp_path_factory.mktemp("start")
    rows = [{"prompt": f"What is {topic}?", "response": f"It is {topic}."} for topic in TOPICS]
    untrained(data.write(rows, folder / "rows.parquet"), folder / "model", vocabulary=300, width=48, layers=2)
    return folder / "model"


def test_texts_are_cut_after_words_and_keep_their_white_space():
    assert data.cut(" one  two\nthree", 2) == "one  two"
    assert data.cut("one", 2) == "one" and data.cut(" \n", 2) == ""


def test_golden_answers_are_not_among_the_judged_and_reward_models_see_no_judged_question(given):
    found = data.stackexchange(given, TINY)
    golden = {row["prompt"]: row["response"] for row in found.rows}
    assert len(golden) == TINY.questions
    assert all(entry["response"] != golden[entry["prompt"]] for entry in found.judged)
    votes = data.votes(given)
    assert all(max(votes[prompt].values()) == votes[prompt][answer] for prompt, answer in golden.items())
    training, held_out = data.preferences(given, TINY)
    assert training and held_out
    assert not {pair["prompt"] for pair in training + held_out} & set(golden)
    pairs = data.human(given, TINY)
    best = {row["prompt"]: row["response"] for row in pairs.rows}
    assert pairs.judged and all(best[p["prompt"]] not in (p["response_a"], p["response_b"]) for p in pairs.judged)
    assert {pair["source"] for pair in data.other_pairs(given, TINY)} == {"tulu1-human-eval"}


def test_fresh_rows_were_neither_judged_before_nor_trained_on(given):
    whole = TINY._replace(questions=1000, prompts=1000)
    for first, fresh, size in (
        (data.stackexchange, data.fresh_stackexchange, TINY.questions),
        (data.human, data.fresh_human, TINY.prompts),
    ):
        parts = [{row["prompt"] for row in part(given, TINY).rows} for part in (first, fresh)]
        assert len(parts[0]) == size and parts[1] and not parts[0] & parts[1]
        assert parts[1] <= {row["prompt"] for row in first(given, whole).rows}
    trained = {pair["prompt"] for pair in data.preferences(given, TINY)[0][: TINY.smol[-1]]}
    assert not trained & {row["prompt"] for row in data.fresh_stackexchange(given, TINY).rows}
    judged = {pair["prompt"] for pair in data.fresh_human(given, TINY).judged}
    assert judged == {row["prompt"] for row in data.fresh_human(given, TINY).rows}


def test_a_head_finds_the_direction_that_tells_the_chosen_answer():
    draw = np.random.default_rng(0)
    rejected = draw.normal(size=(200, 4))
    weights = models.head(rejected + np.array([1.0, 0, 0, 0]) + draw.normal(size=(200, 4)), rejected)
    assert weights[0] > 3 * np.abs(weights[1:]).max()


def test_the_best_by_gold_itself_gains_and_the_best_by_its_opposite_loses():
    draw = np.random.default_rng(1)
    gold = draw.normal(size=(40, 4)).tolist()
    against = [[-value for value in row] for row in gold]
    unknown = [[float("nan"), 0.0, 0.0, 0.0], *gold[1:]]
    proxies = {"li": draw.normal(size=(40, 4)).tolist(), "gold": gold, "against": against, "unknown": unknown}
    found = {row["proxy"]: row for row in replies.gains(proxies, {"gold": gold}, [4])}
    # The best of 4 normal values by themselves, drawn with replacement from 4, lies .8 of their spread above the mean.
    assert found["gold"]["gain"] == pytest.approx(0.85, abs=0.1)
    assert found["against"]["gain"] == pytest.approx(-found["gold"]["gain"], abs=0.1)
    assert found["li"]["gain_low"] < 0 < found["li"]["gain_high"] and found["li"]["above_length"] == 0
    assert {row["prompts"] for row in found.values()} == {39}


def test_a_golden_response_is_compared_at_the_samples_own_length():
    row = replies.Answered("q", "one two three four", "open", ["a b", "", "a b c d e f"])
    assert replies.shortened(row) == ["one two", "one", "one two three four"]
    found = replies.preferred([[1.0, 2.0], [3.0, 3.0], [0.0]], [[0.0, 3.0], [3.0, 1.0], [float("nan")]])
    assert found["prompts"] == 2 and found["right"] == 0.625


def test_a_trainer_gets_the_first_gold_and_the_others_are_kept_measurement_by_measurement():
    golds = training.Golds(
        {
            "words": lambda prompts, answers: [[float(len(a.split()))] for (a,) in answers],
            "letters": lambda prompts, answers: [[float(len(a))] for (a,) in answers],
        }
    )
    assert golds(["q", "q"], ["a b", "ccc"]) == [2.0, 1.0]
    golds(["q"], ["dddd"])
    golds(["q", "q", "q"], ["e", "f", "g h"])
    assert golds.means(1)[1] == {"words": 1.0, "letters": 4.0}
    # A measurement of two calls is the mean over its answers, not over its calls.
    assert golds.means(2) == [{"words": 4 / 3, "letters": 10 / 3}, {"words": 4 / 3, "letters": 5 / 3}]


def test_what_moved_is_the_mean_over_seeds_from_the_first_measurement_to_the_last():
    rows = [
        {"proxy": "rer", "gold": gold, "seed": seed, "checkpoint": step}
        | {"proxy_mean": seed + step, "gold_mean": sign * step, "length_mean": 5.0}
        for gold, sign in (("a", 1.0), ("b", -1.0))
        for seed in (0, 1)
        for step in (4, 0, 2)
    ]
    first, second = training.moved(rows)
    assert (first["gold"], first["seeds"], first["proxy_mean_first"], first["proxy_mean_last"]) == ("a", 2, 0.5, 4.5)
    assert (second["gold_mean_first"], second["gold_mean_last"], second["length_mean_last"]) == (0.0, -4.0, 5.0)


def test_judged_answers_without_a_reward_are_left_out_and_counted(tmp_path, monkeypatch):
    work, judged = Work(tmp_path, tmp_path, TINY), [{"prompt": p, "response": "x", "score": 1.0} for p in "abc"]
    rewards = [[(0.1, 0.2)], [(float("nan"), float("nan"))], [(0.3, 0.4)]]
    monkeypatch.setattr(work, "_rewards", lambda family, rows, sides: rewards)
    assert work._judge("stackexchange", "smol", judged) == 1
    kept = pq.read_table(work._judged_file("stackexchange", "smol-60")).to_pylist()
    assert [(row["prompt"], row["reward"]) for row in kept] == [("a", 0.2), ("c", 0.4)]


@pytest.mark.slow
def test_a_tiny_run_measures_every_piece_once_and_its_tables_are_drawn(given, start, tmp_path):
    work = Work(given, tmp_path, TINY, start)
    work.run([])
    files = {file.stem: file.read_text() for file in (tmp_path / "pieces").iterdir()}
    assert set(files) == set(work.sequence)
    pieces = {name: json.loads(text) for name, text in files.items()}
    found = {row["column"]: row for row in pieces["stackexchange-smol"]["validity"]["smol-60 uniform"]["table"]}
    assert {"seam_contrast", "reward", "baseline_reward_gap_contrast", "random"} <= set(found)
    # The product scores by the saved head what the head's features gave.
    stored = query(
        Store(tmp_path / "stackexchange/store-smol"), "SELECT prompt, response, reward_smol_60, reward FROM rows"
    ).to_pylist()
    features = models.features(tmp_path / "models/bare-smol", stored, ("response",))
    training, _ = data.preferences(given, TINY)
    known = models.features(tmp_path / "models/bare-smol", training, ("chosen", "rejected"))
    expected = features[:, 0] @ models.head(known[:60, 0], known[:60, 1])
    assert [row["reward"] for row in stored] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-3)
    assert [row["reward_smol_60"] for row in stored] == [row["reward"] for row in stored]
    work.run([])
    assert {file.stem: file.read_text() for file in (tmp_path / "pieces").iterdir()} == files
    (tmp_path / "pieces/mismatch-smol.json").unlink()
    work.run(["heads-smol"])
    assert not (tmp_path / "pieces/mismatch-smol.json").exists()
    assert all("|" in table(pieces) for table in (page.accuracy, page.best_of_n, page.seconds))
    assert all("smol-60" in table(pieces) for table in (page.own_answers, page.preferred, page.proxies, page.written))
    assert "RER" in page.optimised(pieces) and "→" in page.moved(pieces)
    assert "smol-60" in page.mismatch(pieces) and "`seam_contrast`" in page.validity(pieces, "stackexchange")
    assert "logprob" in page.weights(pieces, "human")
    # All rows of a set are those of its first part and the fresh ones.
    assert pieces["human-all-smol"]["rows"] == pieces["human-smol"]["rows"] + pieces["human-fresh-smol"]["rows"]
    assert "fresh rows | smol-60" in page.fresh(pieces) and "all rows | smol-60" in page.fresh(pieces)
    # Where a proxy chooses and where it is itself the measure, nothing is chosen by chance.
    found = pieces["human-policy"]["preferred"]
    assert [(row["reward"], row["golden"]) for row in found[-2:]] == [
        ("smol-60", "whole"),
        ("smol-60", "as long as the sample"),
    ]
    assert all(0 <= row["right"] <= 1 for row in found)
    assert {row["reward"] for row in pieces["human-preferred"]["preferred"]} >= {"words-60", "minilm-60", "lora-60"}
    gains = pieces["human-proxies"]["gains"]
    assert {(row["proxy"], row["gold"], row["n"]) for row in gains} == set(
        itertools.product(replies.PROXIES, ("smol-60", "words-60"), (2, 3))
    )


@pytest.mark.parametrize(
    ("aucs", "gain", "verdicts"),
    [
        ((0.70, 0.72), 0.4, ["shown", "shown", "shown", "refuted", "shown"]),
        ((0.51, 0.70), 0.0, ["not shown", "not shown", "shown", "refuted", "not shown"]),
        ((0.50, 0.51), -0.4, ["not shown", "refuted", "shown", "refuted", "not shown"]),
    ],
)
def test_rules_are_applied_as_the_protocol_says(aucs, gain, verdicts):
    def around(name: str, value: float, half: float) -> dict[str, float]:
        return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}

    pieces = {
        f"{name}-smol": {
            "validity": {
                f"{page.PRIMARY} uniform": {"table": [{"column": "seam_contrast", **around("auc", auc, 0.05)}]}
            }
        }
        for name, auc in zip(("stackexchange", "human"), aucs, strict=True)
    }
    wrong = [
        {"reward": f"smol-{n}", "kind": "model", "subset": "all", **around("mismatch", value, 0.01)}
        for n, value in ((100, 0.50), (400, 0.47), (800, 0.45))
    ]
    pieces["mismatch-smol"] = {"mismatch": {"table": wrong}}
    arms = [
        {"column": "all rows", "n": 1, "quality": 2.0},
        {"column": "all rows", "n": 2, "quality": 3.0},
        {"column": "seam_contrast", "n": 2, **around("above_random", gain, 0.1)},
    ]
    pieces["stackexchange-smol"]["best_of_n"] = {f"{page.PRIMARY} uniform": {"table": arms}}
    lines = page.decisions(pieces).splitlines()[2:]
    assert [line.split(" | ")[2] for line in lines] == [*verdicts, *["open"] * 10]


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [((0.2, 0.3, 0.2, 0.3), "shown"), ((0.2, 0.05, 0.2, 0.3), "not shown"), ((-0.2, -0.3, -0.2, -0.3), "refuted")],
)
def test_a_rule_on_rer_asks_for_every_set_and_both_golds(gains, verdict):
    pieces = {}
    for i, name in enumerate(("stackexchange", "human")):
        rows = [
            {"proxy": "rer", "gold": gold, "n": 4} | {f"{m}{end}": gain + step for end, step in ENDS for m in MEASURES}
            for gold, gain in zip(("smol-800", "words-3900"), gains[2 * i :], strict=False)
        ]
        pieces[f"{name}-proxies"] = {"gains": rows}
    lines = page.decisions(pieces).splitlines()[-5:]
    assert [line.split(" | ")[2] for line in lines] == [verdict] * 2 + ["open"] * 3
    del pieces["human-proxies"]
    assert [line.split(" | ")[2] for line in page.decisions(pieces).splitlines()[-5:]] == ["open"] * 5


@pytest.mark.parametrize(
    ("ranks", "verdict"), [((0.6, 0.7), "shown"), ((0.6, 0.1), "not shown"), ((-0.6, -0.7), "refuted")]
)
def test_the_rule_on_training_asks_for_both_golds(ranks, verdict):
    def study(rank: float) -> dict[str, object]:
        rows = [("rer", rank), ("li", 0.9)]
        return {
            "table": [
                {"proxy": proxy} | {f"spearman{end}": value + 3 * step for end, step in ENDS} for proxy, value in rows
            ]
        }

    trained = {"monotonicity": {f"gold {i}": study(rank) for i, rank in enumerate(ranks)}}
    for name, line in (("human-ppo", -3), ("human-longer-ppo", -1)):
        assert page.decisions({name: trained}).splitlines()[line].split(" | ")[2] == verdict


@pytest.mark.parametrize(("auc", "verdict"), [(0.62, "shown"), (0.55, "not shown"), (0.38, "refuted")])
def test_the_rule_on_fresh_rows_is_one_test(auc, verdict):
    row = {"column": "seam_contrast", "auc": auc, "auc_low": auc - 0.1, "auc_high": auc + 0.1}
    pieces = {"human-fresh-smol": {"validity": {f"{page.PRIMARY} uniform": {"table": [row]}}}}
    assert page.decisions(pieces).splitlines()[-2].split(" | ")[2] == verdict


def test_the_page_is_what_the_committed_files_say():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.read(page.RESULTS) and text == page.filled(text, page.read(page.RESULTS))
