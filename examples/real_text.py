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
    small()
    start = OUT / "models/start"
    if not start.is_dir():
        untrained(OUT / "data/sft.parquet", start, vocabulary=4096, width=264, layers=3)


def small() -> None:
    """Write what fits small windows: short questions and answers, and prompts that leave a preference's answers room."""
    from transformers import AutoTokenizer

    (OUT / "data").mkdir(parents=True, exist_ok=True)
    for name, characters in (("sft_corpus", 450), ("rl_prompts", 250)):
        table = pq.read_table(DATA / f"{name}.parquet", columns=["instruction", "response", "source"])
        table = table.rename_columns(["prompt", "response", "source"])
        asked = table if name == "sft_corpus" else table.drop_columns("response")
        length = sum_of(pc.utf8_length(asked[column]) for column in asked.column_names if column != "source")
        save("sft" if name == "sft_corpus" else "questions", table.filter(pc.less(length, characters)))
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    for name in ("preferences", "preferences_test"):
        table = pq.read_table(DATA / f"{name}.parquet", columns=["prompt", "chosen", "rejected", "dataset"])
        ids = tokenizer([f"Question: {prompt}\n\nAnswer:" for prompt in table["prompt"].to_pylist()])["input_ids"]
        save(name, table.filter([len(one) <= 144 for one in ids]))


def sum_of(columns):
    """Add columns of numbers."""
    total = 0
    for column in columns:
        total = pc.add(column, total)
    return total


def save(name: str, table: pa.Table) -> None:
    """Write a table of OUT/data."""
    pq.write_table(table, OUT / "data" / f"{name}.parquet")


def seamcurate(*words: object) -> None:
    """Run a command, and show it."""
    print("\n$ seamcurate", shlex.join(map(str, words)), flush=True)
    subprocess.run([sys.executable, "-m", "seamcurate.cli", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
