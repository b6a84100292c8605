"""Ensembles: combined rewards against hand-worked numbers, what is refused, and what members share."""

from __future__ import annotations

import datetime
import statistics

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from reward_wire import reward_serving

from seamcurate import FakeModel, RewardEnsemble, RewardServer, SequenceClassifier
from seamcurate.errors import ModelError
from seamcurate.models import RewardingModel
from seamcurate.models.backend import RewardConfig
from seamcurate.models.ensemble import combined, differs
from seamcurate.models.protocols import Rating, RewardModel

A, B, C = (FakeModel(path=name) for name in "abc")
PROMPTS, RESPONSES = ["p", "q", "r"], [["x", "y"], ["z"], []]


def rated(model, prompts=PROMPTS, responses=RESPONSES, columns=None):
    return model.load().ratings(prompts, responses, columns or {})


class Table(RewardConfig):
    """A reward model whose rewards are a table; NULL where it has none, with a reason. Its noise is its own."""

    key = "table"
    rewards_by_answer: dict[str, float]
    own_noise: float | None = None

    @property
    def title(self):
        return f"table {sorted(self.rewards_by_answer)}"

    def identity(self):
        return self.rewards_by_answer

    def count_tokens(self, texts):
        return 0

    def load(self):
        config = self

        class Loaded(RewardModel):
            def rewards(self, prompts, responses):
                return [[config.rewards_by_answer.get(answer) for answer in row] for row in responses]

            def ratings(self, prompts, responses, columns):
                return [
                    [Rating(value, None if value is not None else "not in the table") for value in row]
                    for row in self.rewards(prompts, responses)
                ]

            def noise(self, prompts, responses, columns):
                return None if config.own_noise is None else [config.own_noise]

        return Loaded()


def of(members, **settings):
    """An ensemble of members of any kind, as a kind of reward model that is added later would be."""
    return RewardEnsemble.model_construct(ensemble=tuple(members), **settings)


@pytest.mark.parametrize(
    ("combine", "golden", "expected"),
    [
        ("mean", None, 2.0),
        ("min", None, 1.0),
        ("mean", [9.0, 9.0], 2.0),
        ("worst-case", None, 2.0),
        # Margins 0.5 and -1: the first member misjudges, and the golden response's mean is 2.25.
        ("worst-case", [0.5, 4.0], 2.75),
    ],
)
def test_rewards_are_combined_as_worked_by_hand(combine, golden, expected):
    assert combined([1.0, 3.0], combine, golden) == expected


def test_the_worst_cases_misjudgement_is_the_largest_of_the_members():
    golden, worse = [0.3, -1.0, 2.0], [0.1, 0.5, 1.0]
    epsilon = combined(worse, "worst-case", golden) - combined(golden, "worst-case")
    assert epsilon == pytest.approx(max(w - g for w, g in zip(worse, golden, strict=True)))


def test_members_differ_where_some_prefer_the_worse_answer_and_some_do_not():
    assert differs([1, 1], [2, 0]) and differs([1, 1], [2, 1])
    assert not differs([1, 1], [2, 3]) and not differs([1, 1], [0, 1])
    assert differs([1, None], [2, 0]) is None


@pytest.mark.parametrize("combine", ["mean", "min"])
def test_an_ensembles_reward_is_made_of_its_members_own(combine):
    ensemble = RewardEnsemble(ensemble=(A, B, C), combine=combine, outputs=("c", 0))
    how = {"mean": statistics.fmean, "min": min}[combine]
    alone = [model.rewards(PROMPTS, RESPONSES) for model in (A, B, C)]
    for i, row in enumerate(rated(ensemble)):
        for j, rating in enumerate(row):
            members = [model[i][j] for model in alone]
            assert rating.reward == pytest.approx(how(members)) and rating.reason is None
            assert rating.members == tuple(members)
            assert rating.outputs == (pytest.approx(statistics.pstdev(members)), members[2], members[0])
    assert ensemble.output_names() == ("disagreement", "c", "a")
    assert ensemble.load().rewards(PROMPTS, RESPONSES) == [[r.reward for r in row] for row in rated(ensemble)]


