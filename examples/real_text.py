"""Real text, whole: fine-tuning, a reward model, PPO on RER and its ablations, and the papers' measurements of them.

    python examples/real_text.py DATA OUT

DATA is a folder of Parquet: `sft_corpus` and `rl_prompts` (instruction, response), `preferences` and `preferences_test`
(prompt, chosen, rejected, dataset), `human_pairs` (prompt, context, response_a, response_b, label, source), `superni_test`
(task, definition, input, references). Everything lands in OUT: data, models, splits, answers, figures. Started again, it goes on.
Each command is printed as it can be typed. Sized for one CPU core and an hour; nothing is downloaded.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seamcurate.docs_corpus import encoder_folder, untrained

DATA, OUT = Path(sys.argv[1]), Path(sys.argv[2])
ENCODER = encoder_folder()


def main() -> None:
    """Make the data smaller than a CPU's patience, then run the commands."""
    if not (OUT / "data/superni.parquet").is_file():
        small()
    models, answers, figures, splits = (OUT / name for name in ("models", "answers", "figures", "splits"))
    if not (models / "start").is_dir():
        untrained(OUT / "data/sft.parquet", models / "start", vocabulary=4096, width=264, layers=3)

    whole = ["--no-lora", "--per-device-train-batch-size", 16]
    seamcurate("train", "sft", "--model", models / "start", "--data", OUT / "data/sft.parquet", "--out", models / "sft",
               *whole, "--learning-rate", 1.5e-3, "--warmup-steps", 30, "--max-length", 192, "--max-steps", 400, "--save-steps", 100)  # fmt: skip
    seamcurate("train", "reward", "--model", ENCODER, "--data", OUT / "data/preferences.parquet", "--out", models / "reward",
               *whole, "--learning-rate", 1.5e-4, "--warmup-steps", 20, "--max-length", 128, "--save-steps", 50)  # fmt: skip
    judges = ["--reward", models / "reward", "--encoder", ENCODER, "--max-tokens", 192]
    seamcurate("study", "preference", OUT / "data/preferences_test.parquet", *judges, "--by", "dataset", "--out", figures)
    seamcurate("study", "mismatch", DATA / "human_pairs.parquet", *judges, "--by", "source", "--rows", 800, "--out", figures)

    (OUT / "recipe.yaml").write_text(RECIPE.format(questions=OUT.resolve() / "data/questions.parquet", encoder=ENCODER))
    seamcurate("run", OUT / "recipe.yaml", OUT / "store")
    seamcurate("export", OUT / "recipe.yaml", OUT / "store", "--to", "trl", "--out", splits)
    for proxy in ("li", "li_rp", "li_rp_qr", "rer"):
        reward = splits / "train/reward.py" if proxy == "rer" else proxy
        if proxy == "li_rp_qr":
            reward = OUT / "li_rp_qr.yaml"
            reward.write_text(f"reward: li_rp_qr\nencoder: {{sentence_encoder: {ENCODER}}}\n")
        seamcurate("train", "ppo", "--model", models / "sft", "--data", splits / "train", "--reward", reward,
                   "--gold", models / "reward", "--eval-data", splits / "test", "--eval-steps", 4, "--out", models / proxy,
                   *whole, "--learning-rate", 1e-4, "--max-steps", 40, "--num-ppo-epochs", 2, "--response-length", 48,
                   "--max-length", 192, "--save-steps", 20)  # fmt: skip
    seamcurate("study", "monotonicity", *(models / name for name in ("li", "li_rp", "li_rp_qr", "rer")), "--out", figures)

    told, asked = [], []
    for name in ("sft", "li", "rer"):
        for data, many, found in (("test", 4, told), ("superni", 1, asked)):
            rows = splits / "test" if data == "test" else OUT / "data/superni.parquet"
            found.append(answers / data / f"{name}.parquet")
            seamcurate("answer", "--model", models / name, "--data", rows, "--out", found[-1],
                       "--samples", many, "--max-new-tokens", 48)  # fmt: skip
    seamcurate("study", "responses", *told, "--out", figures)
    seamcurate("study", "tax", *asked, "--baseline", "sft", "--out", figures)


RECIPE = """\
# Query types for RER's reward, and a quarter of the questions to measure on.
rows: {{parquet: {questions}, prompt: prompt, response: reference, reference: reference}}
models:
  encoder: {{sentence_encoder: {encoder}}}
steps:
  - rer: {{fit: quantiles, max_response_tokens: 48}}
splits:
  train: {{filter: "SELECT row_id FROM rows WHERE row_id % 20 <> 0", format: prompts}}
  test: {{filter: "SELECT row_id FROM rows WHERE row_id % 20 = 0", format: prompts}}
"""


def small() -> None:
    """Write what fits small windows: short questions and answers, and prompts that leave a preference's answers room."""
    from transformers import AutoTokenizer

    (OUT / "data").mkdir(parents=True, exist_ok=True)
    pairs = pq.read_table(DATA / "sft_corpus.parquet", columns=["instruction", "response"])
    save("sft", pairs.rename_columns(["prompt", "response"]), 450)
    pairs = pq.read_table(DATA / "rl_prompts.parquet", columns=["instruction", "response"])
    questions = pairs.rename_columns(["prompt", "reference"])
    save("questions", questions.filter(pc.less(pc.utf8_length(questions["prompt"]), 250)), 1500)
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    for name, most in (("preferences", 80), ("preferences_test", 144)):
        table = pq.read_table(DATA / f"{name}.parquet", columns=["prompt", "chosen", "rejected", "dataset"])
        ids = tokenizer([f"Question: {prompt}\n\nAnswer:" for prompt in table["prompt"].to_pylist()], verbose=False)["input_ids"]
        save(name, table.filter([len(one) <= most for one in ids]))
    tasks = pq.read_table(DATA / "superni_test.parquet")
    asked = pc.binary_join_element_wise(tasks["definition"], tasks["input"], pa.scalar("\n\n", pa.large_string()))
    save("superni", tasks.select(["task", "input", "references"]).append_column("prompt", asked))


def save(name: str, table: pa.Table, characters: int | None = None) -> None:
    """Write a table of OUT/data; with a limit, the rows whose texts have fewer characters together."""
    if characters is not None:
        length = pc.add(*(pc.utf8_length(column) for column in table.columns))
        table = table.filter(pc.less(length, characters))
    pq.write_table(table, OUT / "data" / f"{name}.parquet")


def seamcurate(*words: object) -> None:
    """Run a command, and show it."""
    print("\n$ seamcurate", shlex.join(map(str, words)), flush=True)
    subprocess.run([sys.executable, "-m", "seamcurate.cli", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
