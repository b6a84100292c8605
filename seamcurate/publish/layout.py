"""What the layouts of trainers are made of: the exported columns before they are laid out, and the SQL of conversations.

One rule: rows are first written in the form that the policy was scored in, and only then laid out as a trainer reads them.
So prompts and answers are the same in every trainer's layout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from seamcurate.errors import ExportError
from seamcurate.trainers import PROMPT_FORM

if TYPE_CHECKING:
    from seamcurate.publish.shape import Shape
    from seamcurate.publish.split_view import SplitView
    from seamcurate.rewards import RerReward

VERBATIM = "{% for m in messages %}{{ m.content }}{% endfor %}"
"""A chat template that adds nothing, for prompts written out as text where a trainer applies a template in any case."""

GROUND_TRUTH, REWARD_PROMPT = "ground_truth", "reward_prompt"
"""Columns before the layout: the answer that a rule looks for, and the prompt's text for a reward file."""


def columns(view: SplitView, reward: RerReward | None, used: Collection[str] = ()) -> dict[str, str]:
    """Return the SQL of each column that is laid out: those of the split's format first, then every plain column not in `used`.

    Raises:
        ExportError: The trainer loads no rows of the split's format.
    """
    trainer, form = view.trainer, view.format
    if form not in trainer.reserved:
        raise ExportError(
            f"split {view.split}: {trainer.title} loads no {form!r} data; use format {', '.join(trainer.reserved)}"
        )
    core = {
        "prompts": {"prompt": "b.prompt", GROUND_TRUTH: view.ground_truth},
        "sft": {"prompt": "b.prompt", "completion": "b.response"},
        "preferences": {"prompt": "b.prompt", "chosen": "b.response", "rejected": "c.response"},
        "unpaired": {"prompt": "b.prompt", "completion": "c.response", "label": "c.label"},
    }[form]
    text_form = view.form is not None and not view.form.chat
    if reward and form == "prompts" and trainer.reward_function:
        core[REWARD_PROMPT] = view.prompt_text
        if text_form and view.form and trainer.always_chats:
            core[PROMPT_FORM] = view.sql_text(view.form.name)
    if trainer.always_chats and text_form:
        view.notes.append(
            f"{trainer.title} applies a chat template to every prompt; give the policy's tokenizer one that adds nothing: {VERBATIM}"
        )
    return core | view.plain_columns(core, used)


def turns(column: str, role: str, chat: bool) -> str:
    """Return the SQL of a column as turns of a chat: it holds turns if `chat`, and text otherwise.

    Example:
        >>> turns("completion", "assistant", chat=False)
        "[{'role': 'assistant', 'content': completion}]"
    """
    return column if chat else f"[{{'role': '{role}', 'content': {column}}}]"


def conversation(shape: Shape, answer: str, always_chats: bool = False) -> str:
    """Return the SQL of a prompt's turns followed by those of the column `answer`."""
    return f"{turns('prompt', 'user', shape.chat or always_chats)} || {turns(answer, 'assistant', shape.chat)}"


def text(answer: str, shape: Shape) -> str:
    """Return the SQL of an answer's text: of its one turn in a chat."""
    return f"{answer}[1].content" if shape.chat else answer


def others(names: Iterable[str], used: Collection[str]) -> dict[str, str]:
    """Return the SQL of the columns that stay as they are."""
    from seamcurate.select import views

    return {name: views.quoted(name) for name in names if name not in used}


def struct(fields: Mapping[str, str]) -> str:
    """Return the SQL of a struct; `fields` is the SQL of each field by name."""
    # Where it is used: the command line reads the trainers' table, and must not wait for Arrow.
    from seamcurate.select import views

    return "{" + ", ".join(f"{views.quoted(name)}: {value}" for name, value in fields.items()) + "}"
