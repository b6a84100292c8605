"""The command line: one verb per public function, and no logic of its own.

Answers go to standard output, progress and errors to standard error. Exit code 2 is a mistake of the user's, 1 one of
ours, 130 a stop by Ctrl-C. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from seamcurate.errors import QueryError, RecipeError, SeamcurateError, TrainError, typed_line
from seamcurate.progress import note

if TYPE_CHECKING:
    from pydantic import JsonValue

    from seamcurate.publish.reproduce import Endpoint


class Verbs(typer.core.TyperGroup):
    """Commands of which a misspelt one is answered with the nearest."""

    def resolve_command(self, context: Any, arguments: list[str]) -> Any:
        """Find the command that the first argument names."""
        if arguments and self.get_command(context, arguments[0]) is None and not arguments[0].startswith("-"):
            from seamcurate.text import suggestion

            commands = self.list_commands(context)
            hint = suggestion(arguments[0], commands) or f"; there are: {', '.join(commands)}"
            context.fail(f"No such command {arguments[0]!r}{hint}")
        return super().resolve_command(context, arguments)


app = typer.Typer(
    cls=Verbs,
    help="Find the prompts a reward model gets wrong, and make splits that trainers load.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
trainers = typer.Typer(
    cls=Verbs, help="Train on a split, or on any Parquet or JSONL of the same columns.", no_args_is_help=True
)
app.add_typer(trainers, name="train")

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML.", show_default=False)]
StoreFolder = Annotated[
    str, typer.Argument(metavar="STORE", help="The store's folder, or s3://bucket/prefix.", show_default=False)
]


def _version(asked: bool) -> None:
    if asked:
        from seamcurate import __version__

        print(f"seamcurate {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Find the prompts a reward model gets wrong, and make splits that trainers load."""


def _check_order(verb: str, recipe: Path, store: str) -> None:
    """Refuse a recipe and a store that were named the wrong way round."""
    swapped = store.lower().endswith((".yaml", ".yml")) and not (recipe.is_file() and Path(store).is_dir())
    if swapped and recipe.suffix.lower() not in (".yaml", ".yml"):
        raise RecipeError(
            f"{store} is a recipe's name: the recipe comes first, as in `seamcurate {verb} {store} {recipe}`"
        )
    if Path(store).is_file():
        raise RecipeError(f"{store} is a file, and a store is a folder: write `seamcurate {verb} {recipe} STORE`")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except SeamcurateError as error:
        from seamcurate.text import one_line

        # A message may quote what a file holds: it stays one line, and rewrites no screen.
        note(f"error: {one_line(str(error))}")
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == 130 and sys.argv[1:2] == ["train"]:
            note(
                "stopped; run the same command again: with --save-steps it goes on from the last checkpoint, else from "
                "the start"
            )
        elif ended.code == 130:
            note("stopped; what was finished is kept: run the same command again to go on")
        raise
    except Exception as error:
        if os.environ.get("SEAMCURATE_TRACEBACK"):
            raise
        if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
            # pydantic's, of an option's value; not imported for its name alone.
            first = error.errors(include_url=False)[0]
            option = "".join(f" --{part}".replace("_", "-") for part in first["loc"][:1])
            note(f"error:{option} {first['msg'].removeprefix('Value error, ')}")
            sys.exit(2)
        note(f"internal error: {typed_line(error)} (SEAMCURATE_TRACEBACK=1 shows where)")
        sys.exit(1)


@app.command()
def demo(
    store: Annotated[Path, typer.Argument(help="Where to make it.")] = Path("demo-store"),
    variants: Annotated[str, typer.Option(help="Sample sets, by commas: contrast, adv, gpt.")] = "contrast",
    endpoint: Annotated[str | None, typer.Option(help="For gpt: an OpenAI-compatible server's base URL.")] = None,
    model: Annotated[str | None, typer.Option(help="For gpt: the model's name there.")] = None,
) -> None:
    """Do the whole job on an embedded default: no network, no GPU.

    Example: seamcurate demo --variants contrast,adv
    """
    from seamcurate.demo import story as embedded

    embedded.run(store, [name.strip() for name in variants.split(",") if name.strip()], endpoint, model)


