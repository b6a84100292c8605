"""The verbs that show what a store holds, and take it elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seamcurate.cli.arguments import MaxUsd, OtherStore, RecipeFile, RepoId, StoreFolder, Threads, check_order
from seamcurate.publish.formats import Trainer

if TYPE_CHECKING:
    from seamcurate.publish.reproduce import Endpoint


def export(
    recipe: RecipeFile,
    store: StoreFolder,
    trainer: Annotated[Trainer, typer.Option("--to", help="Trainer that loads the files.", show_default=False)],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder to write to: one folder in it for each split.", show_default=False)
    ],
) -> None:
    """Write a recipe's splits as a trainer loads them.

    Example: seamcurate export recipe.yaml my-store --to trl --out splits
    """
    from seamcurate import text
    from seamcurate.publish import export as exporting
    from seamcurate.run import recipe as recipes
    from seamcurate.store.store import Store

    check_order("export", recipe, store)
    for line in exporting.export(recipes.load(recipe), Store(store).open(), trainer, folder):
        print(f"{line.folder}: {text.counted(line.rows, 'row')}; columns {text.clean(', '.join(line.columns))}")
        for note in line.note.splitlines():
            print(f"  {text.clean(note)}")
        for command in line.commands:
            print(f"  $ {command}")


def explore(
    store: StoreFolder,
    second_store: OtherStore = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page on this machine; 0 takes a free one.")
    ] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser window.")] = True,
    threads: Threads = None,
) -> None:
    """Look at a store's scores, prompts and candidates on a page of this machine alone.

    Example: seamcurate explore my-store
    """
    from seamcurate import explore as explorer
    from seamcurate.store.store import Store

    explorer.serve(Store(store).open(), port, browser, Store(second_store).open() if second_store else None)


def report(
    store: StoreFolder,
    file: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(help="Folder to write the figures to, as PNG and SVG.")] = None,
    threads: Threads = None,
) -> None:
    """Write what the explorer shows as one HTML file to send to somebody.

    Example: seamcurate report my-store --out report.html
    """
    from seamcurate.explore import report as write
    from seamcurate.store.store import Store

    for path in write(Store(store).open(), file, figures):
        print(path)


def push(
    recipe: RecipeFile,
    store: StoreFolder,
    repo_id: RepoId,
    trainer: Annotated[Trainer, typer.Option("--to", help="Trainer that loads the files.")] = "trl",
    license: Annotated[
        list[str] | None, typer.Option(help="Licence of the source. Repeat the option for more.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; it is private otherwise.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the card and the files' sizes, and ask the Hub nothing.")
    ] = False,
) -> None:
    """Publish a recipe's splits on the Hub with ledger, recipe and a card; only what changed travels.

    Example: seamcurate push recipe.yaml my-store my-org/my-prompts
    """
    from seamcurate.publish import hub
    from seamcurate.publish.markdown import megabytes
    from seamcurate.store.store import Store
    from seamcurate.text import counted

    check_order("push", recipe, store)
    if dry_run:
        preview = hub.prepare(recipe, Store(store), repo_id, trainer, license or ())
        print(preview.card)
        for name, size in preview.files.items():
            print(f"{megabytes(size):>10}  {name}")
        notes = preview.notes
    else:
        upload = hub.push(recipe, Store(store), repo_id, trainer, public, license or ())
        changed = (
            f"{counted(len(upload.sent), 'file')} sent, {len(upload.removed)} removed, {upload.unchanged} were there"
        )
        print(f"{upload.url} at {upload.commit}: {changed if upload.sent or upload.removed else 'nothing had changed'}")
        notes = upload.notes
    for line in notes:
        print(line)


def reproduce(
    repo_id: RepoId,
    store: Annotated[Path, typer.Option(help="Folder of the store to make.")] = Path("reproduced"),
    revision: Annotated[
        str | None, typer.Option(help="Commit, tag or branch of the data set. Without it, the newest commit.")
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with files that only the data set's author had. Repeat the option for more."),
    ] = None,
    endpoints: Annotated[
        bool, typer.Option("--endpoints", help="Let the recipe send requests to the language models it names.")
    ] = False,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIABLE",
            help="Environment variable whose key the recipe may send to them. Repeat the option for more.",
        ),
    ] = None,
    max_usd: MaxUsd = None,
) -> None:
    """Run a published recipe again and say which of its files come out the same; exit code 1 where one does not.

    Every endpoint is shown with its address and the variable that holds its key. On a terminal you are asked whether
    the recipe may use them; elsewhere --endpoints and --key say so.

    Example: seamcurate reproduce my-org/my-prompts --store again
    """
    from seamcurate.publish import reproduce as reproducing

    ask = _allowed if sys.stdin.isatty() and sys.stderr.isatty() else None
    reproduction = reproducing.reproduce(repo_id, store, revision, files or (), endpoints, max_usd, key or (), ask)
    for line in reproduction.lines():
        print(line)
    if not reproduction.identical:
        sys.exit(1)


def _allowed(endpoints: Sequence[Endpoint]) -> bool:
    """Ask the person at the keyboard, who was shown these endpoints."""
    return typer.confirm("Send this recipe's requests and keys there?", default=False, err=True)


def diff(
    before: Annotated[
        str,
        typer.Argument(
            metavar="BEFORE", help="Store, or id of a data set on the Hub, to compare from.", show_default=False
        ),
    ],
    after: Annotated[
        str,
        typer.Argument(
            metavar="AFTER", help="Store, or id of a data set on the Hub, to compare to.", show_default=False
        ),
    ],
) -> None:
    """Explain by rule and model which rows two runs keep differently.

    Example: seamcurate diff my-store my-org/my-prompts
    """
    from seamcurate.publish import diff as comparison

    for line in comparison.diff(before, after).lines():
        print(line)


def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of a study; `seamcurate study --help` lists them.",
            show_default=False,
        ),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="STORE…", help="Stores, or tables of results in Parquet or JSONL.", show_default=False),
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write the table, the figure as PNG and SVG, and the finding to."),
    ] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="Reward model to judge pairs by. Repeat the option for more.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder, which adds RER to the reward models.")] = None,
    policy: Annotated[str | None, typer.Option(help="Policy that scores, for the study likelihood.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens that the reward models read at most.")] = None,
    column: Annotated[str | None, typer.Option("--by", help="Column that ranks rows, or divides pairs.")] = None,
    rate: Annotated[float | None, typer.Option(help="Share of rows that counts as low, for the study overlap.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Method that the others are compared with.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Pairs to judge, sampled with a fixed seed. Without it, all of them.")
    ] = None,
    measured: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            help="Column of the store to measure, for validity and best-of-n. Repeat the option for more. Without it, all numeric ones.",
        ),
    ] = None,
    threads: Threads = None,
) -> None:
    """Measure what the papers measured: a table, a figure, and a line that says what was found.

    Example: seamcurate study overlap store-a store-b --out figures
    """
    from seamcurate import study as studies
    from seamcurate import tables, text

    result = studies.run(
        name,
        sources,
        folder,
        rewards=reward or (),
        encoder=encoder,
        policy=policy,
        max_tokens=max_tokens,
        by=column,
        rate=rate,
        baseline=baseline,
        rows=rows,
        columns=measured or (),
    )
    tables.write(result.table.to_reader(), "table", None)
    print(text.one_line(result.line))


def compare(
    answers: Annotated[
        list[str],
        typer.Argument(
            metavar="ANSWERS…", help="Tables of answers that `seamcurate answer` wrote.", show_default=False
        ),
    ],
    baseline: Annotated[str, typer.Option(help="Table of the baseline's answers.", show_default=False)],
    judge: Annotated[
        Path,
        typer.Option(
            help="YAML file that configures the judge: {openai_server: NAME, base_url: …}.", show_default=False
        ),
    ],
    file: Annotated[Path, typer.Option("--out", help="Parquet file to write.", show_default=False)],
    rows: Annotated[
        int | None, typer.Option(min=1, help="Answers to judge, the first ones. Without it, all of them.")
    ] = None,
    max_usd: MaxUsd = None,
) -> None:
    """Ask a language model which of two answers is better, in both positions; the study winrate reads its verdicts.

    Example: seamcurate compare answers/ppo.parquet --baseline answers/sft.parquet --judge judge.yaml --out verdicts.parquet
    """
    from seamcurate import study as studies
    from seamcurate.text import counted

    silent = studies.compare(answers, baseline, studies.read_judge(judge), file, rows=rows, max_usd=max_usd)
    print(
        f"{file}: written"
        + (f"; {counted(silent, 'reply holds', 'replies hold')} no verdict, see its column `reason`" if silent else "")
    )
