"""Sampling responses to prompts, and scoring them by a reward: prompts in order, responses as text, checked scores."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pydantic import JsonValue

from seamcurate.errors import TrainError, typed_line
from seamcurate.models import tokens
from seamcurate.models.protocols import Message, Prompt
from seamcurate.models.template import Form
from seamcurate.progress import bar
from seamcurate.train import data as rows_of
from seamcurate.train import training
from seamcurate.train.data import PromptRow, TrainingData
from seamcurate.train.options import Training

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

RewardCallable: TypeAlias = Callable[..., Sequence[float | None]]
"""As TRL's GRPO and RLOO call one: `reward(prompts=…, completions=…, **columns)`, each a list with one entry a response."""


class TokenizedPrompt(NamedTuple):
    """A row to train on: its number in the data, the row itself, and the token ids of its prompt."""

    row: int
    source: PromptRow
    ids: list[int]

    @property
    def prompt(self) -> Prompt:
        """The prompt as the data have it."""
        return self.source.prompt


class PromptSets(NamedTuple):
    """Prompts to train on, prompts to measure on, and how many rows they come from."""

    training: list[TokenizedPrompt]
    held_out: list[TokenizedPrompt]
    counts: dict[str, JsonValue]


class ResponseBatch(NamedTuple):
    """Responses to a batch of prompts, padded on the left before the prompt and on the right after the response."""

    ids: Tensor
    """Token ids, batch × (context + response)."""
    mask: Tensor
    """1 on tokens that a model reads, 0 on padding; of the same shape."""
    context: int
    """Offset at which responses start: the length of the longest prompt in tokens."""
    written: Tensor
    """1 on response tokens, EOS included, float, batch × response."""
    ended: list[bool]
    """Whether a response ended by itself, by EOS, another end token of the model or a stop string, and not at the limit."""
    texts: list[str]
    """Text of a response as a reward reads it: without special tokens, cut before a stop string."""


def shuffled_rows(count: int, start: int, size: int, seed: int) -> Iterator[int]:
    """Yield `size` row numbers, from offset `start`, of an endless stream of shuffled epochs over `count` rows."""
    order: list[int] = []
    epoch = -1
    for offset in range(start, start + size):
        if offset // count != epoch:
            epoch = offset // count
            # By seed and epoch alone, so that a training taken up in the middle goes on with the same rows.
            order = list(range(count))
            random.Random(f"{seed} {epoch}").shuffle(order)
        yield order[offset % count]


def first_trained(
    prompts: Sequence[TokenizedPrompt], order: Iterable[int], asked: int | None, held_out: int
) -> list[TokenizedPrompt]:
    """Return the first prompts of a training, to measure on beside the held-out ones.

    Args:
        prompts: All prompts to train on.
        order: Their numbers as training takes them, with repetitions.
        asked: How many to return; None takes as many as are held out.
        held_out: How many are held out.
    """
    count = held_out if asked is None else asked
    numbers: dict[int, None] = {}
    for number in order:
        if len(numbers) == count:
            break
        numbers[number] = None
    return [prompts[number] for number in numbers]


def respond(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    length: int,
    temperature: float,
    stop_strings: Sequence[str],
    form: Form | None = None,
) -> ResponseBatch:
    """Sample one response of at most `length` tokens to each prompt.

    Args:
        policy: Model that answers.
        tokenizer: Tokenizer of the policy.
        prompts: Token ids of each prompt.
        length: Most tokens of a response.
        temperature: Sampling temperature.
        stop_strings: Literal strings that end a response.
        form: Form of the prompts; without it, the one saved with the tokenizer.
    """
    import torch
    from transformers import GenerationConfig

    form = form or tokens.form_of(tokenizer)
    ends = _ends(policy, tokenizer)
    # The attention mask keeps the model from reading padding, whatever its id.
    padding_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    context = max(len(ids) for ids in prompts)
    # Both (batch, context), padded on the left.
    padded_prompts = torch.tensor([[padding_id] * (context - len(ids)) + ids for ids in prompts], device=policy.device)
    mask = torch.tensor([[0] * (context - len(ids)) + [1] * len(ids) for ids in prompts], device=policy.device)
    generation_config = GenerationConfig(
        max_new_tokens=length,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=ends,
        pad_token_id=padding_id,
        use_cache=True,
    )
    stop_options: dict[str, Any] = {"stop_strings": list(stop_strings), "tokenizer": tokenizer} if stop_strings else {}
    generate: Any = policy.generate
    with torch.no_grad():
        ids = generate(
            input_ids=padded_prompts, attention_mask=mask, generation_config=generation_config, **stop_options
        )
    responses = [_ended(tokenizer, row, ends, stop_strings, form) for row in ids[:, context:].tolist()]
    # (batch,), then ids (batch, context + longest response) and is_written (batch, longest response).
    lengths = torch.tensor([length for length, _, _ in responses], device=policy.device)
    ids = ids[:, : context + int(lengths.max())]
    is_written = torch.arange(ids.shape[1] - context, device=policy.device)[None] < lengths[:, None]
    return ResponseBatch(
        ids=ids,
        mask=torch.cat([mask, is_written.long()], 1),
        context=context,
        written=is_written.float(),
        ended=[ended for _, ended, _ in responses],
        texts=[text for _, _, text in responses],
    )