@app.command()
def run(
    recipe: RecipeFile,
    store: StoreFolder,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop at the shard that holds this many rows.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Compute anew what another configuration made.")] = False,
    append: Annotated[
        bool, typer.Option("--append", help="Take new files of the source for more rows; what is there stays.")
    ] = False,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Stop before spending more on endpoints.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Compute on a Ray cluster: local, auto, or HOST:PORT, which no stranger may reach."
        ),
    ] = None,
) -> None:
    """Make what a recipe asks for and the store lacks; run it again to resume.

    Example: seamcurate run recipes/seam_contrast.yaml my-store --limit 1000
    """
    from seamcurate.run import recipe as recipes
    from seamcurate.run.cluster import run_ray
    from seamcurate.run.local import run_local
    from seamcurate.text import counted

    _check_order("run", recipe, store)
    loaded = recipes.load(recipe)
    if ray is None:
        report = run_local(loaded, store, limit, replace, max_usd, append)
    else:
        report = run_ray(loaded, store, ray, limit, replace, max_usd, append)
    done = [f"{report.read:,} read"] if report.read else []
    done += [f"{counted(report.computed, 'shard')} computed"] if report.computed else []
    print(f"{store}: {counted(report.rows, 'row')}, {', '.join(done) or 'everything was there'}")
    for line in report.lines:
        print(f"  {line}")


@app.command()
def plan(recipe: RecipeFile, store: StoreFolder) -> None:
    """Show rows, model calls, tokens and dollars a run would take; writes nothing.

    Example: seamcurate plan recipes/seam_contrast.yaml my-store
    """
    from seamcurate import tables, text
    from seamcurate.run import plan as estimate
    from seamcurate.run import recipe as recipes

    _check_order("plan", recipe, store)
    made = estimate.plan(recipes.load(recipe), store)
    print(f"{text.counted(made.rows, 'row')} ({made.rejected:,} set aside), corpus of {made.corpus:,}")
    rows = [
        [
            line.step,
            f"{line.rows:,}",
            f"{line.calls:,}" if line.model else "",
            f"{line.tokens:,}" if line.model else "",
            f"{line.written:,}" if line.written else "",
            "" if line.usd is None else f"{line.usd:,.2f}",
            line.model,
        ]
        for line in made.lines
    ]
    tables.show(["step", "rows to do", "calls", "tokens in", "out", "$", "model"], rows, right=(1, 2, 3, 4, 5))
    for line in made.notes:
        print(line)


@app.command()
def columns(store: StoreFolder) -> None:
    """List a store's columns: name, type, step, shards done, meaning.

    Example: seamcurate columns my-store
    """
    from seamcurate import tables, text
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
    noise = {c.name: n for c in listed if (n := opened.noise(c.name).get(c.name)) is not None}
    if noise:
        print("noise, by batch size, order and padding: " + ", ".join(f"{name} ±{n:.1g}" for name, n in noise.items()))


