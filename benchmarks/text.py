"""The LI and RP columns: seamcurate against a loop over NLTK's tokenizer, as the authors have it, `datasets` and Polars."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import inputs
from benchmarks.race import Peer, race
from seamcurate import LengthIncentive, RepetitionPenalty
from seamcurate.words import split

WORDS = re.compile(r"\w+|[^\w\s]+")


def main(scale: float) -> None:
    import polars
    from datasets import Dataset, disable_progress_bars
    from nltk import ngrams
    from nltk.tokenize import wordpunct_tokenize

    texts = [response for _, response in inputs.pairs()][: max(1000, round(60_000 * scale))]
    disable_progress_bars()
    rows = pa.table({"response": texts})
    data: Any = Dataset.from_dict({"response": texts})
    steps = [step.load(None) for step in (LengthIncentive(), RepetitionPenalty())]  # type: ignore[arg-type]

    def mine() -> list[list[float]]:
        return [step(rows).column(0).to_pylist() for step in steps]

    def theirs() -> list[list[float]]:
        lengths, repetitions = [], []
        for text in texts:
            lengths.append(len(wordpunct_tokenize(text)) / 100)
        for text in texts:
            trigrams = list(ngrams(wordpunct_tokenize(text), 3))
            repetitions.append(len(set(trigrams)) / len(trigrams) if trigrams else 1.0)
        return [lengths, repetitions]

    def by_map() -> list[list[float]]:
        def scored(batch: dict[str, list[str]]) -> dict[str, list[float]]:
            words = [WORDS.findall(text) for text in batch["response"]]
            trigrams = [list(zip(some, some[1:], some[2:], strict=False)) for some in words]
            return {
                "length": [len(some) / 100 for some in words],
                "repetition": [len(set(some)) / len(some) if some else 1.0 for some in trigrams],
            }

        made = data.map(scored, batched=True, load_from_cache_file=False, remove_columns=["response"])
        return [list(made["length"]), list(made["repetition"])]

    def by_polars() -> list[list[float]]:
        words = polars.col("response").str.extract_all(WORDS.pattern)
        shifted = [polars.element().shift(-i) for i in range(3)]
        trigrams = words.list.eval(polars.concat_str(shifted, separator="\0")).list.drop_nulls()
        frame = polars.DataFrame({"response": texts}).select(
            (words.list.len() / 100).alias("length"),
            (trigrams.list.n_unique() / trigrams.list.len()).fill_nan(1.0).alias("repetition"),
        )
        return [frame["length"].to_list(), frame["repetition"].to_list()]

    # NLTK from 3.10 on matches with the module `regex`, to which "²" is no word character; the authors' did with `re`, and
    # Polars matches by Rust's. Texts that a side cuts otherwise are not compared with it.
    by_rust = polars.DataFrame({"t": texts})["t"].str.extract_all(WORDS.pattern).to_list()
    cuts = {
        f"nltk {version('nltk')} loop": [wordpunct_tokenize(text) for text in texts],
        "datasets map with re, in batches": [WORDS.findall(text) for text in texts],
        "Polars": by_rust,
    }
    own = [split(text) for text in texts]
    alike = {name: np.array([a == b for a, b in zip(own, cut, strict=True)]) for name, cut in cuts.items()}

    mine()
    setting = f"LI and RP of {len(texts):,} responses, {inputs.source()}"
    for name, run in zip(cuts, (theirs, by_map, by_polars), strict=True):
        kept = alike[name]

        def same(a: list[list[float]], b: list[list[float]], kept: Any = kept) -> bool:
            return all(
                np.allclose(np.array(one)[kept], np.array(other)[kept], rtol=1e-6)
                for one, other in zip(a, b, strict=True)
            )

        cut = f"{setting}; {int((~kept).sum())} are cut into other words"
        race("text", cut, mine, {name: Peer(run)}, same)
