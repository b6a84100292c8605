"""What a policy answers, and how a reward finds it: rows in their order, responses with their text, scores that were checked."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pydantic import JsonValue

from seamcurate.errors import TrainError, typed_line
from seamcurate.models import tokens
from seamcurate.models.protocols import Message, Prompt
from seamcurate.models.template import Form
from seamcurate.progress import bar
from seamcurate.train import data as rows_of
from seamcurate.train import training
from seamcurate.train.data import Asked, Data
from seamcurate.train.options import Training

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

Reward: TypeAlias = Callable[..., Sequence[float | None]]
"""As TRL's GRPO and RLOO call one: `reward(prompts=…, completions=…, **columns)`, each a list with one entry a response."""


class Question(NamedTuple):
    """A row to train on: its number in the data, its content, and its prompt's ids."""

    row: int
    asked: Asked
    ids: list[int]

    @property
    def prompt(self) -> Prompt:
        """The prompt as the data have it."""
        return self.asked.prompt


class Questions(NamedTuple):
    """What a policy is trained on and measured on, and how many rows gave it."""

    kept: list[Question]
    tested: list[Question]
    counts: dict[str, JsonValue]


class Responses(NamedTuple):
    """What a policy answered to a batch of prompts, padded on the left before the prompt and on the right after the end."""

    ids: Tensor
    """Token ids, batch × (context + response)."""
    mask: Tensor
    """1 on what is read, of the same shape."""
    context: int
    """Where responses start."""
    written: Tensor
    """1 on response tokens, EOS included, float, batch × response."""
    ended: list[bool]
    """Whether it came to an end: EOS, another end of the model's, or a stop string, not the limit."""
    texts: list[str]
    """As a reward reads it: without special tokens, cut before a stop string."""


def drawn(count: int, start: int, size: int, seed: int) -> Iterator[int]:
    """Yield `size` row numbers of an endless stream of shuffled epochs over `count` rows, from its place `start` on."""
    order: list[int] = []
    epoch = -1
    for place in range(start, start + size):
        if place // count != epoch:
            epoch = place // count
            order = list(range(count))
            random.Random(f"{seed} {epoch}").shuffle(order)
        yield order[place % count]


def respond(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    length: int,
    temperature: float,
    stop_strings: Sequence[str],
    form: Form | None = None,
) -> Responses:
    """Sample one response of at most `length` tokens to each prompt.

    Args:
        policy: What answers.
        tokenizer: Its own.
        prompts: Their ids.
        length: Tokens.
        temperature: Of sampling.
        stop_strings: Literal strings that end a response.
        form: The one the prompts are in; None: the tokenizer's own.
    """
    import torch
    from transformers import GenerationConfig

    form = form or tokens.form_of(tokenizer)
    ends = _ends(policy, tokenizer)
    # What stands on padding is never read: the attention mask says so, whatever its id.
    fill = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    context = max(len(ids) for ids in prompts)
    before = torch.tensor([[fill] * (context - len(ids)) + ids for ids in prompts], device=policy.device)
    mask = torch.tensor([[0] * (context - len(ids)) + [1] * len(ids) for ids in prompts], device=policy.device)
    options = GenerationConfig(
        max_new_tokens=length,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=ends,
        pad_token_id=fill,
        use_cache=True,
    )
    stops: dict[str, Any] = {"stop_strings": list(stop_strings), "tokenizer": tokenizer} if stop_strings else {}
    generate: Any = policy.generate
    with torch.no_grad():
        ids = generate(input_ids=before, attention_mask=mask, generation_config=options, **stops)
    read = [_ended(tokenizer, row, ends, stop_strings, form) for row in ids[:, context:].tolist()]
    lengths = torch.tensor([length for length, _, _ in read], device=policy.device)
    ids = ids[:, : context + int(lengths.max())]
    written = torch.arange(ids.shape[1] - context, device=policy.device)[None] < lengths[:, None]
    return Responses(
        ids=ids,
        mask=torch.cat([mask, written.long()], 1),
        context=context,
        written=written.float(),
        ended=[ended for _, ended, _ in read],
        texts=[text for _, _, text in read],
    )


def sampling(own: GenerationConfig) -> GenerationConfig:
    """Return a model's generation configuration without its habits, but with its special tokens.

    Its habits (top_p, repetition_penalty) would sample from another policy than the one that is trained.
    """
    return type(own)(eos_token_id=own.eos_token_id, bos_token_id=own.bos_token_id, pad_token_id=own.pad_token_id)