@app.command()
def sql(
    store: StoreFolder,
    query: Annotated[
        str,
        typer.Argument(
            help="One SELECT over rows, candidates, corpus, ledger, rejected; or a .sql file.", show_default=False
        ),
    ],
    format: Annotated[
        Literal["table", "csv", "jsonl", "parquet"], typer.Option(help="How to print the answer.")
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
    other: Annotated[
        str | None, typer.Option(help="A second store, as other.rows, other.candidates and so on.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Stop the query after so long.")] = 600,
    memory: Annotated[
        str | None, typer.Option(help="What its buffers may take, such as 2GB; else most of what the machine has.")
    ] = None,
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
        views.connect(Store(store).open(), other=Store(other).open() if other else None, memory=memory) as connection,
        views.limited(connection, seconds, "ask for fewer rows or columns, or give more --seconds"),
    ):
        tables.write(views.run(connection, views.text(query)), format, out)


@app.command()
def why(store: StoreFolder, row_id: Annotated[str, typer.Argument(help="The row.", show_default=False)]) -> None:
    """Tell what became of a row in every split, and what decided it.

    Example: seamcurate why my-store 17
    """
    from seamcurate.select import why as explain
    from seamcurate.store.store import Store

    if not re.fullmatch(r"-?\d{1,18}", row_id, re.ASCII):
        raise QueryError(f"{row_id} is no row id, which is a whole number: write `seamcurate why STORE ROW_ID`")
    for line in explain.why(Store(store).open(), int(row_id)):
        print(line)


@app.command()
def check(
    store: StoreFolder,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="Tell too whether the store holds what this recipe makes.")
    ] = None,
) -> None:
    """Verify a store from end to end; exit code 2 where something is wrong, with a line on what to do about each.

    Example: seamcurate check my-store --recipe recipe.yaml
    """
    from seamcurate import text
    from seamcurate.run import integrity
    from seamcurate.run import recipe as recipes
    from seamcurate.store.store import Store

    made = integrity.check(Store(store), recipes.load(recipe) if recipe else None)
    for finding in made.findings:
        print(text.clean(str(finding)))
    print(made.summary)
    if made.findings:
        sys.exit(2)


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
    from seamcurate import text
    from seamcurate.publish import export as exporting
    from seamcurate.run import recipe as recipes
    from seamcurate.store.store import Store

    _check_order("export", recipe, store)
    for line in exporting.export(recipes.load(recipe), Store(store).open(), to, out):
        print(f"{line.folder}: {text.counted(line.rows, 'row')}; columns {text.clean(', '.join(line.columns))}")
        for told in line.note.splitlines():
            print(f"  {text.clean(told)}")
        for command in line.commands:
            print(f"  $ {command}")


@app.command()
def explore(
    store: StoreFolder,
    other: Annotated[str | None, typer.Option(help="A second store, to compare with.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On this machine; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser window.")] = True,
) -> None:
    """Look at a store's scores, prompts and candidates on a page of this machine alone.

    Example: seamcurate explore my-store
    """
    from seamcurate import explore as explorer
    from seamcurate.store.store import Store

    explorer.serve(Store(store).open(), port, browser, Store(other).open() if other else None)


@app.command()
def report(
    store: StoreFolder,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(help="A folder for the figures as PNG and SVG.")] = None,
) -> None:
    """Write what the explorer shows as one HTML file to send to somebody.

    Example: seamcurate report my-store --out report.html
    """
    from seamcurate.explore import report as write
    from seamcurate.store.store import Store

    for file in write(Store(store).open(), out, figures):
        print(file)


@app.command()
def push(
    recipe: RecipeFile,
    store: StoreFolder,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hub.", show_default=False)],
    to: Annotated[Literal["trl", "openrlhf", "verl"], typer.Option(help="Whose format.")] = "trl",
    license: Annotated[list[str] | None, typer.Option(help="The source's licence; again for more.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; private otherwise.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the card and the sizes; ask the Hub nothing.")
    ] = False,
) -> None:
    """Publish a recipe's splits on the Hub with ledger, recipe and a card; only what changed travels.

    Example: seamcurate push recipe.yaml my-store my-org/my-prompts --dry-run
    """
    from seamcurate.publish import hub
    from seamcurate.publish.card import megabytes
    from seamcurate.store.store import Store
    from seamcurate.text import counted

    _check_order("push", recipe, store)
    if dry_run:
        made = hub.prepare(recipe, Store(store), repo_id, to, license or ())
        print(made.card)
        for name, size in made.files.items():
            print(f"{megabytes(size):>10}  {name}")
        notes = made.notes
    else:
        done = hub.push(recipe, Store(store), repo_id, to, public, license or ())
        changed = f"{counted(len(done.sent), 'file')} sent, {len(done.removed)} removed, {done.unchanged} were there"
        print(f"{done.url} at {done.commit}: {changed if done.sent or done.removed else 'nothing had changed'}")
        notes = done.notes
    for line in notes:
        print(line)


