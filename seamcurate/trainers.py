"""Names in an export that lower floors read, too: its reward file, and the columns of prompts written out as text.

What a trainer wants of an export is in `seamcurate.publish.formats`.
"""

from __future__ import annotations

from collections.abc import Collection

REWARD_FILE = "seamcurate_reward.py"
"""No trainer has a module of this name: TRL's own scripts hold a `reward.py`, which a file of that name never gets past."""
REWARD_MODULE = REWARD_FILE.removesuffix(".py")

PROMPT_FORM, SOURCE_PROMPT = "prompt_form", "source_prompt"
"""Columns of an export whose prompts are written out as text: the form, and each prompt as the source has it."""


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a new name for a source's column whose own name is taken; SQL ignores case, and so does this.

    Args:
        name: The column's own name.
        taken: Names in lower case.
    """
    new_name = f"source_{name}"
    while new_name.lower() in taken:
        new_name = f"source_{new_name}"
    return new_name
