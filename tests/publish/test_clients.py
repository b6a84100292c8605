"""verl's and OpenRLHF's own data set and reward classes on exports: they read what was scored, by the printed commands."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
from argparse import Namespace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CHAT_TEMPLATE, questions

from seamcurate import CausalLM, FakeModel, Models, Recipe, Source, Split, Store, rer, run_local
from seamcurate.models import tokens
from seamcurate.publish.export import export

verl = pytest.importorskip("verl")
openrlhf = pytest.importorskip("openrlhf")

EVERY = "SELECT row_id FROM rows"
THINKING = CHAT_TEMPLATE + "{% if add_generation_prompt and not think %}<think></think>{% endif %}"
# Nothing is said twice in a row: of what is, a reward and the column differ.
ASKED = [{**row, "response": re.sub(r"(carefully )+", "carefully ", row["response"])} for row in questions(6)]
SIX = [
    {**row, "worse_contrast": [{"response": f"or {row['response'][4:]}", "similarity": 0.5, "source_row_id": 1}]}
    for row in ASKED
]
# Whether prompts are chats in the source, the policy's chat template, and its settings.
CASES = {
    "plain": (False, None, {}),
    "plain chats": (True, None, {}),
    "template text": (False, None, {"form": "### {prompt}\n###"}),
    "chat": (False, CHAT_TEMPLATE, {}),
    "chats": (True, CHAT_TEMPLATE, {}),
    "thinking": (False, THINKING, {"template": {"think": True}}),
}
cases = pytest.mark.parametrize("case", CASES)


class Made:
    """A store with RER's columns, a policy, and the exports of every format for one trainer."""

    def __init__(self, case: str, to: str, policy_folder: Path, tmp_path: Path) -> None:
        chats, template, settings = CASES[case]
        folder = Path(shutil.copytree(policy_folder, tmp_path / "policy"))
        self.policy = CausalLM(path=str(folder), device="cpu", **settings)
        self.tokenizer = self.policy.tokenizer()
        if template:
            self.tokenizer.chat_template = template
            self.tokenizer.save_pretrained(folder)
        self.form = self.policy.prompt_form(self.tokenizer)
        rows = SIX
        if chats:
            turns = [("system", "be brief"), ("user", "hello"), ("assistant", "ask")]
            before = [{"role": role, "content": content} for role, content in turns]
            rows = [{**row, "prompt": [*before, {"role": "user", "content": row["prompt"]}]} for row in SIX]
        self.rows = rows
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
        formats = ("prompts",) if to == "verl" else ("prompts", "sft", "preferences")
        recipe = Recipe(
            rows=Source(parquet=str(tmp_path / "rows.parquet")),
            models=Models(policy=self.policy, encoder=FakeModel(path="encoder")),
            steps=rer(),
            splits={name: Split(filter=EVERY, format=name) for name in formats},
        )
        run_local(recipe, tmp_path / "store")
        store = Store(tmp_path / "store").open()
        self.rer = [value for table in store.rows(["rer"]) for value in table["rer"].to_pylist()]
        self.commands = {one.folder.name: one.commands for one in export(recipe, store, to, tmp_path / "out")}
        self.scored = [
            [
                tokens.policy_ids(self.tokenizer, row["prompt"], answer, 10**6, self.form)
                for answer in (row["response"], row["worse_contrast"][0]["response"])
            ]
            for row in rows
        ]


# ── verl ─────────────────────────────────────────────────────────────────────────────────────────────────────


def verl_config(command: str):
    """Read a printed command as verl's own command line does."""
    from hydra import compose, initialize_config_dir

    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    folder = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer", overrides=words[3:])


@cases
def test_verl_reads_the_prompts_that_were_scored_and_rewards_as_the_column(case, policy_folder, tmp_path):
    from verl.trainer.ppo.utils import create_rl_dataset

    made = Made(case, "verl", policy_folder, tmp_path)
    [command] = made.commands["prompts"]
    config = verl_config(command)
    assert config.actor_rollout_ref.model.path == made.policy.path
    tokenizer = made.tokenizer
    template = config.actor_rollout_ref.model.custom_chat_template
    assert (template is None) == made.form.chat
    if template is not None:
        # As `HFModelConfig` does.
        tokenizer.chat_template = template
    config.data.filter_overlong_prompts = True
    rows = create_rl_dataset(config.data.train_files, config.data, tokenizer, None)
    assert len(rows) == 6
    arguments = dict(config.data.apply_chat_template_kwargs)
    for row, ((before, _), _) in zip(rows, made.scored, strict=True):
        ids = tokenizer.apply_chat_template(row["raw_prompt"], add_generation_prompt=True, **arguments)
        assert (ids if isinstance(ids, list) else ids["input_ids"]) == before
    assert verl_rewards(config, tokenizer, rows, made) == [pytest.approx(value, abs=1e-6) for value in made.rer]


def verl_rewards(config, tokenizer, rows, made: Made) -> list[float]:
    """Have verl's reward manager reward the golden responses, as a policy would have written them."""
    import torch
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.dataset.rl_dataset import collate_fn

    found = []

    async def reward(manager: NaiveRewardManager, row: dict, after: list[int]) -> float:
        manager.loop = asyncio.get_running_loop()
        batch = collate_fn([row])
        ids = torch.tensor([after])
        batch |= {"responses": ids, "attention_mask": torch.ones_like(ids)}
        return (await manager.run_single(DataProto.from_single_dict(batch)))["reward_score"]

    for row, ((_, after), _) in zip(rows, made.scored, strict=True):

        async def once(row=row, after=after) -> float:
            manager = NaiveRewardManager(config, tokenizer, get_custom_reward_fn(config))
            return await reward(manager, row, after)

        found.append(float(asyncio.run(once())))
    return found


