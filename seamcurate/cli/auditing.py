"""The verb that looks for what a reward pays for that it should not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from seamcurate.cli.arguments import Threads
from seamcurate.errors import SourceError


def audit(
    reward: Annotated[
        str,
        typer.Option(
            help="Reward to audit: a function, reward.py:score; a reward model's folder or Hub id; or a YAML file with one model of a recipe, such as a server or a judge.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Rows with prompts and good answers: a Parquet, JSONL, CSV or Arrow file.", show_default=False
        ),
    ],
    prompt: Annotated[
        str | None, typer.Option(help="Column of the prompts. Without it, one of a usual name, such as question.")
    ] = None,
    response: Annotated[
        str | None,
        typer.Option(help="Column of the good answers. Without it, one of a usual name, else the reference."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Column of the references. Without it, one of a usual name, if there is one.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="File of rows whose answers are tried on similar questions. Without it, the data."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder that finds the nearest question, too: a folder or a Hub id.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Policy whose own answers are tried, eight a prompt: a folder, a Hub id, a server's address, or a YAML file."
        ),
    ] = None,
    second: Annotated[str | None, typer.Option(help="Second reward to compare with, named as --reward is.")] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Fault for which the command ends with exit code 3: exploit, golden or disagreement. Separate several by commas, or repeat the option.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to audit, evenly spaced over the data.")] = 1000,
    store: Annotated[
        Path | None, typer.Option(help="Folder of the store. Without it, audit-NAME here, by the name of the data.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="HTML file to write the report to, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Find what a reward pays for that it should not, on your own rows.

    Example: seamcurate audit --reward reward.py:score --data prompts.parquet --fail-on exploit
    """
    from seamcurate import audit as audits
    from seamcurate.audit import inputs, terminal
    from seamcurate.text import suggestion

    names = [name.strip() for entry in fail_on or [] for name in entry.split(",") if name.strip()]
    for name in names:
        if name not in audits.FAILURES:
            there = ", ".join(audits.FAILURES)
            raise SourceError(f"--fail-on takes {there}, not {name!r}{suggestion(name, audits.FAILURES)}")
    result = audits.audit(
        reward,
        inputs.source(data, prompt, response, reference),
        store=store,
        against=against,
        encoder=encoder,
        policy=policy,
        second=second,
        limit=limit,
    )
    failed = tuple(name for name in result.failures() if name in names)
    if html is not None:
        from seamcurate.audit import page

        page.write(result, html)
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 120
        for line in terminal.lines(result, width, failed):
            print(line)
    if failed:
        sys.exit(3)