def sampling(model_config: GenerationConfig) -> GenerationConfig:
    """Return a model's generation configuration without its habits, but with its special tokens.

    Its habits (top_p, repetition_penalty) would sample from another policy than the one that is trained.
    """
    return type(model_config)(
        eos_token_id=model_config.eos_token_id,
        bos_token_id=model_config.bos_token_id,
        pad_token_id=model_config.pad_token_id,
    )


def _ends(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a response, as in TRL: EOS, and those that end the model's turns (Gemma: `<end_of_turn>`)."""
    model_ends = policy.generation_config.eos_token_id
    return [tokenizer.eos_token_id, *([model_ends] if isinstance(model_ends, int) else model_ends or ())]


def _ended(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: Sequence[int], stop_strings: Sequence[str], form: Form
) -> tuple[int, bool, str]:
    """Return how many of the ids are the response, whether it ended, and its text."""

    def text_of(count: int) -> str:
        decoded = tokenizer.decode(ids[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return form.generated(str(decoded))

    # Behind the first end token, a batch is filled up until its longest response ends.
    end = next((offset for offset, token in enumerate(ids) if token in ends), None)
    ended, length = end is not None, len(ids) if end is None else end + 1
    text = text_of(length)
    cuts = [text.index(stop) for stop in stop_strings if stop in text]
    if not cuts:
        return length, ended, text
    # A stop string may end inside a token, and tokens may follow it: drop the last while the rest still holds one.
    while any(stop in text_of(length - 1) for stop in stop_strings):
        length -= 1
    return length, True, text[: min(cuts)]


class CheckedReward:
    """A reward as training calls it: its scores are checked, and an error says which rows it was scoring."""

    def __init__(self, reward: RewardCallable) -> None:
        self.reward = reward
        described: Any = reward
        self.name = str(getattr(described, "__name__", type(reward).__name__))
        self.columns: tuple[str, ...] = tuple(getattr(described, "columns", ()))

    @property
    def identity(self) -> str:
        """Text by which a training's record tells this reward from another: its `identity`, its `repr`, or its name."""
        text = str(getattr(self.reward, "identity", repr(self.reward)))
        # An address differs with every process: a training could not be taken up again.
        return self.name if " at 0x" in text else text

    def score(self, prompts: Sequence[TokenizedPrompt], texts: Sequence[str], moment: str) -> list[float | None]:
        """Return a finite score for each response, None where the reward does not apply.

        Raises:
            TrainError: The reward raised, or gave too few scores, or one that is no finite number.
        """
        names = prompts[0].source.columns
        columns = {name: [q.source.columns[name] for q in prompts] for name in names}
        # In TRL's form: text for a text prompt, a list of messages for a chat.
        completions = [
            text if isinstance(q.source.prompt, str) else [Message(role="assistant", content=text)]
            for q, text in zip(prompts, texts, strict=True)
        ]
        rows = ", ".join(str(q.row) for q in prompts[:8]) + (", …" if len(prompts) > 8 else "")
        try:
            returned = self.reward(prompts=[q.source.prompt for q in prompts], completions=completions, **columns)
            scores = list(returned)
        except Exception as error:
            raise TrainError(f"reward {self.name} failed {moment} on rows {rows}: {typed_line(error)}") from error
        if len(scores) != len(texts):
            raise TrainError(
                f"reward {self.name} gave {len(scores)} scores for {len(texts)} responses {moment} on rows {rows}; "
                "return one for each, None where it does not apply"
            )
        return [self._number(score, q.row, moment) for score, q in zip(scores, prompts, strict=True)]

    def features(self) -> dict[str, float]:
        """Return the features of the reward's last call by name; empty where the reward has none."""
        features: Callable[[], dict[str, float]] | None = getattr(self.reward, "features", None)
        return {} if features is None else features()

    def _number(self, score: object, row: int, moment: str) -> float | None:
        if score is None:
            return None
        try:
            number = float(score)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise TrainError(
                f"reward {self.name} gave {score!r:.60} {moment} for row {row}; "
                "return a finite number, or None where it does not apply"
            )
        return number


RESERVED = ("prompts", "completions")
"""Keyword arguments of a reward that no column may be named as."""


def read(
    data: TrainingData, columns: Sequence[str], config: Training
) -> tuple[list[PromptRow], list[PromptRow] | None]:
    """Return the rows to train on, and the rows of `eval_data` to measure on, None without it.

    Args:
        data: Rows to train on.
        columns: Columns that the rewards need.
        config: Names `eval_data`.

    Raises:
        TrainError: The data lack a column, or have one of `RESERVED`.
    """
    return _read_rows(data, columns), None if config.eval_data is None else _read_rows(config.eval_data, columns)


def prompt_sets(
    trainer: str,
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    row_sets: tuple[list[PromptRow], list[PromptRow] | None],
    config: Training,
    window: int,
    length: int,
) -> PromptSets:
    """Return the prompts that leave room for an answer.

    Args:
        trainer: Name of the trainer, for the note about skipped prompts.
        tokenizer: Tokenizer of the policy.
        form: How prompts become text.
        row_sets: Rows to train on, and rows to measure on or None, as `read` returns them.
        config: Its `eval_rows` are held out where there are no rows to measure on; its `max_length` bounds prompt and
            answer together.
        window: Tokens that the policy can read.
        length: Most tokens of an answer.

    Raises:
        TrainError: No prompt leaves room.
    """
    rows, held_out = tokenized(tokenizer, form, row_sets[0]), []
    if row_sets[1] is not None:
        held_out = tokenized(tokenizer, form, row_sets[1])
    else:
        rows, held_out = rows_of.held_out(rows, config.eval_rows, config.seed)
    most_tokens = min(config.max_length, window)
    fitting, fitting_held_out = (
        [q for q in prompts if 0 < len(q.ids) <= most_tokens - length] for prompts in (rows, held_out)
    )
    if not fitting:
        raise TrainError(
            f"none of {len(rows)} prompts leaves room for a response of {length} tokens in {most_tokens}; "
            + (
                "ask for shorter responses, or raise max_length"
                if config.max_length < window
                else "ask for shorter responses"
            )
        )
    skipped = len(rows) + len(held_out) - len(fitting) - len(fitting_held_out)
    training.note_skipped(trainer, skipped, f"less than {length} of {most_tokens} tokens")
    counts: dict[str, JsonValue] = {
        "rows": len(rows),
        "rows_used": len(fitting),
        "rows_skipped": len(rows) - len(fitting),
        "rows_held_out": len(fitting_held_out),
    }
    return PromptSets(fitting, fitting_held_out, counts)


def _read_rows(data: TrainingData, columns: Sequence[str]) -> list[PromptRow]:
    rows = rows_of.prompts(data, columns)
    if reserved := [name for name in RESERVED if name in rows[0].columns]:
        raise TrainError(
            f"{rows_of.title(data)} has a column `{reserved[0]}`, which rewards are given beside it; rename the column"
        )
    return rows


def tokenized(tokenizer: PreTrainedTokenizerBase, form: Form, rows: list[PromptRow]) -> list[TokenizedPrompt]:
    """Return the rows with the token ids of their prompts and their numbers.

    Raises:
        TrainError: The chat template refuses one.
    """
    tokenized_prompts: list[TokenizedPrompt] = []
    with bar("tokenize", len(rows)) as advance:
        for row, prompt_row in enumerate(rows):
            with training.rendered(prompt_row.prompt):
                ids = tokens.prompt_ids(tokenizer, prompt_row.prompt, form)
            tokenized_prompts.append(TokenizedPrompt(row, prompt_row, ids))
            advance(1)
    return tokenized_prompts
