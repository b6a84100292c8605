"""The folder that an export is written to."""

from __future__ import annotations

from seamcurate import Recipe, Source, Split, Store, run_local
from seamcurate.publish.export import write_split


def test_an_export_to_a_linked_folder_is_written_where_the_link_leads(tmp_path):
    rows = Source(data=[{"prompt": "a", "response": "b"}])
    run_local(Recipe(rows=rows, splits={"s": Split(filter="SELECT row_id FROM rows")}), tmp_path / "store")
    (tmp_path / "disk" / "rows").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "rows")
    for trainer in ("trl", "nemo-rl", "trl"):
        done = write_split(trainer, Store(tmp_path / "store"), "s", tmp_path / "out")
        assert done.folder == tmp_path / "out" and (tmp_path / "out").is_symlink()
    written = sorted(str(file.relative_to(tmp_path / "disk")) for file in (tmp_path / "disk").rglob("*"))
    assert written == ["rows", "rows/train-00000-of-00001.parquet"]
