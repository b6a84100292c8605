"""Reward models against people and against preferences, beside what length finds."""

from __future__ import annotations

import pyarrow as pa
import pytest

from seamcurate import FakeModel, study
from seamcurate.errors import StudyError


class Longest:
    """Rewards words: a reward model that is a simple baseline."""

    def rewards(self, prompts, responses):
        return [[float(len(text.split())) for text in group] for group in responses]


class Shortest:
    """Rewards fewer words, and nothing that says `long`: a window it does not fit."""

    def rewards(self, prompts, responses):
        return [[None if "long" in text else -float(len(text.split())) for text in group] for group in responses]


def pairs(labels, longer="a"):
    one, other = ("one two three four", "one two") if longer == "a" else ("one two", "one two three four")
    return pa.Table.from_pylist(
        [
            {"prompt": f"p{i}", "response_a": one, "response_b": other, "label": label, "source": "xy"[i % 2]}
            for i, label in enumerate(labels)
        ]
    )


@pytest.mark.slow
def test_mismatch_is_the_share_of_decided_pairs_judged_otherwise():
    found = study.mismatch(
        pairs(["a"] * 6 + ["b"] * 2 + ["tie"] * 3), rewards={"small": Longest(), "large": Shortest()}, by="source"
    )
    rows = {(row["reward"], row["subset"]): row for row in found.table.to_pylist()}
    assert rows["small", "all"]["mismatch"] == 0.25 and rows["large", "all"]["mismatch"] == 0.75
    assert rows["small", "all"]["pairs"] == 8 and rows["small", "x"]["pairs"] == 4
    # Wilson of 2 of 8
    assert rows["small", "all"]["mismatch_low"] == pytest.approx(0.0715, abs=1e-4)
    assert rows["length", "all"] == rows["small", "all"] | {"reward": "length", "kind": "ruler"}
    assert rows["repetition", "all"]["mismatch"] == rows["random", "all"]["mismatch"] == 0.5
    assert rows["random", "all"]["mismatch_low"] is None
    assert found.line.startswith("large disagrees with people on 75.0 % [") and "(3 ties left out)" in found.line
    assert "from small to large the mismatch" in found.line and "picking the longest does as well (75.0 %" in found.line


def test_mismatch_falls_when_people_like_what_the_model_likes():
    found = study.mismatch(pairs(["a"] * 20), rewards={"bad": Shortest(), "good": Longest()})
    assert found.line.startswith("good disagrees with people on 0.0 %")
    assert "from bad to good the mismatch falls (-100.0 points" in found.line


@pytest.mark.parametrize(
    "labels", [[1, 2, 2, 1], [1.0, 1.5, 2.0, 1.0], [1.0, 0.5, 0.0, 1.0], [0.9, 0.1, 0.4, 1.0], [0, 0, 0]]
)
def test_numbers_that_may_mean_either_answer_are_refused(labels):
    with pytest.raises(StudyError, match=r"mismatch: label holds [\d., ]+ and no number below 0, .* write a, b or tie"):
        study.mismatch(pairs(labels), rewards={"good": Longest()})


@pytest.mark.parametrize("labels", [[1, 1, 0], [1, 1, -1], [3, 0.5, -2], [3, 2, -1]])
def test_numbers_of_both_signs_or_of_0_and_1_are_read(labels):
    found = study.mismatch(pairs(labels), rewards={"good": Longest()})
    assert found.table["mismatch"].to_pylist()[0] == pytest.approx(1 / 3)


def test_mismatch_reads_verdicts_that_are_there():
    rows = [
        {"reward": name, "prompt_id": i, "human": human, "model": model}
        for name, verdicts in {"7B": "aaab", "70B": "aabb"}.items()
        for i, (human, model) in enumerate(zip(["a", "b", "tie", "b"], verdicts, strict=True))
    ]
    found = study.mismatch(pa.Table.from_pylist(rows))
    assert found.table.select(["reward", "pairs"]).to_pylist() == [
        {"reward": "7B", "pairs": 3},
        {"reward": "70B", "pairs": 3},
        # A coin needs no texts.
        {"reward": "random", "pairs": 3},
    ]
    assert found.table["mismatch"].to_pylist() == pytest.approx([1 / 3, 1 / 3, 1 / 2])
    assert found.line.endswith("; but chance is not told apart from it (50.0 % right)")
    signs = [row | {k: {"a": 1.5, "b": -2.0, "tie": 0.0}[row[k]] for k in ("human", "model")} for row in rows]
    assert study.mismatch(pa.Table.from_pylist(signs[::-1])).table["mismatch"].to_pylist() == pytest.approx(
        [1 / 3, 1 / 3, 1 / 2]
    )
    binary = [
        {"reward": "7B", "prompt_id": i, "human": h, "model": m}
        for i, (h, m) in enumerate(zip([1, 0, 0, 1], [1, 0, 1, 1], strict=True))
    ]
    assert study.mismatch(pa.Table.from_pylist(binary)).table["mismatch"].to_pylist() == [0.25, 0.5]
    with pytest.raises(StudyError, match="70B was asked about other pairs than 7B"):
        study.mismatch(pa.Table.from_pylist(rows[:-1]))


