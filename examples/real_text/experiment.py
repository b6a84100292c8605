"""The pieces of the measurement, each a JSON file with its tables, seconds and command; started again, it goes on.

python -m examples.real_text.experiment DATA OUT [PIECE …]
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from examples.real_text import data, models, replies, training, words
from examples.real_text.data import Judged, Rows, Sizes
from seamcurate import Recipe, SentenceEncoder, query, run_local, study
from seamcurate.demo import policy as demo_policy
from seamcurate.demo.corpus import encoder_folder
from seamcurate.storage import atomic

FAMILIES = ("words", "smol", "minilm")
POLICYS = "smol"
"""The family whose rows are read by the policy as well."""
SETS: dict[str, Callable[[Path, Sizes], Judged]] = {"stackexchange": data.stackexchange, "human": data.human}
FRESH: dict[str, Callable[[Path, Sizes], Judged]] = {
    "stackexchange-fresh": data.fresh_stackexchange,
    "human-fresh": data.fresh_human,
}
"""The rows of each set that no column was compared with people on before."""
WEIGHTS = ("geometric", "raw", "uniform", "logprob")
GOLDS = ("smol", "words")
"""The families whose last reward models stand for people where RER's proxies choose."""
BAND = [0.2, 0.95]
_TEXTS = ("prompt", "response", "source", "worse_contrast")
_LIKELIHOODS = ("logprobs_contrast", "tokens_contrast")
_MEASURED = (
    *("seam_contrast", "misjudged_contrast", "reward", "baseline_reward_spread_contrast"),
    *("baseline_reward_margin_contrast", "baseline_rejected_reward_contrast", "baseline_rejected_length_contrast"),
    "baseline_reward_gap_contrast",
)
Tables = dict[str, Any]


