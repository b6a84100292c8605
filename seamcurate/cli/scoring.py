"""The verbs that make a store and read it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from seamcurate.cli.arguments import MaxUsd, OtherStore, RecipeFile, StoreFolder, Threads, check_order
from seamcurate.errors import QueryError


def demo(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store to make.")] = Path("demo-store"),
    variants: Annotated[
        str, typer.Option(help="Sample sets to score, separated by commas: contrast, adv, gpt.")
    ] = "contrast",
    endpoint: Annotated[
        str | None, typer.Option(help="Base URL of an OpenAI-compatible server, for the sample set gpt.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model on that server, for the sample set gpt.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Policy in place of the installed SmolLM2: folder or Hub id of a causal language model, or scratch for a "
            "small one that is trained here."
        ),
    ] = None,
    threads: Threads = None,
) -> None:
    """Do the whole job on an embedded default: no network, no GPU.

    Example: seamcurate demo --variants contrast,adv
    """
    from seamcurate.demo import story as embedded

    embedded.run(store, [name.strip() for name in variants.split(",") if name.strip()], endpoint, model, policy)


def run(
    recipe: RecipeFile,
    store: StoreFolder,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows after which the run stops, rounded up to whole shards, of 4,096 rows unless `rows` has `shard_rows`.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Compute columns anew that another configuration made.")
    ] = False,
    append: Annotated[
        bool, typer.Option("--append", help="Read new files of the source as more rows; the rows that are stored stay.")
    ] = False,
    max_usd: MaxUsd = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Ray cluster to compute on: local, auto, or HOST:PORT, which no stranger may reach."
        ),
    ] = None,
    threads: Threads = None,
) -> None:
    """Make what a recipe asks for and the store lacks; run it again to resume.

    Example: seamcurate run recipe.yaml my-store --limit 1000
    """
    from seamcurate.models import product
    from seamcurate.progress import note
    from seamcurate.run import recipe as recipes
    from seamcurate.run import times
    from seamcurate.run.cluster import run_ray
    from seamcurate.run.local import run_local

    check_order("run", recipe, store)
    loaded = recipes.load(recipe)
    if ray is None:
        report = run_local(loaded, store, limit, replace, max_usd, append)
    else:
        report = run_ray(loaded, store, ray, limit, replace, max_usd, append)
    for line in (*times.lines(report.times), *product.told()):
        note(line)
    print(f"{store}: {report}")


def plan(recipe: RecipeFile, store: StoreFolder, threads: Threads = None) -> None:
    """Show rows, model calls, tokens, dollars and hours a run would take; computes nothing.

    Example: seamcurate plan recipe.yaml my-store
    """
    from seamcurate import tables
    from seamcurate.run import plan as estimate
    from seamcurate.run import recipe as recipes

    check_order("plan", recipe, store)
    planned = estimate.plan(recipes.load(recipe), store)
    print(planned.counts())
    tables.show(estimate.HEADER, planned.cells(), right=(1, 2, 3, 4, 5, 6))
    for line in planned.notes:
        print(line)


def init(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="File, folder, pattern of files, store, or id of a data set on the Hub.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Recipe to write; one that exists is never overwritten.")] = Path(
        "recipe.yaml"
    ),
    corpus: Annotated[
        str | None, typer.Option(help="Other questions with their answers, named as DATA is; they give worse answers.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Policy: folder or Hub id, or KIND:NAME for another kind of model.")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="Reward model, named as the policy is; or a reward function, verifier.py:score or number_match."
        ),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder, named as the policy is.")] = None,
) -> None:
    """Look at data and write a commented recipe that runs.

    Example: seamcurate init rows.jsonl --policy my-org/sft-7b --reward my-org/rm-7b
    """
    from seamcurate.run import draft
    from seamcurate.text import one_line

    written = draft.init(data, out, corpus, policy, reward, encoder)
    for line in written.lines:
        print(one_line(line))
    print(f"{written.path} is written; see what it would take: seamcurate plan {written.path} my-store")


def columns(store: StoreFolder) -> None:
    """List a store's columns: name, type, step, shards done, meaning.

    Example: seamcurate columns my-store
    """
    from seamcurate import tables, text
    from seamcurate.score import golden_check, measured
    from seamcurate.store.store import Store

    opened = Store(store).open()
    listed = opened.columns()
    rows = [
        [
            c.name,
            text.brief(str(c.kind), 40),
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
    doubt = golden_check.warning(golden_check.found(opened.all_facts()))
    if doubt and any(c.name.startswith("seam_") for c in listed):
        print(doubt)
    for column in listed:
        # A discrepancy is its SEAM with the sign turned.
        if not column.name.startswith("discrepancy_") and (said := measured.sentence(column.name, column.made_by)):
            print(f"{column.name}: {said}")
    noise = {c.name: n for c in listed if (n := opened.noise(c.name).get(c.name)) is not None}
    if noise:
        cause = (
            "by batch size, order and padding; of a judge by draws, order and wording; "
            "of int8, half precision and other runtimes on a CPU also against torch in float32"
        )
        print(f"noise, {cause}: " + ", ".join(f"{name} ±{n:.1g}" for name, n in noise.items()))


def sql(
    store: StoreFolder,
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY",
            help="One SELECT statement over rows, candidates, corpus, ledger and rejected; or a .sql file that holds it.",
            show_default=False,
        ),
    ],
    format: Annotated[
        Literal["table", "csv", "jsonl", "parquet"], typer.Option(help="Format of the answer.")
    ] = "table",
    file: Annotated[
        Path | None, typer.Option("--out", help="File to write the answer to instead of standard output.")
    ] = None,
    second_store: OtherStore = None,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds after which the query stops.")] = 600,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory that the query's buffers may take, such as 2GB. Without it, most of the machine's."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Ask a store in SQL; it is only ever read.

    Example: seamcurate sql my-store "SELECT prompt, seam_contrast FROM rows ORDER BY seam_contrast LIMIT 5"
    """
    from seamcurate import tables, text
    from seamcurate.select import views
    from seamcurate.store.store import Store

    if re.match(r"\s*(select|with|from)\s|.*\.sql\s*$", store, re.IGNORECASE):
        raise QueryError(f'the store comes first, as in `seamcurate sql {query} "{text.brief(store, 60)}"`')
    with (
        views.connect(
            Store(store).open(), other=Store(second_store).open() if second_store else None, memory=memory
        ) as connection,
        views.limited(connection, seconds, "ask for fewer rows or columns, or give more --seconds"),
    ):
        tables.write(views.run(connection, views.text(query)), format, file)


