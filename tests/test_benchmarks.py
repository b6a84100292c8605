"""The races run and compare answers; how fast they are is measured, never tested."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.race import race

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_every_name_has_a_race_and_a_line_in_the_readme():
    told = (FOLDER / "README.md").read_text()
    for name in NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        assert module.__doc__ and callable(module.main) and f"`{name}`" in told


def test_a_race_prints_one_line_and_refuses_answers_that_differ(capsys):
    race("b", "peer", lambda: 1, lambda: 1, lambda a, b: a == b, "some", 2)
    line = json.loads(capsys.readouterr().out)
    assert line["benchmark"] == "b" and line["against"] == "peer" and line["same"] is True
    assert {"ratio", "ours", "theirs", "unit", "wall", "setting"} <= set(line)
    with pytest.raises(SystemExit, match="the answers of seamcurate and of peer differ"):
        race("b", "peer", lambda: 1, lambda: 2, lambda a, b: a == b, "some", 1)
    assert json.loads(capsys.readouterr().out)["same"] is False


def test_rewards_of_packs_are_those_of_the_pipeline(capsys, monkeypatch):
    from benchmarks import inputs, rewards

    monkeypatch.setattr(inputs, "groups", lambda rows, count, *_: (["how?"], [["so", "or so", "no " * 9]]))
    rewards.main(0.1)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 8 and all(line["same"] for line in lines)


@pytest.mark.parametrize("name", ["split", "overhead", "contamination"])
def test_small_races_agree(name, capsys, monkeypatch):
    from benchmarks import inputs

    some = [(f"what is {i} for, and when is it used?", f"it is used for {i} things " * (1 + i % 3)) for i in range(400)]
    monkeypatch.setattr(inputs, "pairs", lambda: some)
    inputs.tokenizer.cache_clear()
    if name == "overhead":
        monkeypatch.setattr(inputs, "groups", lambda rows, count, *_: (["how?"], [[f"so {i}" for i in range(31)]]))
    importlib.import_module(f"benchmarks.{name}").main(0.01)
    inputs.tokenizer.cache_clear()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines and all(line["same"] for line in lines)


def test_costs_are_measured_part_by_part_and_gone_on_with_where_they_were_stopped(tmp_path, capsys, monkeypatch):
    from benchmarks import scaling

    monkeypatch.setattr(scaling, "LINES", tmp_path / "lines.jsonl")
    monkeypatch.setattr(scaling, "STORES", tmp_path / "stores")
    monkeypatch.setattr(scaling, "MODELS_UP_TO", 0)
    stopped = dict(scaling.FREE)
    monkeypatch.setattr(scaling, "FREE", {name: stopped[name] for name in ("ingest", "length")})
    monkeypatch.setattr(scaling, "PARTS", {**scaling.FREE, **scaling.MODELS})
    monkeypatch.setattr(scaling.shutil, "rmtree", lambda *_, **__: None)
    scaling.main(0.0003)
    first = scaling.lines()
    assert [line["part"] for line in first] == ["ingest", "length"] and all(line["rows"] == 300 for line in first)
    assert all(line["cpu_s"] > 0 and line["bytes_out"] > 0 and line["bytes_in"] > 0 for line in first)
    monkeypatch.setattr(scaling, "FREE", {name: stopped[name] for name in ("ingest", "length", "split")})
    scaling.main(0.0003)
    assert scaling.lines()[:2] == first and [line["part"] for line in scaling.lines()[2:]] == ["split"]


def test_the_tables_of_scaling_are_what_was_measured():
    from benchmarks import scaling

    assert scaling.tables() in scaling.REPORT.read_text()
