"""A world of instructions whose every answer has a true quality, computed exactly: it stands in for people.

One rule: nothing here knows of a model. Tasks, wordings, errors and preferences follow from a seed alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

NUMBERS = [str(n) for n in range(20)]
KINDS = {
    "numbers": NUMBERS[1:10],
    "animals": ["cat", "dog", "cow", "hen", "fox", "owl", "pig", "bee"],
    "colours": ["red", "blue", "green", "pink", "grey", "brown", "black", "white"],
    "fruits": ["apple", "plum", "pear", "fig", "lemon", "peach", "melon", "cherry"],
}
BEFORE = ["", "", "please", "hello ,", "one more :", "for my class ,"]
AFTER = ["", "", "thank you", "that is all", "take your time"]
"""Words that change nothing about the task; none is common enough to stand for it."""


class Record(TypedDict):
    """An instruction, its golden response, and what its quality is computed from."""

    prompt: str
    response: str
    family: str
    query_type: str
    """`open` where many answers are right, else `closed`."""
    wanted: str
    """Closed: the golden words. Open: every word that counts."""
    count: int
    """How many words are asked for."""


class Preference(TypedDict):
    """Two answers as a judge of this world ordered them, with its errors."""

    prompt: str
    chosen: str
    rejected: str


class Drawn(NamedTuple):
    """A task without its wording: what fills the wordings' blanks, and what answers it."""

    blanks: dict[str, str]
    wanted: list[str]
    count: int
    query_type: str = "closed"


def _list(draw: random.Random, kind: str = "") -> list[str]:
    words = KINDS[kind or draw.choice(list(KINDS))]
    return draw.sample(words, draw.randint(2, 3))


def _closed(wanted: Sequence[str], **blanks: object) -> Drawn:
    filled = {name: value if isinstance(value, str) else " ".join(value) for name, value in blanks.items()}  # type: ignore[arg-type]
    return Drawn(filled, list(wanted), len(wanted))


def _sort(draw: random.Random) -> Drawn:
    items = _list(draw, "numbers")
    return _closed(sorted(items), items=items)


def _largest(draw: random.Random) -> Drawn:
    items = _list(draw, "numbers")
    return _closed([max(items)], items=items)


def _reverse(draw: random.Random) -> Drawn:
    items = _list(draw)
    return _closed(items[::-1], items=items)


def _repeat(draw: random.Random) -> Drawn:
    items = _list(draw)
    return _closed(items, items=items)


def _leave_out(draw: random.Random) -> Drawn:
    items = _list(draw)
    one = draw.choice(items)
    return _closed([word for word in items if word != one], items=items, one=one)


def _count(draw: random.Random) -> Drawn:
    one, other = draw.sample(KINDS[draw.choice(["animals", "colours", "fruits"])], 2)
    items = [draw.choice([one, one, other]) for _ in range(draw.randint(2, 4))]
    return _closed([str(items.count(one))], items=items, one=one)


def _add(draw: random.Random) -> Drawn:
    a, b = draw.randint(1, 9), draw.randint(1, 9)
    return _closed([str(a + b)], a=str(a), b=str(b))


def _pattern(draw: random.Random) -> Drawn:
    a, b = _list(draw)[:2]
    return _closed([a, b], items=[a, b, a, b])


def _name(draw: random.Random) -> Drawn:
    kind, count = draw.choice(["animals", "colours", "fruits"]), draw.randint(2, 4)
    return Drawn({"kind": kind, "count": str(count)}, KINDS[kind], count, "open")


def _above(draw: random.Random) -> Drawn:
    least, count = draw.randint(2, 12), draw.randint(2, 4)
    return Drawn({"least": str(least), "count": str(count)}, NUMBERS[least + 1 :], count, "open")


FAMILIES: dict[str, tuple[Callable[[random.Random], Drawn], list[str]]] = {
    "sort": (_sort, ["sort the numbers {items}", "sort {items} from small to large", "put the numbers {items} in order",
                     "order these numbers : {items}"]),
    "largest": (_largest, ["what is the largest of {items} ?", "pick the largest number : {items}",
                           "which number is the largest , {items} ?"]),
    "reverse": (_reverse, ["reverse the list {items}", "say {items} in reverse", "write the list {items} backwards",
                           "turn the list around : {items}"]),
    "repeat": (_repeat, ["repeat the list {items}", "say {items} again", "copy the list {items}"]),
    "leave_out": (_leave_out, ["repeat {items} without {one}", "copy the list {items} but leave out {one}",
                               "leave {one} out of {items}"]),
    "count": (_count, ["how many times is {one} in {items} ?", "count the word {one} in {items}",
                       "how often do you see {one} here : {items} ?"]),
    "add": (_add, ["what is {a} plus {b} ?", "add {a} and {b}", "give me the sum of {a} and {b}"]),
    "pattern": (_pattern, ["go on with two more : {items}", "what are the next two words after {items} ?",
                           "continue the pattern {items} by two words"]),
    "name": (_name, ["name {count} {kind}", "give me {count} different {kind}", "list {count} {kind} that you know",
                     "can you tell me {count} {kind} ?"]),
    "above": (_above, ["name {count} numbers above {least}", "give me {count} numbers larger than {least}",
                       "list {count} different numbers over {least}"]),
}  # fmt: skip


