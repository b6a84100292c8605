"""Write the prompts and answers of an export in the form that the policy was scored in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seamcurate.models import CausalLM, Prompt, SequenceClassifier
from seamcurate.models.template import Form
from seamcurate.publish.files import ROWS_PER_GROUP
from seamcurate.publish.formats import TrainerFormat
from seamcurate.publish.shape import Shape
from seamcurate.select import views
from seamcurate.step import MESSAGES
from seamcurate.trainers import PROMPT_FORM, SOURCE_PROMPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def in_form(table: pa.Table, trainer: TrainerFormat, form: Form | None, shape: Shape) -> pa.Table:
    """Write a table's prompts and answers in a form, and add the columns that describe the form.

    Args:
        table: Lines of an export, with the prompt as the source has it.
        trainer: The trainer that loads the export.
        form: The form that the policy was scored in; None: prompts stay as the source has them.
        shape: The shape of the export.
    """
    prompt_index = next(i for i, name in enumerate(table.column_names) if name in ("prompt", "input"))
    prompts = table.column(prompt_index)
    answers = [name for name in ("completion", "chosen", "rejected", "output") if name in table.column_names]
    chat = pa.types.is_list(prompts.type)
    if form.chat if form else chat:
        table = _with_column(table, prompt_index, prompts if chat else _as_turns(prompts, "user"))
        for name in answers:
            index = table.column_names.index(name)
            table = _with_column(table, index, _as_turns(table.column(index), "assistant"))
        if trainer.template_arguments and shape.arguments and answers:
            table = table.append_column(trainer.template_arguments, _constant(dict(shape.arguments), len(table)))
        return table
    if form is not None:
        start = shape.start if trainer.writes_start else ""
        table = _with_column(table, prompt_index, _as_text(prompts, form, start))
        for name in answers:
            index = table.column_names.index(name)
            table = _with_column(table, index, _in_pattern(table.column(index), form.response("{prompt}")))
        if not trainer.always_chats and (form.name != "bare" or chat or start):
            table = table.append_column(PROMPT_FORM, pa.repeat(pa.scalar(form.name), len(table)))
            table = table.append_column(SOURCE_PROMPT, prompts)
    if trainer.always_chats:
        table = _with_column(table, prompt_index, _as_turns(table.column(prompt_index), "user"))
    return table


def laid_out(table: pa.Table, trainer: TrainerFormat, shape: Shape) -> pa.Table:
    """Return rows in the policy's form as the trainer reads them, in their order."""
    if trainer.layout is None:
        return table
    select = trainer.layout(shape, table.column_names)
    listed = ", ".join(f"{value} AS {views.quoted(name)}" for name, value in select.items())
    with views.in_memory(threads=1) as connection:
        connection.register("formed", table)
        return connection.sql(f"SELECT {listed} FROM formed").to_arrow_table(ROWS_PER_GROUP)


def form_note(form: Form | None, model: CausalLM | SequenceClassifier | None, chat: bool) -> str:
    """Describe the form of the prompts, as a remark on the export."""
    if form is None or model is None:
        return f"prompts are {'chats' if chat else 'text'}, as the source has them: the recipe names no model of this machine or the Hub"
    if form.chat:
        arguments = f" with {json.dumps(dict(form.arguments))}" if form.arguments else ""
        return f"prompts are chats, for the chat template of {model.path}{arguments}"
    return f"prompts are text in the form {form.name!r:.60}, as {model.path} was scored: {form.prompt('…')!r:.100}"


def start_token(tokenizer: PreTrainedTokenizerBase, form: Form) -> str:
    """Return the token that the tokenizer puts before text; empty for chats, as a chat template writes its own."""
    from seamcurate.models import tokens

    start = tokenizer.bos_token_id
    if form.chat or start is None or tokens.prompt_ids(tokenizer, "a", form)[:1] != [start]:
        return ""
    return str(tokenizer.bos_token)


def _with_column(table: pa.Table, index: int, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(index, table.column_names[index], column)


def _as_turns(texts: pa.ChunkedArray, role: str) -> pa.ChunkedArray:
    """Turn each text into a chat of one turn."""
    chats = []
    for chunk in texts.cast(pa.string()).chunks:
        turns = pa.StructArray.from_arrays([pa.repeat(pa.scalar(role), len(chunk)), chunk], ["role", "content"])
        # Each chat has one turn, so that the offsets are 0, 1, 2 …
        chats.append(pa.ListArray.from_arrays(np.arange(len(chunk) + 1, dtype=np.int32), turns).cast(MESSAGES))
    return pa.chunked_array(chats, MESSAGES)


def _as_text(prompts: pa.ChunkedArray, form: Form, start: str) -> pa.ChunkedArray:
    """Write prompts out as text."""
    if not pa.types.is_list(prompts.type):
        return _in_pattern(prompts, start + form.prompt("{prompt}"))
    texts: list[str] = []
    previous: Prompt | None = None
    for prompt in prompts.to_pylist():
        # The candidates of a row follow each other and share its prompt, so its text is written once.
        texts.append(texts[-1] if texts and prompt == previous else start + form.prompt(prompt))
        previous = prompt
    return pa.chunked_array([texts], pa.string())


def _in_pattern(texts: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    """Return, for each text, the pattern with the text in place of `{prompt}`."""
    pieces = pattern.split("{prompt}")
    if pieces == ["", ""]:
        return texts
    texts = texts.cast(pa.string())
    joined = [pieces[0]]
    for piece in pieces[1:]:
        joined += [texts, piece]
    return pc.binary_join_element_wise(*joined, "")


def _constant(value: object, count: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(count, np.int64)))
