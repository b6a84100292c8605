"""What trainers make of an export: TRL's real ones read the ids that were scored, and the printed commands run as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CHAT_TEMPLATE, questions

from seamcurate import (
    CausalLM,
    FakeModel,
    Models,
    Order,
    Recipe,
    Rollouts,
    SequenceClassifier,
    Source,
    Split,
    Store,
    difficulty,
    rer,
    run_local,
)
from seamcurate.models import tokens
from seamcurate.publish.export import export, form_model, rer_reward
from seamcurate.rewards import ModelReward
from seamcurate.train import data as rows_of
from seamcurate.train.reward import COLUMNS as PAIRS
from seamcurate.train.sft import COLUMNS as ANSWERS

pytestmark = pytest.mark.slow

trl = pytest.importorskip("trl")

EVERY = "SELECT row_id FROM rows"
FORMATS = ("prompts", "sft", "preferences", "unpaired")
THINKING = CHAT_TEMPLATE + "{% if add_generation_prompt and not think %}<think></think>{% endif %}"
FORMS = {
    "chat": {},
    "thinking": {"template": {"think": True}},
    "plain": {},
    "bare": {"form": "bare"},
    "### {prompt}\n###": {"form": "### {prompt}\n###"},
}
# Nothing is said twice in a row: of what is, a reward and the column differ.
ASKED = [{**row, "response": re.sub(r"(carefully )+", "carefully ", row["response"])} for row in questions(6)]
SIX = [
    {**row, "worse_contrast": [{"response": f"or {row['response'][4:]}", "similarity": 0.5, "source_row_id": 1}]}
    for row in ASKED
]
FAST = {"max_steps": 1, "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True}


@pytest.fixture(scope="module")
def policies(policy_folder, tokenizer, tmp_path_factory) -> dict[str, Path]:
    """Folders of one tiny policy, with and without a chat template."""
    found = {"plain": policy_folder}
    for name, template in (("chat", CHAT_TEMPLATE), ("thinking", THINKING)):
        folder = Path(shutil.copytree(policy_folder, tmp_path_factory.mktemp(name) / "policy"))
        own = type(tokenizer).from_pretrained(folder)
        own.chat_template = template
        own.save_pretrained(folder)
        found[name] = folder
    return found


def policy(form: str, policies: dict[str, Path]) -> CausalLM:
    return CausalLM(path=str(policies.get(form, policies["plain"])), device="cpu", **FORMS[form])


def recipe_of(folder: Path, model: CausalLM | None, chats: bool, steps=(), **models) -> Recipe:
    rows = SIX
    if chats:
        turns = [("system", "be brief"), ("user", "hello"), ("assistant", "ask")]
        before = [{"role": role, "content": content} for role, content in turns]
        rows = [{**row, "prompt": [*before, {"role": "user", "content": row["prompt"]}]} for row in SIX]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    splits = {name: Split(filter=EVERY, format=name) for name in FORMATS}
    recipe = Recipe(
        rows=Source(parquet=str(folder / "rows.parquet")),
        models=Models(policy=model, encoder=FakeModel(path="encoder"), **models),
        steps=steps,
        splits=splits,
    )
    run_local(recipe, folder / "store")
    return recipe


def exported(folder: Path, recipe: Recipe, to: str = "trl") -> dict[str, Path]:
    if to == "openrlhf":
        recipe = recipe.model_copy(update={"splits": {n: s for n, s in recipe.splits.items() if n != "unpaired"}})
    return {one.folder.name: one.folder for one in export(recipe, Store(folder / "store").open(), to, folder / to)}


def loaded(folder: Path, tmp_path: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))


def source(tmp_path: Path) -> list[dict]:
    return pq.read_table(tmp_path / "rows.parquet").to_pylist()


@pytest.mark.parametrize(
    ("form", "chats"), [*((form, False) for form in FORMS if form != "bare"), ("chat", True), ("plain", True)]
)
def test_trls_trainers_read_the_ids_that_were_scored(form, chats, policies, decoder_reward_folder, tmp_path):
    model = policy(form, policies)
    folders = exported(tmp_path, recipe_of(tmp_path, model, chats))
    tokenizer = model.tokenizer()
    own, templated = model.prompt_form(tokenizer), bool(tokenizer.chat_template)
    scored = [
        [
            tokens.policy_ids(tokenizer, row["prompt"], answer, 10**6, own)
            for answer in (row["response"], row["worse_contrast"][0]["response"])
        ]
        for row in source(tmp_path)
    ]
    pairs = [(before, golden, worse) for (before, golden), (_, worse) in scored]
    end = tokenizer("\n")["input_ids"] if templated else []

    config = trl.SFTConfig(str(tmp_path / "sft"), max_length=None, **FAST)
    trainer = trl.SFTTrainer(model.path, config, train_dataset=loaded(folders["sft"], tmp_path))
    trainer.train()
    read = [(row["input_ids"], sum(label == -100 for label in row["labels"])) for row in trainer.train_dataset]
    assert read == [(before + golden + end, len(before)) for before, golden, _ in pairs]

    config = trl.DPOConfig(str(tmp_path / "dpo"), max_length=None, **FAST)
    trainer = trl.DPOTrainer(model.path, args=config, train_dataset=loaded(folders["preferences"], tmp_path))
    trainer.train()
    read = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    assert read == [(before, golden + end, worse + end) for before, golden, worse in pairs]

    config = trl.KTOConfig(str(tmp_path / "kto"), max_length=None, per_device_train_batch_size=2, **FAST)
    trainer = trl.KTOTrainer(model.path, args=config, train_dataset=loaded(folders["unpaired"], tmp_path))
    trainer.train()
    read = [(row["prompt_ids"], row["completion_ids"], row["label"]) for row in trainer.train_dataset]
    both = [[(before, worse + end, False), (before, golden + end, True)] for before, golden, worse in pairs]
    assert read == [one for some in both for one in some]

    generated = []
    arguments = {"chat_template_kwargs": dict(own.arguments)} if own.arguments else {}
    config = trl.GRPOConfig(
        str(tmp_path / "grpo"),
        num_generations=2,
        max_completion_length=2,
        per_device_train_batch_size=2,
        **FAST,
        **arguments,
    )
    trainer = trl.GRPOTrainer(
        model.path,
        lambda completions, **columns: [1.0, 0.0],
        args=config,
        train_dataset=loaded(folders["prompts"], tmp_path),
    )
    generate = trainer.model.generate

    def seen(*given, **named):
        generated.extend(named["input_ids"].tolist() if "input_ids" in named else given[0].tolist())
        return generate(*given, **named)

    trainer.model.generate = seen
    trainer.train()
    assert generated and all(ids in [before for before, _, _ in pairs] for ids in generated)


@pytest.mark.parametrize("shuffled", [False, True])
def test_trls_grpo_keeps_an_ordered_split_in_order_with_shuffling_off(shuffled, policies, tmp_path):
    pq.write_table(pa.Table.from_pylist(questions(12)), tmp_path / "rows.parquet")
    order = Order(by="rollout_pass_rate", descending=True)
    fake = FakeModel(path="fake")
    recipe = Recipe(
        rows=Source(parquet=str(tmp_path / "rows.parquet")),
        steps=(Rollouts(n=5, policy=fake), *difficulty(0, reward=fake)),
        splits={"train": Split(filter=EVERY, order=order)},
    )
    run_local(recipe, tmp_path / "store")
    ((folder, *_),) = export(recipe, Store(tmp_path / "store").open(), "trl", tmp_path / "out")
    trained = []

    def reward(prompts, completions, row_id, **columns):
        trained.extend(row_id)
        return [float(i) for i in range(len(completions))]

    config = trl.GRPOConfig(
        str(tmp_path / "grpo"),
        num_generations=2,
        max_completion_length=2,
        per_device_train_batch_size=4,
        shuffle_dataset=shuffled,
        **{**FAST, "max_steps": 6},
    )
    rows = loaded(folder, tmp_path)
    trainer = trl.GRPOTrainer(str(policies["plain"]), reward, args=config, train_dataset=rows)
    trainer.train()
    kept = rows["row_id"]
    # Each row is answered twice, one after the other.
    assert sorted(trained) == sorted([*kept, *kept]) and trained[::2] == trained[1::2]
    assert (trained[::2] == list(kept)) is not shuffled
    assert len(set(rows["rollout_pass_rate"])) > 2
    assert rows["rollout_pass_rate"][:] == sorted(rows["rollout_pass_rate"], reverse=True)


def test_trls_reward_trainer_reads_chats_and_text(policies, decoder_reward_folder, tmp_path):
    for form in ("chat", "plain"):
        (tmp_path / form).mkdir()
        model = policy(form, policies)
        folders = exported(tmp_path / form, recipe_of(tmp_path / form, model, False))
        config = trl.RewardConfig(str(tmp_path / "reward"), max_length=None, **FAST)
        trainer = trl.RewardTrainer(
            str(decoder_reward_folder), args=config, train_dataset=loaded(folders["preferences"], tmp_path)
        )
        trainer.train()
        tokenizer, own = model.tokenizer(), model.prompt_form()
        scored = [tokens.policy_ids(tokenizer, row["prompt"], row["response"], 10**6, own) for row in SIX]
        end = tokenizer("\n")["input_ids"] if form == "chat" else []
        assert [row["chosen_ids"] for row in trainer.train_dataset] == [
            before + golden + end for before, golden in scored
        ]


@pytest.mark.parametrize("chats", [False, True], ids=["text", "chats"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("to", ["trl", "openrlhf"])
def test_our_own_trainers_read_an_export_as_the_source_was(to, form, chats, policies, tmp_path):
    folders = exported(tmp_path, recipe_of(tmp_path, policy(form, policies), chats), to)
    rows = source(tmp_path)
    spelled = [
        row["prompt"] if chats or form not in ("chat", "thinking") else [{"role": "user", "content": row["prompt"]}]
        for row in rows
    ]
    pairs = rows_of.rows(folders["preferences"], PAIRS)
    worse = [row["worse_contrast"][0]["response"] for row in rows]
    assert [row.prompt for row in pairs] == spelled
    assert [row.answers for row in pairs] == [(row["response"], bad) for row, bad in zip(rows, worse, strict=True)]
    if to == "trl":
        for data in (folders["sft"], loaded(folders["sft"], tmp_path)):
            read = rows_of.rows(data, ANSWERS)
            assert [(row.prompt, *row.answers) for row in read] == [
                (prompt, row["response"]) for prompt, row in zip(spelled, rows, strict=True)
            ]
        asked = rows_of.prompts(folders["prompts"], ["reference"])
        assert [one.prompt for one in asked] == spelled
        assert set(asked[0].columns) == {"row_id", "response", "reference"}


@pytest.mark.parametrize("chats", [False, True], ids=["text", "chats"])
@pytest.mark.parametrize("form", ["plain", "### {prompt}\n###"])
def test_rewards_score_what_the_columns_did_where_prompts_are_written_out(
    form, chats, policies, encoder_reward_folder, tmp_path
):
    model = policy(form, policies)
    recipe = recipe_of(tmp_path, model, chats, steps=rer())
    recipe = recipe.model_copy(update={"splits": {"prompts": recipe.splits["prompts"]}})
    folders = exported(tmp_path, recipe)
    store = Store(tmp_path / "store").open()
    [whole] = list(store.rows(["prompt", "response", "rer"]))
    expected = [pytest.approx(value, abs=1e-9) for value in whole["rer"].to_pylist()]
    lines = pq.read_table(next(folders["prompts"].glob("*.parquet"))).to_pylist()
    own = model.prompt_form()
    assert [line["prompt"] for line in lines] == [own.prompt(row["prompt"]) for row in source(tmp_path)]
    columns = {name: [line[name] for line in lines] for name in lines[0] if name != "prompt"}
    given = [line["prompt"] for line in lines], [own.response(line["response"]) for line in lines]
    reward, _ = rer_reward(recipe, store)
    assert reward is not None and reward.load()(*given, **columns) == expected
    judge = ModelReward(reward=SequenceClassifier(path=str(encoder_reward_folder), device="cpu")).load()
    raw = [row["prompt"] for row in source(tmp_path)], [row["response"] for row in source(tmp_path)]
    assert judge(*given, **columns) == judge(*raw)


def test_the_policy_decides_the_form_then_the_reward_model_then_the_base(policies, decoder_reward_folder, tmp_path):
    plain, chat = CausalLM(path=str(policies["plain"])), CausalLM(path=str(policies["chat"]))
    reward = SequenceClassifier(path=str(decoder_reward_folder))
    recipe = recipe_of(tmp_path, plain, False)
    for models, decides in (
        ({"policy": plain, "reward": reward, "base": chat}, plain),
        ({"reward": reward, "base": plain}, reward),
        ({"policy": FakeModel(path="0"), "base": chat}, chat),
        ({"reward": reward.model_copy(update={"pair": True})}, None),
        ({}, None),
    ):
        assert form_model(recipe.model_copy(update={"models": Models(**models)})) == decides
    [done, *_] = export(
        recipe.model_copy(update={"models": Models()}), Store(tmp_path / "store").open(), "trl", tmp_path / "as-is"
    )
    assert done.note.startswith("prompts are text, as the source has them: the recipe names no model of")
    assert "prompt_form" not in done.columns
    [done, *_] = export(recipe, Store(tmp_path / "store").open(), "trl", tmp_path / "plain")
    assert (
        done.note.startswith("prompts are text in the form 'plain', as ") and "'Question: …\\n\\nAnswer:'" in done.note
    )


def run(command: str, folder: Path, *more: str) -> str:
    """Run a printed command as a shell would, in its folder."""
    (folder / "bin").mkdir()
    # As pip writes it, wherever this interpreter's own lies.
    (folder / "bin" / "trl").write_text(f"#!{sys.executable}\nfrom trl.cli import main\nmain()\n")
    (folder / "bin" / "trl").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    words = ["sh", "-c", " ".join([command, *more])]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def ours(command: str, *more: str) -> str:
    """Run a printed `seamcurate` command in this process."""
    from typer.testing import CliRunner

    from seamcurate.cli import app

    done = CliRunner().invoke(app, [*shlex.split(command)[1:], *more], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def in_process(command: str, *more: str) -> None:
    """Run a printed `trl` command's own script, its arguments read by its own parser, without the launcher."""
    import importlib

    words = shlex.split(command)
    script = importlib.import_module(f"trl.scripts.{words[1]}")
    options = [*words[2:], *more]
    script.main(*script.make_parser().parse_args_and_config(options, fail_with_unknown_args=True))


ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_steps", "1", "--save_strategy", "no"]
GROUPS = ["--num_generations", "2", "--per_device_train_batch_size", "2", "--max_completion_length", "4"]


