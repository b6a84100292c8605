"""Trainers' own loaders on exports: each reads the prompts, answers and scores that were exported, and rewards as the column.

slime, open-instruct and NeMo RL are on no package index: these tests run where their code is on PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.machinery
import json
import re
import shlex
import shutil
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import CHAT_TEMPLATE, questions

from seamcurate import CausalLM, FakeModel, Models, Recipe, Source, Split, Store, rer, run_local
from seamcurate.publish.export import export
from seamcurate.publish.formats import TRAINERS

pytestmark = pytest.mark.slow

ASKED = [{**row, "response": re.sub(r"(carefully )+", "carefully ", row["response"])} for row in questions(4)]
ROWS = [
    {**row, "worse_contrast": [{"response": f"or {row['response'][4:]}", "similarity": 0.5, "source_row_id": 1}]}
    for row in ASKED
]
cases = pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])


class Made:
    """A store with RER's columns, a policy with or without a chat template, and a trainer's exports of every format."""

    def __init__(self, to: str, chat: bool, policy_folder: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(policy_folder, tmp_path / "policy"))
        self.policy = CausalLM(path=str(folder), device="cpu")
        self.tokenizer = self.policy.tokenizer()
        if chat:
            self.tokenizer.chat_template = CHAT_TEMPLATE
            self.tokenizer.save_pretrained(folder)
        self.form = self.policy.prompt_form(self.tokenizer)
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
        recipe = Recipe(
            rows=Source(parquet=str(tmp_path / "rows.parquet")),
            models=Models(policy=self.policy, encoder=FakeModel(path="encoder")),
            steps=rer(),
            splits={name: Split(filter="SELECT row_id FROM rows", format=name) for name in TRAINERS[to].reserved},
        )
        run_local(recipe, tmp_path / "store")
        store = Store(tmp_path / "store").open()
        self.rer = [
            pytest.approx(value, abs=1e-6) for table in store.rows(["rer"]) for value in table["rer"].to_pylist()
        ]
        exports = list(export(recipe, store, to, tmp_path / "out"))
        self.folders = {one.folder.name: one.folder for one in exports}
        self.commands = {one.folder.name: [shlex.split(line) for line in one.commands] for one in exports}
        self.chat = chat
        # What the policy reads: a chat's turn, or the text that was written out.
        self.prompts = [row["prompt"] if chat else self.form.prompt(row["prompt"]) for row in ROWS]
        self.golden, self.worse = (
            [text if chat else self.form.response(text) for text in texts]
            for texts in ([r["response"] for r in ROWS], [r["worse_contrast"][0]["response"] for r in ROWS])
        )

    @property
    def asked(self) -> list[list[dict]]:
        return [[{"role": "user", "content": prompt}] for prompt in self.prompts]

    def answered(self, answers: list[str]) -> list[list[dict]]:
        return [[*turns, {"role": "assistant", "content": a}] for turns, a in zip(self.asked, answers, strict=True)]


@pytest.fixture
def module(monkeypatch):
    """Import a file that an export wrote, by its module's name."""

    def imported(folder: Path, name: str):
        monkeypatch.syspath_prepend(str(folder))
        for known in ("seamcurate_reward", "seamcurate_taskset"):
            monkeypatch.delitem(sys.modules, known, raising=False)
        return importlib.import_module(name)

    return imported


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


# ── LLaMA-Factory ────────────────────────────────────────────────────────────────────────────────────────────


@cases
def test_llamafactory_reads_prompts_and_answers(chat, policy_folder, tmp_path, monkeypatch):
    pytest.importorskip("llamafactory")
    # It imports torchaudio, whose wheels are for CUDA, for data with sound.
    audio = types.ModuleType("torchaudio")
    audio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio", audio)
    # It wants an older transformers than seamcurate's other tests.
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import TrainingArguments

    made = Made("llamafactory", chat, policy_folder, tmp_path)
    training = TrainingArguments(str(tmp_path / "trained"), use_cpu=True)

    def rows(form: str) -> list[tuple]:
        for words in made.commands[form]:
            assert words[:2] == ["llamafactory-cli", "train"]
            assert ("--template" in words) is not chat
        words = made.commands[form][0]
        data = DataArguments(dataset_dir=after(words, "--dataset_dir"), dataset=after(words, "--dataset"))
        [attribute] = get_dataset_list(data.dataset, data.dataset_dir)
        model = ModelArguments(model_name_or_path=made.policy.path, cache_dir=str(tmp_path / "cache"))
        read = _load_single_dataset(attribute, model, data, training)
        return [(row["_prompt"], [turn["content"] for turn in row["_response"]]) for row in read]

    assert rows("sft") == [(asked, [golden]) for asked, golden in zip(made.asked, made.golden, strict=True)]
    pairs = zip(made.asked, made.golden, made.worse, strict=True)
    assert rows("preferences") == [(asked, [golden, worse]) for asked, golden, worse in pairs]
    both = [
        labelled
        for asked, golden, worse in zip(made.asked, made.golden, made.worse, strict=True)
        for labelled in ((asked, ["", worse]), (asked, [golden, ""]))
    ]
    assert rows("unpaired") == both
    assert [asked for asked, _ in rows("prompts")] == made.asked


