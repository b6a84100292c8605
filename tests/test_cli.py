"""The command line, run as a user runs it: output, errors of one line, exit codes, speed."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from conftest import interrupt
from forked import forker
from pydantic import ConfigDict, Field
from typer.main import get_command
from typer.testing import CliRunner

import seamcurate
from seamcurate.cli import app
from seamcurate.cli.fields import configured_by
from seamcurate.train import SFTTraining

pytestmark = pytest.mark.slow

RECIPE = """
rows: {parquet: rows.parquet, shard_rows: 15}
corpus: {parquet: corpus.parquet, shard_rows: 64}
models: {policy: {fake: policy}, reward: {fake: reward}, encoder: {fake: encoder}}
steps: [retrieve: {k: 5, band: [0.5, 0.9]}, seam: {k: 5}, rer: {fit: quantiles}, random]
splits: {train: {filter: keep_above_lowest.sql, by: seam_contrast}}
"""
VERBS = (
    "audit",
    "demo",
    "run",
    "plan",
    "columns",
    "sql",
    "why",
    "check",
    "export",
    "explore",
    "report",
    "push",
    "reproduce",
    "diff",
    "study",
)


def process(*arguments, **options):
    """Run a command as a user does: by an interpreter that has imported nothing."""
    command = [sys.executable, "-m", "seamcurate.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """A function that runs a command in a process of its own, which starts with all imports done."""
    with forker(tmp_path_factory.mktemp("children")) as children:
        yield children.complete


@pytest.fixture
def recipe_file(files, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_help_lists_every_verb():
    shown = process("--help")
    assert shown.returncode == 0
    for verb in (*VERBS, "train"):
        assert f" {verb} " in shown.stdout


def test_each_verbs_help_ends_in_an_example():
    for verb, command in commands():
        assert command.help.split("\n\n")[-1].startswith(f"Example: seamcurate {verb} "), verb


def commands(group=None, path=()):
    """Yield each verb with its command, those of `train` too."""
    for name, command in getattr(group or get_command(app), "commands", {}).items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def options(command):
    """Yield each argument and option with what is typed, and its line of help."""
    for option in command.get_params(typer.Context(command)):
        if "--help" not in option.opts:
            yield option, *option.get_help_record(typer.Context(command))


def test_every_option_is_typed_as_before_and_shows_the_same_default():
    lines = []
    for verb, command in commands():
        for option, typed, line in options(command):
            shown = re.search(r"\[(?:default: .*|required|[^\[]*)\]$", line)
            repeatable = "repeatable" if getattr(option, "multiple", False) else ""
            lines.append(" ".join(filter(None, (verb, typed, shown and shown[0], repeatable))))
    assert len(lines) == len(set(lines))
    assert set(lines) == set((Path(__file__).parent / "cli_options.txt").read_text().splitlines())


@pytest.mark.parametrize("verb", [verb for verb, _ in commands()])
def test_every_line_of_help_stands_on_its_own(verb):
    for option, typed, _ in options(dict(commands())[verb]):
        assert option.help and re.match(r"[A-Z]", option.help) and option.help.endswith("."), typed
        first = option.help.split()[0].strip(",.")
        assert first not in {"Of", "Its", "Their", "It", "Then", "As", "For", "Whose", "What", "Where", "How"}, typed


class ToyTraining(SFTTraining):
    model_config = ConfigDict(use_attribute_docstrings=True)

    toys: int = Field(3, ge=1)
    """Toys in a batch, of which
    `max_steps` takes no notice."""
    target: float | None = Field(None, gt=0)
    """Share of toys to keep."""
    colours: tuple[str, ...] = ()
    """Colour of a toy."""


def test_a_field_added_to_a_trainings_options_is_an_option_of_its_command():
    toy, given = typer.Typer(), []

    @toy.command(cls=configured_by(f"{__name__}:ToyTraining", excluded=["lora_dropout"]))
    def train(context: typer.Context, model: str) -> None:
        given.append((model, context.obj))

    shown = " ".join(CliRunner().invoke(toy, ["--help"], env={"COLUMNS": "200"}).stdout.split())
    assert "--toys <int> Toys in a batch, of which --max-steps takes no notice. At least 1. [default: 3]" in shown
    assert "--target <float> Share of toys to keep. 0 stands for none. [default: 0.0]" in shown
    assert "--learning-rate <float> Learning rate of AdamW. Above 0. [default: 0.0001]" in shown
    assert "--lora-dropout" not in shown
    assert CliRunner().invoke(toy, ["m"]).exit_code == 0
    typed = ["m", "--toys", "5", "--target", "0.5", "--colours", "red", "--colours", "blue", "--no-lora"]
    typed += ["--template", '{"enable_thinking": false}', "--date", "2024-02-29"]
    assert CliRunner().invoke(toy, typed).exit_code == 0
    expected = ToyTraining(
        toys=5,
        target=0.5,
        colours=("red", "blue"),
        lora=False,
        template={"enable_thinking": False},
        date=datetime.date(2024, 2, 29),
    )
    assert given == [("m", ToyTraining()), ("m", expected)]


def test_run_says_what_it_made_and_that_it_was_there(cli, recipe_file, tmp_path):
    store = tmp_path / "store"
    first = cli("run", recipe_file, store)
    assert first.returncode == 0, first.stderr
    assert re.search(r": 40 rows, 40 read, \d+ shards computed\n", first.stdout)
    assert "coverage: " in first.stdout and "split train: 32 of 40 rows kept" in first.stdout
    assert ": 40 rows, everything was there\n" in cli("run", recipe_file, store).stdout


def test_a_run_of_a_recipe_without_steps_says_that_it_read_rows(cli, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    (tmp_path / "recipe.yaml").write_text("rows: {jsonl: rows.jsonl, shard_rows: 2}\n")
    ran = [
        cli("run", tmp_path / "recipe.yaml", tmp_path / "store", *limit).stdout for limit in (["--limit", 1], [], [])
    ]
    told = [line.partition(": ")[2] for line in ran]
    assert told == ["2 rows, 2 read\n", "3 rows, 1 read\n", "3 rows, everything was there\n"]


def test_plan_counts_rows_calls_and_tokens_and_writes_its_times_alone(cli, recipe_file, tmp_path):
    store = tmp_path / "store"
    shown = cli("plan", recipe_file, store)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("40 rows (0 set aside), corpus of 200\n")
    assert [file.name for file in store.iterdir()] == ["plan.json"]
    lines = {line.split()[0]: line.split() for line in shown.stdout.splitlines() if line.strip()}
    assert lines["reward"][1:3] == ["40", "40"] and int(lines["reward"][3].replace(",", "")) > 40 * 15
    assert int(lines["rewards_contrast"][2].replace(",", "")) > 40
    assert "about" in shown.stdout.splitlines()[-1]
    assert cli("run", recipe_file, store).returncode == 0
    after = cli("plan", recipe_file, store).stdout
    done = [line.split() for line in after.splitlines() if line.strip().startswith(("reward", "rer", "seam"))]
    assert len(done) == 9 and {line[1] for line in done} == {"0"}


def test_sql_answers_in_every_form_and_progress_stays_off_standard_output(cli, finished, tmp_path):
    query = "SELECT row_id, prompt, reward, worse_contrast FROM rows ORDER BY row_id LIMIT 3"
    shown = cli("sql", finished.path, query)
    assert shown.returncode == 0 and "row_id" in shown.stdout and shown.stdout.endswith("3 rows\n") and not shown.stderr
    table = list(csv.DictReader(io.StringIO(cli("sql", finished.path, query, "--format", "csv").stdout)))
    lines = [json.loads(line) for line in cli("sql", finished.path, query, "--format", "jsonl").stdout.splitlines()]
    assert [int(r["row_id"]) for r in table] == [r["row_id"] for r in lines] == [0, 1, 2]
    assert [float(r["reward"]) for r in table] == [r["reward"] for r in lines]
    assert json.loads(table[0]["worse_contrast"]) == lines[0]["worse_contrast"]
    cli("sql", finished.path, query, "--format", "parquet", "--out", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == lines


def test_a_question_in_a_file_is_asked_of_two_stores(cli, finished, tmp_path):
    (tmp_path / "q.sql").write_text("SELECT count(*) AS n FROM rows JOIN other.rows USING (row_id, seam_contrast)")
    shown = cli("sql", finished.path, tmp_path / "q.sql", "--other", finished.path, "--format", "csv")
    assert shown.returncode == 0, shown.stderr
    assert int(shown.stdout.split()[1]) > 20


def test_study_diff_and_a_dry_push_say_what_they_found(cli, recipe_file, tmp_path):
    store = tmp_path / "store"
    assert cli("run", recipe_file, store).returncode == 0
    shown = cli("study", "overlap", store, store, "--out", tmp_path / "figures")
    assert shown.returncode == 0, shown.stderr
    assert "share 100.0 %" in shown.stdout.splitlines()[-1]
    ends = ("parquet", "png", "svg", "txt")
    assert sorted(f.name for f in (tmp_path / "figures").iterdir()) == sorted(f"overlap.{end}" for end in ends)
    assert cli("diff", store, store).stdout.splitlines()[0] == "no input differs"
    shown = cli("push", recipe_file, store, "me/prompts", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "config_name: train" in shown.stdout and "data/train/train-00000-of-00001.parquet" in shown.stdout


def test_a_policy_is_trained_by_reward(cli, policy_folder, tmp_path):
    rows = [{"prompt": f"Where is {i}?"} for i in range(8)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = ["--num-generations", 4, "--max-completion-length", 4, "--max-steps", 1]
    for method, options in (("grpo", sizes), ("ppo", ["--response-length", 4, "--max-length", 60, "--max-steps", 1])):
        asked = ["--model", policy_folder, "--data", tmp_path / "d.jsonl", "--reward", "li", "--out", tmp_path / method]
        shown = cli("train", method, *asked, *options)
        assert shown.returncode == 0, shown.stderr
        assert f"{tmp_path / method}: trained on " in shown.stdout
        assert (tmp_path / method / "log.jsonl").is_file()
    refused = cli("train", "ppo", *asked[:-1], tmp_path / "x", "--learning-rate", -1)
    assert (refused.returncode, refused.stderr) == (2, "error: --learning-rate Input should be greater than 0\n")


def test_answers_that_a_reward_does_not_apply_to_are_told(cli, policy_folder, tmp_path):
    rows = [{"prompt": f"Where is {i}?", "query_type": "closed", "reference": None} for i in range(8)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "rer.yaml").write_text("{reward: rer, encoder: {fake: encoder}}")
    asked = ["--model", policy_folder, "--data", tmp_path / "d.jsonl", "--reward", tmp_path / "rer.yaml"]
    sizes = ["--response-length", 4, "--max-length", 60, "--per-device-train-batch-size", 8, "--max-steps", 1]
    shown = cli("train", "ppo", *asked, *sizes, "--out", tmp_path / "ppo")
    assert shown.returncode == 0, shown.stderr
    assert "; 8 answers had no reward and were left out" in shown.stdout


@pytest.mark.parametrize("method", ["sft", "reward", "ppo", "grpo", "rloo"])
def test_every_option_of_a_trainer_can_be_typed_and_has_the_same_default(method):
    from seamcurate import train

    configs = {"sft": train.SFTTraining, "reward": train.RewardTraining, "ppo": train.PPOTraining}
    config = configs.get(method, train.GroupTraining)()
    typed = {option.name: option.default for option, *_ in options(dict(commands())[f"train {method}"])}
    # PPO's passes run without dropout; 0 and none at all are typed where Python has None and ().
    left_out = {"lora_dropout"} if method == "ppo" else set()
    expected = {name: value or 0 for name, value in dict(config).items() if name not in left_out}
    assert {name: typed.get(name, "missing") or 0 for name in expected} == expected


def test_ppos_controller_is_fixed_and_its_scores_are_raw_where_asked(cli, policy_folder, tmp_path):
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"prompt": f"Where is {i}?"}) for i in range(8)))
    asked = ["--model", policy_folder, "--data", tmp_path / "d.jsonl", "--reward", "li", "--out", tmp_path / "out"]
    sizes = [
        "--response-length",
        4,
        "--max-length",
        60,
        "--max-steps",
        2,
        "--stop-strings",
        "a b",
        "--stop-strings",
        "c",
    ]
    shown = cli("train", "ppo", *asked, *sizes, "--kl-target", 0, "--no-score-normalise", "--score-clip", 0)
    assert shown.returncode == 0, shown.stderr
    config = json.loads((tmp_path / "out" / "training.json").read_text())["config"]
    asked_for = {"kl_target": None, "score_normalise": False, "score_clip": None, "stop_strings": ["a b", "c"]}
    assert {name: config[name] for name in asked_for} == asked_for
    logged = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert {line["kl_coef"] for line in logged if "kl_coef" in line} == {0.2}


def test_columns_and_why_tell_what_is_there(cli, finished):
    shown = cli("columns", finished.path)
    assert shown.returncode == 0
    for text in ("seam_contrast", "double", "3/3", "low = bad", "coverage: ", "seam_contrast: Measured as a sign of "):
        assert text in shown.stdout
    told = cli("why", finished.path, 3).stdout
    assert told.startswith("row 3: how do I cache the sort")
    assert (
        "split train: " in told
        and "by rule “drop the lowest 20 % by seam_contrast”" in told
        and "seam_contrast" in told
    )


def test_export_writes_what_it_says(cli, recipe_file, tmp_path):
    cli("run", recipe_file, tmp_path / "store")
    shown = cli("export", recipe_file, tmp_path / "store", "--to", "trl", "--out", tmp_path / "out")
    assert shown.returncode == 0 and f"{tmp_path}/out/train: 32 rows; columns prompt, " in shown.stdout
    assert pq.read_table(tmp_path / "out/train/train-00000-of-00001.parquet").num_rows == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "gone.yaml", "s"], "error: recipe gone.yaml cannot be read: No such file or directory"),
        (["sql", "nowhere", "SELECT 1"], "error: nowhere is no store; make one with `seamcurate run RECIPE nowhere`"),
        (["sql", "{store}", "SELECT nope FROM rows"], 'error: Binder Error: Referenced column "nope" not found'),
        (["sql", "{store}", "DROP VIEW rows"], "error: the SQL must be exactly one SELECT statement"),
        (["why", "{store}", "4000"], "has no row 4000; row ids are positions in the source, from 0"),
        (["columns", "nowhere"], "error: nowhere is no store"),
        (
            ["sql", "{store}", "SELECT 1 AS x", "--format", "csv", "--out", "gone/x.csv"],
            "error: gone/x.csv cannot be written: No such",
        ),
        (
            ["sql", "{store}", "SELECT 1 AS x", "--format", "parquet", "--out", "gone/x"],
            "error: gone/x cannot be written: No such",
        ),
        (
            ["run", "my-store", "recipe.yaml"],
            "error: recipe.yaml is a recipe's name: the recipe comes first, as in `seamcurate run recipe.yaml my-store`\n",
        ),
        (["plan", "{store}", "r.yml"], "the recipe comes first, as in `seamcurate plan r.yml "),
        (["export", "{store}", "r.yaml", "--to", "trl", "--out", "x"], "as in `seamcurate export r.yaml "),
        (["push", "{store}", "r.yaml", "me/it"], "as in `seamcurate push r.yaml "),
        (
            ["run", "{store}", "elsewhere"],
            "cannot be read: it is a store; a recipe is a YAML file, and is named before",
        ),
        (
            ["run", "recipe.yaml", "{store}/store.json"],
            "is a file, and a store is a folder: write `seamcurate run recipe",
        ),
        (
            ["sql", "SELECT 1", "{store}"],
            'error: the store comes first, as in `seamcurate sql {store} "SELECT 1"`\n',
        ),
        (["why", "3", "{store}"], "is no row id, which is a whole number: write `seamcurate why STORE ROW_ID`"),
        (["columns", "{store}/rows"], "/rows is no store; it is a folder of the store {store}: name that"),
        (["check", "{store}/store.json"], "store.json is no store; it is a file: name the folder that"),
        (["study", "overlop", "{store}"], "best-of-n; did you mean `overlap`?"),
        (
            ["train", "sft", "--model", "m", "--data", "{store}", "--out", "x"],
            "is a store; export its splits (seamcurate export RECIPE STORE --to trl --out splits), and give splits/NAME",
        ),
        (["report", "{store}", "--out", "gone/x.html"], "error: gone/x.html cannot be written: No such"),
        (["report", "{store}", "--out", "."], "error: . cannot be written: Is a directory"),
        (["report", "{store}", "--figures", "{store}/store.json"], "store.json cannot be written: File exists"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_2(cli, finished, tmp_path, arguments, message):
    shown = cli(*(a.format(store=finished.path) for a in arguments), cwd=tmp_path)
    assert shown.returncode == 2 and not shown.stdout
    assert message.format(store=finished.path) in shown.stderr and len(shown.stderr.strip().splitlines()) == 1


def test_our_own_mistakes_are_one_line_and_exit_with_1(finished, tmp_path):
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "sitecustomize.py").write_text(
        "import seamcurate.select.views as v\ndef broken(*a, **k): raise ZeroDivisionError('oh\\nno')\nv.connect = broken\n"
    )
    shown = process("sql", finished.path, "SELECT 1", env=env)
    assert shown.returncode == 1
    assert shown.stderr == "internal error: ZeroDivisionError: oh (SEAMCURATE_TRACEBACK=1 shows where)\n"


def test_control_characters_of_hostile_rows_do_not_reach_the_terminal(cli, recipe_file, tmp_path):
    rows = tmp_path / "hostile.jsonl"
    rows.write_text(json.dumps({"prompt": "\x1b[2Jsort [red]x[/red] \u202eabc", "response": "a\x07b"}) + "\n")
    text = "rows: {jsonl: hostile.jsonl}\nsteps: [random]\nsplits: {all: {filter: SELECT row_id FROM rows}}\n"
    recipe_file.write_text(text)
    assert cli("run", recipe_file, tmp_path / "s").returncode == 0
    for shown in (cli("sql", tmp_path / "s", "SELECT prompt, response FROM rows"), cli("why", tmp_path / "s", 0)):
        assert "\\x1b[2Jsort [red]x[/red] \\x202eabc" in shown.stdout and "a\\x07b" in shown.stdout
        assert "\x1b" not in shown.stdout and "\x07" not in shown.stdout


def test_a_closed_pipe_is_no_error(finished):
    command = f"{sys.executable} -m seamcurate.cli sql {finished.path} 'SELECT * FROM rows, range(2000)' --format jsonl | head -1"
    shown = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert shown.stderr == ""
    assert "row_id" in json.loads(shown.stdout)


def test_ctrl_c_stops_within_two_seconds_and_says_how_to_go_on(recipe_file, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "from seamcurate.store.store import Store\n"
        "real = Store.add\n"
        "def slow(self, *a):\n"
        "    real(self, *a); print('shard', flush=True); time.sleep(20)\n"
        "Store.add = slow\n"
    )
    command = [sys.executable, "-m", "seamcurate.cli", "run", str(recipe_file), str(tmp_path / "store")]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None and process.stdout.readline() == "shard\n"
        said, took = interrupt(process)
    assert said == ["stopped; what was finished is kept: run the same command again to go on"]
    assert took < 2


def test_wrong_usage_exits_with_2_and_shows_how_it_is_meant(cli):
    shown = cli("run", "only-one")
    assert shown.returncode == 2 and "Missing argument 'STORE'" in shown.stderr
    assert cli("nonsense").returncode == 2
    assert "No such command 'colums'; did you mean `columns`?" in cli("colums", "s").stderr
    assert "No such command 'kto'; there are: sft, reward, ppo, grpo, rloo" in cli("train", "kto").stderr


def test_the_version_is_printed():
    shown = process("--version")
    assert (shown.returncode, shown.stdout) == (0, f"seamcurate {seamcurate.__version__}\n")


def test_one_of_a_thing_is_told_in_the_singular():
    from seamcurate.text import counted

    assert [counted(n, "shard") for n in (0, 1, 1200)] == ["0 shards", "1 shard", "1,200 shards"]
    assert [counted(n, "reply holds", "replies hold") for n in (1, 2)] == ["1 reply holds", "2 replies hold"]
