"""Chat templates that write today's date: it is pinned, whatever the day a store or a training goes on."""

from __future__ import annotations

import datetime
import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import questions

from seamcurate import (
    CausalLM,
    Models,
    Perplexity,
    Recipe,
    Reward,
    RewardEnsemble,
    SequenceClassifier,
    Source,
    Store,
    query,
    run_local,
)
from seamcurate.errors import ModelError, StaleError
from seamcurate.models import tokens
from seamcurate.models.template import FormSettings, dated
from seamcurate.publish.export import to_trl
from seamcurate.select import split as splits
from seamcurate.select.split import Split

BEGIN = "<|im_start|>system\nToday is {{ %s }}<|im_end|>\n"
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLOCK = BEGIN % "strftime_now('%d %b %Y')" + TURNS
DAY = datetime.date(2026, 1, 31)


@pytest.fixture
def on(monkeypatch) -> Callable[[str], datetime.date]:
    """Go to another day: between these two zones there are always 25 hours."""

    def move(day: str) -> datetime.date:
        monkeypatch.setenv("TZ", {"Monday": "Pacific/Pago_Pago", "Tuesday": "Pacific/Kiritimati"}[day])
        time.tzset()
        return datetime.date.today()

    yield move
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def dating(decoder_reward_folder, policy_folder, tmp_path) -> dict[str, Path]:
    """A policy and a reward model whose templates write the date."""
    folders = {}
    for name, folder in (("policy", policy_folder), ("reward", decoder_reward_folder)):
        folders[name] = shutil.copytree(folder, tmp_path / "models" / name)
        (folders[name] / "chat_template.jinja").write_text(CLOCK)
    return folders


@pytest.mark.parametrize(
    ("call", "written"),
    [
        ("strftime_now('%d %b %Y')", "31 Jan 2026"),
        ('strftime_now("%Y-%m-%d")', "2026-01-31"),
        ("strftime_now (format = '%H:%M o\\'clock')", "00:00 o'clock"),
        ("strftime_now('%Y') if strftime_now is defined else 'never'", "2026"),
        ("'a date' if strftime_now is not defined else strftime_now('%d')|int + 1", "32"),
    ],
)
def test_a_date_is_written_into_a_template(call, written, tokenizer):
    tokenizer = pickle.loads(pickle.dumps(tokenizer))
    tokenizer.chat_template = BEGIN % call + TURNS
    form = tokens.form_of(tokenizer, FormSettings(date=DAY))
    text = (
        f"<|im_start|>system\nToday is {written}<|im_end|>\n<|im_start|>user\nsort<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(tokens.prompt_ids(tokenizer, "sort", form)) == text
    ids = tokens.reward_ids(tokenizer, "sort", "use it", 999, form)
    assert tokenizer.decode(ids) == f"{text}use it<|im_end|>\n"


@pytest.mark.parametrize("call", ["strftime_now(pattern)", "now('%Y')", "strftime_now('%Y' ~ '%m')"])
def test_a_date_that_cannot_be_pinned_is_refused_in_one_line(call):
    with pytest.raises(ModelError, match="calls strftime_now with something else than a format in quotes") as refused:
        dated("{% set now = strftime_now %}{{ " + call + " }}", DAY)
    assert "\n" not in str(refused.value)


def recipe(dating: dict[str, Path], rows: Path, **models: object) -> Recipe:
    policy, reward = CausalLM(path=str(dating["policy"])), SequenceClassifier(path=str(dating["reward"]))
    return Recipe(
        rows=Source(parquet=str(rows), shard_rows=3),
        models=Models(**({"base": policy, "reward": reward} | models)),
        steps=(Reward(), Perplexity()),
    )


@pytest.mark.slow
def test_a_store_has_one_date_whatever_the_days_it_is_made_on(dating, on, tmp_path):
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(questions(6)), rows)
    numbers = "SELECT reward, baseline_perplexity FROM rows ORDER BY row_id"
    day = on("Monday")
    run_local(recipe(dating, rows), tmp_path / "monday")
    run_local(recipe(dating, rows).model_copy(update={"steps": (Reward(),)}), tmp_path / "mixed", limit=3)
    assert on("Tuesday") != day
    run_local(recipe(dating, rows), tmp_path / "mixed")
    run_local(recipe(dating, rows), tmp_path / "tuesday")
    scores = {name: query(Store(tmp_path / name), numbers).to_pylist() for name in ("monday", "mixed", "tuesday")}
    assert scores["mixed"] == scores["monday"] != scores["tuesday"]
    made = {name: Store(tmp_path / name).records()["reward"]["fingerprint"] for name in scores}
    assert made["mixed"] == made["monday"] != made["tuesday"]
    shown = {column.name: column.meaning for column in Store(tmp_path / "mixed").columns()}
    assert shown["reward"].endswith(f"; prompts dated {day}")
    assert shown["baseline_perplexity"].endswith(f"; prompts dated {day}") and "dated" not in shown["prompt"]
    # Exported prompts are those that were scored.
    splits.make(
        Store(tmp_path / "mixed"), "ids", Split(filter="SELECT row_id, true AS keep FROM rows", format="prompt_ids")
    )
    policy = CausalLM(path=str(dating["policy"]))
    to_trl(Store(tmp_path / "mixed"), "ids", tmp_path / "out", policy)
    (file,) = (tmp_path / "out").glob("*.parquet")
    first = policy.tokenizer().decode(pq.read_table(file)["input_ids"][0].as_py())
    assert first.startswith(f"<|im_start|>system\nToday is {day:%d %b %Y}<|im_end|>\n<|im_start|>user\nhow do I")
    # Another date is another configuration, and a date that is set holds on every day.
    other = recipe(dating, rows, reward=SequenceClassifier(path=str(dating["reward"]), date=DAY))
    with pytest.raises(StaleError, match=f'reward.reward.date: "{day}" → "{DAY}"'):
        run_local(other, tmp_path / "mixed")
    run_local(other, tmp_path / "mixed", replace=True)
    on("Monday")
    assert run_local(other, tmp_path / "mixed").computed == 0
    days = {name: record["config"] for name, record in Store(tmp_path / "mixed").records().items()}
    assert days["reward"]["reward"]["date"] == str(DAY) and days["baseline_perplexity"]["base"]["date"] == str(day)


