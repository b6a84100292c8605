"""The commands of the manual run as they stand, a page at a time, in a folder that holds what the pages name.

The tutorials are run by test_tutorials.py, which compares what they print. Here a command need only end as its page says:
rows, models and stores are small stand-ins for the reader's. What is not run is in `NOT_RUN` of test_manual_commands.py,
with the reason.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hub_server
import manual
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3_server
from conftest import questions
from endpoint import Endpoint, serving
from test_manual_commands import COMMANDS, ROOT, parts, reason

from seamcurate import Recipe, run_local
from seamcurate.publish import measures

pytestmark = pytest.mark.slow

RECIPE = """\
rows: {jsonl: rows.jsonl, reference: reference}
corpus: {jsonl: corpus.jsonl}
models: {policy: {fake: policy}, reward: {fake: reward}, encoder: {fake: encoder}}
steps:
  - retrieve: {k: 5, band: [0.5, 0.9]}
  - seam: {k: 5}
  - rer: {fit: quantiles}
  - duplicates: {similarity: 0.95}
  - rollouts: {n: 4, max_tokens: 8}
  - difficulty: {threshold: 0.5}
splits:
  train: {filter: keep_above_lowest.sql, by: seam_contrast, rate: 0.2}
"""
LIGHT = "rows: {jsonl: rows.jsonl}\nsteps: [length_incentive]\n"
SOUND = "def score(prompt, response, reference):\n    return float(response == reference)\n"
SERVER = "http://127.0.0.1:8000"
"""Where the pages have a server; the tests' own has a free port."""
BESIDES = {
    "seamcurate answer": ["--max-new-tokens", "8"],
    "seamcurate reproduce": ["--files", "."],
    "seamcurate train grpo": ["--max-steps", "1", "--max-completion-length", "8"],
    "seamcurate train ppo": ["--max-steps", "1", "--response-length", "8"],
    "seamcurate train reward": ["--max-steps", "1"],
    "seamcurate train rloo": ["--max-steps", "1", "--max-completion-length", "8"],
    "seamcurate train sft": ["--max-steps", "1"],
}
"""What is said besides, by the beginning of a command: bounds, and where rows lie that are not on the Hub."""


def lines(file: Path, records: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def table(file: Path, records: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), file)


def linked(folder: Path, names: dict[Path, list[str]]) -> None:
    for target, links in names.items():
        for link in links:
            (folder / link).parent.mkdir(exist_ok=True)
            (folder / link).symlink_to(target)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, policy_folder, decoder_reward_folder, encoder_reward_folder) -> Path:
    """What the pages name: rows, rewards, models, a store with its recipe, and what studies read."""
    folder = tmp_path_factory.mktemp("manual")
    # The golden response is the reference, so that `SOUND` pays it and nothing else.
    rows = [{**row, "reference": row["response"], "source": "ab"[at % 2]} for at, row in enumerate(questions(30))]
    for name in ("rows", "gsm8k", "prompts", "tests/prompts"):
        lines(folder / f"{name}.jsonl", rows)
        table(folder / f"{name}.parquet", rows)
    corpus = questions(60, start=1000)
    lines(folder / "corpus.jsonl", corpus)
    table(folder / "corpus.parquet", corpus)

    (folder / "reward.py").write_text(SOUND)
    (folder / "reward.yaml").write_text('function: "reward.py:score"\n')
    linked(
        folder,
        {
            ROOT / "examples": ["examples"],
            policy_folder: ["my-org/sft-7b", "my-org/base-7b", "models/sft", "models/ppo"],
            decoder_reward_folder: ["my-org/rm-7b", "models/reward"],
            encoder_reward_folder: ["my-org/encoder", "princeton-nlp/sup-simcse-roberta-base"],
        },
    )

    (folder / "recipe.yaml").write_text(RECIPE)
    run_local(Recipe.load(folder / "recipe.yaml"), folder / "my-store")
    for copy in ("store-a", "store-b", "second-store", "demo-store", "demo-store/rollouts"):
        shutil.copytree(folder / "my-store", folder / copy)
    (folder / "demo-store" / "recipe.yaml").write_text(RECIPE.replace("jsonl: ", "jsonl: ../"))

    asked = [(at, str(row["prompt"])) for at, row in enumerate(rows)]
    pair = {"response_b": "wrong", "label": "a", "reward_b": 1.0}
    judged = [
        {"prompt": prompt, "source": "ab"[at % 2], "response_a": f"right {draw}", "reward_a": float(at % 3), **pair}
        for at, prompt in asked
        for draw in range(2)
    ]
    rated = [
        {"prompt": prompt, "response": f"answer {draw}", "score": float(draw), "reward": float((at + draw) % 3)}
        for at, prompt in asked
        for draw in range(4)
    ]
    table(folder / "judged.parquet", judged)
    table(folder / "rated.parquet", rated)
    quality = [f"{method},{seed},{0.5 + 0.01 * seed}" for method in ("seam", "full") for seed in range(5)]
    (folder / "results.csv").write_text("\n".join(["method,seed,quality", *quality]) + "\n")

    pairs = [{"prompt": prompt, "chosen": "a good answer", "rejected": "no"} for _, prompt in asked]
    table(folder / "preferences.parquet", pairs)
    table(folder / "splits/lowest/preferences/train-00000-of-00001.parquet", pairs)
    for name in ("train", "test", "lowest/sft"):
        table(folder / "splits" / name / "train-00000-of-00001.parquet", rows)
    for name in ("sft", "ppo"):
        answers = [{"prompt": prompt, "response": f"{name} says"} for _, prompt in asked]
        table(folder / "answers" / f"{name}.parquet", answers)
    return folder


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with serving() as at:
        yield at


