"""The demo's run: from data to exports on this interpreter's own documentation, without network or GPU.

What a folder already has is not made again, so that a second run only prints the results once more.
"""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from seamcurate.demo import corpus as docs_corpus
from seamcurate.errors import RecipeError
from seamcurate.models.template import prompt_text
from seamcurate.progress import note
from seamcurate.publish.export import export
from seamcurate.publish.formats import TRAINERS
from seamcurate.run import recipe
from seamcurate.run.local import run_local
from seamcurate.select import views
from seamcurate.storage import objects, shard
from seamcurate.store.store import Store, load_json
from seamcurate.text import clean, counted

RECIPE = """\
# The demo's recipe: which questions about Python's standard library does this reward model get wrong?
# Everything it names lies in this folder, but for the encoder, which an installed package carries.
rows:   {{parquet: data/rl.parquet, shard_rows: 64}}
corpus: {{parquet: data/corpus.parquet, shard_rows: 512}}
models:
  policy:  {{causal_lm: models/policy, max_response_tokens: 256}}
  reward:  {{sequence_classifier: models/reward, max_tokens: 256}}
  encoder: {{sentence_encoder: {encoder}}}
{generator}steps:
  - retrieve: {{k: 30, band: [0.80, 0.90]}}
  - seam: {{variant: contrast}}
{more}  - rer: {{fit: quantiles}}
splits:
  train: {{filter: keep_above_lowest.sql, rate: 0.2, by: seam_contrast, format: prompts}}
"""

_WORST = """
SELECT r.prompt, r.response AS golden, r.reward, c.response AS preferred, c.reward AS preferred_reward, s.prompt AS asked
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


def run(
    folder: Path,
    variants: Sequence[str] = ("contrast",),
    endpoint: str | None = None,
    model: str | None = None,
    share: float = 1,
) -> None:
    """Make data, models, scores, split and exports in `folder`, then print the results.

    Args:
        folder: The folder, which becomes a store.
        variants: SEAM's sample sets: `contrast`, which is always made, `adv`, and `gpt`, which needs an endpoint.
        endpoint: The base URL of an OpenAI-compatible server.
        model: The name of the model on that server.
        share: Share of the documentation to use, above 0 and at most 1; a folder that has its data keeps that.

    Raises:
        RecipeError: A variant is unknown, or lacks its endpoint.
    """
    for variant in variants:
        if variant not in ("contrast", *_MORE):
            raise RecipeError(f"unknown variant {variant!r}; there are: contrast, {', '.join(_MORE)}")
    if "gpt" in variants and not (endpoint and model):
        raise RecipeError("variant gpt needs a language model: give --endpoint URL and --model NAME")
    start = time.monotonic()
    folder = objects.folder(folder, "demo")
    folder.mkdir(parents=True, exist_ok=True)
    data, models, file = folder / "data", folder / "models", folder / "recipe.yaml"
    if not (data / "rl.parquet").is_file():
        note("reading the standard library's documentation")
        docs_corpus.make_data(data, share=share)
    policy = load_json(models / "policy" / "training.json") or docs_corpus.make_policy(data, models / "policy")
    judge = load_json(models / "reward" / "training.json") or docs_corpus.make_reward(data, models / "reward")
    if "adv" in variants and not (data / "vectors.txt").is_file():
        docs_corpus.make_vectors(data)
    served = json.dumps({"openai_server": model, "base_url": endpoint})
    written = RECIPE.format(
        encoder=json.dumps(str(docs_corpus.encoder_folder())),
        generator=f"  generator: {served}\n" if "gpt" in variants else "",
        more="".join(_MORE[variant] for variant in dict.fromkeys(variants) if variant in _MORE),
    )
    shard.replace(file, written.encode())
    loaded = recipe.load(file)
    report = run_local(loaded, folder)
    store = Store(folder)
    for trainer in TRAINERS:
        list(export(loaded, store, trainer, folder / "export" / trainer))
    lines = [
        *_story(store, policy, judge),
        *(f"  {line}" for line in report.lines if line.startswith(_TOLD)),
        "",
        *_where(folder),
        "",
        f"{time.monotonic() - start:.0f} seconds, {counted(report.computed, 'shard')} computed",
    ]
    print("\n".join(lines))


_TOLD = ("split", "warning", "worse_", "seam_adv", "seam_gpt")


def _story(store: Store, policy: Mapping[str, JsonValue], judge: Mapping[str, JsonValue]) -> list[str]:
    """Describe how good the models are, how many candidates there are, and where the reward model is wrong."""
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
        f"  policy         {policy['loss_before']:.2f} → {policy['loss_after']:.2f} nats a token on held-out answers, from scratch",
        f"  reward model   right on {judge['accuracy']:.1%} of held-out pairs against a random answer,",
        f"                 yet wrong on {wrong / max(1, all_of_them):.1%} of answers to similar questions ({wrong:,} of {all_of_them:,})",
        "",
        "  questions with this many similar ones at cosine 0.8 to 0.9",
        *_bars({"none": counts["none"], "1-9": counts["few"], "10-29": counts["many"], "30": counts["full"]}),
        "",
        "The five questions it gets most wrong, with the answer it likes too much:",
    ]
    for rank, row in enumerate(views.query(store, _WORST).to_pylist(), 1):
        lines += [
            "",
            f"{rank}. {clean(prompt_text(row['prompt']))}",
            *_quoted("golden", row["reward"], row["golden"]),
            *_quoted("preferred", row["preferred_reward"], row["preferred"]),
            f"                which answers “{clean(prompt_text(row['asked']))}”",
        ]
    return [*lines, ""]


def _quoted(label: str, reward: float, text: str) -> list[str]:
    first_line, *lines = textwrap.wrap(textwrap.shorten(clean(text), 170, placeholder=" …"), 84) or [""]
    return [f"   {label:<10}{reward:+.1f}  {first_line}", *(f"{'':<19}{line}" for line in lines)]


def _bars(counts: Mapping[str, int]) -> list[str]:
    widest = max(1, *counts.values())
    return [f"    {label:>5}  {'█' * round(40 * n / widest):<40} {n:>4}" for label, n in counts.items()]


def _where(folder: Path) -> list[str]:
    """List where the files are, and commands to try next."""
    worst = "SELECT seam_contrast, prompt FROM rows ORDER BY 1 LIMIT 10"
    command = f"{Path(sys.argv[0]).parent / 'seamcurate'}" if sys.argv[0].endswith("seamcurate") else "seamcurate"
    return [
        f"Scores and split   {folder}/columns, {folder}/splits",
        f"For trainers       {folder}/export/trl/train, …/openrlhf/train, …/verl/train",
        f"Models and recipe  {folder}/models, {folder}/recipe.yaml",
        "",
        "Try next:",
        f'  {command} sql {folder} "{worst}"',
        f"  {command} why {folder} 17",
        f"  {command} columns {folder}",
    ]
