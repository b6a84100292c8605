"""A study is one file and one row: this toy is added here, and the command line shows, checks and runs it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate import cli, study
from seamcurate.errors import StudyError
from seamcurate.study import figure, results, sources
from seamcurate.study.statistics import Interval, mean, shown

COLUMNS = {"method": "how the data were chosen", "quality": "mean over seeds"}


@dataclass(frozen=True)
class Best:
    """Mean quality by method, and the best one."""

    means: dict[str, Interval]
    method: str


def read(tables):
    table = sources.read("toy", tables, ["method", "seed", "quality"])
    return {method: list(by.values()) for (method,), by in sources.by_seed("toy", table, ["method"]).items()}


def measure(qualities):
    means = {method: mean(values) for method, values in qualities.items()}
    return Best(means, max(means, key=lambda method: means[method].estimate))


def toy(*tables, baseline: str = "full"):
    """Find the best method."""
    best = measure(read(tables))
    finding = f"{best.method} is best: {shown(best.means[best.method])}"
    table = results.tabulate(COLUMNS, {"method": list(best.means)}, {"quality": list(best.means.values())})
    dots = [figure.Dot(method, value, method == baseline) for method, value in best.means.items()]
    return results.result("toy", table, figure.dots({"Quality": dots}, "quality", "Means."), finding)


TOY = results.Study("toy", "which method is the best", "method, seed, quality", COLUMNS, toy)


@pytest.fixture(autouse=True)
def _added():
    study.STUDIES.append(TOY)
    yield
    study.STUDIES.remove(TOY)


@pytest.fixture
def runs(tmp_path):
    rows = [{"method": m, "seed": s, "quality": q + 0.1 * s} for m, q in (("full", 0.1), ("b", 0.5)) for s in range(3)]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "runs.jsonl"


def command(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Run `seamcurate study` and return its exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["seamcurate", "study", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_a_row_of_the_table_is_a_line_of_the_help(monkeypatch, capsys):
    code, shown_help, _ = command(monkeypatch, capsys, "--help")
    lines = " ".join(shown_help.split())
    assert code == 0 and "toy which method is the best (reads method, seed, quality)" in lines
    for row in study.STUDIES:
        assert f" {row.name} {row.meaning}" in lines, row.name


def test_a_row_of_the_table_runs_and_writes_its_files(monkeypatch, capsys, runs, tmp_path):
    code, printed, _ = command(monkeypatch, capsys, "toy", runs, "--baseline", "full", "--out", tmp_path / "out")
    assert code == 0 and printed.splitlines()[-1].startswith("b is best: 0.600 [")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "toy.parquet",
        "toy.png",
        "toy.svg",
        "toy.txt",
    ]
    table = pq.read_table(tmp_path / "out" / "toy.parquet")
    assert table.column_names == ["method", "quality", "quality_low", "quality_high"]
    assert table.schema.field("quality").metadata[b"meaning"] == b"mean over seeds"
    # The figure says by itself what it shows.
    assert "b is best: 0.600 [" in (tmp_path / "out" / "toy.svg").read_text()


def test_an_option_that_the_row_does_not_take_and_a_misspelt_name_are_refused(monkeypatch, capsys, runs):
    code, _, wrong = command(monkeypatch, capsys, "toy", runs, "--rate", "0.2")
    assert code == 2 and wrong == "error: toy takes no rate; leave it out\n"
    code, _, wrong = command(monkeypatch, capsys, "toys", runs)
    assert code == 2 and wrong.endswith("best-of-n, toy; did you mean `toy`?\n")


def test_what_a_study_measures_is_tested_without_files_or_figures():
    best = measure({"full": [0.1, 0.2, 0.3], "b": [0.5, 0.7]})
    assert best.method == "b" and best.means["full"] == mean([0.1, 0.2, 0.3])


@pytest.mark.parametrize("row", study.STUDIES, ids=lambda row: row.name)
def test_each_row_of_the_table_says_what_it_means_and_reads(row):
    assert row.meaning and row.reads and "\n" not in row.meaning + row.reads and len(row.meaning) < 100
    assert all(meaning.strip() for meaning in row.columns.values())
    assert study.find(row.name) is row
    # It names itself in what it says of sources it cannot read.
    with pytest.raises(StudyError, match=row.name):
        row.run(pa.table({"colour": ["red"]}), pa.table({"colour": ["red"]}))


def test_names_of_the_table_are_unique():
    names = [row.name for row in study.STUDIES]
    assert len(names) == len(set(names))
