"""Token ids of prompts and responses: one place, so that training and scoring read the same ids.

The template is rendered once and tokenized without special tokens (a second BOS changes every score), the
response is tokenized on its own after it, and the end-of-sequence token closes it unless it was cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from seamcurate.models.protocols import Message, Prompt
from seamcurate.models.template import plain_prompt, plain_response, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pieces(NamedTuple):
    """A prompt and one response as the text a model reads, cut at the boundary."""

    prompt: str
    response: str
    templated: bool
    """Whether a chat template made it: the template then holds every special token itself."""


def pieces(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str) -> Pieces:
    """Render prompt and response by the tokenizer's chat template, else in the plain form."""
    if not tokenizer.chat_template:
        return Pieces(plain_prompt(prompt), plain_response(response), False)
    turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    rendered = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return Pieces(rendered, response, True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str, templated: bool) -> list[int]:
    """Tokenize the part before the response; plain text gets the BOS that the tokenizer itself would add."""
    ids = _ids(tokenizer, text)
    starts = tokenizer.bos_token_id
    if not templated and starts is not None and list(tokenizer("a")["input_ids"])[:1] == [starts]:
        ids.insert(0, starts)
    return ids


def response_ids(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> list[int]:
    """Tokenize a response on its own, at most `limit` ids; EOS closes it when nothing was cut."""
    ids = _ids(tokenizer, text)
    if len(ids) >= limit:
        return ids[:limit]
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def policy_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, limit: int
) -> tuple[list[int], list[int]]:
    """Return (prompt ids, response ids) as a causal language model is trained on and scored by."""
    text = pieces(tokenizer, prompt, response)
    return (
        prompt_ids(tokenizer, text.prompt, text.templated),
        response_ids(tokenizer, text.response, limit),
    )


def crosses_boundary(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, ids: list[int]) -> bool:
    """Tell whether tokenizing the joined text would give other ids than `ids`, prompt and response apart."""
    text = pieces(tokenizer, prompt, response)
    joint = prompt_ids(tokenizer, text.prompt + text.response, text.templated)
    return joint[: len(ids)] != ids[: len(joint)]


def reward_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, limit: int, pair: bool
) -> list[int] | None:
    """Return the ids a reward model reads, the response's end cut to fit `limit`.

    Returns None when the prompt alone fills the window. `pair` gives prompt and response as the two segments
    some encoder reward models were trained on. With a chat template the assistant's turn is rendered by it.
    """
    if pair:
        return _pair_ids(tokenizer, prompt, response, limit)
    text = pieces(tokenizer, prompt, response)
    before = prompt_ids(tokenizer, text.prompt, text.templated)
    if text.templated:
        answer, closing = _closed_turn(tokenizer, prompt, response, text)
        after, end = _ids(tokenizer, answer), _ids(tokenizer, closing)
    else:
        after = _ids(tokenizer, text.response)
        last = tokenizer.eos_token_id
        if tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
            before, last = [tokenizer.cls_token_id, *before], tokenizer.sep_token_id
        end = [] if last is None or after[-1:] == [last] else [last]
    # What closes an answer stays when its end is cut: a decoder's reward is read there.
    room = limit - len(before) - len(end)
    return None if room < 1 else [*before, *after[:room], *end]


def _pair_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, limit: int) -> list[int] | None:
    encoded = tokenizer(prompt_text(prompt), response, verbose=False)
    ids, segments = list(encoded["input_ids"]), encoded.sequence_ids(0)
    # Cut by segment, not by the tokenizer: its truncation would follow `truncation_side` and keep that setting.
    second = [place for place, segment in enumerate(segments) if segment == 1]
    room = limit - (len(ids) - len(second))
    if room < 1:
        return None
    cut = set(second[room:])
    return [token for place, token in enumerate(ids) if place not in cut]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # What is too long for the window is cut or left out by the callers: no warning is needed.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _closed_turn(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, text: Pieces) -> tuple[str, str]:
    """Return the assistant's turn as the template renders it: the answer, and what closes it."""
    turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    turns.append({"role": "assistant", "content": response})
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    turn = whole.removeprefix(text.prompt)
    answer = response if response in turn else response.strip()
    if turn == whole or not turn.startswith(answer):
        # A template that rewrites earlier turns, or the answer, has no shared prefix to keep.
        return response, tokenizer.eos_token or ""
    return answer, turn[len(answer) :]
