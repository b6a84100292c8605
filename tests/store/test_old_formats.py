"""The promise about stores: this version reads what earlier ones wrote, in every format, and brings it up to date.

`formats/` holds a store of each format as the version that introduced it, or the last one before the next, wrote it: ten
rows, one rejected row, retrieval, SEAM, a feature of RER and a split, on models without weights.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from seamcurate import Store, query
from seamcurate.errors import StoreError
from seamcurate.explore import report
from seamcurate.run import recipe
from seamcurate.run.local import run_local
from seamcurate.select.why import why
from seamcurate.store.store import FORMAT

FORMATS = Path(__file__).parent / "formats"
FIGURES = """
SELECT count(*) AS rows, round(sum(seam_contrast), 9) AS seam, round(sum(rer_length), 9) AS length,
  (SELECT count(*) FROM rejected) AS rejected, (SELECT count(*) FILTER (NOT kept) FROM ledger) AS dropped,
  (SELECT round(sum(misjudgement), 9) FROM candidates) AS misjudgement
FROM rows
"""
EXPECTED = {
    "rows": 10,
    "seam": -2.453891707,
    "length": 0.6,
    "rejected": 1,
    "dropped": 2,
    "misjudgement": 20.83341907,
}


@pytest.fixture(params=range(1, FORMAT + 1))
def old(request, tmp_path):
    with tarfile.open(FORMATS / f"format{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    store = Store(tmp_path / "store")
    assert store.about["format"] == request.param
    return store


def test_every_earlier_format_is_queried_explained_and_reported(old, tmp_path):
    assert query(old, FIGURES).to_pylist() == [EXPECTED]
    assert "prompt is null" in "\n".join(map(str, why(old, 3)))
    report(old, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_every_earlier_format_is_brought_up_to_date_with_the_same_scores(old, tmp_path):
    run_local(recipe.load(tmp_path / "recipe.yaml"), old.path, replace=True)
    assert query(Store(old.path), FIGURES).to_pylist() == [EXPECTED]


def test_a_later_format_is_refused_in_one_line(old, monkeypatch):
    later = old.about | {"format": FORMAT + 1}
    monkeypatch.setattr("seamcurate.store.store.Store.about", property(lambda store: later))
    with pytest.raises(StoreError, match=rf"store has format {FORMAT + 1}; this seamcurate reads 1 to {FORMAT}$"):
        Store(old.path).open()


def test_there_is_a_store_of_every_format():
    assert sorted(file.name for file in FORMATS.iterdir()) == [f"format{n}.tar.gz" for n in range(1, FORMAT + 1)]
