"""What `init` and `plan` embed: each text once, whoever asks; a run computes its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import questions

from seamcurate import Recipe, SentenceEncoder, init, plan, run_local
from seamcurate.run import sample_encoder
from seamcurate.run.sample_encoder import SampleEncoder

TEXTS = [row["prompt"] for row in questions(20)]


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    """The folder of the kept embeddings."""
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def embedded(monkeypatch) -> list[str]:
    """The texts that real encoders embed, in their order."""
    texts: list[str] = []
    load = SentenceEncoder.load

    def counting(self):
        encoder = load(self)
        embed = encoder.embed

        def count(batch):
            texts.extend(batch)
            return embed(batch)

        encoder.embed = count
        return encoder

    monkeypatch.setattr(SentenceEncoder, "load", counting)
    return texts


@pytest.fixture
def encoder(encoder_reward_folder) -> SentenceEncoder:
    return SentenceEncoder(path=str(encoder_reward_folder), pooling="mean")


@pytest.mark.slow
def test_what_init_embedded_plan_reads_and_a_run_is_the_same_without_either(
    tmp_path, encoder_reward_folder, embedded, kept, monkeypatch
):
    # The probe of a plan times models by having them work.
    monkeypatch.setattr("seamcurate.run.probe.Probe.duration", lambda *anything: None)
    for name, rows in (("rows", questions(40)), ("corpus", questions(60, start=1000))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = {"policy": "fake:p", "reward": "fake:r", "encoder": str(encoder_reward_folder)}
    draft = init(tmp_path / "rows.jsonl", tmp_path / "recipe.yaml", tmp_path / "corpus.jsonl", **models)
    assert len(embedded) == len(set(embedded)) == 100
    recipe = Recipe.load(draft.path)
    (note,) = (line for line in plan(recipe, tmp_path / "store").notes if line.startswith("band"))
    assert note == next(line for line in draft.lines if line.startswith("band")) and len(embedded) == 100
    run_local(recipe, tmp_path / "store")
    assert len(embedded) > 200
    for file in kept.iterdir():
        file.unlink()
    run_local(recipe, tmp_path / "other")
    assert _hashes(tmp_path / "store") == _hashes(tmp_path / "other")


def _hashes(store: Path) -> dict[str, str]:
    """Return the hashes of a store's columns, and of those of its corpus."""
    files = [file for folder in ("columns", "corpus/columns") for file in (store / folder).rglob("*.parquet")]
    assert files
    return {str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_vectors_that_are_kept_are_those_of_the_encoder(encoder, embedded):
    expected = encoder.load().embed(TEXTS)
    embedded.clear()
    for _ in range(2):
        vectors = SampleEncoder(encoder).embed([*TEXTS, TEXTS[0]])
        assert np.allclose(vectors, [*expected, expected[0]], atol=1e-5) and vectors.dtype == np.float32
    assert embedded == TEXTS
    assert SampleEncoder(encoder).embed([]).shape[0] == 0


def test_another_text_or_encoder_is_embedded(encoder, embedded, kept):
    SampleEncoder(encoder).embed(TEXTS[:10])
    SampleEncoder(encoder).embed(TEXTS[5:12])
    assert embedded == TEXTS[:12]
    other = encoder.model_copy(update={"max_tokens": 4})
    shorter = SampleEncoder(other).embed(TEXTS[:10])
    assert embedded[12:] == TEXTS[:10] and len([*kept.iterdir()]) == 2
    assert not np.allclose(shorter, SampleEncoder(encoder).embed(TEXTS[:10]), atol=1e-3)


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: content[:50] + b"x" + content[51:]])
def test_what_is_damaged_is_embedded_anew(encoder, embedded, kept, damage):
    expected = SampleEncoder(encoder).embed(TEXTS)
    (file,) = kept.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        assert (SampleEncoder(encoder).embed(TEXTS) == expected).all()
    assert embedded == 2 * TEXTS


def test_a_plan_that_is_stopped_keeps_what_it_embedded(encoder, embedded, monkeypatch):
    monkeypatch.setattr(sample_encoder, "_AT_ONCE", 4)

    def stop(*anything):
        raise KeyboardInterrupt

    stopped = SampleEncoder(encoder)
    monkeypatch.setattr(stopped, "_keep", lambda: SampleEncoder._keep(stopped) or len(embedded) < 8 or stop())
    with pytest.raises(KeyboardInterrupt):
        stopped.embed(TEXTS)
    SampleEncoder(encoder).embed(TEXTS)
    assert embedded == TEXTS


def test_the_latest_texts_of_the_latest_encoders_are_kept(encoder, embedded, kept, monkeypatch):
    monkeypatch.setattr(sample_encoder, "_TEXTS", 6)
    monkeypatch.setattr(sample_encoder, "_ENCODERS", 2)
    encoders = [encoder.model_copy(update={"max_tokens": length}) for length in (8, 9, 10)]
    for each in encoders:
        SampleEncoder(each).embed(TEXTS)
    assert len([*kept.iterdir()]) == 2 and len(embedded) == 60
    SampleEncoder(encoders[2]).embed(TEXTS[-6:])
    assert len(embedded) == 60
    SampleEncoder(encoders[2]).embed(TEXTS[:1])
    SampleEncoder(encoders[0]).embed(TEXTS[-1:])
    assert embedded[60:] == [TEXTS[0], TEXTS[-1]]


def test_a_folder_that_cannot_be_written_costs_time_alone(encoder, embedded, kept):
    kept.parent.mkdir()
    kept.write_text("a file in the folder's place")
    first, second = (SampleEncoder(encoder).embed(TEXTS) for _ in range(2))
    assert (first == second).all() and embedded == 2 * TEXTS


TOY = """
import json, sys
from seamcurate import FakeModel, SentenceEncoder
from seamcurate.run import sample_encoder

sample_encoder._AT_ONCE = 1
embedded = []

class Toy(SentenceEncoder):
    def identity(self):
        return "toy"

    def load(self):
        return self

    def embed(self, texts):
        embedded.extend(texts)
        return FakeModel(dimensions=4).embed(texts)

texts = json.loads(sys.argv[1])
assert (sample_encoder.SampleEncoder(Toy(path="toy")).embed(texts) == FakeModel(dimensions=4).embed(texts)).all()
print(len(embedded))
"""


def test_two_processes_at_once_both_have_every_vector(kept):
    def process(texts):
        return subprocess.Popen([sys.executable, "-c", TOY, json.dumps(texts)], stdout=subprocess.PIPE, text=True)

    both = [process(texts) for texts in (TEXTS[:12], TEXTS[8:])]
    assert [(one.wait(120), one.communicate()[0] != "") for one in both] == [(0, True), (0, True)]
    assert len([*kept.iterdir()]) == 1
    # The last to write has its own texts kept; those of the other may be embedded anew.
    last = process(TEXTS)
    assert int(last.communicate()[0]) <= 8 and last.returncode == 0


def test_only_this_user_may_read_what_is_kept(encoder, kept):
    SampleEncoder(encoder).embed(TEXTS)
    assert kept.stat().st_mode & 0o077 == 0
