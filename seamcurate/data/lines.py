"""Text files as lines of UTF-8: packed by any common program, in any common encoding, one value a line or one JSON array.

One rule: what a file is, its bytes say, not its name. What is found is told, and the source's options overrule it.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from seamcurate.errors import SourceError

# A small packed file can unpack to a line that fills the memory.
LONGEST_LINE = 1 << 26
_BLOCK = 1 << 20
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
_ZSTD = (b"\x28\xb5\x2f\xfd", *(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60)))
"""The first bytes of a frame of Zstandard, and of those that readers skip, which pzstd writes first."""
_NOT_TEXT = {
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a Parquet file; name it by `parquet`",
    b"ARROW1": "is an Arrow file; name it by `arrow`",
    b"SQLite": "is an SQLite database; write the rows as JSON lines",
    b"\x89PNG": "is a picture",
    b"\x04\x22\x4d\x18": "is packed by lz4; unpack it",
    b"\x80\x04": "is a pickle, which could run code; write the rows as JSON lines",
}
"""The first bytes of files that are no text, and what to do with them."""
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"} | {
    codecs.BOM_UTF16_BE: "utf-16"
}
_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR = re.compile(rb"sep=(.)\s*")
"""The first line that spreadsheets write to tell the delimiter."""


class Dialect(NamedTuple):
    """How a text file is read."""

    encoding: str = "utf-8"
    delimiter: str = ","


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file's bytes, unpacked: gzip, bzip2, xz and Zstandard are known by their first bytes.

    Raises:
        SourceError: It is a file of another kind.
    """
    with path.open("rb") as file:
        start = file.read(6)
        for mark, advice in _NOT_TEXT.items():
            if start.startswith(mark):
                raise SourceError(f"{path} {advice}")
        file.seek(0)
        if start.startswith(_GZIP) or path.suffix.lower() == ".gz":
            with gzip.open(file) as unpacked:
                yield cast(BinaryIO, unpacked)
        elif start.startswith(_BZIP2):
            with bz2.open(file) as unpacked:
                yield cast(BinaryIO, unpacked)
        elif start.startswith(_XZ):
            with lzma.open(file) as unpacked:
                yield cast(BinaryIO, unpacked)
        elif start.startswith(_ZSTD):
            with pa.CompressedInputStream(pa.PythonFile(file), "zstd") as stream, io.BufferedReader(stream) as unpacked:
                yield unpacked
        else:
            yield file


def dialect(path: Path, encoding: str | None, delimiter: str | None, is_csv: bool) -> Dialect:
    """Find how a text file is read, where the source does not say.

    Args:
        path: The file.
        encoding: Its encoding, if the source names one.
        delimiter: The delimiter of its fields, if the source names one.
        is_csv: Whether it is a CSV file. Only there Windows' encoding is guessed: JSON is UTF-8 by its standard.
    """
    state = path.stat()
    return _dialect(path, encoding, delimiter, is_csv, state.st_size, state.st_mtime_ns)


@cache
def _dialect(path: Path, encoding: str | None, delimiter: str | None, is_csv: bool, *_state: int) -> Dialect:
    if encoding is None:
        encoding = _encoding(path, is_csv)
    if not is_csv or delimiter is not None:
        return Dialect(encoding, delimiter or ",")
    for line in _decoded_lines(path, encoding):
        if line.strip():
            if told := _SEPARATOR.fullmatch(line.strip()):
                return Dialect(encoding, told[1].decode("utf-8", "replace"))
            return Dialect(encoding, _delimiter(line.decode("utf-8", "replace")))
    return Dialect(encoding)


def _encoding(path: Path, guess: bool) -> str:
    with opened(path) as file:
        start = file.read(4)
        for mark, name in _MARKS.items():
            if start.startswith(mark):
                return name
    return "cp1252" if guess and _is_windows(path) else "utf-8"


def _is_windows(path: Path) -> bool:
    """Tell whether a file has bytes beyond ASCII, of which none are UTF-8: so write spreadsheets of Windows."""
    found = False
    with opened(path) as file:
        while line := file.readline(LONGEST_LINE):
            if line.isascii():
                continue
            try:
                line.decode()
                return False
            except UnicodeDecodeError:
                found = True
            try:
                line.decode("cp1252")
            except UnicodeDecodeError:
                return False
    return found