def test_standardised_members_weigh_alike_whatever_their_scales():
    small = Table(rewards_by_answer={"x": 1.0, "y": 2.0, "z": 3.0})
    large = Table(rewards_by_answer={"x": 300.0, "y": 100.0, "z": 200.0, "w": 0.0})
    ensemble = of([small, large], combine="mean", normalise="standardise")
    scales = ensemble.measured(["p"] * 3, ["x", "y", "z"], {})
    assert [list(scale) for scale in scales] == [
        [2.0, pytest.approx(0.816497, abs=1e-6)],
        [200.0, pytest.approx(81.6497, abs=1e-4)],
    ]
    ((x, y, z, w),) = rated(ensemble.scaled(scales), ["p"], [["x", "y", "z", "w"]])
    unit = 1 / 0.8164966
    assert [r.reward for r in (x, y, z)] == pytest.approx([0.0, -unit / 2, unit / 2])
    assert x.members == pytest.approx((-unit, unit)) and x.outputs == (pytest.approx(unit),)
    assert w.reward is None and w.reason == f"{ensemble.member_names()[0]} gives none: not in the table"
    assert w.outputs == (None,) and w.members == (None, pytest.approx(-2 * unit))


def test_the_worst_case_compares_with_the_golden_responses_members():
    first, second = (Table(rewards_by_answer=dict(zip("gw", values, strict=True))) for values in ([1, 1.5], [4, 3]))
    ensemble = of([first, second], combine="worst-case")
    ((golden,),) = rated(ensemble, ["p"], [["g"]])
    assert golden.reward == 2.5 and golden.members == (1, 4)
    ((worse,),) = rated(ensemble, ["p"], [["w"]], {"reward_members": [golden.members]})
    assert worse.reward == 3.0
    ((alone,),) = rated(ensemble, ["p"], [["w"]], {"reward_members": [None]})
    assert alone.reward is None and alone.reason == "the golden response has no reward to compare with"


def test_noise_is_the_members_where_one_measures_its_own_and_else_left_to_the_step():
    quiet, noisy = Table(rewards_by_answer={"x": 1}), Table(rewards_by_answer={"x": 2}, own_noise=0.5)
    loud = Table(rewards_by_answer={"x": 3}, own_noise=2.0)

    def noise(members, scales=((0, 1), (0, 1)), **settings):
        ensemble = of(members, **settings).scaled(scales)
        return ensemble.load().noise(["p"], [["x"]], {"reward_members": [[1] * len(members)]})

    assert noise([quiet, quiet]) is None
    assert noise([quiet, noisy]) == [0.25, 0.5]
    assert noise([noisy, loud], combine="min", outputs="all") == [2.0, 2.0, 0.5, 2.0]
    assert noise([noisy, loud], scales=((0, 1), (0, 8)), combine="worst-case") == [0.5, 0.5]