@app.command()
def reproduce(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hub.", show_default=False)],
    store: Annotated[Path, typer.Option(help="The store to make.")] = Path("reproduced"),
    revision: Annotated[str | None, typer.Option(help="A commit, tag or branch; the newest otherwise.")] = None,
    files: Annotated[Path | None, typer.Option(help="A folder with what only its author had.")] = None,
    endpoints: Annotated[
        bool, typer.Option("--endpoints", help="Let the recipe ask the language models it names.")
    ] = False,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIABLE", help="Let it send them the key in this environment variable; again for more."),
    ] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Stop before spending more on endpoints.")] = None,
) -> None:
    """Run a published recipe again and say which of its files come out the same; exit code 1 where one does not.

    Every endpoint is shown with its address and the variable that holds its key. On a terminal you are asked whether
    the recipe may use them; elsewhere --endpoints and --key say so.

    Example: seamcurate reproduce my-org/my-prompts --store again
    """
    from seamcurate.publish import reproduce as reproduction

    ask = _allowed if sys.stdin.isatty() and sys.stderr.isatty() else None
    made = reproduction.reproduce(repo_id, store, revision, files, endpoints, max_usd, key or (), ask)
    for line in made.lines():
        print(line)
    if not made.identical:
        sys.exit(1)


def _allowed(endpoints: Sequence[Endpoint]) -> bool:
    """Ask the person at the keyboard, who was shown these endpoints."""
    return typer.confirm("Send this recipe's requests and keys there?", default=False, err=True)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="A store, or a data set's id on the Hub.", show_default=False)],
    after: Annotated[str, typer.Argument(help="The other.", show_default=False)],
) -> None:
    """Explain by rule and model which rows two runs keep differently.

    Example: seamcurate diff my-store my-org/my-prompts
    """
    from seamcurate.publish import diff as comparison

    for line in comparison.diff(before, after).lines():
        print(line)


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="saturation, mismatch, selection, filter-rate, overlap, likelihood, augmentation, sanity, monotonicity, responses, winrate, preference, tax or query-type.",
            show_default=False,
        ),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="STORE…", help="Stores, or tables of results in Parquet or JSONL.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(help="A folder for the table, the figure as PNG and SVG, and the line.")
    ] = None,
    reward: Annotated[list[str] | None, typer.Option(help="A reward model to judge pairs by; again for more.")] = None,
    encoder: Annotated[str | None, typer.Option(help="An encoder, which adds RER to the reward models.")] = None,
    policy: Annotated[str | None, typer.Option(help="For likelihood: the policy that scores.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The reward models' window.")] = None,
    by: Annotated[str | None, typer.Option(help="The column that ranks rows, or divides pairs.")] = None,
    rate: Annotated[float | None, typer.Option(help="For overlap: the share of rows that is low.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The method that others are held against.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Judge so many pairs only.")] = None,
) -> None:
    """Measure what the papers measured: a table, a figure, and a line that says what was found.

    Example: seamcurate study overlap store-a store-b --out figures
    """
    from seamcurate import study as studies
    from seamcurate import tables, text

    found = studies.run(
        name,
        sources,
        out,
        rewards=reward or (),
        encoder=encoder,
        policy=policy,
        max_tokens=max_tokens,
        by=by,
        rate=rate,
        baseline=baseline,
        rows=rows,
    )
    tables.write(found.table.to_reader(), "table", None)
    print(text.one_line(found.line))


