"""Arguments that several verbs take, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seamcurate.errors import RecipeError

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML.", show_default=False)]
StoreFolder = Annotated[
    str, typer.Argument(metavar="STORE", help="The store's folder, or s3://bucket/prefix.", show_default=False)
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
