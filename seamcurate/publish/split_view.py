"""A split as the trainers' SQL reads it: its columns, their exported names, and the rows that the split keeps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from seamcurate.errors import ExportError, StaleError
from seamcurate.models import CausalLM, PolicyModel, RewardFunction, RewardingModel, SequenceClassifier
from seamcurate.models.gguf_file import is_gguf
from seamcurate.publish import written
from seamcurate.publish.files import ROWS_PER_GROUP
from seamcurate.publish.formats import TRAINERS, Trainer, commands
from seamcurate.publish.shape import Function, Shape
from seamcurate.publish.snippet import POLICY, REWARD_MODEL
from seamcurate.rewards import RerReward
from seamcurate.select import split as splits
from seamcurate.select import views
from seamcurate.select.order import Order
from seamcurate.step import is_undecided
from seamcurate.store.store import Store
from seamcurate.trainers import PROMPT_FORM, SOURCE_PROMPT, free_name

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FormModel = PolicyModel | RewardingModel | None
"""The model in whose form prompts are exported."""

_OF_GOLDEN = ("sft", "preferences", "unpaired")
"""The formats in which each line has a golden response, or stands beside one."""
_CANDIDATE = ("row_id", "variant", "rank", "response", "reward", "similarity")
"""The columns of a candidate."""
_FOLDED = "lower(trim(regexp_replace({}.response, '\\s+', ' ', 'g')))"
_EQUAL = f"coalesce({_FOLDED.format('a')} = {_FOLDED.format('k')}, false)"
"""Whether a candidate `a` is the golden response of its row `k`: it is no worse, whatever set it is in."""
_OF_CANDIDATES = ("variant", "rank", "reward", "similarity")
_SHARDS = 4
"""Shards read by one query, as each query and each row group has a fixed cost."""


class SplitView:
    """A split as a trainer's SQL sees it: `b` is a row that the split keeps, `c` a candidate of the row."""

    def __init__(
        self, store: Store, split: str, trainer: Trainer, policy: FormModel, rewarding: RewardingModel | None = None
    ) -> None:
        record = store.open().split_record(split)
        if not record:
            names = sorted(store.split_records())
            raise ExportError(
                f"no split {split!r} in {store.path}; there are: {', '.join(names) or 'none; run its recipe first'}"
            )
        if reason := splits.stale(store).get(split):
            raise StaleError(f"split {split} of {store.path} is out of date: {reason}; run its recipe first")
        self.store, self.split, self.format = store, split, str(record["format"])
        self.trainer, self._trainer_name = TRAINERS[trainer], trainer
        self.rows_kept = int(str(record["kept"]))
        self.notes: list[str] = []
        listed = [column for column in store.columns() if column.stale is None]
        self.kinds = {column.name: column.kind for column in listed}
        # The text of another data set, such as an evaluation set, must not travel in a data set to train on.
        self.of_others = {f"{column.made_by}_text" for column in listed if column.made_by.startswith("nearest_")}
        self.of_source = {column.name for column in listed if column.made_by == "source"}
        self.chat = not pa.types.is_string(self.kinds["prompt"])
        if self.format in _OF_GOLDEN and "response" not in store.stored_schema.names:
            raise ExportError(
                f"split {split}: format {self.format!r} needs golden responses; the source maps no `response`"
            )
        # `end` is the policy's end-of-sequence token, `start` its beginning-of-sequence token.
        self.form, self.end, start, self.model = None, "", "", None
        if isinstance(policy, CausalLM | SequenceClassifier):
            tokenizer = policy.tokenizer()
            self.form, self.model = policy.prompt_form(tokenizer), policy
            start = written.start_token(tokenizer, self.form)
            if isinstance(policy, CausalLM) and self.form.end is not None:
                self.end = str(tokenizer.convert_ids_to_tokens(self.form.end))
        name = self.form.name if self.form else "chat" if self.chat else None
        arguments = self.form.arguments if self.form else {}
        self.order = None if record.get("order") is None else Order.model_validate(record["order"])
        self.shape = Shape(self.format, name, arguments, start, ordered=self.order is not None)
        self.notes.append(written.form_note(self.form, self.model, self.chat))
        if isinstance(self.model, CausalLM) and is_gguf(self.model.path):
            self.notes.append(
                f"trainers load no GGUF file: in the place of {POLICY} give the folder or the Hub id of the weights that "
                f"{self.model.path} was made from"
            )
        self.rewarding = rewarding
        self.parameters: dict[str, str] = {}
        """The columns that the recipe's reward function reads under other names, by these names, where lines have them so."""
        self.unanswered = 0
        """Rows so far that are left out of a format of golden responses, as they have none."""
        self.equal_answers = 0
        """Candidates so far that are left out of pairs, as they equal the golden response, case and white space aside."""

    # ── SQL that the trainers' columns are made of ──

    @property
    def ground_truth(self) -> str:
        """The SQL of the answer that a rule-based reward looks for: a row's reference, or else its golden response."""
        answers = [f"nullif(b.{name}, '')" for name in ("reference", "response") if name in self.kinds]
        return f"coalesce({', '.join(answers)})" if answers else "NULL::VARCHAR"

    @property
    def prompt_text(self) -> str:
        """The SQL of the prompt as the text that an encoder reads; see `models.template.prompt_text`."""
        return "array_to_string([turn.content FOR turn IN b.prompt], chr(10))" if self.chat else "b.prompt"

    @staticmethod
    def quoted(name: str) -> str:
        """Quote a column's name for SQL."""
        return views.quoted(name)

    @staticmethod
    def sql_text(value: str) -> str:
        """Quote a text for SQL."""
        return "'" + value.replace("'", "''") + "'"

    def source_has_text(self, name: str) -> bool:
        """Return whether the source has a text column of this name."""
        return name in self.of_source and pa.types.is_string(self.kinds[name])

    def struct_fields(self, name: str) -> list[str]:
        """Return the names of a struct column's fields; empty if there is no such column."""
        kind = self.kinds.get(name)
        return [field.name for field in kind] if kind is not None and pa.types.is_struct(kind) else []

    def all_text(self, name: str) -> bool:
        """Return whether every field of a struct column is text."""
        return all(pa.types.is_string(field.type) for field in self.kinds[name])

    def plain_columns(self, core: Iterable[str], used: Collection[str] = ()) -> dict[str, str]:
        """Return the SQL of each scalar column that is exported, by its exported name; note which are renamed or left out.

        Args:
            core: The column names of the trainer's format.
            used: Columns that the format holds already, under another name.
        """
        reserved = {name.lower() for name in core} | {name.lower() for name in self.trainer.reserved[self.format]}
        reserved |= {PROMPT_FORM, SOURCE_PROMPT}
        if self.pairs:
            reserved |= {f"candidate_{name}" for name in _OF_CANDIDATES}
        # Every format holds the prompt itself.
        left_out = {"prompt", *used, *self.trainer.omits}
        taken = reserved | {name.lower() for name in self.kinds}
        columns: dict[str, str] = {}
        renamed: list[str] = []
        nested: list[str] = []
        for name, kind in self.kinds.items():
            if name in left_out or name in self.of_others:
                continue
            if pa.types.is_nested(kind):
                nested += [name] if name in self.of_source else []
                continue
            free = name
            if name.lower() in reserved:
                free = free_name(name, taken)
                taken.add(free.lower())
                renamed.append(f"{name} as {free}")
            columns[free] = f"b.{views.quoted(name)}"
        if renamed:
            self.notes.append(
                f"{self.trainer.title} keeps names of columns for itself; exported are {', '.join(renamed)}"
            )
        if nested:
            self.notes.append(f"left out, for only plain columns are exported: {', '.join(nested)}")
        if others := [name for name in self.kinds if name in self.of_others]:
            self.notes.append(f"left out, for they hold texts of other data sets: {', '.join(others)}")
        if self.pairs:
            columns |= {f"candidate_{name}": f"c.{name}" for name in _OF_CANDIDATES}
        return columns

    def parameter_columns(self, names: Collection[str]) -> dict[str, str]:
        """Return the SQL of the columns that the recipe's reward function reads under other names than `names`, by these."""
        reward, taken = self.rewarding, {name.lower() for name in names}
        if self.format != "prompts" or not isinstance(reward, RewardFunction) or reward.library != "TRL":
            return {}
        self.parameters = {
            parameter: name
            for parameter, name in reward.columns.items()
            if parameter.lower() not in taken | {name.lower() for name in self.trainer.reserved[self.format]}
            and name in self.kinds
            and not pa.types.is_nested(self.kinds[name])
        }
        if self.parameters:
            said = ", ".join(f"{name} also as {parameter}" for parameter, name in self.parameters.items())
            self.notes.append(f"the recipe's reward reads columns by other names; exported are {said}")
        return {parameter: f"b.{views.quoted(name)}" for parameter, name in self.parameters.items()}

    # ── rows ──

    @property
    def pairs(self) -> bool:
        """Whether the export has a line for each candidate, and not for each row."""
        return self.format in ("preferences", "unpaired")

    def read(self, select: dict[str, str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield, for a few shards at a time, the number of rows that the split keeps and their lines, in the split's order."""
        structs = ("prompt", "reward_model", "extra_info")
        names = [
            name
            for name, kind in self.kinds.items()
            if name in structs or not (pa.types.is_nested(kind) or name in self.of_others)
        ]
        if self.pairs:
            # An answer that is not known to be worse than the golden response is no rejected one.
            names += [
                name
                for name in self.kinds
                if name.startswith(("worse_", "rewards_")) and not is_undecided(name.partition("_")[2])
            ]
        kept = splits.kept(self.store, self.split, names)
        # The SQL reads these tables only; it can open no file and no view of the store.
        with views.in_memory(threads=1) as connection:
            while tables := list(islice(kept, _SHARDS)):
                rows = pa.concat_tables(tables, promote_options="permissive")
                count = rows.num_rows
                if self.format in _OF_GOLDEN:
                    rows = rows.filter(rows["response"].is_valid())
                    self.unanswered += count - rows.num_rows
                if rows.num_rows:
                    yield count, self._lines(connection, rows, select)

    def _lines(self, connection: DuckDBPyConnection, rows: pa.Table, select: dict[str, str]) -> pa.Table:
        # With one line for each row, columns that are exported unchanged need no query.
        columns: dict[str, pa.ChunkedArray] = {}
        if not self.pairs:
            columns_by_sql = {f"b.{word}": name for name in rows.column_names for word in (name, views.quoted(name))}
            columns = {name: rows[columns_by_sql[value]] for name, value in select.items() if value in columns_by_sql}
        queried = {name: value for name, value in select.items() if name not in columns}
        if queried:
            place = free_name("place", {name.lower() for name in rows.column_names})
            connection.register("kept", rows.append_column(place, pa.array(np.arange(rows.num_rows))))
            if self.pairs:
                ((equal,),) = connection.sql(self._equal(rows.schema)).fetchall()
                self.equal_answers += equal
            answer = connection.sql(self._sql(queried, rows.schema, place)).to_arrow_table(ROWS_PER_GROUP)
            columns |= {name: answer[name] for name in queried}
        return pa.table({name: columns[name] for name in select})

    def _sql(self, select: dict[str, str], schema: pa.Schema, place: str) -> str:
        """Return the query over the kept rows: one line for each row, or for each candidate, in order of the column `place`."""
        values = ", ".join(f"{value} AS {views.quoted(name)}" for name, value in select.items())
        if not self.pairs:
            return f"SELECT {values} FROM kept AS b"
        columns = ", ".join(_CANDIDATE)
        golden = "SELECT row_id, 'golden' AS variant, 0 AS rank, response, NULL, NULL, true AS label FROM kept"
        worse = f"SELECT {', '.join(f'a.{name}' for name in _CANDIDATE)}, false AS label {self._compared(schema)} WHERE NOT {_EQUAL}"
        candidates = worse if self.format == "preferences" else f"{golden} UNION ALL {worse}"
        return (
            f"SELECT {values} FROM kept AS b JOIN ({candidates}) AS c({columns}, label) ON c.row_id = b.row_id "
            f"ORDER BY b.{views.quoted(place)}, c.variant, c.rank"
        )

    def _equal(self, schema: pa.Schema) -> str:
        """Return the query that counts the candidates that equal the golden response."""
        return f"SELECT count(*) {self._compared(schema)} WHERE {_EQUAL}"

    def _compared(self, schema: pa.Schema) -> str:
        kinds = dict(zip(schema.names, schema.types, strict=True))
        return f"FROM ({views.candidates(kinds, 'kept')}) AS a JOIN kept AS k ON k.row_id = a.row_id"

    def in_form(self, table: pa.Table) -> pa.Table:
        """Write a table's prompts and answers in the form that the policy was scored in; see `written.in_form`."""
        return written.in_form(table, self.trainer, self.form, self.shape)

    def laid_out(self, table: pa.Table, shape: Shape) -> pa.Table:
        """Return rows in the policy's form as the trainer reads them; see `written.laid_out`."""
        return written.laid_out(table, self.trainer, shape)

    # ── the export's reward and commands ──

    def order_notes(self, form: str) -> list[str]:
        """Say in which order an export's rows are, and how the trainer keeps it; nothing for the source's order."""
        if self.order is None:
            return []
        return [f"rows are in order {self.order.described}; {self.trainer.unshuffled(form)}"]

    def require(self, reward: RerReward) -> RerReward:
        """Return the reward if the rows have the columns that it reads."""
        missing = [name for name in reward.columns if name not in self.kinds]
        if missing:
            raise ExportError(
                f"split {self.split}: reward {reward.reward} needs the column {missing[0]}; run a recipe with `rer` first"
            )
        return reward

    def commands(self, shape: Shape, folder: Path) -> tuple[str, ...]:
        """Return the commands that train on an export, with the recipe's own policy and reward where a trainer takes them."""
        policy = self.model.path if isinstance(self.model, CausalLM) and not is_gguf(self.model.path) else POLICY
        reward, function = REWARD_MODEL, None
        if shape.format == "preferences":
            reward = policy
        elif isinstance(self.rewarding, SequenceClassifier) and not is_gguf(self.rewarding.path):
            # Of several outputs a trainer would take another, and two segments it would read as one text.
            one_text = not self.rewarding.pair and self.rewarding.output is None
            reward = self.rewarding.path if one_text else REWARD_MODEL
        elif isinstance(self.rewarding, RewardFunction):
            function = _function(self.rewarding, self.parameters)
        shape = shape._replace(function=function)
        return tuple(commands(self._trainer_name, shape, str(folder), policy, reward))


def _function(reward: RewardFunction, parameters: Mapping[str, str]) -> Function | None:
    """Return a function as commands name it; None where it has settings that neither they nor the lines' `parameters` give."""
    settings = reward.model_fields_set - {"path", "binary"}
    if settings - {"columns"} or not reward.columns.keys() <= parameters.keys():
        return None
    file, _, name = reward.path.rpartition(":")
    module, folder = ("seamcurate.verifiers", None) if reward.bundled else (Path(file).stem, str(Path(file).parent))
    return Function(reward.path, f"{module}.{name}" if reward.library == "TRL" else None, folder)