Base = Annotated[str, typer.Option(help="The model to start from: a folder or a Hub id.", show_default=False)]
Out = Annotated[Path, typer.Option(help="The folder to write.", show_default=False)]
Held = Annotated[Path | None, typer.Option(help="Rows to measure on; else some of the data are held out.")]
Lora = Annotated[bool, typer.Option("--lora/--no-lora", help="Train adapters, merged at the end, or all weights.")]
Rate = Annotated[float, typer.Option(help="AdamW's learning rate.")]
Epochs = Annotated[float, typer.Option(help="Passes over the data.")]
Steps = Annotated[int, typer.Option(help="Stop after so many updates; -1 for all.")]
Batch = Annotated[int, typer.Option(help="Rows a forward pass.")]
Accumulation = Annotated[int, typer.Option(help="Forward passes an update.")]
Warmup = Annotated[int, typer.Option(help="Updates until the full learning rate.")]
Length = Annotated[int, typer.Option(help="Tokens of prompt and answer together.")]
Seed = Annotated[int, typer.Option(help="One seed for everything.")]
Saving = Annotated[int, typer.Option(help="Updates between checkpoints; 0 for none.")]
Logging = Annotated[int, typer.Option(help="Updates between lines of log.jsonl.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")]
HeldRows = Annotated[int, typer.Option(help="Rows to hold out without --eval-data, a tenth at most; 0 for none.")]
Rank = Annotated[int, typer.Option(help="Of the adapters.")]
Alpha = Annotated[int, typer.Option(help="Of the adapters, whose weight is alpha / r.")]
Dropout = Annotated[float, typer.Option(help="Of the adapters.")]
Recompute = Annotated[bool, typer.Option("--gradient-checkpointing", help="Compute twice to fit into memory.")]
Revision = Annotated[str | None, typer.Option(help="A branch, tag or commit of a Hub model.")]
Form = Annotated[
    str | None,
    typer.Option(
        help="How prompts become text: chat (the chat template), plain, bare, or a text with {prompt}; else as the model was trained.",
    ),
]
TemplateArguments = Annotated[
    str | None, typer.Option(help='Arguments of the chat template as JSON, such as {"enable_thinking": false}.')
]
Date = Annotated[
    str | None,
    typer.Option(
        metavar="YYYY-MM-DD",
        help="What a chat template that writes today's date writes; else the day on which this began.",
    ),
]


@trainers.command("sft")
def train_sft(
    model: Base,
    data: Annotated[
        Path, typer.Option(help="prompt and completion (or response): a file or a split.", show_default=False)
    ],
    out: Out,
    eval_data: Held = None,
    eval_rows: HeldRows = 200,
    lora: Lora = True,
    lora_r: Rank = 8,
    lora_alpha: Alpha = 32,
    lora_dropout: Dropout = 0.1,
    learning_rate: Rate = 1e-4,
    num_train_epochs: Epochs = 1,
    max_steps: Steps = -1,
    per_device_train_batch_size: Batch = 8,
    gradient_accumulation_steps: Accumulation = 1,
    warmup_steps: Warmup = 10,
    max_length: Length = 512,
    save_steps: Saving = 0,
    logging_steps: Logging = 10,
    tensorboard: Board = False,
    seed: Seed = 0,
    gradient_checkpointing: Recompute = False,
    revision: Revision = None,
    form: Form = None,
    template: TemplateArguments = None,
    date: Date = None,
) -> None:
    """Fine-tune a causal language model on prompts and answers.

    Example: seamcurate train sft --model my-org/base-7b --data splits/train --out models/sft
    """
    options = {key: value for key, value in locals().items() if key not in ("model", "data", "out")}
    options["template"] = _arguments(template)
    from seamcurate.train import SFTTraining, sft

    _print_training(out, sft(model, data, out, SFTTraining(**options)))


@trainers.command("reward")
def train_reward(
    model: Base,
    data: Annotated[Path, typer.Option(help="prompt, chosen and rejected: a file or a split.", show_default=False)],
    out: Out,
    eval_data: Held = None,
    eval_rows: HeldRows = 200,
    lora: Lora = True,
    lora_r: Rank = 8,
    lora_alpha: Alpha = 32,
    lora_dropout: Dropout = 0.1,
    learning_rate: Rate = 2e-5,
    num_train_epochs: Epochs = 1,
    max_steps: Steps = -1,
    per_device_train_batch_size: Batch = 8,
    gradient_accumulation_steps: Accumulation = 1,
    warmup_steps: Warmup = 0,
    max_length: Length = 512,
    save_steps: Saving = 0,
    logging_steps: Logging = 10,
    tensorboard: Board = False,
    seed: Seed = 0,
    gradient_checkpointing: Recompute = False,
    revision: Revision = None,
    form: Form = None,
    template: TemplateArguments = None,
    date: Date = None,
) -> None:
    """Train a reward model on preferences.

    Example: seamcurate train reward --model models/sft --data preferences.parquet --out models/reward
    """
    options = {key: value for key, value in locals().items() if key not in ("model", "data", "out")}
    options["template"] = _arguments(template)
    from seamcurate.train import RewardTraining, reward

    _print_training(out, reward(model, data, out, RewardTraining(**options)))