@pytest.mark.slow
def test_an_ensembles_members_have_the_stores_date_unless_they_set_one(dating, on, tmp_path):
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(questions(6)), rows)
    today, set_day = (SequenceClassifier(path=str(dating["reward"]), date=day) for day in (None, DAY))
    day = on("Monday")
    made = recipe(dating, rows, reward=RewardEnsemble(ensemble=(today, set_day)))
    made = made.model_copy(update={"steps": (Reward(),)})
    run_local(made, tmp_path / "store", limit=3)
    assert on("Tuesday") != day
    assert run_local(made, tmp_path / "store").computed == 1
    config = Store(tmp_path / "store").records()["reward"]["config"]["reward"]
    assert [member["date"] for member in config["ensemble"]] == [str(day), str(DAY)]
    other = set_day.model_copy(update={"max_tokens": 99})
    changed = made.model_copy(update={"models": Models(reward=RewardEnsemble(ensemble=(today, other)))})
    with pytest.raises(StaleError, match=r"configuration: reward\.reward\.ensemble\[1\]\.max_tokens: null → 99; "):
        run_local(changed, tmp_path / "store")


def test_a_worker_renders_the_date_of_the_store(dating, on):
    """A cluster's workers get the step pickled, with the date in it."""
    day = on("Monday")
    step = Reward(reward=SequenceClassifier(path=str(dating["reward"]))).dated(day)
    on("Tuesday")
    there = pickle.loads(pickle.dumps(step))
    assert there == step and there.identity() == step.identity() and there.reward.date == day
    assert there.dated(datetime.date.today()) is there
    # Where no prompt holds a date, none is part of the step.
    plain = Reward(reward=SequenceClassifier(path=str(dating["reward"]), form="plain"))
    assert plain.dated(day) is plain


def test_an_adapter_without_a_tokenizer_has_its_bases_template_and_ends(dating, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(dating["policy"])}))
    model = CausalLM(path=str(adapter)).dated(DAY)
    assert model.date == DAY
    assert model.prompt_form() == CausalLM(path=str(dating["policy"]), date=DAY).prompt_form()


@pytest.mark.slow
def test_a_training_goes_on_with_the_date_it_began_with(dating, on, tmp_path):
    pytest.importorskip("trl", reason="trainers are not installed")
    from seamcurate import rewards
    from seamcurate.train import SFTTraining, sft
    from seamcurate.train.workplace import first_day

    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    data.write_text(
        "".join(json.dumps({"prompt": q["prompt"], "completion": q["response"]}) + "\n" for q in questions(4))
    )
    config = SFTTraining(max_steps=1, lora=False, eval_rows=0)
    day = on("Monday")
    assert first_day(out) == day
    record = sft(dating["policy"], data, out, config)
    assert record["config"]["date"] == str(day)
    monday = rewards.read(str(dating["reward"]), first_day(out))
    on("Tuesday")
    # The finished folder is of the same inputs; its reward model's prompts would be, too.
    assert first_day(out) == day and sft(dating["policy"], data, out, config) == record
    again, other = rewards.read(str(dating["reward"]), first_day(out)), rewards.read(str(dating["reward"]))
    assert repr(again) == repr(monday) != repr(other) and f'"date": "{day}"' in repr(again)
    asked = (["sort"], ["use sort"])
    assert again(*asked) == monday(*asked) != other(*asked)
    # What is kept for going on says it as well.
    kept = tmp_path / "next.training" / "checkpoint-2"
    kept.mkdir(parents=True)
    state = {"inputs": {"config": {"date": None}, "reward": repr(monday)}}
    (kept / "checkpoint.json").write_text(json.dumps(state))
    assert first_day(tmp_path / "next") == day
