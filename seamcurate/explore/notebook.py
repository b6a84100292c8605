"""A store as a Python user holds it: frames, SQL, and what it shows of itself in a notebook.

One rule: what is shown is read from the shards at that moment, a few columns at most, and never written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from seamcurate import markup
from seamcurate.errors import SeamcurateError
from seamcurate.explore.inline import Explorer
from seamcurate.explore.session import numeric_columns, worst_end
from seamcurate.select import views
from seamcurate.select.answer import Answer
from seamcurate.select.ledger import Ledger
from seamcurate.select.ledger import read as read_ledger
from seamcurate.storage import shard
from seamcurate.store import scan, store
from seamcurate.store.folder import shard_files
from seamcurate.store.store import Column
from seamcurate.text import brief, clean, counted

if TYPE_CHECKING:
    import polars as pl

_WORST = 5
"""Rows that a store shows of itself."""


class Store(store.Store):
    """Open a store, or name the folder in which one is to be made.

    A store is what `run_local` writes: the rows of a source, and the columns that steps add to them. Nothing is read until
    a method asks for it, and nothing is written by reading. In a notebook a store shows its counts, its worst rows, its
    coverage and its warnings.

    Args:
        path: A folder, or `s3://bucket/prefix` (needs `seamcurate[s3]`; endpoint and keys come from the environment).

    Raises:
        StoreError: The path is another kind of address. Methods that read raise it where there is no store.
        DamagedError: A method reads a file that was altered after it was written.

    Example:
        >>> import tempfile
        >>> from seamcurate import FakeModel, Recipe, Reward, Source, Store, run_local
        >>> rows = [{"prompt": "2 + 2?", "response": "4"}, {"prompt": "3 + 3?", "response": "6"}]
        >>> recipe = Recipe(rows=Source(data=rows, response="response"), steps=[Reward(reward=FakeModel())])
        >>> folder = tempfile.mkdtemp()
        >>> report = run_local(recipe, folder)
        >>> store = Store(folder)
        >>> len(store)
        2
        >>> [column.name for column in store.columns()]
        ['row_id', 'prompt', 'response', 'reference', 'reward']
        >>> store.sql("SELECT row_id, prompt FROM rows ORDER BY row_id LIMIT 1").df()["prompt"].tolist()
        ['2 + 2?']
        >>> store.table(0, ["prompt", "reward"]).column_names  # one shard; the row's id comes first
        ['row_id', 'prompt', 'reward']
    """

    def scan(self) -> pl.LazyFrame:
        """Return the rows, joined with all columns that are up to date, as a lazy Polars frame.

        Only what the query needs is read: of a column that it does not name, no file is opened; a filter reads its own
        columns first, and others only for shards in which a row passes. What is not yet computed is NULL. Candidates come
        with their texts. Needs `seamcurate[polars]`.

        Raises:
            StoreError: There is no store, or Polars is not installed. Collecting raises it when a column changed since.
            DamagedError: Collecting met a shard that is not the file that was written.

        Example:
            >>> import polars as pl  # doctest: +SKIP
            >>> Store("my-store").scan().filter(pl.col("seam_contrast") < -1).select("prompt").collect()  # doctest: +SKIP
        """
        return scan.scan(self)

    def sql(self, query: str, seconds: float | None = None, memory: str | None = None) -> Answer:
        """Answer one SELECT over the views `rows`, `candidates`, `corpus`, `ledger` and `rejected`; see `query`.

        Args:
            query: The SELECT, in DuckDB's dialect. Nothing else on the machine can be read, and nothing can be written.
            seconds: The most seconds that the query may take; by default 600.
            memory: The most memory for DuckDB's buffers, such as "2GB"; by default most of the machine's memory.

        Returns:
            The answer: `.pl()`, `.df()`, `.arrow()` and `.to_dataset()` give it as Polars, pandas, pyarrow and `datasets`
            have it.

        Raises:
            QueryError: See `query`; so are StoreError and DamagedError.
        """
        return Answer(views.query(self, query, seconds, memory))

    def ledger(self, split: str) -> Ledger:
        """Return why each row of the source was kept or dropped by a split; it shows itself in a notebook.

        Args:
            split: The split's name.

        Raises:
            StoreError: There is no store, or no such split in it.
            DamagedError: The ledger is not the file that was written.
        """
        return read_ledger(self, split)

    def explore(self, height: int = 800) -> Explorer:
        """Show the score explorer in a notebook's cell, from a server on this machine that ends with the kernel.

        Args:
            height: The height of the cell in pixels.

        Raises:
            StoreError: There is no store, or the page was not built.
        """
        return Explorer(self, height)

    def __repr__(self) -> str:
        path = clean(str(self.path))
        try:
            if not self.about:
                return f"<Store {path}: no store yet>"
            parts = [counted(len(self), "row"), counted(len(self.columns()), "column")]
            splits = ", ".join(self.split_records())
            return f"<Store {path}: {', '.join(parts)}{f'; splits {splits}' if splits else ''}>"
        except SeamcurateError as error:
            return f"<Store {path}: {clean(str(error))}>"

    def _repr_html_(self) -> str:
        # An error would make the notebook show a traceback in the place of the store.
        try:
            return markup.block(*self._shown())
        except SeamcurateError as error:
            return markup.block(f"Store {self.path}", markup.lines([f"warning: {error}"]))

    def _shown(self) -> Iterator[str]:
        yield f"Store {self.path}"
        self.open()
        columns, corpus = self.columns(), self.corpus_store
        rejected = sum(shard.metadata(file).num_rows for file in shard_files(self.path / "rejected"))
        counts = [f"{counted(len(self), 'row')} in {counted(len(self.shards), 'shard')}, {rejected:,} set aside"]
        if corpus is not None and corpus.about:
            counts.append(f"corpus of {counted(len(corpus), 'row')}")
        counts += [line for folder in self.records() for line in self.findings(folder)]
        for name, record in self.split_records().items():
            counts.append(f"split {name}: {record['kept']:,} kept, {record['dropped']:,} dropped")
        yield markup.lines(counts)
        yield self._worst(columns)
        listed = [
            [
                c.name,
                brief(str(c.kind), 40),
                c.made_by,
                f"{c.done}/{c.shards}",
                f"OUT OF DATE: {c.stale}" if c.stale else c.meaning,
            ]
            for c in columns
        ]
        header = ["column", "type", "step", "shards", "meaning"]
        yield markup.details(counted(len(columns), "column"), markup.table(header, listed))

    def _worst(self, columns: list[Column]) -> str:
        """Show the rows with the worst values of the first column whose meaning says which end is bad."""
        scores = [column for column in numeric_columns(columns) if column.done and worst_end(column)]
        if not scores:
            return ""
        name, sign = scores[0].name, -1 if worst_end(scores[0]) == "high" else 1
        read = self.reader([name], partial=True)
        worst: list[tuple[float, int, int, int]] = []  # what sorts, row_id, shard, index in the shard
        for number in self.shards:
            rows = read(number)
            values = rows[name].cast(pa.float64()).to_pylist()
            ids = rows["row_id"].to_pylist()
            worst += [
                (sign * value, row_id, number, i)
                for i, (value, row_id) in enumerate(zip(values, ids, strict=True))
                if value is not None and math.isfinite(value)
            ]
            worst = sorted(worst)[:_WORST]
        read_texts = self.reader(["prompt", "response"])
        shown = []
        for value, row_id, number, i in worst:
            (texts,) = read_texts(number).slice(i, 1).to_pylist()
            shown.append([row_id, sign * value, *(_text(texts[column]) for column in ("prompt", "response"))])
        return markup.table(["row_id", name, "prompt", "response"], shown, f"Worst by {name}")


def _text(value: object) -> str:
    """Return a prompt as text: a chat's turns, one a line."""
    if isinstance(value, list):
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
    return "" if value is None else str(value)