# ── ms-swift ─────────────────────────────────────────────────────────────────────────────────────────────────


@cases
def test_ms_swift_reads_messages_and_rewards_as_the_column(chat, policy_folder, tmp_path, monkeypatch):
    pytest.importorskip("swift.dataset")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    from swift.dataset import load_dataset
    from swift.rewards import orms
    from swift.utils import import_external_file

    made = Made("ms-swift", chat, policy_folder, tmp_path)

    def rows(form: str, **options) -> list[dict]:
        for words in made.commands[form]:
            assert words[0] == "swift" and ("--template" in words) is not chat
        read, _ = load_dataset([after(made.commands[form][0], "--dataset")], load_from_cache_file=False, **options)
        return [{**row, "messages": [dict(turn) for turn in row["messages"]]} for row in read]

    assert [row["messages"] for row in rows("sft")] == made.answered(made.golden)
    pairs = rows("preferences")
    assert [(row["messages"], row["rejected_response"]) for row in pairs] == list(
        zip(made.answered(made.golden), made.worse, strict=True)
    )
    both = zip(made.answered(made.worse), made.answered(made.golden), strict=True)
    assert [(row["messages"], row["label"]) for row in rows("unpaired")] == [
        labelled for worse, golden in both for labelled in ((worse, False), (golden, True))
    ]
    asked = rows("prompts", remove_unused_columns=False)
    assert [row["messages"] for row in asked] == made.asked
    [words] = made.commands["prompts"]
    import_external_file(after(words, "--external_plugins"))
    reward = orms[after(words, "--reward_funcs")]()
    columns = {name: [row[name] for row in asked] for name in asked[0]}
    assert reward(made.golden, **columns) == made.rer


# ── Axolotl ──────────────────────────────────────────────────────────────────────────────────────────────────


@cases
def test_axolotl_reads_rows_by_its_configuration(chat, policy_folder, tmp_path, monkeypatch):
    pytest.importorskip("axolotl")
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "1")
    from axolotl.utils.config import normalize_config, validate_config
    from axolotl.utils.data.rl import prepare_preference_datasets
    from axolotl.utils.data.sft import prepare_datasets
    from axolotl.utils.dict import DictDefault

    monkeypatch.chdir(tmp_path)
    made = Made("axolotl", chat, policy_folder, tmp_path)

    def configured(form: str) -> DictDefault:
        [words] = [[word for word in words if "PYTHONPATH" not in word] for words in made.commands[form]]
        assert words[:2] == ["axolotl", "train"]
        written = yaml.safe_load(Path(words[2]).read_text())
        own = {"base_model": after(words, "--base-model"), "bf16": False, "dataset_num_proc": 1}
        cfg = validate_config(DictDefault({**written, **own}))
        normalize_config(cfg)
        return cfg

    cfg = configured("sft")
    read, *_ = prepare_datasets(cfg, made.tokenizer)
    scored = [scored_ids(made, golden) for golden in [row["response"] for row in ROWS]]
    end = made.tokenizer("\n")["input_ids"] if chat else []
    assert sorted(row["input_ids"] for row in read) == sorted(before + golden + end for before, golden in scored)
    assert all(row["labels"].count(-100) >= 1 for row in read)

    cfg = configured("preferences")
    assert cfg.rl == "dpo"
    read, _ = prepare_preference_datasets(cfg, made.tokenizer)
    texts = [made.tokenizer.decode(before) for before, _ in scored]
    assert sorted(row["prompt"] for row in read) == sorted(texts if chat else made.prompts)
    cfg = configured("unpaired")
    read, _ = prepare_preference_datasets(cfg, made.tokenizer)
    assert cfg.rl == "kto" and sorted(read["label"]) == [False] * 4 + [True] * 4
    cfg = configured("prompts")
    read, _ = prepare_preference_datasets(cfg, made.tokenizer)
    assert cfg.rl == "grpo" and cfg.trl.reward_funcs == ["seamcurate_reward.rer"]
    asked = sorted(zip(read["row_id"], read["prompt"], strict=True), key=lambda row: row[0])
    assert [prompt for _, prompt in asked] == (made.asked if chat else made.prompts)