@pytest.fixture(scope="module")
def working(tmp_path_factory) -> Path:
    """One working folder for all pages: the process that answers SQL stays in the one where it was started."""
    return tmp_path_factory.mktemp("working")


@pytest.fixture
def folder(prepared, endpoint, working, tmp_path, monkeypatch) -> Iterator[Path]:
    """The working folder with a fresh copy of all that, a Hub and an endpoint of language models."""
    for path in working.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(prepared, working, symlinks=True, dirs_exist_ok=True)
    (working / "judge.yaml").write_text(f"openai_server: my-judge\nbase_url: {endpoint.url}\n")
    (working / "gold.yaml").write_text(f"judge: {{openai_server: my-judge, base_url: '{endpoint.url}'}}\n")
    monkeypatch.chdir(working)
    monkeypatch.setenv("SEAMCURATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    # Drawing takes longer than all the rest of a card.
    monkeypatch.setattr(measures, "draw", lambda *anything: False)
    with hub_server.answering_here(tmp_path, monkeypatch) as hub:
        hub.tokens["hf_token"] = "write"
        yield working


def to_run(page: str) -> list[tuple[manual.Block, list[manual.Command]]]:
    """Return the blocks of a page that are files or hold commands, with those of the commands that are run."""
    chosen = []
    for block in manual.blocks(ROOT / page):
        commands = manual.commands(block) if block.kind in ("console", "sh") else []
        commands = [command for command in commands if reason(parts(command.line)[0]) is None]
        if commands or block.file:
            chosen.append((block, commands))
    return chosen


PAGES = [page for page in dict.fromkeys(page for page, _ in COMMANDS) if any(own for _, own in to_run(page))]


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_commands_run(page, folder, endpoint, request):
    chosen = to_run(page)
    if any("s3://" in command.line for _, own in chosen for command in own):
        request.getfixturevalue("bucket")
        # A request takes longer here than what is computed.
        Path("recipe.yaml").write_text(LIGHT)
    for block, own in chosen:
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text.replace(SERVER, endpoint.url.removesuffix("/v1")))
        for command in own:
            (words,) = parts(command.line)
            words += next((more for start, more in BESIDES.items() if " ".join(words).startswith(start)), [])
            if words[1] == "init" and "reference" in page:
                words += ["--out", "drafted.yaml"]
            elif words[1] == "init":
                # The page goes on with the recipe that is written here.
                Path("recipe.yaml").unlink()
                shutil.rmtree("my-store")
            if words[1] == "train":
                # What stood in for what the page trains.
                Path(words[words.index("--out") + 1]).unlink(missing_ok=True)
            manual.printed_by(replace(command, line=shlex.join(words)))


@pytest.fixture
def bucket(tmp_path) -> Iterator[None]:
    import boto3

    with s3_server.serving(tmp_path) as server:
        boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket="bucket")
        yield
