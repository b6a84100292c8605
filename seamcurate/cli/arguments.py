"""Arguments and options that several verbs take, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seamcurate import threads
from seamcurate.errors import RecipeError

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe, a YAML file.", show_default=False)]
StoreFolder = Annotated[
    str, typer.Argument(metavar="STORE", help="Store: a folder, or s3://bucket/prefix.", show_default=False)
]
RepoId = Annotated[
    str, typer.Argument(metavar="REPO_ID", help="Id of the data set on the Hub: user/name.", show_default=False)
]
OtherStore = Annotated[
    str | None,
    typer.Option(
        "--other", help="Second store to compare with; SQL reads it as other.rows, other.candidates and so on."
    ),
]
MaxUsd = Annotated[
    float | None, typer.Option(min=0, help="US dollars to spend on endpoints at most; the command stops before more.")
]


def _limit(count: int | None) -> int | None:
    """Limit threads before the verb loads a library."""
    if count is not None:
        threads.limit(count)
    return count


Threads = Annotated[
    int | None,
    typer.Option(
        min=1, callback=_limit, help="Threads to compute with, on a machine that is shared. Without it, one a core."
    ),
]


def check_order(verb: str, recipe: Path, store: str) -> None:
    """Refuse a recipe and a store that were named the wrong way round."""
    swapped = store.lower().endswith((".yaml", ".yml")) and not (recipe.is_file() and Path(store).is_dir())
    if swapped and recipe.suffix.lower() not in (".yaml", ".yml"):
        raise RecipeError(
            f"{store} is a recipe's name: the recipe comes first, as in `seamcurate {verb} {store} {recipe}`"
        )
    if Path(store).is_file():
        raise RecipeError(f"{store} is a file, and a store is a folder: write `seamcurate {verb} {recipe} STORE`")