def _delimiter(header: str) -> str:
    def fields(delimiter: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=delimiter)))
        except (csv.Error, StopIteration):
            return 1

    if fields(",") > 1:
        return ","
    best = max(_DELIMITERS, key=fields)
    return best if fields(best) > 1 else ","


def byte_lines(path: Path, encoding: str) -> Iterator[bytes]:
    """Iterate over a file's lines as UTF-8; a line that is too long comes out cut, longer than LONGEST_LINE."""
    at_start = True
    for line in _decoded_lines(path, encoding):
        yield line.removeprefix(codecs.BOM_UTF8) if at_start else line
        at_start = False


def records(path: Path, found: Dialect) -> Iterator[bytes]:
    """Iterate over the lines of a CSV file, without the one that tells the delimiter."""
    remaining = byte_lines(path, found.encoding)
    first = next(remaining, b"")
    if _SEPARATOR.fullmatch(first.strip()) is None:
        yield first
    yield from remaining


def _decoded_lines(path: Path, encoding: str) -> Iterator[bytes]:
    with opened(path) as file:
        if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii"):
            while line := file.readline(LONGEST_LINE + 1):
                yield line
                while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE + 1) or b"\n"
            return
        text = io.TextIOWrapper(file, encoding=encoding, newline="\n", errors="surrogateescape")
        try:
            while written := text.readline(LONGEST_LINE + 1):
                yield written.encode("utf-8", "surrogateescape")
                while len(written) > LONGEST_LINE and not written.endswith("\n"):
                    written = text.readline(LONGEST_LINE + 1) or "\n"
        except UnicodeDecodeError as error:
            raise SourceError(f"{path} is not {encoding}: {error.reason}; name its `encoding`") from error
        finally:
            # Whoever opened the file closes it.
            text.detach()


def json_values(path: Path, encoding: str) -> Iterator[bytes]:
    """Iterate over a file's JSON values: its lines that are not blank, or the items of the one array that it is.

    Raises:
        SourceError: The array is broken: nothing after that place can be told apart.
    """
    remaining = filter(None, map(bytes.strip, byte_lines(path, encoding)))
    first = next(remaining, b"")
    if re.match(rb"\[\s*(?:\{|\]|$)", first) is None:
        yield from [first] if first else []
        yield from remaining
        return
    yield from _items(path, encoding)


def _items(path: Path, encoding: str) -> Iterator[bytes]:
    """Iterate over the items of a JSON array, a block of the file at a time."""
    decoder, blanks = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")
    with opened(path) as file:
        codec = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)("surrogateescape")
        text, place, ended, count, awaited = "", 0, False, 0, "["

        def more() -> None:
            nonlocal text, place, ended
            # As much again as is held: an item that spans many blocks is not parsed once for each of them.
            block = file.read(max(_BLOCK, len(text) - place))
            ended = not block
            text, place = text[place:] + codec.decode(block, final=ended), 0

        def fail(reason: str) -> SourceError:
            return SourceError(f"{path} is one JSON array, broken after {count:,} items: {reason}; repair it")

        while True:
            blank = blanks.match(text, place)
            place = blank.end() if blank is not None else place
            if place == len(text):
                if ended and awaited:
                    raise fail("it has no end")
                if ended:
                    return
                more()
                continue
            if not awaited:
                raise fail("there is text after its end")
            character = text[place]
            if awaited == "[":
                place, awaited = place + 1, "item or ]"
                continue
            if character == "]" and awaited != "item":
                place, awaited = place + 1, ""
                continue
            if awaited == ", or ]":
                if character != ",":
                    raise fail(f"there is {character!r} where a comma should be")
                place, awaited = place + 1, "item"
                continue
            try:
                _, end = decoder.raw_decode(text, place)
            except (json.JSONDecodeError, RecursionError) as error:
                if ended or isinstance(error, RecursionError):
                    raise fail(getattr(error, "msg", "nested too deeply")) from error
                end = len(text)
            # An item at the end of what was read may go on in the next block.
            if end == len(text) and not ended:
                if len(text) - place > LONGEST_LINE:
                    raise fail(f"an item is longer than {LONGEST_LINE >> 20} MB, or it is no JSON")
                more()
                continue
            yield text[place:end].encode("utf-8", "surrogateescape")
            place, count, awaited = end, count + 1, ", or ]"