# ── OpenRLHF ─────────────────────────────────────────────────────────────────────────────────────────────────


class Strategy:
    """What OpenRLHF's classes ask of its strategy."""

    def __init__(self, command: str) -> None:
        words = shlex.split(command)
        assert words[:2] == ["python", "-m"]
        source = Path(openrlhf.__file__).parent / "cli" / f"{words[2].split('.')[-1]}.py"
        known = set(re.findall(r'"--([\w.]+)"', source.read_text()))
        default = re.search(r'--data.input_template", type=str, default=("[^"]*"|None)', source.read_text())
        self.flags: dict[str, object] = {
            "data.input_template": json.loads(default[1].replace("None", "null")) if default else None
        }
        for place, word in enumerate(words[3:], 3):
            if word.startswith("--"):
                assert word[2:] in known, word
                after = words[place + 1 : place + 2]
                self.flags[word[2:]] = after[0] if after and not after[0].startswith("--") else True
        data = {name.split(".")[1]: value for name, value in self.flags.items() if name.startswith("data.")}
        self.args = Namespace(data=Namespace(**data), use_ms=False)

    def is_rank_0(self) -> bool:
        return False

    def print(self, *said: object) -> None:
        pass


def openrlhf_rows(strategy: Strategy, flag: str):
    from openrlhf.datasets.utils import blending_datasets

    return blending_datasets(strategy.flags[flag], None, strategy, dataset_split="train")


@cases
def test_openrlhf_reads_the_prompts_that_were_scored_and_rewards_as_the_column(case, policy_folder, tmp_path):
    from openrlhf.datasets import PromptDataset
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    made = Made(case, "openrlhf", policy_folder, tmp_path)
    if made.form.arguments:
        # OpenRLHF gives templates no arguments, which the export says.
        made.tokenizer.chat_template = "{% set think = true %}" + made.tokenizer.chat_template
    [command] = made.commands["prompts"]
    strategy = Strategy(command)
    assert ("data.apply_chat_template" in strategy.flags) == made.form.chat
    rows = openrlhf_rows(strategy, "data.prompt_dataset")
    prompts = PromptDataset(rows, made.tokenizer, strategy, input_template=strategy.flags["data.input_template"])
    read = [made.tokenizer(prompts[i][1], add_special_tokens=False)["input_ids"] for i in range(6)]
    assert read == [before for (before, _), _ in made.scored]
    executor = SingleTurnAgentExecutor([strategy.flags["reward.remote_url"]])

    class Engine:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

        async def generate(self, *given: object, **named: object) -> Namespace:
            return Namespace(outputs=[Namespace(token_ids=self.ids, finish_reason="stop", logprobs=None)])

    for i, ((_, after), _) in enumerate(made.scored):
        _, prompt, label, _ = prompts[i]
        sampling = Namespace(max_tokens=60, logprobs=None)
        told = asyncio.run(executor.execute(prompt, label, sampling, 256, made.tokenizer, Engine(after)))
        assert told["reward"] is not None and float(told["reward"]) == pytest.approx(made.rer[i], abs=1e-6)


@cases
def test_openrlhf_fine_tunes_and_ranks_on_the_ids_that_were_scored(case, policy_folder, tmp_path):
    from openrlhf.datasets import RewardDataset, SFTDataset

    made = Made(case, "openrlhf", policy_folder, tmp_path)
    if made.form.arguments:
        made.tokenizer.chat_template = "{% set think = true %}" + made.tokenizer.chat_template
    # Where a text does not end with it, OpenRLHF puts a space before the end-of-sequence token.
    gap = [] if made.form.chat else made.tokenizer(" ")["input_ids"]

    def spaced(before: list[int], after: list[int]) -> list[int]:
        return [*before, *after[:-1], *gap, after[-1]]

    [command] = made.commands["sft"]
    strategy = Strategy(command)
    rows = openrlhf_rows(strategy, "data.dataset")
    template = strategy.flags["data.input_template"]
    data = SFTDataset(rows, made.tokenizer, 256, strategy, input_template=template, num_processors=1)
    read = [
        (ids[0].tolist(), int(mask[0].tolist().index(1.0)) + 1) for ids, _, mask in (data[i] for i in range(len(data)))
    ]
    assert read == [(spaced(before, golden), len(before)) for (before, golden), _ in made.scored]

    for command in made.commands["preferences"]:
        strategy = Strategy(command)
        rows = openrlhf_rows(strategy, "data.dataset")
        dpo = "train_dpo" in command
        data = RewardDataset(rows, made.tokenizer, 256, strategy, is_dpo=dpo, num_processors=1)
        read = [(row[0][0].tolist(), row[2][0].tolist()) for row in (data[i] for i in range(len(data)))]
        assert read == [(spaced(before, golden), spaced(before, worse)) for (before, golden), (_, worse) in made.scored]
        if dpo:
            assert [data[i][4] for i in range(6)] == [len(before) for (before, _), _ in made.scored]
