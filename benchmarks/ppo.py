"""PPO: whole trainings on one toy, against the last PPOTrainer that TRL had.

It needs an environment of its own: `pip install "trl==1.12.0"`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import inputs
from benchmarks.race import Peer, race
from seamcurate.models import tokens
from seamcurate.train.ppo import PPOTraining, ppo

BATCH, LENGTH, RATE, COEFFICIENT, PROMPTS = 16, 16, 3e-3, 0.01, 128


def policy(folder: Path, width: int, vocabulary: int, labels: int | None = None) -> Path:
    """Save a Qwen2 of made-up weights, or with `labels` a reward model."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **({} if labels is None else {"num_labels": labels}),
    )
    (Qwen2ForCausalLM if labels is None else Qwen2ForSequenceClassification)(config).save_pretrained(folder)
    inputs.tokenizer(vocabulary).save_pretrained(folder)
    return folder


def share_of_e(completions: list[str], **rest: object) -> list[float]:
    """Score a response by how much of it is the letter e: anything learns that."""
    return [10 * text.count("e") / max(1, len(text)) for text in completions]


def mine(start: Path, critic: Path | None, prompts: list[str], updates: int, lora: bool, seed: int) -> list[float]:
    from datasets import Dataset

    config = PPOTraining(
        lora=lora,
        value_model=critic,
        learning_rate=RATE,
        max_steps=updates,
        per_device_train_batch_size=BATCH,
        num_mini_batches=2,
        max_length=512,
        response_length=LENGTH,
        kl_coef=COEFFICIENT,
        kl_target=None,
        score_normalise=False,
        score_clip=None,
        eval_rows=0,
        save_steps=0,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        ppo(start, share_of_e, Dataset.from_dict({"prompt": prompts}), out, config)
        return [json.loads(line)["objective/scores"] for line in (out / "log.jsonl").read_text().splitlines()]


def theirs(start: Path, critic: Path, prompts: list[str], updates: int, lora: bool, seed: int) -> list[float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(start, padding_side="left")
    cue = tokenizer("Answer:", add_special_tokens=False)["input_ids"]

    class Text(torch.nn.Module):
        """Stands where TRL wants a reward model: it reads ids alone, and finds the response behind the last cue."""

        base_model_prefix = "read"

        def __init__(self) -> None:
            super().__init__()
            self.score = torch.nn.Identity()

        def read(self, input_ids: Any, attention_mask: Any, **rest: object) -> Any:
            texts = []
            for row, there in zip(input_ids, attention_mask, strict=True):
                ids = row[there.bool()].tolist()
                behind = max(i for i in range(len(ids)) if ids[i : i + len(cue)] == cue) + len(cue)
                texts.append(tokenizer.decode(ids[behind:], skip_special_tokens=True).removeprefix(" "))
            scores = torch.tensor(share_of_e(texts))
            return SimpleNamespace(hidden_states=(scores[:, None, None].expand(-1, input_ids.shape[1], 1),))

    def whole(kind: Any, place: Path, **options: object) -> Any:
        return kind.from_pretrained(place, dtype=torch.float32, **options)

    asked = []
    for prompt in prompts:
        asked.append({"input_ids": tokens.prompt_ids(tokenizer, prompt)})
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                # Its accumulation goes on across mini batches: more than one step would be fewer optimizer steps than ours.
                per_device_train_batch_size=BATCH,
                total_episodes=updates * BATCH,
                num_ppo_epochs=4,
                num_mini_batches=2,
                response_length=LENGTH,
                stop_token="eos",
                kl_coef=COEFFICIENT,
                vf_coef=1.0,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                temperature=1.0,
                seed=seed,
                report_to=[],
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                num_sample_generations=0,
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
            ),
            processing_class=tokenizer,
            model=whole(AutoModelForCausalLM, start),
            ref_model=None if lora else whole(AutoModelForCausalLM, start),
            reward_model=Text(),
            value_model=whole(AutoModelForSequenceClassification, critic, num_labels=1),
            train_dataset=Dataset.from_list(asked),
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            if lora
            else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.accelerator.print = lambda *words: None
        trainer.train()
        trainer.save_model(folder)
        return [line["objective/scores"] for line in trainer.state.log_history if "objective/scores" in line]


def main(scale: float) -> None:
    if importlib.util.find_spec("trl.experimental.ppo") is None:
        raise SystemExit('ppo: this TRL has no PPOTrainer; pip install "trl==1.12.0" into an environment of its own')
    warnings.simplefilter("ignore")
    logging.getLogger("trl").setLevel(logging.ERROR)
    prompts = [inputs.prompt_of(12 + i % 20, 3 * i) for i in range(PROMPTS)]
    for label, width, vocabulary, lora, head, updates in (
        ("0.05 M weights, all trained, value model", 32, 600, False, False, 24),
        ("0.9 M weights, all trained, value model", 128, 2_000, False, False, 12),
        ("0.9 M weights, adapters, value head against their value model", 128, 2_000, True, True, 12),
    ):
        with tempfile.TemporaryDirectory() as folder:
            start = policy(Path(folder) / "policy", width, vocabulary)
            critic = policy(Path(folder) / "critic", width, vocabulary, labels=1)
            _race(label, start, critic, None if head else critic, prompts, max(4, round(updates * scale)), lora)


def _race(
    label: str, start: Path, critic: Path, value: Path | None, prompts: list[str], updates: int, lora: bool
) -> None:
    curves: dict[str, list[list[float]]] = {"ours": [], "theirs": []}

    def ours() -> list[list[float]]:
        curves["ours"].append(mine(start, value, prompts, updates, lora, len(curves["ours"])))
        return curves["ours"]

    def peer() -> list[list[float]]:
        curves["theirs"].append(theirs(start, critic, prompts, updates, lora, len(curves["theirs"])))
        return curves["theirs"]

    def late(curve: list[float]) -> float:
        return statistics.fmean(curve[-max(1, updates // 5) :])

    def same(a: list[list[float]], b: list[list[float]]) -> bool:
        # Seeds draw other responses, so curves agree up to what seeds differ by among themselves.
        one, two = [late(curve) for curve in a], [late(curve) for curve in b]
        noise = max(statistics.stdev(one), statistics.stdev(two), 0.05)
        return abs(statistics.fmean(one) - statistics.fmean(two)) <= 3 * noise

    def told(_: object, __: object) -> dict[str, object]:
        return {
            "updates": updates,
            "scores": {
                side: {
                    "first": round(statistics.fmean(curve[0] for curve in some), 3),
                    "last fifth": [round(late(curve), 3) for curve in some],
                }
                for side, some in curves.items()
            },
        }

    setting = f"{label}, {updates} updates of {BATCH} responses of at most {LENGTH} tokens, 4 epochs × 2 mini batches"
    race("ppo", setting, ours, {"TRL 1.12 PPOTrainer": Peer(peer)}, same, more=told)
