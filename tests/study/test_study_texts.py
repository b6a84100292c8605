"""What responses look like, held against numbers worked by hand, and against nltk's BLEU where it is installed."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import study
from seamcurate.errors import StudyError
from seamcurate.study import texts

SUPERNI = Path(__file__).parents[3] / "shared" / "data" / "superni_test.parquet"


def test_repetition_is_the_share_of_four_grams_seen_before():
    # a b c d a b c d: abcd bcda cdab dabc abcd, one of five is a repeat
    assert texts.repetition("a b c d a b c d") == pytest.approx(0.2)
    assert texts.repetition("a b c") == 0.0 == texts.repetition("")


def test_bleu_of_a_worked_example():
    # Precisions 4/5, 2/4, 1/3, .1/2; lengths alike, so no penalty
    candidate, reference = ["the", "cat", "sat", "down", "there"], ["the", "cat", "sat", "on", "there"]
    expected = math.exp(sum(map(math.log, (4 / 5, 2 / 4, 1 / 3, 0.1 / 2))) / 4)
    assert texts.bleu(candidate, [reference]) == pytest.approx(expected)
    assert texts.bleu(["the", "cat"], [["the", "cat", "sat", "on", "there"]], n=2) == pytest.approx(math.exp(1 - 5 / 2))
    assert texts.bleu(["zebra"], [["cat"]]) == 0.0 and texts.bleu(reference, [reference]) == pytest.approx(1.0)


@pytest.mark.slow
def test_bleu_is_nltks():
    bleu_score = pytest.importorskip("nltk.translate.bleu_score", reason="nltk is not installed")
    smooth = bleu_score.SmoothingFunction().method1
    samples = ["the cat sat on the mat today", "a cat sat on a mat", "the dog sat on the mat today again"]
    split = [sample.split() for sample in samples]
    for i, one in enumerate(split):
        others = split[:i] + split[i + 1 :]
        assert texts.bleu(one, others) == pytest.approx(
            bleu_score.sentence_bleu(others, one, smoothing_function=smooth)
        )


def test_self_bleu_is_high_where_samples_are_alike():
    assert texts.self_bleu(["the very same words again"] * 3) == pytest.approx(1.0)
    assert texts.self_bleu(["one two three four", "five six seven eight"]) == 0.0


def answers(closed_alike):
    same, other = "it is always exactly this", "{} things vary quite {} lot {}"
    rows = []
    for i in range(12):
        kind = "closed" if i % 2 else "open"
        for k in range(3):
            alike = (kind == "closed") == closed_alike
            text = same if alike else other.format(*(f"w{i}{k}{j}" for j in range(3)))
            rows.append(
                {"prompt": f"p{i}", "query_type": kind, "response": text, "relevant_sentences": 0.5 + i % 2 / 2}
            )
    return pa.Table.from_pylist(rows)


@pytest.mark.slow
def test_responses_are_described_by_query_type():
    found = study.responses(answers(closed_alike=True))
    rows = {row["query_type"]: row for row in found.table.to_pylist()}
    assert list(rows) == ["all", "closed", "open"] and rows["all"]["responses"] == 36
    assert (rows["closed"]["words"], rows["open"]["words"], rows["all"]["words"]) == (5, 7, 6)
    assert rows["closed"]["self_bleu"] == pytest.approx(1.0) and rows["open"]["self_bleu"] < 0.2
    assert (rows["closed"]["relevant"], rows["open"]["relevant"]) == (1.0, 0.5)
    assert "Self-BLEU of closed queries 1.00 [1.00, 1.00] above that of open ones" in found.line
    assert found.line.startswith("responses: 6 [") and "75.0 % [" in found.line
    assert " below that of open ones" in study.responses(answers(closed_alike=False)).line


@pytest.mark.slow
def test_responses_compare_models_and_read_stores(finished):
    rows = [{"model": m, "response": t} for m, t in (("LI", "a b c d " * 10), ("RER", "a b c d"))]
    found = study.responses(pa.Table.from_pylist(rows))
    assert found.table["repetition"].to_pylist() == pytest.approx([1 - 4 / 37, 0.0])
    assert found.line.startswith("LI: 40 words") and "; RER: 4 words" in found.line
    assert study.responses(finished).table["responses"].to_pylist()[0] == 40
    both = study.responses(finished, finished.path).table
    assert set(both["model"].to_pylist()) == {"store"} and both["responses"].to_pylist()[0] == 80
    with pytest.raises(StudyError, match="no row has a response"):
        study.responses(pa.table({"response": pa.array([None], pa.string())}))


def tasks(after):
    rows = []
    for i in range(20):
        reference = f"answer{i} is right here"
        for model, text in (("sft", reference), ("RER", after.format(i))):
            rows.append(
                {"model": model, "task": f"t{i % 2}", "instance_id": i, "input": "some other words entirely",
                 "references": [reference, "never"], "response": text}
            )  # fmt: skip
    return pa.Table.from_pylist(rows)


def test_the_tax_is_what_rouge_loses_against_the_baseline():
    found = study.tax(tasks("answer{} is wrong there"), baseline="sft")
    rows = {(row["model"], row["kind"]): row for row in found.table.to_pylist()}
    # LCS 2 of 4 and 4 words: F = .5
    assert rows["sft", "response"]["rouge_l"] == 100 and rows["RER", "response"]["rouge_l"] == pytest.approx(50)
    assert rows["RER", "response"]["tax"] == pytest.approx(50) and rows["RER", "echo"]["rouge_l"] == 0
    # Another instance's answer shares `is` alone
    assert rows["RER", "other"]["rouge_l"] == pytest.approx(25)
    assert found.line == "against sft at 100.0 [100.0, 100.0] ROUGE-L the tax is RER +50.0 [+50.0, +50.0]: RER pays"
    assert study.tax(tasks("answer{} is right here"), baseline="sft").line.endswith("+0.0]: not told apart from none")
    assert (
        "the tax is sft -50.0 [-50.0, -50.0]: sft gains"
        in study.tax(tasks("answer{} is wrong there"), baseline="RER").line
    )


def test_answers_that_do_not_depend_on_the_question_are_found_out():
    table = tasks("is right here")
    line = study.tax(table.filter(pa.compute.equal(table["model"], "RER"))).line
    assert "; but the answer to another instance does as well" in line and "echoing" not in line


def test_models_answer_the_same_instances_or_are_not_compared():
    table = tasks("x")
    with pytest.raises(StudyError, match="no row is of the baseline 'base'; there are sft, RER"):
        study.tax(table, baseline="base")
    with pytest.raises(StudyError, match="answered 20 and 19 instances; add `instance_id`"):
        study.tax(table.drop_columns(["instance_id"]).slice(0, 39), baseline="sft")
    with pytest.raises(StudyError, match="row 0 has no reference"):
        study.tax(pa.table({"references": [[]], "response": ["x"]}))


@pytest.mark.skipif(not SUPERNI.is_file(), reason="no Super-NaturalInstructions slice beside the project")
def test_real_tasks_are_perfect_by_their_references_and_poor_by_their_inputs():
    table = pq.read_table(SUPERNI).slice(0, 60)
    first = pa.array([some[0] for some in table["references"].to_pylist()])
    perfect = study.tax(table.append_column("response", first)).table.to_pylist()[0]["rouge_l"]
    poor = study.tax(table.append_column("response", table["input"])).table.to_pylist()[0]["rouge_l"]
    # A reference without a letter or digit has no word for ROUGE
    assert perfect > 95 > 40 > poor


def test_an_only_instance_of_a_task_has_no_other_answer():
    table = tasks("answer{} is wrong there")
    one = table.append_column("no", pa.array(range(40))).set_column(1, "task", pa.array([f"t{i}" for i in range(40)]))
    assert set(study.tax(one).table["kind"].to_pylist()) == {"response", "echo"}
    some = pa.array([f"t{i // 4}" if i < 8 else f"u{i}" for i in range(40)])
    rows = {
        (r["model"], r["kind"]): r["instances"] for r in study.tax(table.set_column(1, "task", some)).table.to_pylist()
    }
    assert rows["RER", "other"] == 4 and rows["RER", "response"] == 20


def test_a_baseline_alone_costs_nothing_and_is_refused():
    table = tasks("x")
    with pytest.raises(StudyError, match="all rows are of the baseline 'sft'"):
        study.tax(table.filter(pa.compute.equal(table["model"], "sft")), baseline="sft")


def test_queries_of_a_kind_that_was_answered_once_are_not_compared_by_self_bleu():
    rows = [{"prompt": f"p{i}", "query_type": "open" if i % 2 else "closed", "response": "a b c d"} for i in range(8)]
    line = study.responses(pa.Table.from_pylist(rows + [row for row in rows if row["query_type"] == "open"])).line
    assert "nan" not in line and "Self-BLEU 1.00" in line
