"""Small lexicons for the attacks' tests, and what a masked model is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUPS = [
    "sort order arrange",
    "list array sequence",
    "queue line row",
    "fast quick rapid",
    "merge join unite",
    "cache store keep",
]
ANTONYMS = [("fast", "slow"), ("merge", "split")]


def wordnet_table(folder: Path) -> Path:
    """Write synonyms as Parquet, an antonym among them by mistake."""
    rows = [
        {"word": word, "pos": "v" if i in (0, 4) else "n", "synonym": other}
        for i, group in enumerate(GROUPS)
        for word in group.split()
        for other in [*group.split(), *(["slow"] if word == "fast" else [])]
        if other != word
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "synonyms.parquet")
    pairs = [{"word": a, "other": b, "relation": "antonym"} for a, b in ANTONYMS]
    pq.write_table(pa.Table.from_pylist(pairs), folder / "antonyms.parquet")
    return folder / "synonyms.parquet"


def wordnet_files(folder: Path) -> Path:
    """Write a WordNet of three synsets in its own format: quick/fast, its antonym slow, and the verb sort."""
    head = "  1 This is no real WordNet.\n"
    lines = {
        "adj": [
            "{0:08d} 00 a 02 fast 0 quick(a) 0 001 ! {1:08d} a 0101 | quick",
            "{1:08d} 00 a 01 slow 0 000 | not fast",
        ],
        "verb": ["{0:08d} 00 v 03 sort 0 order 0 put_in_order 0 000 01 + 08 00 | arrange"],
        "noun": ["{0:08d} 00 n 01 list 0 000 | a row of things"],
        "adv": ["{0:08d} 00 r 01 quickly 0 000 | with speed"],
    }
    folder.mkdir()
    for pos, synsets in lines.items():
        places = [0] * 2
        for _ in range(2):
            text, starts = head, []
            for line in synsets:
                starts.append(len(text))
                text += line.format(*places) + "\n"
            places = [*starts, 0]
        (folder / f"data.{pos}").write_text(text)
        index = head
        for start, line in zip(starts, synsets, strict=True):
            parts = line.split()
            words = [parts[4 + 2 * i].split("(")[0] for i in range(int(parts[3], 16))]
            index += "".join(f"{word} {pos[0]} 1 0 1 0 {start:08d}\n" for word in words)
        (folder / f"index.{pos}").write_text(index)
    (folder / "verb.exc").write_text("sorted sort\n")
    return folder


def vectors(folder: Path) -> Path:
    """Write word vectors in which the words of a group are near each other."""
    draw = np.random.default_rng(0)
    lines = []
    for group in GROUPS:
        centre = draw.normal(size=16)
        lines += [
            f"{word} " + " ".join(f"{x:.5f}" for x in centre + 0.15 * draw.normal(size=16)) for word in group.split()
        ]
    (folder / "vectors.txt").write_text(f"{len(lines)} 16\n" + "\n".join(lines))
    return folder / "vectors.txt"