Prompts = Annotated[Path, typer.Option(help="prompt and what the reward reads: a file or a split.", show_default=False)]
Rewarding = Annotated[
    str,
    typer.Option(
        "--reward",
        help="A reward model's folder or Hub id; li, rp or li_rp; a YAML file that configures it, or RER; or an exported seamcurate_reward.py.",
        show_default=False,
    ),
]
Temperature = Annotated[float, typer.Option(help="Of sampling.")]
Gold = Annotated[
    str | None, typer.Option(help="Another reward, as --reward: measured on held-out prompts, never learned from.")
]
Measuring = Annotated[int | None, typer.Option(help="Updates between measurements; else before and after.")]
Target = Annotated[
    float, typer.Option(help="KL in nats an answer, kept by moving the coefficient; 0 leaves the coefficient fixed.")
]
Horizon = Annotated[int, typer.Option(help="Answers over which the coefficient moves by about a fifth at most.")]


@trainers.command("ppo")
def train_ppo(
    model: Base,
    data: Prompts,
    reward: Rewarding,
    out: Out,
    gold: Gold = None,
    eval_data: Held = None,
    eval_rows: HeldRows = 64,
    eval_steps: Measuring = None,
    lora: Lora = True,
    lora_r: Rank = 8,
    lora_alpha: Alpha = 16,
    learning_rate: Rate = 1e-5,
    num_train_epochs: Epochs = 1,
    max_steps: Steps = -1,
    total_episodes: Annotated[int | None, typer.Option(help="Stop after so many answers.")] = None,
    per_device_train_batch_size: Batch = 16,
    gradient_accumulation_steps: Accumulation = 1,
    warmup_steps: Warmup = 0,
    num_ppo_epochs: Annotated[int, typer.Option(help="Passes over each batch of answers.")] = 4,
    num_mini_batches: Annotated[int, typer.Option(help="Updates a pass.")] = 1,
    response_length: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 512,
    max_length: Length = 1024,
    temperature: Temperature = 1.0,
    stop_strings: Annotated[
        list[str] | None, typer.Option(help="What ends an answer, literally; again for more.")
    ] = None,
    kl_coef: Annotated[float, typer.Option(help="Weight of the KL penalty, at the start.")] = 0.2,
    kl_target: Target = 6.0,
    kl_horizon: Horizon = 10_000,
    kl_estimator: Annotated[Literal["k1", "k3"], typer.Option(help="Of the KL of a token.")] = "k1",
    gamma: Annotated[float, typer.Option(help="Discount of what comes later.")] = 1.0,
    lam: Annotated[float, typer.Option(help="GAE's lambda.")] = 0.95,
    cliprange: Annotated[float, typer.Option(help="Of the policy's ratio, around 1.")] = 0.2,
    cliprange_value: Annotated[float, typer.Option(help="Of the value, around what it was.")] = 0.2,
    vf_coef: Annotated[float, typer.Option(help="Weight of the value's loss.")] = 1.0,
    whiten_rewards: Annotated[bool, typer.Option("--whiten-rewards", help="Scale rewards within a batch.")] = False,
    score_normalise: Annotated[
        bool, typer.Option("--score-normalise/--no-score-normalise", help="Scale scores by all so far.")
    ] = True,
    score_clip: Annotated[float, typer.Option(help="Then hold scores between plus and minus this; 0: do not.")] = 10.0,
    missing_eos_penalty: Annotated[
        float | None, typer.Option(help="Then take this off the score of an answer that was cut.")
    ] = None,
    value_model: Annotated[
        Path | None, typer.Option(help="A reward model to start a value model from; else a head on the policy.")
    ] = None,
    save_steps: Saving = 100,
    logging_steps: Logging = 1,
    tensorboard: Board = False,
    seed: Seed = 0,
    gradient_checkpointing: Recompute = False,
    revision: Revision = None,
    form: Form = None,
    template: TemplateArguments = None,
    date: Date = None,
) -> None:
    """Train a policy by PPO against a reward model, or against RER.

    Example: seamcurate train ppo --model models/sft --data splits/train --reward models/reward --out models/ppo
    """
    options = {key: value for key, value in locals().items() if key not in ("model", "data", "reward", "gold", "out")}
    options |= {
        "kl_target": kl_target or None,
        "score_clip": score_clip or None,
        "stop_strings": tuple(stop_strings or ()),
        "template": _arguments(template),
    }
    from seamcurate import rewards
    from seamcurate.train import PPOTraining, ppo
    from seamcurate.train.workplace import first_day

    config = PPOTraining(**options)
    day = config.date or first_day(out)
    other = None if gold is None else rewards.read(gold, day)
    _print_training(out, ppo(model, rewards.read(reward, day), data, out, config, other))


