"""Token ids of prompts and responses: one place, so that training and scoring read the same ids.

The template is rendered once and tokenized without special tokens (a second BOS changes every score), the
response is tokenized on its own after it, and the end-of-sequence token closes it unless it was cut. A special token
that a text spells is text, see `spelling`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from seamcurate.errors import ModelError
from seamcurate.models.protocols import Message, Prompt
from seamcurate.models.spelling import marked, spelling
from seamcurate.models.template import plain_prompt, plain_response, prompt_text
from seamcurate.tables import brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REVISION = 2
"""Raised whenever the same text would give other ids; 2: special tokens that a text spells are text."""


_SECONDS = 10.0
"""Within which a chat template renders a row; it is a program of whoever made the model, and may loop."""


class Pieces(NamedTuple):
    """A prompt and one response as the text a model reads, cut at the boundary; special tokens they spell are marked."""

    prompt: str
    response: str
    templated: bool
    """Whether a chat template made it: the template then holds every special token itself."""


def pieces(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str) -> Pieces:
    """Render prompt and response by the tokenizer's chat template, else in the plain form."""
    hidden = spelling(tokenizer)
    prompt, response = hidden.prompt(prompt), hidden.hidden(response)
    if not tokenizer.chat_template:
        return Pieces(plain_prompt(prompt), plain_response(response), False)
    (rendered,) = _rendered(tokenizer, [_turns(prompt)], add_generation_prompt=True)
    return Pieces(rendered, response, True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str, templated: bool) -> list[int]:
    """Tokenize the part before the response; plain text gets the BOS that the tokenizer itself would add."""
    ids = _ids(tokenizer, text)
    starts = tokenizer.bos_token_id
    if not templated and starts is not None and list(tokenizer("a")["input_ids"])[:1] == [starts]:
        ids.insert(0, starts)
    return ids


def _ended(tokenizer: PreTrainedTokenizerBase, ids: list[int], limit: int) -> list[int]:
    """Cut a response to `limit` ids; EOS closes it when nothing was cut."""
    if len(ids) >= limit:
        return ids[:limit]
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def policy_group(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, responses: Sequence[str], limit: int
) -> tuple[list[int], list[list[int]], list[bool]]:
    """Return the prompt's ids, each response's, and whether joint tokenization would have given other ids.

    The prompt is rendered and tokenized once for all its responses.
    """
    text = pieces(tokenizer, prompt, "")
    before = prompt_ids(tokenizer, text.prompt, text.templated)
    hidden = map(spelling(tokenizer).hidden, responses)
    answers = [response if text.templated else plain_response(response) for response in hidden]
    after = [_ended(tokenizer, ids, limit) for ids in _all_ids(tokenizer, answers)]
    start = len(before) - len(_ids(tokenizer, text.prompt))
    joint = [before[:start] + ids for ids in _all_ids(tokenizer, [text.prompt + answer for answer in answers])]
    scored = [before + ids for ids in after]
    crossed = [a[: len(b)] != b[: len(a)] for a, b in zip(joint, scored, strict=True)]
    return before, after, crossed


def policy_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, limit: int
) -> tuple[list[int], list[int]]:
    """Return (prompt ids, response ids) as a causal language model is trained on and scored by."""
    text = pieces(tokenizer, prompt, response)
    return (
        prompt_ids(tokenizer, text.prompt, text.templated),
        _ended(tokenizer, _ids(tokenizer, text.response), limit),
    )


def reward_group(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, responses: Sequence[str], limit: int
) -> tuple[list[int], list[list[int] | None]]:
    """Return the ids a reward model reads: the prompt's, and what follows for each response, its end cut to fit.

    None stands for a response to a prompt that alone fills the window. With a chat template the assistant's turn is
    rendered by it.
    """
    text = pieces(tokenizer, prompt, "")
    before = prompt_ids(tokenizer, text.prompt, text.templated)
    prompt, responses = spelling(tokenizer).prompt(prompt), list(map(spelling(tokenizer).hidden, responses))
    last: int | None = None
    if text.templated:
        turns = _closed_turns(tokenizer, prompt, responses, text)
        answers, closings = [answer for answer, _ in turns], [closing for _, closing in turns]
        closing_ids = {closing: _ids(tokenizer, closing) for closing in set(closings)}
    else:
        answers, closings, closing_ids = [plain_response(response) for response in responses], [""] * len(responses), {}
        last = tokenizer.eos_token_id
        if tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
            before, last = [tokenizer.cls_token_id, *before], tokenizer.sep_token_id
    rest: list[list[int] | None] = []
    for after, closing in zip(_all_ids(tokenizer, answers), closings, strict=True):
        end = closing_ids[closing] if text.templated else [] if last is None or after[-1:] == [last] else [last]
        # What closes an answer stays when its end is cut: a decoder's reward is read there.
        room = limit - len(before) - len(end)
        rest.append(None if room < 1 else [*after[:room], *end])
    return before, rest


