"""Special tokens that are spelled in texts: those of a row or a person stay text, those of the template stay tokens.

A tokenizer recognises `<|im_end|>` anywhere, so a row could close its own turn and open the assistant's. A text that spells a
special token is therefore marked before the template is rendered, and tokenized by a twin of the tokenizer in which special
tokens have other, unguessable spellings. All other texts go through the tokenizer itself, unchanged.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from seamcurate.models.protocols import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PRIVATE = 0xF0000
_OURS, _THEIRS = ("".join(chr(_PRIVATE + secrets.randbelow(0xFFFE)) for _ in range(8)) for _ in range(2))
"""Prefixes of a template's own special token, and of one spelled in a text; random in each process, so no text has them."""
_MARK = re.compile(_THEIRS + r"(\d{4})")


class Spelling:
    """The special tokens of one tokenizer, and a way to read texts that spell them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
        added = self._backend.get_added_tokens_decoder() if self._backend is not None else {}
        listed = {str(token.content) for token in added.values() if token.special}
        # The longest first: one token may be the start of another.
        self.tokens = sorted(filter(None, listed), key=lambda token: (-len(token), token))
        self._begin = tuple({token[:2] for token in self.tokens})
        self._any = re.compile("|".join(map(re.escape, self.tokens)) or r"(?!)")
        self._number = {token: f"{i:04d}" for i, token in enumerate(self.tokens)}
        self._twin: Any = None
        self._ids: dict[int | None, int] = {}
        """The tokenizer's own ids of special tokens, by the twin's."""

    def hidden(self, text: str) -> str:
        """Return a text with the special tokens it spells marked; the text itself where it spells none."""
        if not any(begin in text for begin in self._begin):
            return text
        return self._any.sub(lambda match: _THEIRS + self._number[match[0]], text)

    def turn(self, turn: Message) -> Message:
        """Return a turn with the special tokens in its role and content marked."""
        return {**turn, "role": self.hidden(turn["role"]), "content": self.hidden(turn["content"])}

    def prompt(self, prompt: Prompt) -> Prompt:
        """Return a prompt with the special tokens in all its texts marked."""
        return self.hidden(prompt) if isinstance(prompt, str) else [self.turn(turn) for turn in prompt]

    def encode(self, text: str, pair: str | None = None, framed: bool = False) -> tuple[list[int], list[int | None]]:
        """Tokenize marked text; return the ids, and for each the number of its text, 0 or 1, or None.

        `framed` adds the tokens that the tokenizer puts around texts, such as [CLS] and [SEP].
        """
        # transformers treats an empty second text as none.
        second = self._respelled(pair) if pair else None
        encoding = self._renamed().encode(self._respelled(text), second, add_special_tokens=framed)
        return [self._ids.get(token, token) for token in encoding.ids], list(encoding.sequence_ids)

    def _respelled(self, text: str) -> str:
        text = self._any.sub(lambda match: _OURS + self._number[match[0]], text)
        return _MARK.sub(lambda match: self.tokens[int(match[1])], text)

    def _renamed(self) -> Any:
        """Return the tokenizer with other spellings of its special tokens."""
        if self._twin is None:
            from tokenizers import Tokenizer

            definition = json.loads(self._backend.to_str())
            names = {token: _OURS + number for token, number in self._number.items()}
            for token in definition["added_tokens"]:
                token["content"] = names.get(token["content"], token["content"])
            model = definition["model"]
            # Plain text may match the piece of a special token too; byte-pair encoding builds pieces by merges only.
            if isinstance(model["vocab"], list):
                model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
            elif model["type"] != "BPE" or model.get("ignore_merges"):
                model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
                if model.get("unk_token") is not None:
                    model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
            twin = Tokenizer.from_str(json.dumps(definition))
            twin.no_truncation()
            twin.no_padding()
            self._ids = {twin.token_to_id(name): self._backend.token_to_id(token) for token, name in names.items()}
            self._twin = twin
        return self._twin


def marked(text: str) -> bool:
    """Tell whether a rendered text holds a marked special token."""
    return _THEIRS in text


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, Spelling] = WeakKeyDictionary()


def spelling(tokenizer: PreTrainedTokenizerBase) -> Spelling:
    """Return the special tokens of a tokenizer, read once; a tokenizer in plain Python has no twin, and gives none."""
    if (special_tokens := _KNOWN.get(tokenizer)) is None:
        special_tokens = _KNOWN[tokenizer] = Spelling(tokenizer)
    return special_tokens