@trainers.command(
    "rloo",
    help="Train a policy by RLOO: the baseline of an answer is what the others to its prompt earn.\n\n"
    "Example: seamcurate train rloo --model models/sft --data splits/train --reward li_rp --out models/rloo",
)
@trainers.command(
    "grpo",
    help="Train a policy by GRPO: each answer against the others to its prompt.\n\n"
    "Example: seamcurate train grpo --model models/sft --data splits/train --reward models/reward --out models/grpo",
)
def train_by_groups(
    context: typer.Context,
    model: Base,
    data: Prompts,
    reward: Rewarding,
    out: Out,
    gold: Gold = None,
    eval_data: Held = None,
    eval_rows: HeldRows = 64,
    eval_steps: Measuring = None,
    lora: Lora = True,
    lora_r: Rank = 8,
    lora_alpha: Alpha = 16,
    lora_dropout: Dropout = 0.05,
    learning_rate: Rate = 1e-5,
    num_train_epochs: Epochs = 1,
    max_steps: Steps = -1,
    per_device_train_batch_size: Annotated[int, typer.Option(help="Answers a forward pass.")] = 8,
    gradient_accumulation_steps: Accumulation = 1,
    warmup_steps: Warmup = 0,
    num_generations: Annotated[int, typer.Option(help="Answers a prompt.")] = 8,
    num_iterations: Annotated[int, typer.Option(help="Updates from the same answers.")] = 1,
    epsilon: Annotated[float, typer.Option(help="How far the policy's ratio may be from 1.")] = 0.2,
    max_completion_length: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 512,
    max_length: Length = 1024,
    temperature: Temperature = 1.0,
    beta: Annotated[float, typer.Option(help="Weight of the KL penalty.")] = 0.05,
    kl_target: Target = 0.0,
    kl_horizon: Horizon = 10_000,
    save_steps: Saving = 0,
    logging_steps: Logging = 10,
    tensorboard: Board = False,
    seed: Seed = 0,
    gradient_checkpointing: Recompute = False,
    revision: Revision = None,
    form: Form = None,
    template: TemplateArguments = None,
    date: Date = None,
) -> None:
    """Train by GRPO or RLOO, whose options are the same."""
    options = {
        key: value
        for key, value in locals().items()
        if key not in ("context", "model", "data", "reward", "gold", "out")
    }
    options |= {"kl_target": kl_target or None, "template": _arguments(template)}
    from seamcurate import rewards
    from seamcurate.train import GroupTraining, grpo, rloo
    from seamcurate.train.workplace import first_day

    train = grpo if context.info_name == "grpo" else rloo
    config = GroupTraining(**options)
    day = config.date or first_day(out)
    other = None if gold is None else rewards.read(gold, day)
    _print_training(out, train(model, rewards.read(reward, day), data, out, config, other))


