"""Do a little of everything with whatever is installed: for the lowest versions, and for other Pythons.

`python tests/smoke.py` prints a line for each part and exits with 1 where one fails. A part whose package is not
installed is left out, which its line says.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ROWS = [
    {
        "prompt": f"how do I {verb} a {noun}",
        "response": f"call {verb}() on the {noun} and look at it",
        "reference": noun,
    }
    for verb in ("sort", "copy", "open", "close")
    for noun in ("list", "file", "set", "table", "socket")
]
RECIPE = """\
rows: {jsonl: rows.jsonl, shard_rows: 8}
corpus: {jsonl: rows.jsonl, shard_rows: 16}
models: {policy: {fake: p}, reward: {fake: r}, encoder: {fake: e}}
steps: [retrieve: {k: 5, band: [0.3, 0.95]}, seam: {k: 5}, rer: {fit: quantiles}, random, rip]
splits: {train: {filter: keep_above_lowest.sql, by: seam_contrast, rate: 0.2}}
"""
CORE = """\
rows: {jsonl: rows.jsonl, shard_rows: 8}
models: {reward: {function: "lengths.py:score"}}
steps: [reward, length_incentive, random]
splits: {train: {filter: keep_above_lowest.sql, by: rer_length, rate: 0.2}}
"""


def command(*arguments: object) -> str:
    """Run the command line and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "seamcurate.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def modules(folder: Path) -> None:
    """Import every module that needs nothing but the dependencies."""
    import seamcurate

    extras = ("seamcurate.train", "seamcurate.study", "seamcurate.storage.bucket")
    for module in pkgutil.walk_packages(seamcurate.__path__, "seamcurate."):
        if not module.name.startswith(extras):
            importlib.import_module(module.name)
    for name in seamcurate.__all__:
        getattr(seamcurate, name)


def core(folder: Path) -> None:
    """Audit a function, and run, query and export a recipe whose reward is that function."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "lengths.py").write_text(
        "def score(completions, **columns):\n    return [float(len(c)) for c in completions]\n"
    )
    reward = f"{folder / 'lengths.py'}:score"
    command("audit", "--reward", reward, "--data", folder / "rows.jsonl", "--store", folder / "audited")
    recipe, store = folder / "core.yaml", folder / "scored"
    recipe.write_text(CORE)
    command("plan", recipe, store)
    command("run", recipe, store)
    assert json.loads(command("sql", store, "SELECT count(*) AS n FROM rows", "--format", "jsonl")) == {"n": 20}
    assert "split train" in command("why", store, 3)
    command("export", recipe, store, "--to", "trl", "--out", folder / "core-splits")
    command("report", store, "--out", folder / "core.html")


def curation(folder: Path) -> None:
    """Make a store on models without weights, and ask the verbs about it."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe, store = folder / "recipe.yaml", folder / "store"
    command("plan", recipe, store)
    command("run", recipe, store)
    assert "everything was there" in command("run", recipe, store)
    answer = command("sql", store, "SELECT count(*) AS n, sum(rer) > 0 AS positive FROM rows", "--format", "jsonl")
    assert json.loads(answer) == {"n": 20, "positive": True}
    for verb in ("columns", "check"):
        command(verb, store)
    assert "split train" in command("why", store, 3)
    command("export", recipe, store, "--to", "trl", "--out", folder / "splits")


def explorer(folder: Path) -> None:
    """Write the report, which is all that the explorer's page shows."""
    command("report", folder / "store", "--out", folder / "report.html")


def study(folder: Path) -> None:
    """Draw a study."""
    command("study", "overlap", folder / "store", folder / "store", "--out", folder / "figures")


def tiny_model(folder: Path) -> Path:
    """Save a policy of a few thousand weights with a tokenizer of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [row["prompt"] + row["response"] for row in ROWS]
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "</s>", "<pad>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        eos_token_id=1,
        pad_token_id=2,
        bos_token_id=None,
    )
    path = folder / "policy"
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def likelihoods(folder: Path) -> None:
    """Score answers with a policy, and compare with one call."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from seamcurate import CausalLM

    path = tiny_model(folder)
    (scored,) = CausalLM(path=str(path)).load().logprobs([ROWS[0]["prompt"]], [[ROWS[0]["response"]]])
    assert scored[0] is not None
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    prompt = tokenizer(f"Question: {ROWS[0]['prompt']}\n\nAnswer:", add_special_tokens=False)["input_ids"]
    answer = [*tokenizer(f" {ROWS[0]['response']}", add_special_tokens=False)["input_ids"], 1]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = logits[range(len(answer)), answer].sum().item()
    assert abs(scored[0].logprob - expected) < 1e-3, (scored[0], expected)


def retrieval(folder: Path) -> None:
    """Search by FAISS."""
    text = RECIPE.replace("band: [0.3, 0.95]", "band: [0.3, 0.95], index: hnsw")
    (folder / "hnsw.yaml").write_text(text)
    command("run", folder / "hnsw.yaml", folder / "hnsw")


def training(folder: Path) -> None:
    """Take a step of fine-tuning and one of GRPO."""
    from seamcurate.train import GroupTraining, SFTTraining, grpo, sft

    rows = folder / "data.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": r["prompt"], "completion": r["response"]}) for r in ROWS))
    sft(folder / "policy", rows, folder / "sft", SFTTraining(max_steps=1, lora=True))
    sizes = {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 4}

    def reward(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        return [float(len(answer)) for answer in completions]

    grpo(folder / "sft", reward, rows, folder / "grpo", GroupTraining(max_steps=1, **sizes))


def cluster(folder: Path) -> None:
    """Compute a store on a cluster of this machine, and compare its columns with the store made here."""
    (folder / "short.yaml").write_text("rows: {jsonl: rows.jsonl, shard_rows: 8}\nsteps: [length_incentive]\n")
    command("run", folder / "short.yaml", folder / "there", "--ray", "local")
    query = "SELECT row_id, rer_length FROM rows ORDER BY row_id"
    assert command("sql", folder / "there", query) == command("sql", folder / "store", query)


PARTS: dict[Callable[[Path], None], tuple[str, ...]] = {
    modules: (),
    core: (),
    curation: ("torch", "sklearn"),
    explorer: ("torch", "sklearn"),
    study: ("torch", "sklearn", "matplotlib", "scipy"),
    likelihoods: ("torch",),
    retrieval: ("torch", "faiss"),
    training: ("torch", "trl", "peft", "accelerate"),
    cluster: ("torch", "sklearn", "ray", "aiohttp"),
}
"""What is tried, and the packages it needs beside those that are always installed."""


def main(left_out: list[str]) -> int:
    """Try every part but those named; return the exit code."""
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for part, needed in PARTS.items():
            lacking = [name for name in needed if find_spec(name) is None]
            if lacking or part.__name__ in left_out:
                reason = f"{', '.join(lacking)} not installed" if lacking else "not asked for"
                print(f"{part.__name__}: left out, {reason}", flush=True)
                continue
            try:
                part(Path(folder))
                print(f"{part.__name__}: ok", flush=True)
            except Exception:
                traceback.print_exc()
                print(f"{part.__name__}: FAILED", flush=True)
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
