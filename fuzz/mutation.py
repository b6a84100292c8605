"""Random changes of known inputs, for where atheris is not installed: without knowledge of which code they reach."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_TOKENS = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"'",
        b",",
        b":",
        b"\n",
        b"\r\n",
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"-0",
        b"1e999",
    ),
    *(
        b"NaN",
        b"null",
        b"(",
        b")",
        b";",
        b"--",
        b"/*",
        b"SELECT ",
        b" FROM rows",
        b"WITH x AS (",
        b"<think>",
        b"</think>",
        b"```json\n",
    ),
    *(b"\\u0000", b"\\ud800", b"prompt", b"response", b"9" * 30, b"(" * 60, b"[" * 200),
]


def mutations(seeds: Sequence[bytes], seed: int = 0) -> Iterator[bytes]:
    """Yield changed seeds without end; the same seed gives the same ones."""
    draw = random.Random(seed)
    while True:
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.choice((1, 1, 2, 4, 8))):
            at = draw.randrange(len(data) + 1)
            match draw.randrange(5):
                case 0 if data:
                    data[at % len(data)] = draw.randrange(256)
                case 1:
                    data[at:at] = draw.choice(_TOKENS)
                case 2:
                    del data[at : at + draw.choice((1, 2, 8, 64))]
                case 3:
                    other = draw.choice(seeds)
                    start = draw.randrange(len(other) + 1)
                    data[at:at] = other[start : start + draw.choice((4, 16, 64))]
                case _:
                    data[at:at] = data[at : at + draw.choice((4, 16, 64))]
        yield bytes(data[:4096])
