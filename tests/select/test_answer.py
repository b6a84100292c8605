"""The answer to a query: as Polars, pandas, Arrow and datasets have it, and as it shows itself."""

from __future__ import annotations

import datasets
import polars as pl
import pyarrow as pa
import pytest

from seamcurate.errors import QueryError
from seamcurate.select.answer import Answer

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e & 'x' \"y\""


def test_an_answer_is_a_frame_of_each_library(finished):
    answer = finished.sql("SELECT row_id, prompt, reward, sum(row_id) OVER () AS total FROM rows ORDER BY row_id")
    rows = answer.arrow().to_pylist()
    assert len(answer) == len(rows) == 40 and answer.columns == ["row_id", "prompt", "reward", "total"]
    assert answer.pl().to_dicts() == rows and answer.df().to_dict("records") == rows
    dataset = answer.to_dataset()
    assert isinstance(dataset, datasets.Dataset) and dataset.to_list() == rows
    # By the PyCapsule interface.
    assert pl.DataFrame(answer).to_dicts() == pa.table(answer).to_pylist() == rows


def test_a_store_is_only_read(finished):
    for query in ("DROP TABLE rows", "SELECT 1; SELECT 2", "COPY rows TO 'x.csv'", "SELECT * FROM 'pyproject.toml'"):
        with pytest.raises(QueryError):
            finished.sql(query)


def test_whole_numbers_stay_whole_beside_null():
    kinds = (pa.int64(), pa.uint64(), pa.int32())
    frame = Answer(pa.table({str(kind): pa.array([7, None], kind) for kind in kinds})).df()
    assert [str(kind) for kind in frame.dtypes] == ["Int64", "UInt64", "Int32"]
    assert Answer(pa.table({"x": [2**53 + 1, None]})).df()["x"].tolist()[0] == 2**53 + 1


@pytest.mark.parametrize("method", ["pl", "df", "to_dataset"])
def test_two_columns_of_one_name_are_refused_where_no_frame_has_them(method):
    answer = Answer(pa.table([[1], [2]], ["x", "x"]))
    with pytest.raises(QueryError, match="two columns called 'x'; give one another name with AS"):
        getattr(answer, method)()
    assert answer.arrow().num_columns == 2 and "x" in repr(answer)


def test_an_answer_shows_its_first_rows_and_escapes_them():
    answer = Answer(pa.table({"n": range(50), HOSTILE: [HOSTILE] * 50}))
    html, text = answer._repr_html_(), repr(answer)
    assert html.count("<tr>") == 21 and "50 rows, the first 20" in html and text.endswith("50 rows, the first 20")
    for shown in (html, text):
        assert "\x1b" not in shown and "\u202e" not in shown
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "\\x1b[31m" in text
