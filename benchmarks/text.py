"""The LI and RP columns: seamcurate against the authors' formulas as a loop over NLTK's tokenizer."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pyarrow as pa

from benchmarks import inputs
from benchmarks.race import race
from seamcurate import LengthIncentive, RepetitionPenalty
from seamcurate.words import split


def main(scale: float) -> None:
    from nltk import ngrams
    from nltk.tokenize import wordpunct_tokenize

    texts = [response for _, response in inputs.pairs()][: max(1000, round(60_000 * scale))]
    rows = pa.table({"response": texts})
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

    # NLTK from 3.10 on matches with the module `regex`, to which "²" is no word character; the authors' did with `re`.
    alike = [wordpunct_tokenize(text) == split(text) for text in texts]

    def same(a: list[list[float]], b: list[list[float]]) -> bool:
        return all(
            np.array_equal(np.array(one)[alike], np.array(other)[alike]) for one, other in zip(a, b, strict=True)
        )

    mine()
    setting = (
        f"LI and RP of {len(texts):,} responses, {inputs.source()}; NLTK cuts {alike.count(False)} of them otherwise"
    )
    race("text", f"nltk {version('nltk')} loop", mine, theirs, same, setting)