def why(
    store: StoreFolder,
    row_id: Annotated[
        str,
        typer.Argument(
            metavar="ROW_ID", help="Number of the row: its position in the source, from 0.", show_default=False
        ),
    ],
) -> None:
    """Tell what became of a row in every split, and what decided it.

    Example: seamcurate why my-store 17
    """
    from seamcurate.select import why as explain
    from seamcurate.store.store import Store

    if not re.fullmatch(r"-?\d{1,18}", row_id, re.ASCII):
        raise QueryError(f"{row_id} is no row id, which is a whole number: write `seamcurate why STORE ROW_ID`")
    for line in explain.why(Store(store).open(), int(row_id)):
        print(line)


def check(
    store: StoreFolder,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="Recipe, a YAML file, whose results the store must hold.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Verify a store from end to end; exit code 2 where something is wrong, with a line on what to do about each.

    Example: seamcurate check my-store --recipe recipe.yaml
    """
    from seamcurate import text
    from seamcurate.run import integrity
    from seamcurate.run import recipe as recipes
    from seamcurate.store.store import Store

    result = integrity.check(Store(store), recipes.load(recipe) if recipe else None)
    for finding in result.findings:
        print(text.clean(str(finding)))
    print(result.summary)
    if result.findings:
        sys.exit(2)
