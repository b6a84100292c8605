"""The command line: one verb per public function, and no logic of its own.

Answers go to standard output, progress and errors to standard error. Exit code 2 is a mistake of the user's, 1 one of
ours, 130 a stop by Ctrl-C. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from seamcurate import threads
from seamcurate.cli import auditing, publishing, scoring, training
from seamcurate.cli.fields import configured_by
from seamcurate.errors import SeamcurateError, typed_line
from seamcurate.progress import note


class Verbs(typer.core.TyperGroup):
    """Commands of which a misspelt one is answered with the nearest; their list says what each does, in a sentence."""

    def resolve_command(self, context: Any, arguments: list[str]) -> Any:
        """Find the command that the first argument names."""
        if arguments and self.get_command(context, arguments[0]) is None and not arguments[0].startswith("-"):
            from seamcurate.text import suggestion

            commands = self.list_commands(context)
            hint = suggestion(arguments[0], commands) or f"; there are: {', '.join(commands)}"
            context.fail(f"No such command {arguments[0]!r}{hint}")
        return super().resolve_command(context, arguments)

    def format_commands(self, context: Any, formatter: Any) -> None:
        """List the commands with their first sentences, which are wrapped and not cut."""
        names = self.list_commands(context)
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=1000)) for name in names])


class StudyCommand(typer.core.TyperCommand):
    """A command whose help lists the table of studies."""

    def format_epilog(self, context: Any, formatter: Any) -> None:
        """Write a line for each study."""
        from seamcurate.study import STUDIES

        with formatter.section("Studies"):
            formatter.write_dl([(study.name, f"{study.meaning} (reads {study.reads})") for study in STUDIES])


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
    # A limit in the environment that is no number is refused before anything is done.
    threads.available()


for verb in (
    auditing.audit,
    *(scoring.demo, scoring.init, scoring.plan, scoring.run, scoring.columns, scoring.sql, scoring.why, scoring.check),
    *(publishing.export, publishing.explore, publishing.report, publishing.push, publishing.reproduce),
    publishing.diff,
):
    app.command()(verb)
app.command(cls=StudyCommand)(publishing.study)
app.command(cls=configured_by("seamcurate.train:Answering"))(training.answer)
app.command()(publishing.compare)

trainers.command("sft", cls=configured_by("seamcurate.train:SFTTraining"))(training.train_sft)
trainers.command("reward", cls=configured_by("seamcurate.train:RewardTraining"))(training.train_reward)
# PPO's passes run without dropout.
ppo_options = configured_by("seamcurate.train:PPOTraining", excluded=["lora_dropout"])
trainers.command("ppo", cls=ppo_options)(training.train_ppo)
trainers.command("grpo", cls=configured_by("seamcurate.train:GroupTraining"))(training.train_grpo)
trainers.command("rloo", cls=configured_by("seamcurate.train:GroupTraining"))(training.train_rloo)


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
        from seamcurate.extras import hint

        if isinstance(error, ImportError) and (line := hint(error)) and not os.environ.get("SEAMCURATE_TRACEBACK"):
            note(f"error: {line}")
            sys.exit(2)
        if os.environ.get("SEAMCURATE_TRACEBACK"):
            raise
        if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
            # pydantic's, of an option's value; not imported for its name alone.
            problem = error.errors(include_url=False)[0]
            option = "".join(f" --{field}".replace("_", "-") for field in problem["loc"][:1])
            note(f"error:{option} {problem['msg'].removeprefix('Value error, ')}")
            sys.exit(2)
        note(f"internal error: {typed_line(error)} (SEAMCURATE_TRACEBACK=1 shows where)")
        sys.exit(1)
