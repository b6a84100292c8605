"""A second run on another processor: the same rows, with numbers that differ in rounding alone."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seamcurate.publish import reproduce as reproduction

NAN, INFINITE = float("nan"), float("inf")
PUBLISHED = pa.table(
    {
        "row_id": [0, 1, 2],
        "reward": [0.05, None, -0.08],
        "rule": ["kept", "kept", "lowest"],
        "rewards": [[0.5, None], None, []],
        "sets": [[{"response": "a", "similarity": 0.9}], [], None],
        "theirs": [NAN, INFINITE, 1.0],
    }
)


@pytest.mark.parametrize(
    ("column", "values", "verdict"),
    [
        ("reward", [0.05 + 6.7e-8, None, -0.08], "same up to rounding"),
        ("reward", [0.051, None, -0.08], "differs"),
        ("reward", [0.05, 0.0, -0.08], "differs"),
        ("reward", [0.05, None, float("nan")], "differs"),
        ("rule", ["kept", "lowest", "lowest"], "differs"),
        ("row_id", [0, 1, 3], "differs"),
        ("rewards", [[0.5 + 1e-7, None], None, []], "same up to rounding"),
        ("rewards", [[0.6, None], None, []], "differs"),
        ("rewards", [[0.5, 0.0], None, []], "differs"),
        ("rewards", [[0.5, None], [], []], "differs"),
        ("rewards", [[0.5], None, [None]], "differs"),
        ("sets", [[{"response": "a", "similarity": 0.9 + 1e-7}], [], None], "same up to rounding"),
        ("sets", [[{"response": "b", "similarity": 0.9}], [], None], "differs"),
        ("theirs", [NAN, INFINITE, 1.0 + 1e-7], "same up to rounding"),
        ("theirs", [NAN, -INFINITE, 1.0], "differs"),
        ("theirs", [0.0, INFINITE, 1.0], "differs"),
    ],
)
def test_rounding_is_told_apart_from_other_values(column, values, verdict, tmp_path):
    class Published:
        files: ClassVar = {"a.parquet": None}

        def fetch(self, name):
            pq.write_table(PUBLISHED, tmp_path / "published.parquet")
            return tmp_path / "published.parquet"

    table = PUBLISHED.set_column(PUBLISHED.column_names.index(column), column, pa.array(values))
    pq.write_table(table, tmp_path / "a.parquet")
    checked = reproduction._checked(Published(), tmp_path, "a.parquet")
    assert (checked.verdict, checked.note.startswith(f"other values in {column}")) == (verdict, True)
    done = reproduction.Reproduced("c" * 40, [checked], None)
    assert done.identical == (verdict != "differs")
    assert not reproduction.rounded(PUBLISHED, PUBLISHED.slice(1))


def test_equal_columns_with_nan_have_no_difference():
    same = PUBLISHED.set_column(5, "theirs", pa.chunked_array([[NAN], [INFINITE, 1.0]]))
    assert reproduction.difference(PUBLISHED, same) == ""
