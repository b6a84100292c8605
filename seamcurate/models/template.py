r"""How a prompt and a response become the text a model reads: its *form*.

A form is `chat` (the tokenizer's chat template), `plain`, `bare`, or a text with `{prompt}` in it. Without a chat template
it is `plain`: `Question: {prompt}\n\nAnswer: {response}` in fine-tuning, reward model and scoring alike (StackLLaMA). The
space before the answer belongs to the response: byte-level tokenizers then cut at the boundary by themselves.
"""

from __future__ import annotations

import ast
import datetime
import re
from collections.abc import Mapping
from typing import NamedTuple, Self

from pydantic import BaseModel, JsonValue, field_validator, model_validator

from seamcurate.errors import ModelError
from seamcurate.models.protocols import Prompt

CLOCK = "strftime_now"
"""The function by which a chat template reads the clock; transformers gives templates no other."""
_PLACE = "{prompt}"
_DECIDED = {
    *(
        "conversation",
        "messages",
        "tokenize",
        "add_generation_prompt",
        "continue_final_message",
        "padding",
        "truncation",
    ),
    *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    *("sanitize_control_tokens", CLOCK),
}
"""Arguments of `apply_chat_template` that scoring sets itself."""


class FormSettings(BaseModel):
    """How prompts become text, as a recipe or a trainer's options set it; `tokens.form_of` resolves the defaults."""

    form: str | None = None
    r"""`chat` is the tokenizer's chat template; `plain` is "Question: …\n\nAnswer:", and the answer after a space; `bare` is
    the prompt and nothing around it. Any other text contains `{prompt}`, and the answer follows it, after a space where it
    does not end in white space. Default: the form that `train` trained the model in, else `chat` where the tokenizer has a
    template, else `plain`."""
    template: dict[str, JsonValue] | None = None
    """Arguments of the chat template, such as `{enable_thinking: false}`."""
    date: datetime.date | None = None
    """What a chat template that writes today's date writes. Stores and trainings pin it when they begin."""

    @field_validator("form")
    @classmethod
    def _known_form(cls, form: str | None) -> str | None:
        if form is not None and form not in ("chat", "plain", "bare") and _PLACE not in form:
            raise ValueError(f"form is chat, plain, bare, or a text that contains {_PLACE}, not {form!r:.60}")
        return form

    @model_validator(mode="after")
    def _arguments_are_read(self) -> Self:
        if self.template and self.form not in (None, "chat"):
            raise ValueError(
                "template holds arguments of a chat template, and this form uses none; leave one of the two out"
            )
        if decided := sorted(_DECIDED & set(self.template or ())):
            raise ValueError(f"template: {decided[0]} is set by scoring itself; leave it out")
        return self


class Form(NamedTuple):
    r"""How prompts and responses become text for one model, all defaults resolved.

    Example:
        >>> form = Form("plain")
        >>> form.prompt("What is a set?") + form.response("A collection.")
        'Question: What is a set?\n\nAnswer: A collection.'
    """

    name: str
    """`chat`, `plain`, `bare`, or a text with `{prompt}` in it, which the response follows."""
    arguments: Mapping[str, JsonValue] = {}
    """Arguments of the chat template, such as `enable_thinking`."""
    source: str | None = None
    """The chat template, with the date that it writes; None in all other forms."""
    end: int | None = None
    """The id of the token that closes a policy's response; None where the tokenizer has none."""
    starts: int = 0
    """How many BOS there are too many, -1 for one that is missing: what a server that errs would read, see `suspects`."""
    closes: bool = True
    """Whether a reward model reads what closes the answer; a server that reads the answer's last token does not."""

    @property
    def chat(self) -> bool:
        """Tell whether a chat template renders the prompt, and with it every special token."""
        return self.name == "chat"

    def prompt(self, prompt: Prompt) -> str:
        """Render everything before the response, in a form other than `chat`.

        A list of turns becomes: in `plain`, earlier questions and answers; in `bare`, all turns' contents, a line each; in
        a text with `{prompt}`, the text once for each user's turn with the assistant's answer after it, and other turns as
        they are, an empty line between all.
        """
        if self.name == "plain":
            return plain_prompt(prompt)
        if self.name == "bare":
            return prompt_text(prompt)
        if isinstance(prompt, str):
            return self.name.replace(_PLACE, prompt)
        parts: list[str] = []
        questions: list[str] = []
        for message in prompt:
            if message["role"] == "user":
                questions.append(message["content"])
            elif message["role"] == "assistant" and questions:
                parts.append(self._question(questions) + self.response(message["content"]))
                questions = []
            else:
                parts.append(message["content"])
        return "\n\n".join([*parts, self._question(questions)])

    def response(self, response: str) -> str:
        """Render the response as it follows the prompt: after a space where the form's text does not end in white space."""
        return f" {response}" if self._spaced else response

    def generated(self, text: str) -> str:
        """Return the response in a text that a policy generated: without the space that belongs to the form."""
        return text.removeprefix(" ") if self._spaced else text

    @property
    def _spaced(self) -> bool:
        return self.name not in ("chat", "bare") and not self.name[-1].isspace()

    def _question(self, questions: list[str]) -> str:
        return self.name.replace(_PLACE, "\n\n".join(questions))


_CALL = re.compile(CLOCK + r"""\s*\(\s*(?:format\s*=\s*)?("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*\)""")
_ASKED = re.compile(CLOCK + r"\s+is\s+(?:not\s+)?defined")


def dated(source: str, day: datetime.date) -> str:
    """Write a day into a chat template wherever it reads the clock; its times of day become midnight.

    Raises:
        ModelError: The template calls the clock with something other than a format in quotes.
    """
    midnight = datetime.datetime.combine(day, datetime.time())
    source = _CALL.sub(lambda match: repr(midnight.strftime(ast.literal_eval(match[1]))), source)
    if CLOCK in _ASKED.sub("", source):
        raise ModelError(
            f"the chat template calls {CLOCK} with something else than a format in quotes, so that its date cannot be "
            "pinned; write the format into the template, or give the model another `form`"
        )
    return source


def plain_prompt(prompt: Prompt) -> str:
    """Render everything before the response; earlier chat turns become earlier questions and answers."""
    if isinstance(prompt, str):
        return f"Question: {prompt}\n\nAnswer:"
    parts: list[str] = []
    for message in prompt:
        if message["role"] == "assistant":
            parts.append(f"Answer: {message['content']}")
        elif message["role"] == "system":
            parts.append(message["content"])
        else:
            parts.append(f"Question: {message['content']}")
    return "\n\n".join([*parts, "Answer:"])


def plain_response(response: str) -> str:
    """Render the response as it follows `plain_prompt`."""
    return f" {response}"


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as an encoder or a person reads it: the text itself, or all turns' contents, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