def test_pairs_of_one_prompt_count_together():
    found = study.mismatch(
        pairs(["a", "b"] * 10).set_column(0, "prompt", pa.array(["p"] * 20)), rewards={"r": Longest()}
    )
    row = found.table.to_pylist()[0]
    assert (row["pairs"], row["prompts"], row["mismatch_low"]) == (20, 1, None)


def preferences(longer_wins):
    long, short = "quite a bit more words", "few words"
    return pa.Table.from_pylist(
        [
            {
                "prompt": f"p{i}",
                "chosen": long if i < longer_wins else short,
                "rejected": short if i < longer_wins else long,
                "subset": "chat" if i < 10 else "hard",
            }
            for i in range(20)
        ]
    )


def test_preference_is_accuracy_by_subset():
    found = study.preference(preferences(12), rewards={"long": Longest(), "short": Shortest()})
    rows = {(row["reward"], row["subset"]): row["accuracy"] for row in found.table.to_pylist()}
    assert (rows["long", "all"], rows["long", "chat"], rows["long", "hard"]) == (0.6, 1.0, 0.2)
    assert (rows["short", "all"], rows["short", "hard"]) == (0.4, 0.8)
    assert (
        found.line.startswith("long prefers the chosen response on 60.0 % [") and "worst on hard, 20.0 %" in found.line
    )
    assert "but picking the longest does as well (60.0 %" in found.line
    flipped = study.preference(preferences(2), rewards={"long": Longest(), "short": Shortest()})
    assert flipped.line.startswith("short prefers the chosen response on 90.0 %") and "longest" not in flipped.line


def test_preference_reads_scores_that_are_there_and_rewards_that_do_not_fit_do_not_count():
    rows = [
        {"reward": "rer", "prompt_id": i, "score_chosen": c, "score_rejected": r}
        for i, (c, r) in enumerate([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (3.0, 2.0)])
    ]
    found = study.preference(pa.Table.from_pylist(rows))
    assert found.table["accuracy"].to_pylist() == [0.625, 0.5]
    table = preferences(20).set_column(1, "chosen", pa.array(["a long one"] * 5 + ["x"] * 15))
    found = study.preference(table, rewards={"short": Shortest()})
    assert found.table["pairs"].to_pylist()[0] == 15 and "of 15 pairs (5 without a reward left out)" in found.line


def test_a_model_that_answers_no_pair_and_no_model_at_all_are_errors():
    table = preferences(20).set_column(1, "chosen", pa.array(["long"] * 20))
    with pytest.raises(StudyError, match="short gave no pair a reward"):
        study.preference(table, rewards={"short": Shortest()})
    with pytest.raises(StudyError, match="no reward model; name one"):
        study.preference(table)
    with pytest.raises(StudyError, match="no pair is decided"):
        study.mismatch(pairs(["tie"]), rewards={"r": Longest()})
    with pytest.raises(StudyError, match="no column 'task' to divide by"):
        study.mismatch(pairs(["a", "b"]), rewards={"r": Longest()}, by="task")


def test_rer_judges_pairs_like_any_reward_model():
    reward = study.RerModel(FakeModel())
    table = pa.Table.from_pylist(
        [
            {
                "prompt": f"sort the list number {i}",
                "chosen": f"sort the list number {i}",
                "rejected": f"zebra {i} quux",
            }
            for i in range(8)
        ]
    )
    assert study.preference(table, rewards={"RER": reward}).table["accuracy"].to_pylist()[0] == 1.0
    scores = reward.rewards(["sort the list"], [["sort the list", ""]])[0]
    assert scores[0] > 0 and len(scores) == 2


def test_a_sample_of_rows_is_the_same_every_time():
    first = study.preference(preferences(12), rewards={"long": Longest()}, rows=8)
    again = study.preference(preferences(12), rewards={"long": Longest()}, rows=8)
    assert first.table.equals(again.table) and first.table["pairs"].to_pylist()[0] == 8


def test_models_that_never_judge_the_same_pair_are_not_compared():
    class Only(Longest):
        def __init__(self, word):
            self.word = word

        def rewards(self, prompts, responses):
            own = super().rewards(prompts, responses)
            return [[x if self.word in prompt else None for x in row] for prompt, row in zip(prompts, own, strict=True)]

    found = study.mismatch(pairs(["a"] * 12), rewards={"ones": Only("1"), "others": Only("2")}).line
    # p1, p10, p11 and p2
    assert found.startswith("others disagrees with people on 0.0 %") and "from ones to others" not in found


def test_scores_decide_whatever_other_columns_are_called():
    rows = [
        {"reward": "r", "prompt_id": i, "score_chosen": 1.0, "score_rejected": 0.0, "model": "b", "response_a": "x",
         "response_b": "y", "chosen": "a longer one", "rejected": "one"}
        for i in range(6)
    ]  # fmt: skip
    found = study.preference(pa.Table.from_pylist(rows), by="model").table.to_pylist()
    shares = {(row["reward"], row["subset"]): row["accuracy"] for row in found}
    assert shares["r", "all"] == shares["r", "b"] == shares["length", "all"] == 1.0
