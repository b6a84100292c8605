"""Real text, whole: fine-tuning, a reward model, what both are worth beside simple baselines, and whether it follows RER's proxies.

    python examples/from_scratch.py DATA OUT

DATA is a folder of Parquet: `sft_corpus` (instruction, response), `preferences` and `preferences_test` (prompt, chosen,
rejected, dataset), `human_pairs` (prompt, context, response_a, response_b, label, source), `superni_test` (task,
definition, input, references). Everything lands in OUT: data, models, answers, figures. Started again, it goes on. Sized for
one CPU core: the policy is trained from scratch, the reward model from MiniLM's weights; nothing is downloaded.
"""

import sys
from pathlib import Path

import monotonicity
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from monotonicity import seamcurate

from seamcurate.demo.corpus import encoder_folder, untrained

SFT = "--no-lora --learning-rate 1.5e-3 --warmup-steps 30 --per-device-train-batch-size 16 --max-length 192 --save-steps 100"
REWARD = "--no-lora --learning-rate 1.5e-4 --warmup-steps 20 --per-device-train-batch-size 16 --max-length 128 --save-steps 30"


def main(given: Path, out: Path) -> None:
    """Make the data smaller than a CPU's patience, then run the commands."""
    encoder, data, models, figures = encoder_folder(), out / "data", out / "models", out / "figures"
    if not (data / "superni.parquet").is_file():
        small(given, data)
    judges = ["--reward", models / "reward", "--encoder", encoder, "--out", figures]
    seamcurate("train", "reward", "--model", encoder, "--data", data / "preferences.parquet", "--out", models / "reward",
               *REWARD.split())  # fmt: skip
    seamcurate(
        "study", "preference", data / "preferences_test.parquet", *judges, "--max-tokens", 192, "--by", "dataset"
    )
    seamcurate("study", "mismatch", given / "human_pairs.parquet", *judges, "--max-tokens", 256, "--by", "source",
               "--rows", 800)  # fmt: skip

    if not (models / "start").is_dir():
        untrained(data / "sft.parquet", models / "start", vocabulary=4096, width=264, layers=3)
    seamcurate("train", "sft", "--model", models / "start", "--data", data / "sft.parquet", "--out", models / "sft",
               *SFT.split())  # fmt: skip
    answered = [out / f"answers/{name}.parquet" for name in ("start", "sft")]
    for name, file in zip(("start", "sft"), answered, strict=True):
        seamcurate("answer", "--model", models / name, "--data", data / "superni.parquet", "--out", file,
                   "--max-new-tokens", 48)  # fmt: skip
    seamcurate("study", "responses", *answered, "--out", figures)
    seamcurate("study", "tax", *answered, "--baseline", "start", "--out", figures)

    # The reference is the answer people chose; what F's range is fitted on is how near the other one comes.
    rows = {
        "parquet": str(data / "preferences.parquet"),
        "prompt": "prompt",
        "response": "rejected",
        "reference": "chosen",
    }
    recipe = {
        "rows": rows,
        "models": {"encoder": {"sentence_encoder": str(encoder)}},
        "steps": [{"rer": {"fit": "quantiles"}}],
        "splits": {"train": {"filter": "SELECT row_id FROM rows WHERE rer IS NOT NULL", "format": "prompts"}},
    }
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    seamcurate("run", out / "recipe.yaml", out / "store")
    monotonicity.proxies(out / "recipe.yaml", out / "store", models / "sft", models / "reward", out)


def small(given: Path, data: Path) -> None:
    """Write what fits small windows: short questions and answers, and prompts that leave a preference's answers room."""
    from transformers import AutoTokenizer

    data.mkdir(parents=True, exist_ok=True)
    pairs = pq.read_table(given / "sft_corpus.parquet", columns=["instruction", "response"])
    short = pc.less(pc.add(*(pc.utf8_length(column) for column in pairs.columns)), 450)
    pq.write_table(pairs.rename_columns(["prompt", "response"]).filter(short), data / "sft.parquet")
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    for name, most in (("preferences", 80), ("preferences_test", 144)):
        table = pq.read_table(given / f"{name}.parquet", columns=["prompt", "chosen", "rejected", "dataset"])
        prompts = [f"Question: {prompt}\n\nAnswer:" for prompt in table["prompt"].to_pylist()]
        fits = [len(ids) <= most for ids in tokenizer(prompts, verbose=False)["input_ids"]]
        pq.write_table(table.filter(fits), data / f"{name}.parquet")
    tasks = pq.read_table(given / "superni_test.parquet")
    asked = pc.binary_join_element_wise(tasks["definition"], tasks["input"], pa.scalar("\n\n", pa.large_string()))
    tasks = tasks.select(["task", "input", "references"]).append_column("prompt", asked)
    pq.write_table(tasks.filter(pc.less(pc.utf8_length(asked), 1200)), data / "superni.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