def _ends(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what ends a response, as in TRL: EOS, and what else the model ends its turns by (Gemma: `<end_of_turn>`)."""
    own = policy.generation_config.eos_token_id
    return [tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or ())]


def _ended(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: Sequence[int], stop_strings: Sequence[str], form: Form
) -> tuple[int, bool, str]:
    """Return how many of the ids are the response, whether it ended, and its text."""

    def text_of(count: int) -> str:
        found = tokenizer.decode(ids[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return form.generated(str(found))

    end = next((place for place, token in enumerate(ids) if token in ends), None)
    ended, length = end is not None, len(ids) if end is None else end + 1
    text = text_of(length)
    cuts = [text.index(stop) for stop in stop_strings if stop in text]
    if not cuts:
        return length, ended, text
    while any(stop in text_of(length - 1) for stop in stop_strings):
        length -= 1
    return length, True, text[: min(cuts)]


class Judge:
    """A reward as training calls it: what it gives is checked, and what goes wrong says where."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        named: Any = reward
        self.name = str(getattr(named, "__name__", type(reward).__name__))
        self.columns: tuple[str, ...] = tuple(getattr(named, "columns", ()))

    @property
    def identity(self) -> str:
        """What tells this reward from another in a training's record: its own word, how it shows itself, or its name."""
        shown = str(getattr(self.reward, "identity", repr(self.reward)))
        return self.name if " at 0x" in shown else shown

    def score(self, questions: Sequence[Question], texts: Sequence[str], when: str) -> list[float | None]:
        """Return a finite score for each response, None where the reward does not apply.

        Raises:
            TrainError: The reward raised, or gave too few scores, or one that is no finite number.
        """
        names = questions[0].asked.columns
        columns = {name: [q.asked.columns[name] for q in questions] for name in names}
        completions = [
            text if isinstance(q.asked.prompt, str) else [Message(role="assistant", content=text)]
            for q, text in zip(questions, texts, strict=True)
        ]
        rows = ", ".join(str(q.row) for q in questions[:8]) + (", …" if len(questions) > 8 else "")
        try:
            given = self.reward(prompts=[q.asked.prompt for q in questions], completions=completions, **columns)
            scores = list(given)
        except Exception as error:
            raise TrainError(f"reward {self.name} failed {when} on rows {rows}: {typed_line(error)}") from error
        if len(scores) != len(texts):
            raise TrainError(
                f"reward {self.name} gave {len(scores)} scores for {len(texts)} responses {when} on rows {rows}; "
                "return one for each, None where it does not apply"
            )
        return [self._number(score, q.row, when) for score, q in zip(scores, questions, strict=True)]

    def features(self) -> dict[str, float]:
        """Return what the reward tells of its last call; nothing where it tells nothing."""
        tells: Callable[[], dict[str, float]] | None = getattr(self.reward, "features", None)
        return {} if tells is None else tells()

    def _number(self, score: object, row: int, when: str) -> float | None:
        if score is None:
            return None
        try:
            number = float(score)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise TrainError(
                f"reward {self.name} gave {score!r:.60} {when} for row {row}; "
                "return a finite number, or None where it does not apply"
            )
        return number


RESERVED = ("prompts", "completions")
"""What a reward is given beside the columns."""


def read(data: Data, columns: Sequence[str], config: Training) -> tuple[list[Asked], list[Asked] | None]:
    """Return the rows to train on and, where they are apart, those to measure on.

    Args:
        data: Where the rows are.
        columns: Columns that rewards cannot do without.
        config: Names the rows to measure on.

    Raises:
        TrainError: The data lack a column, or have one that rewards are given anyway.
    """
    return _asked(data, columns), None if config.eval_data is None else _asked(config.eval_data, columns)


def questions(
    trainer: str,
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    asked: tuple[list[Asked], list[Asked] | None],
    config: Training,
    window: int,
    length: int,
) -> Questions:
    """Return the prompts that leave room for an answer.

    Args:
        trainer: Its name, for what is said of prompts that are skipped.
        tokenizer: The policy's.
        form: How its prompts become text.
        asked: What `read` returned.
        config: Says how many to hold out where none are apart, and how many tokens prompt and answer may have.
        window: How many the policy can read.
        length: Tokens of an answer.

    Raises:
        TrainError: No prompt leaves room.
    """
    rows, measured = numbered(tokenizer, form, asked[0]), []
    if asked[1] is not None:
        measured = numbered(tokenizer, form, asked[1])
    else:
        rows, measured = rows_of.held_out(rows, config.eval_rows, config.seed)
    whole = min(config.max_length, window)
    kept, tested = ([q for q in some if 0 < len(q.ids) <= whole - length] for some in (rows, measured))
    if not kept:
        raise TrainError(
            f"none of {len(rows)} prompts leaves room for a response of {length} tokens in {whole}; "
            + (
                "ask for shorter responses, or raise max_length"
                if config.max_length < window
                else "ask for shorter responses"
            )
        )
    skipped = len(rows) + len(measured) - len(kept) - len(tested)
    training.said_skipped(trainer, skipped, f"less than {length} of {whole} tokens")
    counts: dict[str, JsonValue] = {
        "rows": len(rows),
        "rows_used": len(kept),
        "rows_skipped": len(rows) - len(kept),
        "rows_held_out": len(tested),
    }
    return Questions(kept, tested, counts)


def _asked(data: Data, columns: Sequence[str]) -> list[Asked]:
    asked = rows_of.prompts(data, columns)
    if taken := [name for name in RESERVED if name in asked[0].columns]:
        raise TrainError(
            f"{rows_of.title(data)} has a column `{taken[0]}`, which rewards are given beside it; rename the column"
        )
    return asked


def numbered(tokenizer: PreTrainedTokenizerBase, form: Form, asked: list[Asked]) -> list[Question]:
    """Return the rows with their prompts' ids, each with its place among all.

    Raises:
        TrainError: The chat template refuses one.
    """
    found: list[Question] = []
    with bar("tokenize", len(asked)) as advance:
        for row, one in enumerate(asked):
            with training.rendered(one.prompt):
                ids = tokens.prompt_ids(tokenizer, one.prompt, form)
            found.append(Question(row, one, ids))
            advance(1)
    return found
