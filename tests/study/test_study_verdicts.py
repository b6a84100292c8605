"""A pairwise judge behind a real endpoint: asked in both positions, never twice, and nothing made up where it is silent."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from endpoint import serving, status

from seamcurate import study
from seamcurate.errors import ModelError, StudyError
from seamcurate.study.verdicts import verdict

PROMPTS = [f"How do I sort list {i}?" for i in range(6)]


def answers(path: Path, text: str, count: int = 6, samples: int = 1) -> Path:
    rows = [
        {"prompt": prompt, "model": path.stem, "sample": sample, "response": f"{text} {i} {sample}"}
        for i, prompt in enumerate(PROMPTS[:count])
        for sample in range(samples)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def judge(folder: Path, url: str) -> Path:
    file = folder / "judge.yaml"
    file.write_text(f"{{openai_server: tiny, base_url: '{url}', retries: 1, max_tokens: 64}}\n")
    return file


def prefers(word: str):
    """Find the better answer by a word in it, whichever place it has; say nothing of list 5."""

    def answer(body: dict) -> str:
        text = body["messages"][-1]["content"]
        if "list 5" in text:
            return "I cannot say."
        first = text.split("Assistant A's Answer]")[1]
        return "Both sort, but [[C]]? No. [[A]]" if word in first else "[[B]]"

    return answer


@pytest.mark.slow
def test_a_judge_that_looks_at_the_answers_is_heard_in_both_positions_and_bought_once(tmp_path):
    own, base = (
        answers(tmp_path / "ppo.parquet", "good", samples=2),
        answers(tmp_path / "sft.parquet", "bad", samples=2),
    )
    with serving() as server:
        server.answer = prefers("good")
        named = study.read_judge(judge(tmp_path, server.url))
        assert study.compare([own], base, named, tmp_path / "v.parquet") == 4
        asked = len(server.requests)
        assert study.compare([own], base, named, tmp_path / "v.parquet") == 4 and len(server.requests) == asked == 24
    table = pq.read_table(tmp_path / "v.parquet").to_pylist()
    assert [(row["model"], row["position"]) for row in table[:2]] == [("ppo", "first"), ("ppo", "second")]
    assert {row["verdict"] for row in table[:20]} == {"win"}
    assert {(row["verdict"], row["reason"]) for row in table[20:]} == {(None, "stop: I cannot say.")}
    assert table[3]["response"] == "good 0 1" and table[3]["baseline_response"] == "bad 0 1"
    found = study.winrate(tmp_path / "v.parquet")
    assert found.table.to_pylist()[0]["win_rate"] == 1.0 and found.table.to_pylist()[0]["prompts"] == 10
    assert "; 2 prompts have no verdict" in found.line


def test_a_judge_that_likes_a_place_ends_even(tmp_path):
    own, base = answers(tmp_path / "ppo.parquet", "good"), answers(tmp_path / "sft.parquet", "bad")
    with serving() as server:
        server.answer = lambda body: "[[A]]"
        study.compare([own], base, study.read_judge(judge(tmp_path, server.url)), tmp_path / "v.parquet", rows=3)
    assert [row["verdict"] for row in pq.read_table(tmp_path / "v.parquet").to_pylist()] == ["win", "lose"] * 3
    row = study.winrate(tmp_path / "v.parquet").table.to_pylist()[0]
    assert (row["win_rate"], row["same_in_both_positions"], row["gain_of_first_position"]) == (0.5, 0.0, 1.0)


def test_faults_leave_no_verdict_and_what_cannot_be_compared_is_refused(tmp_path):
    own, base = answers(tmp_path / "ppo.parquet", "good"), answers(tmp_path / "sft.parquet", "bad")
    with serving() as server:
        server.answer = lambda body: "[[C]]"
        server.script = [status(500), status(500)]
        named = study.read_judge(judge(tmp_path, server.url)).model_copy(update={"concurrency": 1})
        assert study.compare([own], base, named, tmp_path / "v.parquet") == 1
        assert "500" in pq.read_table(tmp_path / "v.parquet")["reason"][0].as_py()
        server.script = [status(401, "bad key")] * 2
        with pytest.raises(ModelError):
            study.compare([answers(tmp_path / "x.parquet", "new")], base, named, tmp_path / "w.parquet")
        with pytest.raises(StudyError, match=r"sft2.parquet has no answer to 'How do I sort list 4\?' of ppo.parquet"):
            study.compare([own], answers(tmp_path / "sft2.parquet", "bad", 4), named, tmp_path / "w.parquet")
        asked = len(server.requests)
        with pytest.raises(StudyError, match="is a folder; name the Parquet file to write"):
            study.compare([own], base, named, tmp_path)
        assert len(server.requests) == asked
    assert not (tmp_path / "w.parquet").exists()
    (tmp_path / "no.yaml").write_text("{openai_server: [1]}")
    with pytest.raises(StudyError, match=r"no.yaml: .*; write it as \{openai_server: NAME, base_url: …\}"):
        study.read_judge(tmp_path / "no.yaml")
    with pytest.raises(StudyError, match=r"gone.yaml cannot be read"):
        study.read_judge(tmp_path / "gone.yaml")
    silent = pa.table(
        {"model": ["a"], "prompt_id": ["1"], "position": ["first"], "verdict": pa.array([None], pa.string())}
    )
    with pytest.raises(StudyError, match="the judge gave no verdict on any prompt"):
        study.winrate(silent)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[A]] … no, [[B]]", "B"),
        ("[[ C ]]", "C"),
        ("[[D]]", None),
        ("A", None),
        ("It is [[A]], not [[B]].", "A"),
        ("not [[A]]", None),
        ('{"explanation": "[[A]]?", "verdict": "B"}', "B"),
    ],
)
def test_the_last_verdict_counts(text, said):
    assert verdict(text) == said


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[1,", "[" * 5000, f"openai_server: {'9' * 5000}"], ids=["cut", "deep", "digits"])
def test_a_judges_file_that_no_yaml_reader_takes_is_told_in_one_line(tmp_path, text):
    (tmp_path / "judge.yaml").write_text(text)
    with pytest.raises(StudyError, match=r"judge.yaml cannot be read: ") as said:
        study.read_judge(tmp_path / "judge.yaml")
    assert "\n" not in str(said.value)