def reward_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, limit: int) -> list[int] | None:
    """Return the ids a reward model reads for one response, see `reward_group`."""
    before, (after,) = reward_group(tokenizer, prompt, [response], limit)
    return None if after is None else before + after


def pair_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, limit: int) -> list[int] | None:
    """Return prompt and response as the two segments some encoder reward models were trained on; None as above."""
    hidden = spelling(tokenizer)
    first, answer = hidden.hidden(prompt_text(prompt)), hidden.hidden(response)
    if marked(first) or marked(answer):
        ids, segments = hidden.encode(first, answer, framed=True)
    else:
        encoded = tokenizer(first, answer, verbose=False)
        ids, segments = list(encoded["input_ids"]), encoded.sequence_ids(0)
    # Cut by segment, not by the tokenizer: its truncation would follow `truncation_side` and keep that setting.
    second = [place for place, segment in enumerate(segments) if segment == 1]
    room = limit - (len(ids) - len(second))
    if room < 1:
        return None
    cut = set(second[room:])
    return [token for place, token in enumerate(ids) if place not in cut]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    if marked(text):
        return spelling(tokenizer).encode(text)[0]
    # What is too long for the window is cut or left out by the callers: no warning is needed.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _all_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokenize many texts in one call, which a fast tokenizer spreads over the cores."""
    if any(map(marked, texts)):
        return [_ids(tokenizer, text) for text in texts]
    return list(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]) if texts else []


def _turns(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _closed_turns(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, responses: Sequence[str], text: Pieces
) -> list[tuple[str, str]]:
    """Return the assistant's turns as the template renders them: each answer, and what closes it."""
    chats = [[*_turns(prompt), Message(role="assistant", content=response)] for response in responses]
    return [
        _closed_turn(tokenizer, response, whole, text)
        for response, whole in zip(responses, _rendered(tokenizer, chats), strict=True)
    ]


def _closed_turn(tokenizer: PreTrainedTokenizerBase, response: str, whole: str, text: Pieces) -> tuple[str, str]:
    turn = whole.removeprefix(text.prompt)
    answer = response if response in turn else response.strip()
    if turn == whole or not turn.startswith(answer):
        # A template that rewrites earlier turns, or the answer, has no shared prefix to keep.
        return response, tokenizer.eos_token or ""
    return answer, turn[len(answer) :]


def _rendered(tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[Message]], **how: bool) -> list[str]:
    """Render a row's chats by the tokenizer's chat template.

    Raises:
        TemplateError: The template has no form for them.
        ModelError: It fails, or is not done in time.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    done: Future[list[str]] = Future()

    def render() -> None:
        try:
            done.set_result([str(tokenizer.apply_chat_template(turns, tokenize=False, **how)) for turns in chats])
        except BaseException as error:
            done.set_exception(error)

    # Not in an executor, for whose threads Python waits when it ends.
    threading.Thread(target=render, daemon=True).start()
    where = f"the chat template of {tokenizer.name_or_path}"
    try:
        return done.result(_SECONDS)
    except TimeoutError as error:
        raise ModelError(f"{where} is not done with a row after {_SECONDS:g} seconds; {_CURE}") from error
    except Exception as error:
        if isinstance(error, TemplateError) and not isinstance(error, TemplateSyntaxError):
            raise
        raise ModelError(f"{where} fails: {type(error).__name__}: {brief(str(error), 200)}; {_CURE}") from error


_CURE = "correct it, or take another model"