@pytest.mark.parametrize("form", ["plain", "thinking"])
def test_the_printed_commands_run_as_printed(form, policies, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(tmp_path, policy(form, policies), False, steps=rer())
    store = Store(tmp_path / "store").open()
    told = {one.folder.name: one.commands for one in export(recipe, store, "trl", Path("out"))}
    assert {name: [line.split(" --")[0].split("'")[-1] for line in lines] for name, lines in told.items()} == {
        "prompts": ["PYTHONPATH=out/prompts trl grpo", "seamcurate train grpo"],
        "sft": ["trl sft", "seamcurate train sft"],
        "preferences": ["trl dpo", "trl reward", "seamcurate train reward"],
        "unpaired": ["trl kto"],
    }
    for name in ("sft", "preferences", "unpaired"):
        for line in told[name]:
            if line.startswith("trl"):
                in_process(line, *ON_CPU)
    if form == "plain":
        # Through the launcher, whose scripts stand before PYTHONPATH.
        run(told["prompts"][0], tmp_path, *ON_CPU, *GROUPS)
    shutil.rmtree("trained")
    fast = ["--max-steps", "1", "--per-device-train-batch-size", "2", "--no-lora", "--eval-rows", "0"]
    groups = ["--num-generations", "2", "--max-completion-length", "4", "--max-length", "200"]
    assert "trained on 6 of 6 rows" in ours(told["prompts"][1], *fast, *groups)
    shutil.rmtree("trained")
    assert "trained on 6 of 6 rows" in ours(told["sft"][1], *fast)
    if form == "plain":
        assert json.loads(Path("trained/tokenizer_config.json").read_text())["seamcurate_form"]["form"] == "plain"
