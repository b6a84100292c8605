"""Any study by name: what it writes, what its figures are made of, and what it says of input it cannot read."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import Store, study
from seamcurate.errors import ModelError, StudyError
from seamcurate.study import figure
from seamcurate.study.statistics import Interval

RUNS = [
    {"method": m, "seed": s, "quality": 0.5 + (0.1 + 0.001 * s) * (m == "seam") + 0.01 * s}
    for m in ("full", "seam")
    for s in range(3)
]


@pytest.mark.slow
def test_a_study_writes_table_two_figures_and_its_line(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text("\n".join(map(json.dumps, RUNS)))
    found = study.run("selection", [file], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "selection.parquet", "selection.png", "selection.svg", "selection.txt",
    ]  # fmt: skip
    assert pq.read_table(tmp_path / "out" / "selection.parquet").equals(found.table)
    assert (tmp_path / "out" / "selection.txt").read_text() == found.line + "\n"
    svg = (tmp_path / "out" / "selection.svg").read_text()
    # Text stays text, so that a page's own font and a reader's search reach it
    assert ">quality (gold measure)</text>" in svg and "p_holm" not in svg
    again = study.run("selection", [file], tmp_path / "again")
    for name in ("selection.png", "selection.svg"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert again.line == found.line


def test_sources_are_files_folders_and_tables_end_to_end(tmp_path):
    pq.write_table(pa.Table.from_pylist(RUNS[:3]), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(RUNS[3:]), tmp_path / "b.parquet")
    (tmp_path / "runs.csv").write_text(
        "\n".join(["method,seed,quality", *(f"{m},{s},{q}" for m, s, q in map(dict.values, RUNS))])
    )
    lines = {
        study.selection(tmp_path).line,
        study.selection(tmp_path / "a.parquet", pa.Table.from_pylist(RUNS[3:])).line,
        study.selection(pa.Table.from_pylist(RUNS)).line,
        study.selection(tmp_path / "runs.csv").line,
    }
    assert len(lines) == 1


@pytest.mark.slow
def test_options_reach_the_study_that_takes_them(finished):
    assert "above full" in study.run("selection", [pa.Table.from_pylist(RUNS)], baseline="full").line
    assert study.run("overlap", [finished, finished], rate=0.5).line.startswith("store (1) and store (2) share 100.0 %")
    with pytest.raises(StudyError, match="selection takes no rate; leave it out"):
        study.run("selection", [pa.Table.from_pylist(RUNS)], rate=0.5)
    with pytest.raises(StudyError, match="the rate is 0; it lies between 0 and 1"):
        study.run("overlap", [finished, finished], rate=0.0)
    with pytest.raises(StudyError, match="responses takes no max_tokens"):
        study.run("responses", [finished], max_tokens=9)
    with pytest.raises(StudyError, match="no study 'select'; there are saturation, mismatch"):
        study.run("select", [])


@pytest.mark.slow
def test_reward_models_are_named_after_their_folders(decoder_reward_folder, policy_folder, finished):
    rows = [{"prompt": f"sort {i}", "chosen": "sort the list", "rejected": "close a file"} for i in range(4)]
    found = study.run("preference", [pa.Table.from_pylist(rows)], rewards=[str(decoder_reward_folder)], max_tokens=64)
    assert found.table["reward"].to_pylist()[0] == decoder_reward_folder.name
    rows = study.run("likelihood", [finished], policy=str(policy_folder)).table.to_pylist()
    assert {row["set"] for row in rows} == {"golden", "contrast"}


@pytest.mark.parametrize("name", sorted(row.name for row in study.STUDIES))
def test_every_study_names_a_missing_column_and_an_empty_table_in_one_line(name, tmp_path):
    wrong = pa.table({"colour": ["red"]})
    with pytest.raises(StudyError) as error:
        study.find(name).run(wrong, wrong)
    assert "\n" not in str(error.value) and name in str(error.value)
    assert ("no column" in str(error.value) and "it has colour" in str(error.value)) or "is none" in str(error.value)
    with pytest.raises(StudyError) as error:
        study.find(name).run(pa.table({}), pa.table({}))
    assert "the table holds no rows" in str(error.value) or "the table is none" in str(error.value)
    with pytest.raises(StudyError, match=rf"{name}: .*nowhere\.parquet is no store, no file|nowhere\.parquet is none"):
        study.find(name).run(tmp_path / "nowhere.parquet", tmp_path / "nowhere.parquet")


def test_values_that_are_none_or_no_numbers_stop_a_study_at_their_row(tmp_path):
    for value, said in ((None, "None"), ("high", "'high'"), (float("nan"), "nan"), (True, "True")):
        table = pa.table({"method": ["full"], "seed": [0], "quality": [value]})
        with pytest.raises(StudyError, match=f"row 0 has quality = {said}"):
            study.selection(table)
    with pytest.raises(StudyError, match="row 1 has no 'method'"):
        study.selection(pa.table({"method": ["full", None], "seed": [0, 1], "quality": [0.1, 0.2]}))
    with pytest.raises(StudyError, match="two rows for method full, seed 0"):
        study.selection(pa.table({"method": ["full", "full"], "seed": [0, 0], "quality": [0.1, 0.2]}))
    with pytest.raises(StudyError, match="runs are of seam; two methods are compared"):
        study.selection(pa.table({"method": ["seam"], "seed": [0], "quality": [0.1]}))
    broken = tmp_path / "runs.jsonl"
    broken.write_text('{"method": ')
    with pytest.raises(StudyError, match=r"runs\.jsonl is no readable Parquet, JSONL or CSV file"):
        study.selection(broken)


def test_a_store_that_a_study_reads_as_rows_is_its_rows(finished):
    assert study.responses(Store(finished.path)).table.equals(study.responses(finished.path).table)


def test_drawing_leaves_matplotlibs_settings_alone_and_opens_no_window():
    import matplotlib

    def settings():
        # To read `backend` would choose one.
        return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}

    before = settings()
    some = [figure.Dot("a", Interval(0.5, 0.4, 0.6, 10)), figure.Dot("b", Interval(0.2, float("nan"), float("nan"), 1))]
    drawn = figure.dots({"one": some, "two": some[:1]}, "share (%)", "note", (0.5, "even"))
    assert settings() == before
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["one", "two"]
    assert drawn.axes[-1].get_xlabel() == "share (%)"


def test_a_heat_map_leaves_cells_without_runs_empty():
    curve = figure.Curve("", [0, 1], [Interval(0.1, 0.0, 0.2, 3), Interval(0.2, 0.1, 0.3, 3)])
    values = np.array([[0.1, 0.2], [0.3, np.nan]])
    sides = {"x": ("pairs", [curve]), "y": ("steps", [curve])}
    drawn = figure.heat(values, ["0", "9"], ["0", "50"], ("pairs", "steps", "quality", "q"), sides, "note")
    assert [text.get_text() for text in drawn.axes[0].texts] == ["0.10", "0.20", "0.30"]


def test_both_sides_of_a_heat_map_show_all_of_their_curves():
    for wide, narrow in (("policy", "reward"), ("reward", "policy")):
        rows = [
            {wide: i, narrow: j, "seed": s, "quality": 0.2 * i + 0.01 * j + 0.001 * s}
            for i in range(4)
            for j in range(4)
            for s in range(2)
        ]
        sides = study.saturation(pa.Table.from_pylist(rows)).figure.axes[1:3]
        assert sides[0].get_ylim() == sides[1].get_ylim()
        for axes in sides:
            [line] = axes.lines
            low, high = axes.get_ylim()
            assert low < min(line.get_ydata()) and max(line.get_ydata()) < high


def test_colours_can_be_told_apart_and_sizes_fit_a_page():
    assert len(set(figure.COLOURS)) == len(figure.COLOURS) >= 6
    drawn = figure.curves({"p": [figure.Curve("c", [0, 1], [Interval(0, 0, 0, 1)] * 2)]}, "x", "y", "n")
    assert drawn.get_size_inches()[0] <= 6.5


def test_a_library_that_is_not_installed_is_named_with_what_installs_it(monkeypatch):
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "rouge_score" else real(name))
    with pytest.raises(StudyError, match=r"needs rouge_score, which is not installed; .*pip install .*\[study\]"):
        study.selection(pa.Table.from_pylist(RUNS))


def test_a_file_where_the_figures_should_go_is_named_before_anything_is_measured(tmp_path):
    (tmp_path / "figures").write_text("mine")
    with pytest.raises(StudyError, match="figures is a file; name a folder"):
        study.run("selection", [tmp_path / "not read"], tmp_path / "figures")


def test_nothing_to_read_is_said():
    with pytest.raises(StudyError, match="got nothing to read"):
        study.run("selection", [])


def test_a_reward_models_folder_that_is_not_there_is_said_to_be_missing(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}), tmp_path / "p.parquet")
    for named in ("models/no/where", str(tmp_path / "gone"), "./gone", "a b"):
        with pytest.raises(ModelError, match=r"model folder .* is not there; give a folder"):
            study.run("preference", [tmp_path / "p.parquet"], rewards=[named])


def test_a_column_that_has_nothing_is_of_its_type_all_the_same(tmp_path):
    one = study.selection(pa.Table.from_pylist([row for row in RUNS if row["seed"] == 0])).table
    assert one.schema.equals(study.selection(pa.Table.from_pylist(RUNS)).table.schema) and one["p_holm"].null_count == 2