def scored_ids(made: Made, answer: str) -> tuple[list[int], list[int]]:
    from seamcurate.models import tokens

    prompt = next(row["prompt"] for row in ROWS if row["response"] == answer)
    return tokens.policy_ids(made.tokenizer, prompt, answer, 10**6, made.form)


# ── SkyRL ────────────────────────────────────────────────────────────────────────────────────────────────────


@cases
def test_skyrl_reads_prompts_and_its_environment_rewards_as_the_column(chat, policy_folder, tmp_path, module):
    pytest.importorskip("skyrl.train.dataset")
    skyrl_gym = pytest.importorskip("skyrl_gym")
    from skyrl.train.dataset import PromptDataset

    made = Made("skyrl", chat, policy_folder, tmp_path)
    made.tokenizer.chat_template = made.tokenizer.chat_template or "{% for m in messages %}{{ m.content }}{% endfor %}"
    [words] = made.commands["prompts"]
    files = json.loads(next(word for word in words if word.startswith("data.train_data=")).partition("=")[2])
    data = PromptDataset(files, made.tokenizer, 512, num_workers=1)
    read = data.collate_fn([data[i] for i in range(len(data))])
    assert [row["prompt"] for row in read] == made.asked
    reward_file = module(Path(words[1]).parent, "seamcurate_reward")
    skyrl_gym.register(id="seamcurate", entry_point=reward_file.environment())
    try:
        for row, golden, expected in zip(read, made.golden, made.rer, strict=True):
            environment = skyrl_gym.make(row["env_class"], env_config={}, extras=row["env_extras"])
            environment.init(row["prompt"])
            step = environment.step(golden)
            assert step["reward"] == expected and step["done"]
    finally:
        skyrl_gym.envs.deregister("seamcurate")


# ── verifiers ────────────────────────────────────────────────────────────────────────────────────────────────


@cases
def test_verifiers_loads_the_taskset_and_rewards_as_the_column(chat, policy_folder, tmp_path, module):
    vf = pytest.importorskip("verifiers.v1")
    from verifiers.v1.utils.loaders import load_taskset

    made = Made("verifiers", chat, policy_folder, tmp_path)
    [words] = made.commands["prompts"]
    module(Path(words[0].partition("=")[2]), words[2])
    tasks = list(load_taskset(vf.TasksetConfig(id=words[2])))
    assert [[{"role": m.role, "content": m.content} for m in task.data.prompt] for task in tasks] == made.asked
    assert [(task.data.id, task.data.answer) for task in tasks] == [
        (str(i), row.get("reference") or row["response"]) for i, row in enumerate(ROWS)
    ]
    for task, golden, expected in zip(tasks, made.golden, made.rer, strict=True):
        [reward] = task.hooks("reward")
        assert asyncio.run(reward(types.SimpleNamespace(last_reply=golden))) == expected
        assert task.data.info["rer"] == expected


# ── NeMo Gym and NeMo RL ─────────────────────────────────────────────────────────────────────────────────────


def test_nemo_gym_validates_each_line(policy_folder, tmp_path):
    pytest.importorskip("nemo_gym.train_data_utils")
    from nemo_gym.train_data_utils import compute_sample_metrics

    made = Made("nemo-rl", True, policy_folder, tmp_path)
    lines = (made.folders["prompts"] / "train.jsonl").read_text().splitlines()
    for line in lines:
        metrics, offending = compute_sample_metrics(line)
        assert not offending and metrics.number_of_turns.total == 1
    rows = [json.loads(line) for line in lines]
    assert [row["responses_create_params"]["input"] for row in rows] == made.asked
    assert [row["row_id"] for row in rows] == [0, 1, 2, 3] and [row["rer"] for row in rows] == made.rer


