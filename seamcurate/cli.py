"""The command line: one verb per public function, and no logic of its own.

Answers go to standard output, progress and errors to standard error. Exit code 2 is a mistake of the user's, 1 one of
ours, 130 a stop by Ctrl-C. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from seamcurate.errors import SeamcurateError
from seamcurate.progress import note

app = typer.Typer(
    help="Find the prompts a reward model gets wrong, and make splits that trainers load.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
trainers = typer.Typer(help="Train on a split, or on any Parquet or JSONL of the same columns.", no_args_is_help=True)
app.add_typer(trainers, name="train")

RecipeFile = Annotated[Path, typer.Argument(help="A recipe in YAML.", show_default=False)]
StoreFolder = Annotated[Path, typer.Argument(help="The store's folder.", show_default=False)]


def main() -> None:
    """Run the command line."""
    try:
        app()
    except SeamcurateError as error:
        note(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        note("stopped; what was finished is kept: run the same command again to go on")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("SEAMCURATE_TRACEBACK"):
            raise
        text = str(error).strip().splitlines()
        note(f"internal error: {type(error).__name__}: {text[0] if text else ''} (SEAMCURATE_TRACEBACK=1 shows where)")
        sys.exit(1)


@app.command()
def demo(store: Annotated[Path, typer.Argument(help="Where to make it.")] = Path("demo-store")) -> None:
    """Do the whole job on an embedded default: no network, no GPU.

    Example: seamcurate demo
    """
    from seamcurate import demo as embedded

    embedded.run(store)


@app.command()
def run(
    recipe: RecipeFile,
    store: StoreFolder,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop at the shard that holds this many rows.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Compute anew what another configuration made.")] = False,
) -> None:
    """Make what a recipe asks for and the store lacks; run it again to resume.

    Example: seamcurate run recipes/seam_contrast.yaml my-store --limit 1000
    """
    from seamcurate import recipe as recipes
    from seamcurate.run import run_local

    report = run_local(recipes.load(recipe), store, limit, replace)
    done = f"{report.computed:,} shards computed" if report.computed else "everything was there"
    print(f"{store}: {report.rows:,} rows, {done}")
    for line in report.lines:
        print(f"  {line}")


@app.command()
def plan(recipe: RecipeFile, store: StoreFolder) -> None:
    """Show rows, model calls and tokens a run would take; writes nothing.

    Example: seamcurate plan recipes/seam_contrast.yaml my-store
    """
    from seamcurate import estimate, tables
    from seamcurate import recipe as recipes

    made = estimate.plan(recipes.load(recipe), store)
    print(f"{made.rows:,} rows ({made.rejected:,} set aside), corpus of {made.corpus:,}")
    rows = [
        [
            line.step,
            f"{line.rows:,}",
            f"{line.calls:,}" if line.model else "",
            f"{line.tokens:,}" if line.model else "",
            line.model,
        ]
        for line in made.lines
    ]
    tables.show(["step", "rows to do", "calls", "tokens", "model"], rows, right=(1, 2, 3))
    for line in made.notes:
        print(line)


@app.command()
def columns(store: StoreFolder) -> None:
    """List a store's columns: name, type, step, shards done, meaning.

    Example: seamcurate columns my-store
    """
    from seamcurate import tables
    from seamcurate.store import Store

    opened = Store(store).open()
    listed = opened.columns()
    rows = [
        [
            c.name,
            tables.brief(str(c.kind), 40),
            c.made_by,
            f"{c.done}/{c.shards}",
            f"OUT OF DATE: {c.stale}" if c.stale else c.meaning,
        ]
        for c in listed
    ]
    tables.show(["column", "type", "step", "shards", "meaning"], rows, right=(3,))
    for name in opened.records():
        facts = opened.facts(name)
        warnings = facts.get("warnings", [])
        for line in [facts.get("summary"), *(warnings if isinstance(warnings, list) else [])]:
            if line:
                print(line)


@app.command()
def sql(
    store: StoreFolder,
    query: Annotated[
        str, typer.Argument(help="One SELECT over rows, candidates, corpus, ledger, rejected.", show_default=False)
    ],
    format: Annotated[
        Literal["table", "csv", "jsonl", "parquet"], typer.Option(help="How to print the answer.")
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
) -> None:
    """Ask a store in SQL; it is only ever read.

    Example: seamcurate sql my-store "SELECT prompt, seam_contrast FROM rows ORDER BY seam_contrast LIMIT 5"
    """
    from seamcurate import tables, views
    from seamcurate.store import Store

    with views.connect(Store(store).open()) as connection:
        tables.write(views.run(connection, query), format, out)


@app.command()
def why(store: StoreFolder, row_id: Annotated[int, typer.Argument(help="The row.", show_default=False)]) -> None:
    """Tell what became of a row in every split, and what decided it.

    Example: seamcurate why my-store 17
    """
    from seamcurate import explain
    from seamcurate.store import Store

    for line in explain.why(Store(store).open(), row_id):
        print(line)


@app.command()
def export(
    recipe: RecipeFile,
    store: StoreFolder,
    to: Annotated[Literal["trl", "openrlhf", "verl"], typer.Option(help="Whose format.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where to write a folder for each split.", show_default=False)],
) -> None:
    """Write a recipe's splits as a trainer loads them.

    Example: seamcurate export recipes/seam_contrast.yaml my-store --to trl --out splits
    """
    from seamcurate import export as exporting
    from seamcurate import recipe as recipes
    from seamcurate.store import Store

    for line in exporting.export(recipes.load(recipe), Store(store).open(), to, out):
        print(f"{line.folder}: {line.rows:,} rows; columns {', '.join(line.columns)}")
