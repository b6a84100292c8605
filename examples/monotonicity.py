"""Reverse reward engineering on the demo's questions (RER §3): a reward model's rewards while white-box ones are optimised.

    python examples/monotonicity.py STORE OUT

STORE is what `seamcurate demo STORE --policy scratch` made: a small policy, and a reward model, right on about 95 % of held-out pairs, which is the
gold here and never learned from. Four policies are trained by PPO, on LI, LI·RP, LI·RP·QR and RER; both rewards are
measured on the same held-out questions before, after, and nine times between. Started again, it goes on.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import yaml

PPO = "--no-lora --learning-rate 2e-4 --max-steps 40 --num-ppo-epochs 2 --response-length 64 --max-length 256 --eval-steps 4 --save-steps 20"


def main(store: Path, out: Path) -> None:
    """Take the demo's recipe and models."""
    proxies(store / "recipe.yaml", store, store / "models/policy", store / "models/reward", out)


def proxies(recipe: Path, store: Path, policy: Path, gold: Path, out: Path) -> None:
    """Export a recipe's split, train the policy on each proxy, and correlate each with the gold reward model."""
    encoder = yaml.safe_load(recipe.read_text())["models"]["encoder"]
    seamcurate("export", recipe, store, "--to", "trl", "--out", out / "splits")
    split = out / "splits/train"
    (out / "li_rp_qr.yaml").write_text(yaml.safe_dump({"reward": "li_rp_qr", "encoder": encoder}))
    rewards = {"li": "li", "li_rp": "li_rp", "li_rp_qr": out / "li_rp_qr.yaml", "rer": split / "seamcurate_reward.py"}
    for name, reward in rewards.items():
        seamcurate("train", "ppo", "--model", policy, "--data", split, "--reward", reward, "--gold",
                   gold, "--out", out / "models" / name, *PPO.split())  # fmt: skip
    seamcurate("study", "monotonicity", *(out / "models" / name for name in rewards), "--out", out / "figures")


def seamcurate(*words: object) -> None:
    """Run a command, and show it as it can be typed."""
    print("\n$ seamcurate", shlex.join(map(str, words)), flush=True)
    subprocess.run([sys.executable, "-m", "seamcurate.cli", *map(str, words)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