@cases
def test_nemo_rl_reads_lines(chat, policy_folder, tmp_path, monkeypatch):
    pytest.importorskip("nemo_rl.data.datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from nemo_rl.data.datasets.preference_datasets.binary_preference_dataset import BinaryPreferenceDataset
    from nemo_rl.data.datasets.response_datasets.nemogym_dataset import NemoGymDataset
    from nemo_rl.data.datasets.response_datasets.response_dataset import ResponseDataset
    from nemo_rl.data.processors import nemo_gym_data_processor

    made = Made("nemo-rl", chat, policy_folder, tmp_path)
    path = {form: str(folder / "train.jsonl") for form, folder in made.folders.items()}
    rows = [
        nemo_gym_data_processor(row, None, None, None, i)["extra_env_info"]
        for i, row in enumerate(NemoGymDataset(path["prompts"]).dataset)
    ]
    assert [row["responses_create_params"]["input"] for row in rows] == made.asked
    read = ResponseDataset(path["sft"], split="train").dataset
    assert [row["messages"] for row in read] == made.answered(made.golden)
    pairs = BinaryPreferenceDataset(path["preferences"], split="train").dataset
    assert [row["context"] for row in pairs] == made.asked
    assert [[c["completion"][0]["content"] for c in row["completions"]] for row in pairs] == [
        list(pair) for pair in zip(made.golden, made.worse, strict=True)
    ]


# ── open-instruct ────────────────────────────────────────────────────────────────────────────────────────────


@cases
def test_open_instruct_reads_messages_ground_truths_and_verifiers(chat, policy_folder, tmp_path):
    pytest.importorskip("open_instruct.dataset_transformation")
    from open_instruct.dataset_transformation import (
        DatasetConfig,
        preference_tulu_tokenize_and_truncate_v1_2,
        rlvr_tokenize_v3,
        sft_tulu_tokenize_and_truncate_v1,
    )

    made = Made("open-instruct", chat, policy_folder, tmp_path)
    tokenizer = made.tokenizer
    tokenizer.chat_template = tokenizer.chat_template or "{% for m in messages %}{{ m.content }}{% endfor %}"

    def rows(form: str) -> list[dict]:
        [words] = made.commands[form]
        flag = "--mixer_list" if form == "preferences" else "--dataset_mixer_list"
        return DatasetConfig(after(words, flag), "train", "main").dataset.to_list()

    for row, prompt in zip(rows("prompts"), made.asked, strict=True):
        assert row["messages"] == prompt
        read = rlvr_tokenize_v3(dict(row), tokenizer)
        assert read["dataset"] == ["string_f1"] and read["ground_truth"] == [row["ground_truth"]]
        assert read["input_ids_prompt"] == tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=False
        )
    for row, whole in zip(rows("sft"), made.answered(made.golden), strict=True):
        assert row["messages"] == whole
        labels = sft_tulu_tokenize_and_truncate_v1(dict(row), tokenizer, 512)["labels"].tolist()
        assert labels.count(-100) > 0 and labels[-1] != -100
    pairs = zip(rows("preferences"), made.answered(made.golden), made.answered(made.worse), strict=True)
    for row, better, worse in pairs:
        assert (row["chosen"], row["rejected"]) == (better, worse)
        assert preference_tulu_tokenize_and_truncate_v1_2(dict(row), tokenizer, 512)["chosen_labels"].tolist()


# ── slime ────────────────────────────────────────────────────────────────────────────────────────────────────


@cases
def test_slime_reads_samples_and_rewards_as_the_column(chat, policy_folder, tmp_path, module):
    pytest.importorskip("slime.utils.data")
    from slime.utils.data import Dataset

    made = Made("slime", chat, policy_folder, tmp_path)
    [words] = made.commands["prompts"]
    samples = Dataset(
        after(words, "--prompt-data"),
        made.tokenizer,
        None,
        512,
        prompt_key=after(words, "--input-key"),
        label_key=after(words, "--label-key"),
        apply_chat_template="--apply-chat-template" in words,
    ).samples
    scored = [scored_ids(made, row["response"])[0] for row in ROWS]
    assert [made.tokenizer(s.prompt, add_special_tokens=False)["input_ids"] for s in samples] == scored
    reward_file = module(Path(words[0].partition("=")[2]), "seamcurate_reward")
    for sample, golden in zip(samples, made.golden, strict=True):
        sample.response = golden
    assert asyncio.run(reward_file.rer(None, samples)) == made.rer
    assert asyncio.run(reward_file.rer(None, samples[0])) == made.rer[0]
    [words] = made.commands["sft"]
    samples = Dataset(after(words, "--prompt-data"), None, None, None, prompt_key=after(words, "--input-key")).samples
    assert [sample.prompt for sample in samples] == made.answered(made.golden)