class Work:
    """Where everything lies: the data, the models, the stores."""

    def __init__(self, source: Path, out: Path, sizes: Sizes = Sizes(), start: Path | None = None) -> None:
        self.source, self.out, self.sizes = source, out, sizes
        self._policy = start

    @property
    def policy(self) -> Path:
        """The folder of the policy, unpacked where it is not there."""
        return self._policy or models.policy(self.out / "models/policy")

    def _start(self, family: str) -> Path:
        """Return the folder that a family's frozen layers come from."""
        return models.larger(self.out / "gemma.gguf", self.out / "models/gemma") if family == "gemma" else self.policy

    @property
    def sequence(self) -> dict[str, Callable[[], Tables]]:
        """The pieces, in the order they are measured: the most telling for its seconds first."""
        pieces: dict[str, Callable[[], Tables]] = {}
        for family in FAMILIES:
            pieces[f"heads-{family}"] = partial(self.heads, family)
            for name in SETS:
                pieces[f"{name}-{family}"] = partial(self.scored, name, family)
            pieces[f"mismatch-{family}"] = partial(self.mismatch, family)
            if family == POLICYS:
                for name in SETS:
                    pieces[f"{name}-likelihoods"] = partial(self.likelihoods, name)
        for name in SETS:
            pieces[f"{name}-policy"] = partial(self.answered, name)
            pieces[f"{name}-proxies"] = partial(self.proxies, name)
        # What takes the most seconds for what it tells is measured on the set where the rewards are no coin.
        for i, pairs in enumerate(self.sizes.lora):
            pieces[f"heads-lora-{pairs}"] = partial(self.adapted, i)
            pieces[f"human-lora-{pairs}"] = partial(self.scored, "human", f"lora-{pairs}")
            pieces[f"mismatch-lora-{pairs}"] = partial(self.mismatch, f"lora-{pairs}")
        for name in reversed(SETS):
            if self.sizes.written:
                pieces[f"{name}-gpt"] = partial(self.written, name)
            if self.sizes.attacked:
                pieces[f"{name}-adv"] = partial(self.attacked, name)
        pieces["human-ppo"] = partial(self.optimised, "human")
        for name in FRESH:
            pieces[f"{name}-{POLICYS}"] = partial(self.scored, name, POLICYS)
        for name in SETS:
            pieces[f"{name}-all-{POLICYS}"] = partial(self.pooled, name, POLICYS)
        if self.sizes.written_more:
            pieces["human-more-gpt"] = partial(self.written, "human", "more")
        pieces["human-longer-ppo"] = partial(self.optimised, "human", "longer")
        # A larger model is measured where somebody put its file.
        if (self.out / "gemma.gguf").is_file():
            pieces |= {
                "heads-gemma": partial(self.heads, "gemma"),
                "human-gemma": partial(self.scored, "human", "gemma"),
                "mismatch-gemma": partial(self.mismatch, "gemma"),
                "human-fresh-gemma": partial(self.scored, "human-fresh", "gemma"),
                "human-all-gemma": partial(self.pooled, "human", "gemma"),
            }
        pieces |= {f"{name}-preferred": partial(self.preferred, name) for name in SETS}
        return pieces

    def run(self, names: Sequence[str]) -> None:
        """Measure the pieces that have no file yet."""
        for name, measure in self.sequence.items():
            file = self.out / "pieces" / f"{name}.json"
            if (names and name not in names) or file.is_file():
                continue
            print(f"{name} …", flush=True)
            began = time.process_time()
            tables = measure()
            seconds = round(time.process_time() - began, 1)
            print(f"{name}: {seconds} CPU seconds", flush=True)
            command = f"python -m examples.real_text.experiment DATA OUT {name}"
            piece = {"piece": name, "command": command, "cpu_seconds": seconds, "sizes": self.sizes._asdict(), **tables}
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(file) as temporary:
                temporary.write_text(json.dumps(piece, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    # ── reward models ───────────────────────────────────────────────────────────────────────────────────

    def heads(self, family: str) -> Tables:
        """Train heads on the first pairs, more and more of them, and measure all on the same held-out pairs."""
        training, held_out = data.preferences(self.source, self.sizes)
        training = training[: self._pairs(family)[-1]]
        if family == "words":
            return self._words(training, held_out)
        layers = self.sizes.gemma_layers if family == "gemma" else self.sizes.layers
        start = self._start(family)
        folder = models.bare(family, start, self.out / f"models/bare-{family}", layers)
        kept = self.out / f"features-{family}"
        trained, tested = (
            models.kept_features(folder, pairs, ("chosen", "rejected"), kept / name)
            for name, pairs in (("training", training), ("held-out", held_out))
        )
        heads = {f"{family}-{n}": models.head(trained[:n, 0], trained[:n, 1]) for n in self._pairs(family)}
        models.save_heads(family, start, self._heads(family), layers, heads)
        scores = [
            {
                "reward": name,
                "prompt_id": str(i),
                "subset": pair["dataset"],
                "score_chosen": float(tested[i, 0] @ weights),
                "score_rejected": float(tested[i, 1] @ weights),
            }
            for name, weights in heads.items()
            for i, pair in enumerate(held_out)
        ]
        return self._accuracy(family, scores, len(training))

    def adapted(self, stage: int) -> Tables:
        """Train a reward model by adapters on more pairs than the stage before, from its weights; measure it as heads are."""
        pairs, held_out = data.preferences(self.source, self.sizes)
        seen, most = (0, *self.sizes.lora)[stage : stage + 2]
        if stage:
            start = self._folder(f"lora-{seen}")
        else:
            start = models.start_of_adapters(self.policy, self.out / "models/lora-start", self.sizes.layers)
        name = f"lora-{most}"
        training.adapters(start, pairs[seen:most], self._folder(name), models.MAX_TOKENS)
        rewards = self._rewards(name, held_out, ("chosen", "rejected"))
        scores = [
            {"reward": name, "prompt_id": str(i), "subset": pair["dataset"], "score_chosen": a, "score_rejected": b}
            for i, (pair, ((a,), (b,))) in enumerate(zip(held_out, rewards, strict=True))
        ]
        return self._accuracy(name, scores, most)

    def _words(self, training: Rows, held_out: Rows) -> Tables:
        """Train functions in place of heads."""
        scores = []
        for name, n in zip(self._names("words"), self._pairs("words"), strict=True):
            words.train(training[:n], self._folder(name))
            rewards = self._rewards("words", held_out, ("chosen", "rejected"), name)
            scores += [
                {"reward": name, "prompt_id": str(i), "subset": pair["dataset"], "score_chosen": a, "score_rejected": b}
                for i, (pair, ((a,), (b,))) in enumerate(zip(held_out, rewards, strict=True))
            ]
        return self._accuracy("words", scores, len(training))

    def _accuracy(self, family: str, scores: Rows, pairs: int) -> Tables:
        file = data.write(scores, self.out / f"tables/held-out-{family}.parquet")
        return {"accuracy": _result(study.preference(file, by="subset")), "training_pairs": pairs}

    def _folder(self, name: str) -> Path:
        return self.out / "models" / name

    def _heads(self, family: str) -> Path:
        return self.out / f"models/heads-{family}"

    def _names(self, family: str) -> list[str]:
        if family.startswith("lora-"):
            return [family]
        return [f"{family}-{n}" for n in self._pairs(family)]

    def _pairs(self, family: str) -> tuple[int, ...]:
        pairs: tuple[int, ...] = self.sizes._asdict()[family]
        return pairs

    # ── stores and what their columns find ──────────────────────────────────────────────────────────────

    def scored(self, name: str, family: str) -> Tables:
        """Score a set's rows by a family of reward models, and measure the columns that need no policy."""
        measured = (SETS | FRESH)[name](self.source, self.sizes)
        stored = _rows(self._base(name, measured))
        if family != "words" and not family.startswith("lora-"):
            stored = _rows(self._rewarded(name, family, stored))
        left_out = self._judge(name, family, measured.judged)
        tables: Tables = {"rows": len(stored), "judged": len(measured.judged) - left_out, "judged_left_out": left_out}
        tables["candidates"] = round(sum(len(row["worse_contrast"]) for row in stored) / len(stored), 3)
        return tables | self._measured(name, family, stored, ("uniform",), _MEASURED)

    def pooled(self, name: str, family: str) -> Tables:
        """Measure the same columns on all rows of a set, those of its first part and the fresh ones together."""
        parts = name, f"{name}-fresh"
        for reward in self._names(family):
            tables = [pq.read_table(self._judged_file(part, reward)) for part in parts]
            data.write(pa.concat_tables(tables).to_pylist(), self._judged_file(f"{name}-all", reward))
        stored = [row for part in parts for row in _rows(self.out / part / f"store-{family}")]
        return {"rows": len(stored)} | self._measured(f"{name}-all", family, stored, ("uniform",), _MEASURED)

    def likelihoods(self, name: str) -> Tables:
        """Score the candidates of a set by the policy, and measure SEAM's column by each weight, for the first family."""
        stored = _rows(self._base(name, SETS[name](self.source, self.sizes)))
        stored = _rows(self._rewarded(name, POLICYS, stored, likelihoods=True))
        return {"rows": len(stored)} | self._measured(name, POLICYS, stored, WEIGHTS, ("seam_contrast",))

    def answered(self, name: str) -> Tables:
        """Let the policy answer the first prompts of a set; measure SEAM over its answers, and rewards on them and on golden ones."""
        stored = query(self._answers(name), "SELECT * FROM rows ORDER BY row_id").to_pylist()
        tables: Tables = {"rows": len(stored), "validity": {}}
        for reward in self._names(POLICYS):
            judged = self._judged_file(name, reward)
            column = reward.replace("-", "_")
            rewarded = [
                {key: row[key] for key in ("prompt", "response", "source", "worse_policy")}
                | {"reward": row[f"reward_{column}"], "rewards_policy": row[f"rewards_{column}_policy"]}
                for row in stored
            ]
            recipe = {
                "rows": _source(data.write(rewarded, self.out / f"{name}/answers/{reward}.parquet")),
                "steps": [{"seam_score": {"variant": "policy", "k": self.sizes.samples}}],
            }
            store = _run(recipe, self.out / f"{name}/answers/{reward}")
            by = None if "score" in pq.read_schema(judged).names else "source"
            measured = study.validity(store, judged, by=by, columns=("seam_policy", "misjudged_policy", "reward"))
            tables["validity"][reward] = _result(measured)
        tables["preferred"] = self._preferred(replies.answered(stored), POLICYS)
        return tables

    def preferred(self, name: str) -> Tables:
        """Measure how often reward models of the other families prefer golden responses to the policy's own answers."""
        rows = replies.answered(query(self._answers(name), "SELECT * FROM rows ORDER BY row_id").to_pylist())
        families = ["words", "minilm", *(f"lora-{pairs}" for pairs in self.sizes.lora)]
        families += ["gemma"] if (self.out / "gemma.gguf").is_file() else []
        return {"rows": len(rows), "preferred": [line for family in families for line in self._preferred(rows, family)]}

    def _preferred(self, rows: Sequence[replies.Answered], family: str) -> Rows:
        """Return how often each reward model of a family prefers golden responses, whole and as long as the sample."""
        prompts = [row.prompt for row in rows]
        golden = self._rewards_of(prompts, [[row.golden, *replies.shortened(row)] for row in rows], family)
        drawn = self._rewards_of(prompts, [row.samples for row in rows], family)
        lines: Rows = []
        for reward, samples in drawn.items():
            whole = [values[:1] * len(row.samples) for values, row in zip(golden[reward], rows, strict=True)]
            cut = [values[1:] for values in golden[reward]]
            for length, values in (("whole", whole), ("as long as the sample", cut)):
                lines.append({"reward": reward, "golden": length} | replies.preferred(values, samples))
        return lines

    def proxies(self, name: str) -> Tables:
        """Choose among the policy's answers by RER and its parts, and measure what that adds to two golds, a reward model each."""
        stored = query(self._answers(name), "SELECT * FROM rows ORDER BY row_id").to_pylist()
        rows = replies.answered(stored)
        texts = [row.prompt for row in rows], [row.samples for row in rows]
        golds = {(gold := self._names(family)[-1]): self._rewards_of(*texts, family)[gold] for family in GOLDS}
        encoder = SentenceEncoder(path=str(encoder_folder()), dtype="float32")
        rewards = replies.proxy_rewards(rows, encoder)
        open_ended = sum(row.query_type == "open" for row in rows)
        return {
            "rows": len(rows),
            "open_ended": open_ended,
            "agreement": replies.agreement(golds),
            "gains": replies.gains(rewards, golds, range(2, self.sizes.samples + 1)),
        }

    def written(self, name: str, amount: str = "") -> Tables:
        """Let the policy write worse answers behind a llama.cpp server, and measure SEAM_GPT beside SEAM_Contrast on the same rows."""
        rows = self.sizes.written_more if amount else self.sizes.written
        folder = self.out / name / "-".join(filter(None, ("written", amount)))
        first_rows = SETS[name](self.source, self.sizes).rows[:rows]
        recipe: dict[str, Any] = {
            "rows": _source(data.write(first_rows, folder.with_suffix(".parquet"))),
            "models": {"reward": self._classifier(POLICYS)},
            "steps": [
                {"generate": {"k": self.sizes.worse, "calls": "each"}},
                {"reward": {}},
                {"rewards": {"variant": "gpt"}},
            ],
        }
        with replies.served(self._gguf) as address:
            recipe["models"]["generator"] = {
                "openai_server": "policy",
                "base_url": address,
                "temperature": 1.0,
                "max_tokens": self.sizes.worse_tokens,
                "seed": data.SEED,
            }
            store = _run(recipe, folder)
        return self._beside_contrast(name, "gpt", store, self._names(POLICYS), self.sizes.worse)

    def attacked(self, name: str) -> Tables:
        """Attack the golden responses of the first rows against the last reward model, and measure SEAM_Adv beside SEAM_Contrast."""
        first_rows = SETS[name](self.source, self.sizes).rows[: self.sizes.attacked]
        lexicon = (self.source / "lexicons/wordnet30_synonyms.parquet").resolve()
        attack = {
            "method": "pwws",
            "k": self.sizes.candidates,
            "query_budget": self.sizes.queries,
            "wordnet": str(lexicon),
        }
        recipe: dict[str, Any] = {
            "rows": _source(data.write(first_rows, self.out / f"{name}/attacked.parquet")),
            "models": {
                "reward": self._classifier(POLICYS),
                "encoder": {"sentence_encoder": str(encoder_folder()), "dtype": "float32"},
            },
            "steps": [{"attack": attack}, {"reward": {}}, {"rewards": {"variant": "adv"}}],
        }
        store = _run(recipe, self.out / name / "attacked")
        # The attack was made against the last reward model alone.
        return self._beside_contrast(name, "adv", store, self._names(POLICYS)[-1:], self.sizes.candidates)

    def _beside_contrast(self, name: str, variant: str, store: Path, rewards: Sequence[str], k: int) -> Tables:
        """Measure SEAM over one sample set beside SEAM_Contrast, on the rows that have both."""
        contrast = {row["prompt"]: row for row in _rows(self.out / name / f"store-{POLICYS}")}
        stored = query(store, "SELECT * FROM rows ORDER BY row_id").to_pylist()
        stored = [row for row in stored if row[f"worse_{variant}"] and contrast[row["prompt"]]["worse_contrast"]]
        tables: Tables = {
            "rows": len(stored),
            "candidates": sum(len(row[f"worse_{variant}"]) for row in stored) / max(1, len(stored)),
            "validity": {},
        }
        for reward in rewards:
            column = reward.replace("-", "_")
            rows = []
            for row in stored:
                entry = {key: row[key] for key in ("prompt", "response", "source")}
                entry["reward"] = row[f"reward_{column}"]
                for own, scored_row in ((variant, row), ("contrast", contrast[row["prompt"]])):
                    texts = [{"response": candidate["response"]} for candidate in scored_row[f"worse_{own}"]]
                    entry |= {
                        f"worse_{own}": texts,
                        f"rewards_{own}": scored_row[f"rewards_{column}_{own}"],
                        f"logprobs_{own}": [None] * len(texts),
                        f"tokens_{own}": [None] * len(texts),
                    }
                rows.append(entry)
            folder = store.with_name(f"{store.name}-{reward}")
            scored = {
                "rows": _source(data.write(rows, folder.with_suffix(".parquet"))),
                "steps": [
                    {"seam_score": {"variant": variant, "likelihood": "uniform", "k": k}},
                    {"seam_score": {"variant": "contrast", "likelihood": "uniform", "k": self.sizes.candidates}},
                ],
            }
            measured = study.validity(
                _run(scored, folder),
                self._judged_file(name, reward),
                by=None if name == "stackexchange" else "source",
                columns=(f"seam_{variant}", f"misjudged_{variant}", "seam_contrast"),
            )
            tables["validity"][f"{reward} {variant}"] = _result(measured)
        return tables

    def optimised(self, name: str, duration: str = "") -> Tables:
        """Train the policy by PPO on each of RER's proxies, or for longer on RER, from several seeds; correlate each with two golds."""
        sizes, proxies, folder = self.sizes, training.PROXIES, "ppo"
        if duration:
            sizes = sizes._replace(ppo_updates=sizes.longer_updates, ppo_tokens=sizes.longer_tokens)
            proxies, folder = ("rer",), f"ppo-{duration}"
        stored = query(self._answers(name), "SELECT prompt, response, query_type FROM rows ORDER BY row_id").to_pylist()
        rows = [
            {"prompt": row["prompt"], "reference": row["response"], "query_type": row["query_type"]} for row in stored
        ]
        encoder = SentenceEncoder(path=str(encoder_folder()), dtype="float32")

        def last(family: str) -> training.Gold:
            reward = self._names(family)[-1]

            def gold(prompts: list[str], answers: list[list[str]]) -> list[list[float]]:
                pairs = [
                    {"prompt": prompt, "response": answer}
                    for prompt, own in zip(prompts, answers, strict=True)
                    for answer in own
                ]
                rewards = self._rewards(family, pairs, ("response",), *([reward] if family == "words" else []))
                return [[values[-1]] for (values,) in rewards]

            return gold

        golds = {self._names(family)[-1]: last(family) for family in GOLDS}
        measured: Rows = []
        for seed in self.sizes.ppo_seeds:
            for proxy in proxies:
                out = self.out / name / folder
                measured += training.optimised(self.policy, rows, proxy, seed, golds, encoder, out, sizes)
                print(f"{folder}: {proxy}, seed {seed}", flush=True)
        correlations = {}
        for gold in golds:
            table = [{name: row[name] for name in row if name != "gold"} for row in measured if row["gold"] == gold]
            correlations[gold] = _result(
                study.monotonicity(data.write(table, self.out / f"tables/{folder}-{gold}.parquet"))
            )
        return {"monotonicity": correlations, "moved": training.moved(measured)}

    @property
    def _gguf(self) -> Path:
        """The policy as its package brings it."""
        file = demo_policy.installed_file()
        if file is None:
            raise SystemExit("the policy's package is not installed; see models.py")
        return file

    def _rewards_of(self, prompts: list[str], answers: list[list[str]], family: str) -> dict[str, list[list[float]]]:
        """Return the rewards of each prompt's answers by every reward model of a family."""
        names = self._names(family)
        if family == "words":
            return {name: words.rewards(self._folder(name), prompts, answers) for name in names}
        if family.startswith("lora-"):
            return {family: models.single_rewards(self._folder(family), prompts, answers)}
        values = models.rewards(self._heads(family), names[-1], prompts, answers)
        return {name: [[value[i] for value in own] for own in values] for i, name in enumerate(names)}

    def _answers(self, name: str) -> Path:
        """Return the store of a set's first prompts with the policy's answers, rewarded by the heads of its family."""
        rows = data.write(
            SETS[name](self.source, self.sizes).rows[: self.sizes.sampled], self.out / name / "asked.parquet"
        )
        recipe: dict[str, Any] = {
            "rows": _source(rows),
            "models": {
                "policy": {"causal_lm": str(self.policy.resolve()), "dtype": "bfloat16"},
                "reward": self._classifier(POLICYS),
                "encoder": {"sentence_encoder": str(encoder_folder()), "dtype": "float32"},
            },
            "steps": [
                {"rollouts": {"n": self.sizes.samples, "max_tokens": self.sizes.sample_tokens}},
                {"query_type": {}},
                {"reward": {}},
                {"rewards": {"variant": "policy"}},
            ],
        }
        return _run(recipe, self.out / name / "answers/store")

    def _measured(self, name: str, family: str, stored: Rows, weights: Sequence[str], columns: Sequence[str]) -> Tables:
        """Measure columns against people's verdicts, for each reward model of a family and each weight."""
        tables: Tables = {"validity": {}, "best_of_n": {}}
        for reward in self._names(family):
            judged = self._judged_file(name, reward)
            votes = "score" in pq.read_schema(judged).names
            for weight in weights:
                kind = "likelihoods" if columns != _MEASURED else "rewards"
                store = self._store(f"{name}/{kind}/{reward}-{weight}", self._single(stored, reward), weight, reward)
                measured = study.validity(store, judged, by=None if votes else "source", columns=columns)
                tables["validity"][f"{reward} {weight}"] = _result(measured)
                if votes and weight == weights[0]:
                    gained = study.best_of_n(store, judged, columns=columns)
                    tables["best_of_n"][f"{reward} {weight}"] = _result(gained)
        return tables

    def _base(self, name: str, measured: Judged) -> Path:
        """Retrieve the candidates of a set, once for all reward models."""
        folder = self.out / name
        rows = data.write(measured.rows, folder / "rows.parquet")
        corpus = data.write(measured.corpus, folder / "corpus.parquet")
        recipe = {
            "rows": _source(rows),
            "corpus": {"parquet": str(corpus.resolve()), "prompt": "prompt", "response": "response"},
            "models": {"encoder": {"sentence_encoder": str(encoder_folder()), "dtype": "float32"}},
            "steps": [{"retrieve": {"k": self.sizes.candidates, "band": BAND}}],
        }
        return _run(recipe, folder / "candidates")

    def _rewarded(self, name: str, family: str, stored: Rows, likelihoods: bool = False) -> Path:
        """Score rows that bring their candidates by all heads of a family, in one pass; and by the policy, if asked."""
        rows = data.write(
            [{key: row[key] for key in _TEXTS} for row in stored], self.out / name / f"rows-{family}.parquet"
        )
        recipe: dict[str, Any] = {"rows": _source(rows), "models": {"reward": self._classifier(family)}}
        recipe["steps"] = [{"reward": {}}, {"rewards": {"variant": "contrast"}}]
        if likelihoods:
            recipe["models"]["policy"] = {
                "causal_lm": str(self.policy.resolve()),
                "dtype": "bfloat16",
                "max_response_tokens": 128,
            }
            recipe["steps"].append({"policy_logprobs": {"variant": "contrast", "likelihoods": "all"}})
        return _run(recipe, self.out / name / f"store-{family}")

    def _classifier(self, family: str) -> dict[str, Any]:
        """Return a family's heads as a recipe names them."""
        return {
            "sequence_classifier": str(self._heads(family).resolve()),
            "dtype": "float32",
            "max_tokens": models.MAX_TOKENS,
            "output": self._names(family)[-1],
            "outputs": self._names(family),
        }

    def _single(self, stored: Rows, reward: str) -> Rows:
        """Return the rows with one reward model's rewards as the reward."""
        column = reward.replace("-", "_")
        rows = []
        for row in stored:
            # A uniform weight needs no likelihood: it is unknown where the policy was not asked.
            unknown = [None] * len(row["worse_contrast"])
            own = {key: row[key] for key in _TEXTS} | {key: row.get(key, unknown) for key in _LIKELIHOODS}
            if f"reward_{column}" in row:
                own |= {"reward": row[f"reward_{column}"], "rewards_contrast": row[f"rewards_{column}_contrast"]}
            rows.append(own)
        return rows

    def _store(self, name: str, rows: Rows, weight: str, reward: str) -> Path:
        """Score rows by SEAM with one weight: of rows that bring their rewards no model is asked."""
        recipe: dict[str, Any] = {
            "rows": _source(data.write(rows, self.out / f"{name}.parquet")),
            "steps": [
                {"seam_score": {"variant": "contrast", "likelihood": weight, "k": self.sizes.candidates}},
                {"rip": {"variant": "contrast"}},
                {"reward_spread": {"variant": "contrast"}},
            ],
        }
        if "reward" not in rows[0]:
            folder = self._folder(reward).resolve()
            if reward.startswith("lora-"):
                model = {"sequence_classifier": str(folder), "dtype": "float32", "max_tokens": models.MAX_TOKENS}
            else:
                model = {"function": f"{folder / 'reward.py'}:score"}
            recipe["models"] = {"reward": model}
            recipe["steps"][:0] = [{"reward": {}}, {"rewards": {"variant": "contrast"}}]
        return _run(recipe, self.out / name)

    def _judge(self, name: str, family: str, judged: Rows) -> int:
        """Write the judged answers with each reward model's rewards, a file each; return how many have no reward, and are left out."""
        sides = [side for side in ("response", "response_a", "response_b") if side in judged[0]]
        rewards = self._rewards(family, judged, sides)
        columns = [side.replace("response", "reward") for side in sides]
        # A prompt that fills the window leaves its answers without a reward, by all heads alike.
        read = [own for own in zip(judged, rewards, strict=True) if not any(math.isnan(side[0]) for side in own[1])]
        for i, reward in enumerate(self._names(family)):
            entries = [
                row | {column: values[i] for column, values in zip(columns, own, strict=True)} for row, own in read
            ]
            data.write(entries, self._judged_file(name, reward))
        return len(judged) - len(read)

    def _judged_file(self, name: str, reward: str) -> Path:
        return self.out / name / f"judged-{reward}.parquet"

    def _rewards(self, family: str, rows: Rows, sides: Sequence[str], *names: str) -> list[list[tuple[float, ...]]]:
        """Return the rewards of each row's answers by the reward models of a family, or those named."""
        answers = [[row[side] for side in sides] for row in rows]
        if family == "words":
            prompts = [row["prompt"] for row in rows]
            rewards = [words.rewards(self._folder(name), prompts, answers) for name in names or self._names(family)]
            return [[tuple(values) for values in zip(*own, strict=True)] for own in zip(*rewards, strict=True)]
        if family.startswith("lora-"):
            single = models.single_rewards(self._folder(family), [row["prompt"] for row in rows], answers)
            return [[(value,) for value in row] for row in single]
        heads = self._heads(family)
        return models.rewards(heads, self._names(family)[-1], [row["prompt"] for row in rows], answers)

    # ── how often a reward model is wrong ───────────────────────────────────────────────────────────────

    def mismatch(self, family: str) -> Tables:
        """Compare a family's reward models with people on the judged pairs of every set, and on a sample of other sources."""
        pairs = data.other_pairs(self.source, self.sizes)
        rewards = self._rewards(family, pairs, ("response_a", "response_b"))
        # A prompt that fills the window leaves its answers without a reward, by all heads alike.
        read = [own for own in zip(pairs, rewards, strict=True) if not any(math.isnan(side[0]) for side in own[1])]
        verdicts = []
        for i, reward in enumerate(self._names(family)):
            for n, (pair, (a, b)) in enumerate(read):
                verdicts.append(_verdict(reward, f"{pair['source']} {n}", pair, a[i] - b[i]))
            for row in pq.read_table(self._judged_file("human", reward)).to_pylist():
                verdicts.append(_verdict(reward, row["prompt"], row, row["reward_a"] - row["reward_b"]))
            answers: dict[str, Rows] = {}
            voted = self._judged_file("stackexchange", reward)
            for row in pq.read_table(voted).to_pylist() if family in FAMILIES else ():
                answers.setdefault(row["prompt"], []).append(row)
            for prompt, own in answers.items():
                for first, second in combinations(own, 2):
                    if first["score"] != second["score"]:
                        pair = {
                            "response_a": first["response"],
                            "response_b": second["response"],
                            "source": "stackexchange",
                        }
                        pair["label"] = "a" if first["score"] > second["score"] else "b"
                        verdicts.append(_verdict(reward, prompt, pair, first["reward"] - second["reward"]))
        file = data.write(verdicts, self.out / f"tables/verdicts-{family}.parquet")
        return {"mismatch": _result(study.mismatch(file, by="source"))}


def _source(file: Path) -> dict[str, Any]:
    return {"parquet": str(file.resolve()), "prompt": "prompt", "response": "response", "shard_rows": 50}


def _run(recipe: dict[str, Any], store: Path) -> Path:
    """Write a recipe beside its store, and run it: what is there is not computed again."""
    store.parent.mkdir(parents=True, exist_ok=True)
    file = store.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    run_local(Recipe.load(file), store)
    return store


def _rows(store: Path) -> Rows:
    """Return a store's rows with the texts of their candidates, as a source may bring them."""
    texts = "SELECT row_id, list({'response': response} ORDER BY rank) AS answers FROM candidates GROUP BY row_id"
    rows = query(
        store, f"SELECT rows.*, answers FROM rows LEFT JOIN ({texts}) USING (row_id) ORDER BY row_id"
    ).to_pylist()
    return [row | {"worse_contrast": row["answers"] or []} for row in rows]


def _verdict(reward: str, prompt: str, pair: dict[str, Any], gap: float) -> dict[str, Any]:
    """Return people's and a reward model's verdict on one pair, as the study reads it."""
    model = "tie" if gap == 0 else "a" if gap > 0 else "b"
    texts = {name: pair[name] for name in ("source", "response_a", "response_b")}
    return {"reward": reward, "prompt_id": prompt, "human": pair["label"], "model": model, **texts}


def _result(result: study.StudyResult) -> Tables:
    rows = [
        {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        for row in result.table.to_pylist()
    ]
    return {"finding": result.line, "table": rows}


if __name__ == "__main__":
    Work(Path(sys.argv[1]), Path(sys.argv[2])).run(sys.argv[3:])