def records(count: int, seed: int, shares: Sequence[float] | None = None) -> list[Record]:
    """Draw instructions that differ from each other; `shares` weighs the families, in their order."""
    draw = random.Random(f"records {seed}")
    made: dict[str, Record] = {}
    while len(made) < count:
        (family,) = draw.choices(list(FAMILIES), shares)
        make, wordings = FAMILIES[family]
        drawn = make(draw)
        words = [draw.choice(BEFORE), draw.choice(wordings).format(**drawn.blanks), draw.choice(AFTER)]
        prompt = " ".join(word for word in words if word)
        golden = drawn.wanted if drawn.query_type == "closed" else draw.sample(drawn.wanted, drawn.count)
        made.setdefault(
            prompt,
            Record(
                prompt=prompt,
                response=" ".join(golden),
                family=family,
                query_type=drawn.query_type,
                wanted=" ".join(drawn.wanted),
                count=drawn.count,
            ),
        )
    return list(made.values())


def quality(record: Record, answer: str) -> float:
    """Return the true quality of an answer, 0 to 1.

    Closed: 1 − edit distance in words ÷ the longer one's length. Open: distinct words that count, at most as many as
    were asked for, ÷ the words asked for or given, whichever is more.
    """
    given, wanted = answer.split(), record["wanted"].split()
    if record["query_type"] == "open":
        right = len(set(given) & set(wanted))
        return min(right, record["count"]) / max(record["count"], len(given))
    return 1 - _distance(given, wanted) / max(len(given), len(wanted))


def _distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Return Levenshtein's distance in words."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def spoil(record: Record, errors: int, draw: random.Random) -> str:
    """Return the golden response after so many random errors: a word replaced, left out, said twice or out of place."""
    words = record["response"].split()
    for _ in range(errors):
        place = draw.randrange(len(words))
        error = draw.choice(["replace", "replace", "leave out", "say twice", "swap"])
        if error == "replace":
            kind = next((kind for kind in KINDS.values() if words[place] in kind), NUMBERS)
            words[place] = draw.choice(kind)
        elif error == "leave out" and len(words) > 1:
            del words[place]
        elif error == "say twice":
            words.insert(place, words[place])
        elif len(words) > 1:
            words[place - 1], words[place] = words[place], words[place - 1]
    return " ".join(words)


def worse(record: Record, count: int, draw: random.Random) -> list[str]:
    """Return up to `count` different answers that are truly worse than golden; short ones have fewer."""
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        answer = spoil(record, draw.randint(1, 3), draw)
        if quality(record, answer) < quality(record, record["response"]):
            found[answer] = None
    return list(found)


SHARPNESS, PER_WORD = 8.0, 0.3
"""The judge's log-odds: this much a unit of quality, this much a word of length whatever it says."""


def preferences(count: int, seed: int) -> list[Preference]:
    """Draw what a judge preferred: graded errors against each other, some families often and some hardly seen.

    The k-th family has a share of 1/k, in an order that the seed draws. The judge errs at random, most where the
    answers are about as good, and likes length: Bradley and Terry's model over SHARPNESS · quality + PER_WORD · words.
    """
    draw = random.Random(f"preferences {seed}")
    shares = _shares(draw)
    made: list[Preference] = []
    pool = records(count, 1_000 + seed, shares)
    while len(made) < count:
        record = pool[len(made)]
        a, b = (spoil(record, draw.randint(0, 4), draw) for _ in range(2))
        if a == b:
            a, b = record["response"], draw.choice(pool)["response"]
        if a == b:
            a, b = a, f"{a} {a}"
        liked = SHARPNESS * (quality(record, a) - quality(record, b)) + PER_WORD * (len(a.split()) - len(b.split()))
        if draw.random() > 1 / (1 + math.exp(-liked)):
            a, b = b, a
        made.append(Preference(prompt=record["prompt"], chosen=a, rejected=b))
    return made


def preferred(count: int, seed: int) -> list[Record]:
    """Draw instructions as `preferences` does, by the same families' shares, but others."""
    return records(count, -1_000 - seed, _shares(random.Random(f"preferences {seed}")))


def _shares(draw: random.Random) -> list[float]:
    shares = [1 / rank for rank in range(1, len(FAMILIES) + 1)]
    draw.shuffle(shares)
    return shares


def synonyms() -> list[dict[str, str]]:
    """Return which words an attack may put for which: those of the same kind. Their order is that of KINDS."""
    kinds = [NUMBERS, *list(KINDS.values())[1:]]
    return [{"word": a, "pos": "n", "synonym": b} for words in kinds for a in words for b in words if a != b]


def untrained(out: Path, hidden: int, layers: int, seed: int = 0) -> None:
    """Write a tokenizer of this world's words and a Llama of random weights that reads it: for a Qwen2, transformers would put its own tokenizer in place."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    wordings = [w.replace("{", " {") for _, all_of_them in FAMILIES.values() for w in all_of_them]
    texts = [*wordings, *BEFORE, *AFTER, *NUMBERS, *(w for kind in KINDS.values() for w in kind), *KINDS]
    words = sorted({word for text in texts for word in text.split() if not word.startswith("{")})
    vocabulary = ["<pad>", "<end>", "<unknown>", "Question:", "Answer:", *words]
    level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unknown>"))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=level, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>", model_max_length=64
    )
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
