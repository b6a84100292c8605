"""A world of instructions whose every answer has a true quality, computed exactly: it stands in for people.

One rule: nothing here knows of a model. Tasks, wordings, errors and preferences follow from a seed alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

NUMBERS = [str(n) for n in range(31)]
KINDS = {
    "numbers": NUMBERS[1:],
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


class Sizes(NamedTuple):
    """How many instructions each part has."""

    test: int
    rl: int
    preference: int
    dev: int
    sft: int
    corpus: int
    """What is retrieved from: the beginning of the SFT part."""


class Parts(NamedTuple):
    """Instructions by their use; no two parts but SFT and corpus share one."""

    test: list[Record]
    rl: list[Record]
    preference: list[Record]
    dev: list[Record]
    sft: list[Record]
    corpus: list[Record]


class Drawn(NamedTuple):
    """A task without its wording: what fills the wordings' blanks, and what answers it."""

    blanks: dict[str, str]
    wanted: list[str]
    count: int
    query_type: str = "closed"


def _list(draw: random.Random, kind: str = "") -> list[str]:
    words = KINDS[kind or draw.choice(list(KINDS))]
    return draw.sample(words, draw.randint(2, 5))


def _closed(wanted: Sequence[str], **blanks: object) -> Drawn:
    filled = {name: value if isinstance(value, str) else " ".join(value) for name, value in blanks.items()}  # type: ignore[arg-type]
    return Drawn(filled, list(wanted), len(wanted))


def _sort(draw: random.Random) -> Drawn:
    items = _list(draw, "numbers")
    return _closed(sorted(items, key=int), items=items)


def _largest(draw: random.Random) -> Drawn:
    items = _list(draw, "numbers")
    return _closed([max(items, key=int)], items=items)


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
    items = [draw.choice([one, one, other]) for _ in range(draw.randint(2, 5))]
    return _closed([str(items.count(one))], items=items, one=one)


def _add(draw: random.Random) -> Drawn:
    numbers = [draw.randint(1, 15) for _ in range(draw.choice([2, 3, 3]))]
    while sum(numbers) > int(NUMBERS[-1]):
        numbers = [draw.randint(1, 15) for _ in numbers]
    return _closed([str(sum(numbers))], items=" and ".join(map(str, numbers)))


def _pattern(draw: random.Random) -> Drawn:
    words = KINDS[draw.choice(list(KINDS))]
    period = draw.sample(words, draw.randint(2, 3))
    return _closed(period[:2], items=[*period, *period])


def _name(draw: random.Random) -> Drawn:
    kind, count = draw.choice(["animals", "colours", "fruits"]), draw.randint(2, 5)
    return _open(draw, KINDS[kind], count, draw.randint(0, 3), kind=kind)


def _above(draw: random.Random) -> Drawn:
    least, count = draw.randint(1, 23), draw.randint(2, 5)
    return _open(draw, NUMBERS[least + 1 :], count, draw.randint(0, 2), least=str(least))


def _open(draw: random.Random, words: Sequence[str], count: int, excluded: int, **blanks: str) -> Drawn:
    """Ask for so many of the words, without some that are named."""
    left_out = draw.sample(list(words), excluded)
    but = " ".join(["", "but", "not", *left_out]) if left_out else ""
    return Drawn(
        {**blanks, "count": str(count), "but": but}, [word for word in words if word not in left_out], count, "open"
    )


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
    "add": (_add, ["what is the sum of {items} ?", "add {items}", "give me the sum of {items}"]),
    "pattern": (_pattern, ["go on with two more : {items}", "what are the next two words after {items} ?",
                           "continue the pattern {items} by two words"]),
    "name": (_name, ["name {count} {kind}{but}", "give me {count} different {kind}{but}",
                     "list {count} {kind} that you know{but}", "can you tell me {count} {kind}{but} ?"]),
    "above": (_above, ["name {count} numbers above {least}{but}", "give me {count} numbers larger than {least}{but}",
                       "list {count} different numbers over {least}{but}"]),
}  # fmt: skip


def records(count: int, seed: int) -> list[Record]:
    """Draw instructions that differ from each other, each family as often; late ones are not harder than early ones."""
    draw = random.Random(f"records {seed}")
    made: dict[str, Record] = {}
    while len(made) < count:
        family = draw.choice(list(FAMILIES))
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
    # Short instructions are used up first: without a shuffle, later parts would be harder.
    shuffled = list(made.values())
    draw.shuffle(shuffled)
    return shuffled


def parts(sizes: Sizes, seed: int = 0) -> Parts:
    """Cut one shuffle of instructions into parts, in the order of `Sizes`."""
    every = iter(records(sum(sizes[:5]), seed))
    test, rl, preference, dev, sft = ([next(every) for _ in range(size)] for size in sizes[:5])
    return Parts(test, rl, preference, dev, sft, sft[: sizes.corpus])


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


SHARPNESS, PER_WORD, BLIND_PER_WORD = 8.0, 0.3, 2.0
"""The judge's log-odds: this much a unit of quality, this much a word of length whatever it says; in a family where the
judge is blind, so much a word and nothing else."""


def preference_odds(better: float, longer: int, blind: bool = False) -> float:
    """Return the probability that the judge prefers the first of two answers (Bradley and Terry's model).

    Args:
        better: How much better it truly is.
        longer: How many words longer it is.
        blind: Whether the judge knows nothing of the family but length.
    """
    log_odds = BLIND_PER_WORD * longer if blind else SHARPNESS * better + PER_WORD * longer
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, log_odds))))


def blind_families(count: int, seed: int) -> list[str]:
    """Draw the families in which a judge is blind."""
    return random.Random(f"blind {seed}").sample(list(FAMILIES), count)


def synonyms(near: int) -> list[dict[str, str]]:
    """Return which words an attack may put for which: the nearest of the same kind, in the order of KINDS."""
    found = []
    for words in [NUMBERS, *list(KINDS.values())[1:]]:
        for i, word in enumerate(words):
            others = sorted((j for j in range(len(words)) if j != i), key=lambda j, i=i: (abs(j - i), j))[:near]
            found += [{"word": word, "pos": "n", "synonym": words[j]} for j in others]
    return found


def untrained(out: Path, hidden: int, layers: int, seed: int = 0) -> None:
    """Write a tokenizer of this world's words and a Llama of random weights that reads it: for a Qwen2, transformers would put its own tokenizer in place."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    wordings = [w.replace("{", " {").replace("}", "} ") for _, all_of_them in FAMILIES.values() for w in all_of_them]
    texts = [*wordings, "but not and", *BEFORE, *AFTER, *NUMBERS, *(w for kind in KINDS.values() for w in kind), *KINDS]
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
