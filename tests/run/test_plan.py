"""Plans: what a run would refuse is refused before anything is embedded, and nothing but its times is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from seamcurate import FakeModel, plan
from seamcurate.errors import ModelError, QueryError, RecipeError, StepError
from seamcurate.models import Sampling
from seamcurate.run.recipe import loads

TEXT = """\
rows: {jsonl: rows.jsonl, shard_rows: 4}
corpus: {jsonl: rows.jsonl}
models: {policy: {fake: p}, reward: {fake: r}, encoder: {fake: e}}
steps: [retrieve: {k: 3, band: [0.1, 0.99]}, seam: {k: 3}]
splits: {train: {filter: keep_above_lowest.sql, by: seam_contrast}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"how do I sort {i} lists", "response": f"by sort {i}"} for i in range(12)]
    # A column that only a late line has.
    rows[-1]["topic"] = "lists"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture
def without_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeModel, "embed", lambda *anything: pytest.fail("something was embedded"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            ("by: seam_contrast", "by: seam_contrst"),
            RecipeError,
            r"split train: by: 'seam_contrst' is no column of this store; .*; did you mean `seam_contrast`\?",
        ),
        (("filter: keep_above_lowest.sql, by: seam_contrast", "filter: SELECT row FROM rows"), QueryError, '"row" not'),
        (("by: seam_contrast", "by: seam_contrast, rte: 0.1"), RecipeError, "did you mean `rate`"),
        (("seam: {k: 3}]", "seam: {k: 3}, rip: {variant: gpt}]"), StepError, "reads column .worse_gpt., which neither"),
        (
            ("{fake: r}", "{sequence_classifier: models/gone/it}"),
            ModelError,
            "model folder models/gone/it is not there",
        ),
        (
            ("seam: {k: 3}]", "seam: {k: 3}, attack: {method: ga, vectors: gone.txt}]"),
            StepError,
            "lexicon gone.txt is not there",
        ),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_anything_is_embedded(
    change, error, message, folder, without_embedding
):
    recipe = loads(TEXT.replace(*change), folder)
    with pytest.raises(error, match=message) as refused:
        plan(recipe, str(folder / "store"))
    assert "\n" not in str(refused.value) and not (folder / "store").exists()


def test_a_model_is_looked_for_before_rows_are_counted(folder):
    (folder / "rows.jsonl").unlink()
    (folder / "weightless").mkdir()
    recipe = loads(TEXT.replace("{fake: p}", "{causal_lm: weightless}"), folder)
    with pytest.raises(ModelError, match=r"weightless holds no \.safetensors weights"):
        plan(recipe, str(folder / "store"))


def test_columns_that_come_late_or_were_made_by_another_recipe_may_be_asked_for(folder):
    from seamcurate import run_local

    asks = """by: seam_contrast}, late: {filter: "SELECT row_id FROM rows WHERE topic > ''"}"""
    late = TEXT.replace("by: seam_contrast}", asks)
    assert plan(loads(late, folder), str(folder / "store")).rows == 12
    run_local(loads("rows: {jsonl: rows.jsonl, shard_rows: 4}\nsteps: [random]\n", folder), folder / "store")
    other = TEXT.replace("by: seam_contrast", "by: baseline_random")
    assert plan(loads(other, folder), str(folder / "store")).rows == 12


SAMPLED = """\
rows: {jsonl: rows.jsonl, shard_rows: 4}
models: {policy: {fake: p}}
steps: [rollouts: {n: 5, max_tokens: 20}]
"""


def test_a_probe_tells_tokens_and_hours_of_sampling(folder):
    planned = plan(loads(SAMPLED, folder), folder / "store")
    (note,) = (note for note in planned.notes if note.startswith("worse_policy"))
    told = re.fullmatch(
        r"worse_policy: about 0 s here for (\S+) tokens if samples are as long as these; a probe of 10 samples "
        r"gave \S+ tokens a second",
        note,
    )
    assert told
    samples = FakeModel(path="p").samples([(f"how do I sort {i} lists", range(5)) for i in range(2)], Sampling())
    assert told[1] == f"{sum(sample.tokens for *_, sample in samples) / 10 * 5 * 12:,.0f}"


@pytest.mark.parametrize(
    ("text", "response", "expected"),
    [
        ("max_tokens: 2", "by sort", "tokens if samples are as long as these"),
        ("max_tokens: 200", "by sort", "tokens if samples are as long as the golden responses"),
        ("max_tokens: 200", "", "for 12,000 tokens at most"),
    ],
)
def test_answers_that_the_probe_cuts_are_taken_to_be_as_long_as_golden_ones(
    folder, monkeypatch, text, response, expected
):
    monkeypatch.setattr("seamcurate.run.speed._TOKENS", 2)
    rows = [{"prompt": f"how do I sort {i} lists", **({"response": response} if response else {})} for i in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    planned = plan(loads(SAMPLED.replace("max_tokens: 20", text), folder), folder / "store")
    assert any(expected in note for note in planned.notes)


def test_a_policy_that_cannot_be_timed_here_is_told_and_does_not_stop_the_plan(folder, monkeypatch):
    def refuse(self):
        raise ModelError("no memory")

    monkeypatch.setattr(FakeModel, "load_sampler", refuse)
    planned = plan(loads(SAMPLED, folder), folder / "store")
    assert "warning: worse_policy: how long it takes is not known: no memory" in planned.notes