@pytest.fixture(scope="module")
def heads(decoder_reward_folder, tmp_path_factory):
    """A tiny classifier with two heads."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("heads")
    torch.manual_seed(4)
    AutoModelForSequenceClassification.from_pretrained(
        decoder_reward_folder, num_labels=3, id2label={0: "kind", 1: "right", 2: "short"}, ignore_mismatched_sizes=True
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(decoder_reward_folder).save_pretrained(folder)
    return folder


def test_heads_of_one_model_are_loaded_and_read_once(heads, decoder_reward_folder, monkeypatch):
    kind, right = (
        SequenceClassifier(path=str(heads), dtype="float32", output=output, outputs=outputs)
        for output, outputs in (("kind", (2,)), (1, ()))
    )
    single = SequenceClassifier(path=str(decoder_reward_folder), dtype="float32")
    ensemble = RewardEnsemble(ensemble=(right, single, kind), normalise="standardise", outputs="all").scaled(
        [(0, 1), (0, 2), (1, 1)]
    )
    alone = [member.load().ratings(["sort"], [["use sort", "no"]], {}) for member in ensemble.ensemble]
    opened = []
    opening = SequenceClassifier.open_weights
    monkeypatch.setattr(SequenceClassifier, "open_weights", lambda self, *a: opened.append(self) or opening(self, *a))
    (row,) = rated(ensemble, ["sort"], [["use sort", "no"]])
    assert len(opened) == 2
    for j, rating in enumerate(row):
        r, s, k = (member[0][j] for member in alone)
        assert rating.reward == pytest.approx(statistics.fmean([r.reward, s.reward / 2, k.reward - 1]), abs=1e-4)
        assert rating.outputs[1:] == pytest.approx((r.reward, s.reward, k.reward, *k.outputs), abs=1e-4)
    folder = decoder_reward_folder.name
    names = [f"{heads.name}_1", folder, f"{heads.name}_kind"]
    assert ensemble.output_names() == tuple(
        name.lower().replace("-", "_") for name in ["disagreement", *names, f"{heads.name}_kind_short"]
    )
    assert [work.model.path for work in ensemble.work(3, 10)] == [str(heads), str(decoder_reward_folder)]


def test_heads_of_one_served_model_are_asked_for_together(heads):
    with reward_serving("vllm", heads) as at:
        shared = {"path": at.url, "api": "vllm", "model": "rm", "same_as": "itself", "tokenizer": str(heads)}
        ensemble = RewardEnsemble(ensemble=[RewardServer(**shared, output=output) for output in ("kind", "short")])
        model = ensemble.load()
        before = len(at.requests)
        (row,) = model.ratings(["sort"], [["use sort", "no"]], {})
        assert len(at.requests) == before + 1
    local = [SequenceClassifier(path=str(heads), dtype="float32", output=output) for output in ("kind", "short")]
    ((*alone,),) = zip(*(member.load().rewards(["sort"], [["use sort", "no"]]) for member in local), strict=True)
    assert [rating.members for rating in row] == [pytest.approx(pair, abs=1e-4) for pair in zip(*alone, strict=True)]
    assert ensemble.member_names() == ("rm_kind", "rm_short")
    assert len(ensemble.work(1, 1)) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ensemble": [A]}, "an ensemble has two members or more"),
        ({"ensemble": [A, B, A]}, "fake a is a member twice; list each member once"),
        (
            {"ensemble": [A, SequenceClassifier(path="org/rm")]},
            "may have different scales; say `normalise: standardise`",
        ),
        ({"ensemble": [A, B], "combine": "median"}, "Input should be 'mean', 'min' or 'worst-case'"),
        ({"ensemble": [A, B], "scales": [[0, 1]]}, "scales has 1 pairs for 2 members"),
        ({"ensemble": [A, B], "scales": [[0, 1], [0, 0]]}, "Input should be greater than 0"),
        ({"ensemble": [A, B], "scales": [[0, 1], [0, 1]], "normalise": "standardise"}, "leave one of the two out"),
        ({"ensemble": [A, {"ensemble": [A, B]}]}, "an ensemble has no ensembles as members"),
        ({"ensemble": {"fake": "a"}}, "ensemble is a list of reward models"),
    ],
)
def test_what_cannot_be_combined_is_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(RewardingModel).validate_python(settings)


def test_heads_of_one_model_share_a_scale_and_the_same_head_twice_is_refused(heads):
    def ensemble(*outputs, **settings):
        return RewardEnsemble(
            ensemble=[SequenceClassifier(path=str(heads), output=output) for output in outputs], **settings
        )

    assert ensemble("kind", "right").identity() == ensemble(0, 1).identity()
    with pytest.raises(ModelError, match="is a member of the ensemble twice"):
        ensemble("kind", 0).identity()
    with pytest.raises(ModelError, match="has no output kindness; it has: kind, right, short"):
        ensemble("kind", "kindness").identity()
    with pytest.raises(
        ModelError, match=r"ensemble of sequence_classifier .* has no output rm; it has: .*_kind, .*_right"
    ):
        ensemble("kind", "right", outputs=["rm"]).identity()


def test_what_decides_a_reward_is_the_fingerprint_and_nothing_else():
    def identity(**settings):
        return RewardEnsemble(ensemble=(A, B), **settings).identity()

    plain = {"ensemble": [A.identity(), B.identity()], "combine": "mean"}
    assert identity() == plain
    assert identity(combine="min") == plain | {"combine": "min"}
    assert identity(normalise="standardise") == plain | {"normalise": "standardise"}
    assert identity(scales=[[0, 1], [2, 3]]) == plain | {"scales": [[0.0, 1.0], [2.0, 3.0]]}
    assert identity(outputs=["b"]) == identity(outputs=[1]) == plain | {"outputs": [1]}
    written = RewardEnsemble(ensemble=(A, B), scales=[[0, 1], [2, 3]]).model_dump(mode="json", exclude_defaults=True)
    assert TypeAdapter(RewardingModel).validate_python(written).identity() == identity(scales=[[0, 1], [2, 3]])


def test_scales_that_were_not_measured_or_do_not_exist_are_told():
    ensemble = RewardEnsemble(ensemble=(A, B), normalise="standardise")
    with pytest.raises(ModelError, match="its scales are not measured here; give `scales"):
        ensemble.load()
    flat = of([Table(rewards_by_answer={"x": 1.0, "y": 1.0})] * 2, normalise="standardise")
    with pytest.raises(ModelError, match="has no two different rewards on 2 golden responses"):
        flat.measured(["p"] * 2, ["x", "y"], {})


def test_what_is_asked_of_models_is_asked_of_the_members():
    ensemble = RewardEnsemble(ensemble=(A, B))
    assert ensemble.dated(datetime.date(2026, 1, 31)) is ensemble
    assert ensemble.count_tokens(["two words", "one"]) == 6
    assert [part.title for part in ensemble.parts()] == ["ensemble of fake a, fake b", "fake a", "fake b"]
