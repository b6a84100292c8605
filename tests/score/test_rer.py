"""RER's formulas against the exact checks, and its steps against what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seamcurate import (
    FakeModel,
    LengthIncentive,
    OtherRelevance,
    QueryRelevance,
    QueryType,
    ReferenceRelevance,
    RepetitionPenalty,
    Rer,
    rer,
)
from seamcurate.errors import StepError
from seamcurate.score.rer import cut, length_incentive, repetition_penalty, rer_closed, rer_open, rescale
from seamcurate.step import Averages
from seamcurate.words import split


@pytest.mark.parametrize(("text", "count"), [("Hello, world!", 4), ("It's 3.14 -- ok?", 9), ("", 0), ("¿Qué?", 3)])
def test_words_are_runs_of_letters_or_of_punctuation(text, count):
    assert len(split(text)) == count
    assert length_incentive(text) == count / 100


def test_whitespace_words_are_an_option():
    assert split("It's 3.14 -- ok?", "whitespace") == ["It's", "3.14", "--", "ok?"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b c a b c a b c", 3 / 7), ("the cat sat on the mat the cat sat on the mat", 0.6), ("a b", 1.0), ("", 1.0)],
)
def test_repetition_is_the_share_of_unique_trigrams(text, expected):
    assert repetition_penalty(text) == pytest.approx(expected)


@pytest.mark.parametrize(("relevance", "expected"), [(1, 1.462857), (3.5, 5.12), (4, 5.851429), (0, 0)])
def test_f_maps_contrievers_range_to_that_of_the_length_incentive(relevance, expected):
    assert rescale(relevance, 512) == pytest.approx(expected, abs=1e-6)


def test_f_clips_only_when_asked_and_knows_longer_answers():
    assert rescale(4, 512, clip=True) == 5.12
    assert rescale(-1, 512, clip=True) == 0
    assert rescale(3.5, 768) == pytest.approx(7.68)


def test_features_are_multiplied_or_summed():
    assert rer_open(2.0, 0.5, 0.8) == 0.8
    assert rer_open(2.0, 0.5, 0.8, "sum") == 3.3
    assert rer_closed(0.5, 1.5) == 0.75
    assert rer_closed(0.5, 1.5, "sum") == 2.0


def test_stop_strings_are_literal_and_the_first_one_cuts():
    assert cut("answer. Human: more ###", ("###", "Human:")) == "answer. "
    assert cut("a.b", (".*",)) == "a.b"


@pytest.mark.slow
@given(st.text(), st.text(min_size=1, max_size=3))
def test_cutting_never_leaves_the_stop_string(text, stop):
    assert stop not in cut(text, (stop,))


@given(st.text())
def test_repetition_lies_between_zero_and_one(text):
    assert 0 < repetition_penalty(text) <= 1


def column_of(step, **columns):
    return step.load(Path())(pa.table(columns))[step.adds.names[0]].to_pylist()


def test_text_features_are_columns_with_null_for_a_missing_response():
    responses = pa.array(["Hello, world!", None, "a b c a b c a b c STOP x"], pa.string())
    assert column_of(LengthIncentive(stop=("STOP",)), response=responses) == [0.04, None, 0.09]
    assert column_of(RepetitionPenalty(stop=("STOP",)), response=responses) == [1.0, None, pytest.approx(3 / 7)]


def test_stop_strings_cut_length_and_repetition_and_leave_the_relevances_whole():
    steps = {type(step): step for step in rer(encoder=FakeModel(), stop=("STOP",))}
    said = {"prompt": ["sort"], "reference": ["sort"], "response": ["a b STOP sort sort sort sort"]}
    assert column_of(steps[LengthIncentive], response=said["response"]) == [0.02]
    assert column_of(steps[RepetitionPenalty], response=said["response"]) == [1.0]
    for step in (QueryRelevance, ReferenceRelevance):
        assert column_of(steps[step], **said) == column_of(step(encoder=FakeModel()), **said)
    # Their values were the same before, where no stop string cut them.
    assert steps[QueryRelevance].identity()["stop"] == []


def test_other_relevance_is_the_median_over_other_questions_references(tmp_path):
    table = pa.table(
        {
            "row_id": range(5),
            "prompt": ["p", "P ", "q", "r", "s"],
            "reference": pa.array(["sort a list", "a list", "open files", None, "Open  files"], pa.string()),
            "response": pa.array(["sort", "sort", "open", "sort", None], pa.string()),
        }
    )

    class Data(Rows):
        def rows(self, columns):
            yield from (table.slice(i, 2).select(["row_id", *columns]) for i in range(0, 5, 2))

    step = OtherRelevance(encoder=FakeModel())
    step.prepare(Data(), tmp_path)
    made = step.load(tmp_path)(table)["rer_other_relevance"].to_pylist()

    def median(response, references):
        left, *right = FakeModel().embed([response, *references]).astype(float)
        return pytest.approx(float(np.median([left @ one for one in right])), abs=1e-6)

    files, lists = ["open files"] * 2, ["sort a list", "a list"]
    assert made == [median("sort", files), median("sort", files), median("open", lists), median("sort", lists + files), None]  # fmt: skip
    step.load(tmp_path)(table.slice(0, 0))
    alone = pa.table({"row_id": [3], "prompt": ["p"], "reference": ["a"], "response": ["b"]})
    (tmp_path / "others.json").write_text('[["p", "x"], ["q", "A"]]')
    assert step.load(tmp_path)(alone)["rer_other_relevance"].to_pylist() == [None]
    (tmp_path / "others.json").write_text('[["q", "x"]]')
    assert step.load(tmp_path)(alone)["rer_other_relevance"].null_count == 0
    (tmp_path / "measured.json").write_text("[0, 1, 2]")
    assert step.load(tmp_path)(alone)["rer_other_relevance"].to_pylist() == [None]


def test_no_embedding_is_planned_where_there_is_no_reference():
    step = ReferenceRelevance(encoder=FakeModel())
    planned = [step.works(Averages(10.0, 20.0, reference, 0.0, 0.0))[0][1:3] for reference in (0.0, 5.0)]
    assert planned == [(0, 0), (2, 25.0)]


def test_relevance_is_the_dot_product_and_null_without_a_reference():
    encoder = FakeModel()
    table = {"prompt": ["sort a list", "sort a list"], "response": ["sort a list", "open files"]}
    near, far = column_of(QueryRelevance(encoder=encoder), **table)
    assert near == pytest.approx(1, abs=1e-6) and abs(far) < 0.6
    answers = pa.array([None, "open files"], pa.string())
    assert column_of(ReferenceRelevance(encoder=encoder), reference=answers, response=table["response"]) == [
        None,
        pytest.approx(1, abs=1e-6),
    ]


FEATURES = {
    "rer_length": [1.0, 1.0, 1.0, 0.02],
    "rer_repetition": [0.5, 0.5, 0.5, 1.0],
    "rer_query_relevance": [0.8, 0.8, 0.8, 0.8],
    "rer_reference_relevance": pa.array([0.9, 3.5, None, 3.5], pa.float64()),
    "rer_other_relevance": pa.array([0.1, 0.5, 0.4, None], pa.float64()),
    "query_type": ["open", "closed", "closed", "closed"],
}


class Rows:
    def rows(self, columns):
        yield pa.table(FEATURES).select(list(columns))

    def corpus(self, columns):
        yield from ()


def rer_of(step, tmp_path):
    step.prepare(Rows(), tmp_path)
    return step.load(tmp_path)(pa.table(FEATURES))["rer"].to_pylist()


def test_open_rows_use_length_and_query_closed_rows_the_reference(tmp_path):
    assert rer_of(Rer(), tmp_path) == [0.4, pytest.approx(2.56), None, pytest.approx(5.12)]


def test_options_for_missing_references_and_short_answers(tmp_path):
    made = rer_of(Rer(fallback="query_relevance", min_tokens=3), tmp_path)
    assert made == [0.4, pytest.approx(2.56), pytest.approx(0.5 * rescale(0.8)), 0.0]


def test_f_is_fitted_from_answers_to_other_questions_to_the_golden_answers_best(tmp_path):
    step = Rer(fit="quantiles")
    made = rer_of(step, tmp_path)
    measured = json.loads((tmp_path / "range.json").read_text())
    assert measured["range"] == [0.4, pytest.approx(np.quantile([0.9, 3.5, 3.5], 0.99))]
    assert measured["zero"] == "median of other questions"
    assert made == [0.4, pytest.approx(0.5 * 5.12, rel=1e-6), None, pytest.approx(5.12)]
    assert step.reads_all_rows and not Rer().reads_all_rows
    assert "rer_other_relevance" in step.inputs and "rer_other_relevance" not in Rer().inputs
    assert [type(one) for one in rer(fit="quantiles")][4] is OtherRelevance
    assert OtherRelevance not in map(type, rer())


def test_cosines_under_the_papers_constants_are_warned_about(tmp_path):
    class Cosines(Rows):
        def rows(self, columns):
            yield pa.table({"rer_reference_relevance": [0.1, 0.9]})

    step = Rer()
    step.prepare(Cosines(), tmp_path)
    facts = step.facts([pa.table({"rer": pa.array([1.0, None], pa.float64())})], tmp_path)
    assert facts["null"] == 1
    assert [w.split(":")[1][:22] for w in facts["warnings"]] == [" AR lies in [-1, 1], a", " 1 row is NULL"]


@pytest.mark.parametrize(
    ("known", "others", "why"),
    [
        ([0.5, 0.5], [0.5, 0.5], "no nearer to their own references"),
        ([0.5, 0.5 + 1e-9], [0.5, 0.5], "no nearer to their own references"),
        ([0.5, 0.6], [0.9, 0.8], "no nearer to their own references"),
        ([0.5, 0.6], [None, None], "all rows have one question or one reference"),
        ([None, None], [None, None], "no row has a reference"),
    ],
)
def test_fitting_without_a_range_is_refused(tmp_path, known, others, why):
    class Same(Rows):
        def rows(self, columns):
            table = {"rer_reference_relevance": known, "rer_other_relevance": others}
            yield pa.table({name: pa.array(values, pa.float64()) for name, values in table.items()})

    with pytest.raises(StepError, match=rf"{why}.*, so `fit: quantiles`"):
        Rer(fit="quantiles").prepare(Same(), tmp_path)


def test_references_that_are_the_responses_themselves_have_a_range(tmp_path):
    class Golden(Rows):
        def rows(self, columns):
            yield pa.table({"rer_reference_relevance": [0.99999988, 1.0], "rer_other_relevance": [0.1, 0.2]})

    Rer(fit="quantiles").prepare(Golden(), tmp_path)
    assert json.loads((tmp_path / "range.json").read_text())["range"][0] == pytest.approx(0.15)


@pytest.mark.slow
def test_query_types_come_with_their_probability(tmp_path):
    step = QueryType(encoder=FakeModel())
    step.prepare(Rows(), tmp_path)
    made = step.load(tmp_path)(pa.table({"prompt": ["Write a poem about the sea", "What is 2 + 2?"]}))
    kinds, opens = made["query_type"].to_pylist(), made["query_type_open"].to_pylist()
    assert kinds == ["open" if p >= 0.5 else "closed" for p in opens]
    facts = step.facts([made], tmp_path)
    assert facts["open"] + facts["closed"] == 2 and 0 < facts["agreement_on_held_out_examples"] <= 1


class Damaged(FakeModel):
    """An encoder that has no finite embedding for texts with the word `copy` in them."""

    def embed(self, texts):
        vectors = super().embed(texts)
        vectors[["copy" in text for text in texts]] *= float("nan")
        return vectors


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_relevance_by_an_embedding_that_is_not_finite_is_null_and_told(tmp_path, capsys):
    rows = pa.table(
        {
            "prompt": ["how to copy", "how to sort", "how to open"],
            "reference": ["sort it", "copy it", None],
            "response": ["sort it", "sort it", "open it"],
        }
    )
    encoder = Damaged(path="encoder")
    for step, known in ((QueryRelevance, [False, True, True]), (ReferenceRelevance, [True, False, False])):
        made = step(encoder=encoder)
        (values,) = made.load(tmp_path)(rows).columns
        assert [value is not None for value in values.to_pylist()] == known
        assert f"warning: {made.name}: 1 row has an embedding that is not finite: NULL" in capsys.readouterr().err
    types = QueryType(encoder=encoder)
    types.prepare(None, tmp_path)
    found = types.load(tmp_path)(rows)
    assert [kind is None for kind in found["query_type"].to_pylist()] == [True, False, False]
    facts = types.facts([found], tmp_path)
    assert facts["open"] + facts["closed"] == 2 and facts["null"] == 1
    assert facts["warnings"] == ["1 row has an embedding that is not finite: query_type is NULL"]