@app.command()
def answer(
    model: Annotated[str, typer.Option(help="The policy: a folder or a Hub id.", show_default=False)],
    data: Annotated[Path, typer.Option(help="prompt, and what else to keep: a file or a split.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 256,
    temperature: Temperature = 1.0,
    samples: Annotated[int, typer.Option(help="Answers a prompt.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Answers at a time.")] = 16,
    revision: Revision = None,
    seed: Seed = 0,
    form: Form = None,
    template: TemplateArguments = None,
    date: Date = None,
) -> None:
    """Write what a policy answers to prompts, for the studies responses, tax and winrate.

    Example: seamcurate answer --model models/ppo --data splits/test --out answers/ppo.parquet
    """
    from seamcurate.text import counted
    from seamcurate.train import Answering
    from seamcurate.train import answer as write

    config = Answering.model_validate(
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "samples": samples,
            "batch_size": batch_size,
            "revision": revision,
            "seed": seed,
            "form": form,
            "template": _arguments(template),
            "date": date,
        }
    )
    print(f"{out}: {counted(write(model, data, out, config), 'answer')}")


@app.command()
def compare(
    answers: Annotated[
        list[str], typer.Argument(metavar="ANSWERS…", help="Tables that `answer` wrote.", show_default=False)
    ],
    baseline: Annotated[str, typer.Option(help="The baseline's table.", show_default=False)],
    judge: Annotated[Path, typer.Option(help="YAML: {openai_server: NAME, base_url: …}.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.", show_default=False)],
    rows: Annotated[int | None, typer.Option(min=1, help="The first so many answers only.")] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Stop before spending more on the endpoint.")] = None,
) -> None:
    """Ask a language model which of two answers is better, in both positions; the study winrate reads its verdicts.

    Example: seamcurate compare answers/ppo.parquet --baseline answers/sft.parquet --judge judge.yaml --out verdicts.parquet
    """
    from seamcurate import study as studies
    from seamcurate.text import counted

    silent = studies.compare(answers, baseline, studies.read_judge(judge), out, rows=rows, max_usd=max_usd)
    print(
        f"{out}: written"
        + (f"; {counted(silent, 'reply holds', 'replies hold')} no verdict, see its column `reason`" if silent else "")
    )


def _arguments(template: str | None) -> dict[str, JsonValue] | None:
    """Read `--template`."""
    if template is None:
        return None
    try:
        arguments = json.loads(template)
    except ValueError as error:
        raise TrainError(f"--template is no JSON ({error}); write it like '{{\"enable_thinking\": false}}'") from error
    if not isinstance(arguments, dict):
        raise TrainError("--template is a JSON object, like '{\"enable_thinking\": false}'")
    return arguments


_WITHOUT = ("responses_not_scored", "answers_without_a_reward")
"""What the trainers call them in their records."""


def _print_training(out: Path, record: Mapping[str, JsonValue]) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    measures = (
        *("loss_before", "loss_after", "accuracy_before", "accuracy"),
        *("reward_first", "reward_last", "reward_before", "reward_after", "gold_before", "gold_after", "kl"),
    )
    shown = [f"{key} {value:.4g}" for key in measures if isinstance(value := record.get(key), float)]
    without = next((n for key in _WITHOUT if isinstance(n := record.get(key), int) and n), 0)
    left_out = f"; {without:,} answers had no reward and were left out" if without else ""
    print(
        f"{out}: trained on {record['rows_used']:,} of {record['rows']:,} rows; {', '.join(shown) or 'not measured'}"
        f"{left_out}{_equal_groups(record)}"
    )


def _equal_groups(record: Mapping[str, JsonValue]) -> str:
    """Say in how many groups of GRPO's or RLOO's answers no answer was better than another."""
    groups, equal = record.get("groups"), record.get("groups_of_equal_rewards")
    if not isinstance(groups, int) or not isinstance(equal, int) or not equal:
        return ""
    if equal == groups:
        return "; in every group all rewards were equal: nothing was learned"
    return f"; in {equal:,} of {groups:,} groups ({equal / groups:.0%}) all rewards were equal: nothing was learned from these"


if __name__ == "__main__":
    main()
