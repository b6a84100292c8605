"""What a run says before it costs anything: what `--limit` rounds up to, and a fit for which there are no references."""

from __future__ import annotations

import pytest

from seamcurate import FakeModel, Models, Recipe, RepetitionPenalty, Source, plan, rer, run_local
from seamcurate.errors import StepError


def test_a_limit_tells_what_it_rounds_up_to(recipe, tmp_path, capsys):
    limited = recipe(steps=(RepetitionPenalty(),), splits={}, corpus=None)
    assert run_local(limited, tmp_path / "store", limit=16).rows == 30
    assert "--limit 16 takes up to 30 rows: they are computed by whole shards of 15; for" in capsys.readouterr().err
    run_local(limited, tmp_path / "store", limit=30)
    assert "--limit" not in capsys.readouterr().err


@pytest.mark.parametrize("ask", [run_local, plan])
def test_fitting_is_refused_before_it_costs_anything_where_the_source_has_no_references(ask, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 2?", "response": "4"}\n')
    models = Models(encoder=FakeModel())
    recipe = Recipe(rows=Source(jsonl=str(tmp_path / "rows.jsonl")), models=models, steps=rer(fit="quantiles"))
    with pytest.raises(
        StepError, match=r"^step rer_other_relevance: the source has no references, and .*`fit: paper`.*"
    ):
        ask(recipe, tmp_path / "store")
    assert not list(tmp_path.glob("store/columns/*/*.parquet"))
    assert run_local(recipe.model_copy(update={"steps": rer()}), tmp_path / "store").computed
