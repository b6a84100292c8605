"""Token ids of prompts and responses. Training and scoring take them from here, so that both read the same ids.

A policy continues the generation prompt that the chat template writes. The prompt is rendered once and tokenized without
special tokens (a second BOS changes every score); the response is tokenized by itself after it, and ends in the token that
closes a turn unless it was cut. A reward model reads the ids of the whole chat as the template renders it, answer included. A
special token that is spelled in a text is text, see `spelling`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING

from seamcurate.errors import ModelError
from seamcurate.models.chat import as_turns
from seamcurate.models.protocols import Message, Prompt
from seamcurate.models.spelling import marked, spelling
from seamcurate.models.template import CLOCK, Form, FormSettings, dated, prompt_text
from seamcurate.progress import note
from seamcurate.text import brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REVISION = 3
"""Increased whenever the same text would give other ids. 2: special tokens that are spelled in a text are text. 3: a reward
model reads the ids of the whole chat, and a policy's response ends as its model ends turns."""


_SECONDS = 10.0
"""Seconds that a chat template may take for a row: it is a program that comes with the model, and may loop."""
_ANSWER = "\U000ffff0"
"""A placeholder for a response, which shows what a form writes around it; no text starts with it."""
_TURN = "\U000ffff1"
"""A placeholder for what a turn says, with its number after it: what a template does not write of it, it leaves out."""
_looked_at: set[tuple[str, str | None, tuple[str, ...]]] = set()
"""The templates, and the roles of chats, that were rendered with placeholders."""
_told: set[tuple[str, str | None, str]] = set()
"""The templates, and what was told of each."""
_TRAINED = "seamcurate_form"
"""The key of a tokenizer's configuration that says in which form `train` trained the model."""


def form_of(
    tokenizer: PreTrainedTokenizerBase, settings: FormSettings = FormSettings(), ends: Sequence[int] = ()
) -> Form:
    """Resolve how prompts and responses become text for a tokenizer.

    Args:
        tokenizer: The model's own.
        settings: The form, its arguments and its date, as far as they are set; a template that writes a date writes today's
            where none is set.
        ends: The ids that the model's generation configuration ends answers by.

    Raises:
        ModelError: The form, or its arguments, need a chat template that the tokenizer does not have.
    """
    trained = tokenizer.init_kwargs.get(_TRAINED) or {}
    name = settings.form or trained.get("form") or ("chat" if tokenizer.chat_template else "plain")
    if name != "chat":
        if settings.template:
            raise ModelError(
                f"{tokenizer.name_or_path}: `template` holds arguments of a chat template, and its prompts have the form "
                f"{name!r:.60}; leave `template` out, or set `form: chat` where the tokenizer has a chat template"
            )
        return Form(name, {}, None, tokenizer.eos_token_id)
    if not tokenizer.chat_template:
        raise ModelError(
            f"{tokenizer.name_or_path}: `form: chat` needs a chat template, and its tokenizer has none; "
            "set `form: plain`, or save a template with the tokenizer"
        )
    arguments = dict(settings.template or trained.get("template") or {})
    try:
        source = tokenizer.get_chat_template(arguments.pop("chat_template", None), arguments.get("tools"))
    except ValueError as error:
        raise ModelError(f"{tokenizer.name_or_path}: {brief(str(error), 200)}") from error
    if CLOCK in source:
        source = dated(source, settings.date or date.today())
    chat = Form(name, arguments, source)
    return chat._replace(end=_closing(tokenizer, chat, ends))


def lacks_template(tokenizer: PreTrainedTokenizerBase, settings: FormSettings = FormSettings()) -> bool:
    """Tell whether chats have no form but the default one: no chat template, and no form that was set or trained."""
    trained = tokenizer.init_kwargs.get(_TRAINED) or {}
    return not (settings.form or trained.get("form") or tokenizer.chat_template)


def remember_form(tokenizer: PreTrainedTokenizerBase, form: Form) -> None:
    """Write the form into the tokenizer's configuration, which is saved with it: by default, `form_of` then returns it."""
    tokenizer.init_kwargs[_TRAINED] = {"form": form.name, "template": dict(form.arguments)}


def _closing(tokenizer: PreTrainedTokenizerBase, form: Form, ends: Sequence[int]) -> int | None:
    """Return the first of `ends` that the template writes after an answer, else the tokenizer's EOS."""
    from jinja2 import TemplateError

    chat = [Message(role="user", content="a"), Message(role="assistant", content=_ANSWER)]
    try:
        (text,) = _applied(tokenizer, form, [chat], {})
    except TemplateError:
        text = ""
    ids = _ids(tokenizer, text.rpartition(_ANSWER)[2]) if _ANSWER in text else []
    eos: int | None = tokenizer.eos_token_id
    return next((token for token in ids if token in ends), eos)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, form: Form | None = None) -> list[int]:
    """Return the ids that a policy continues; without a chat template they start with the BOS that the tokenizer adds."""
    form = form or form_of(tokenizer)
    return _started(tokenizer, form, _with_start(tokenizer, form, _ids(tokenizer, _before(tokenizer, form, prompt))))


def policy_group(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    responses: Sequence[str],
    limit: int,
    form: Form | None = None,
) -> tuple[list[int], list[list[int]], list[bool]]:
    """Return the prompt's ids, each response's ids, and whether tokenizing both together would give other ids.

    The prompt is rendered and tokenized once for all its responses.
    """
    form = form or form_of(tokenizer)
    text = _before(tokenizer, form, prompt)
    text_ids = _ids(tokenizer, text)
    prompt_ids = _started(tokenizer, form, _with_start(tokenizer, form, text_ids))
    answers = [form.response(response) for response in map(spelling(tokenizer).hidden, responses)]
    response_ids = [_ended(ids, limit, form.end) for ids in _all_ids(tokenizer, answers)]
    start = prompt_ids[: len(prompt_ids) - len(text_ids)]
    joint = [start + ids for ids in _all_ids(tokenizer, [text + answer for answer in answers])]
    scored = [prompt_ids + ids for ids in response_ids]
    crossed = [
        joint_ids[: len(scored_ids)] != scored_ids[: len(joint_ids)]
        for joint_ids, scored_ids in zip(joint, scored, strict=True)
    ]
    return prompt_ids, response_ids, crossed


def policy_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, limit: int, form: Form | None = None
) -> tuple[list[int], list[int]]:
    """Return (prompt ids, response ids) as a causal language model is trained on and scored by."""
    form = form or form_of(tokenizer)
    response_ids = _ids(tokenizer, form.response(spelling(tokenizer).hidden(response)))
    return prompt_ids(tokenizer, prompt, form), _ended(response_ids, limit, form.end)


def reward_group(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    responses: Sequence[str],
    limit: int,
    form: Form | None = None,
) -> tuple[list[int], list[list[int] | None]]:
    """Return the ids that a reward model reads: the part that all responses share, and the rest for each response.

    Together they are the ids of the whole text: of the chat template applied to all turns and the response, or, in other
    forms, of the text with the tokens that the tokenizer puts around it. A long response loses its end, but keeps the tokens
    that close it, where a decoder's reward is read. None stands for a response whose prompt fills the window by itself.
    """
    form = form or form_of(tokenizer)
    hidden = spelling(tokenizer)
    hidden_prompt, answers = hidden.prompt(prompt), [_ANSWER, *map(hidden.hidden, responses)]
    if form.chat:
        chats = [[*as_turns(hidden_prompt), Message(role="assistant", content=answer)] for answer in answers]
        texts = _rendered(tokenizer, form, chats)
    else:
        prefix_text = form.prompt(hidden_prompt)
        texts = [prefix_text + form.response(answer) for answer in answers]
    pattern, *wholes = (_started(tokenizer, form, _framed(tokenizer, form, ids)) for ids in _all_ids(tokenizer, texts))
    if not form.closes:
        wholes = [_unclosed(ids, pattern) for ids in wholes]
    fitting = [_cut(ids, pattern, limit) for ids in wholes]
    cut_ids = [ids for ids in fitting if ids is not None]
    # Of each response at least one token must remain to be read.
    shared = min([_alike(pattern, ids) for ids in wholes] + [len(ids) - 1 for ids in cut_ids], default=len(pattern))
    return pattern[:shared], [None if ids is None else ids[shared:] for ids in fitting]


def reward_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, limit: int, form: Form | None = None
) -> list[int] | None:
    """Return the ids that a reward model reads for one response, see `reward_group`."""
    shared, (rest,) = reward_group(tokenizer, prompt, [response], limit, form)
    return None if rest is None else shared + rest


def pair_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, limit: int) -> list[int] | None:
    """Return prompt and response as two segments, as some encoder reward models were trained; None where there is no room."""
    hidden = spelling(tokenizer)
    question, answer = hidden.hidden(prompt_text(prompt)), hidden.hidden(response)
    if marked(question) or marked(answer):
        ids, segments = hidden.encode(question, answer, framed=True)
    else:
        encoded = tokenizer(question, answer, verbose=False)
        ids, segments = list(encoded["input_ids"]), encoded.sequence_ids(0)
    # Cut here and not by the tokenizer, whose truncation depends on its `truncation_side` and changes its settings.
    answer_positions = [i for i, segment in enumerate(segments) if segment == 1]
    room = limit - (len(ids) - len(answer_positions))
    if room < 1:
        return None
    left_out = set(answer_positions[room:])
    return [token for i, token in enumerate(ids) if i not in left_out]


def _before(tokenizer: PreTrainedTokenizerBase, form: Form, prompt: Prompt) -> str:
    """Render the text that a policy continues; special tokens that are spelled in the prompt are marked."""
    hidden_prompt = spelling(tokenizer).prompt(prompt)
    if not form.chat:
        return form.prompt(hidden_prompt)
    (text,) = _rendered(tokenizer, form, [as_turns(hidden_prompt)], add_generation_prompt=True)
    return text


def _with_start(tokenizer: PreTrainedTokenizerBase, form: Form, ids: list[int]) -> list[int]:
    """Put BOS before a text without a chat template, where the tokenizer would and the text does not start with it."""
    start = tokenizer.bos_token_id
    if form.chat or start is None or ids[:1] == [start] or list(tokenizer("a")["input_ids"])[:1] != [start]:
        return ids
    return [start, *ids]


def _started(tokenizer: PreTrainedTokenizerBase, form: Form, ids: list[int]) -> list[int]:
    """Put as many further BOS before a text as the form says, or take one away."""
    start = tokenizer.bos_token_id
    if not form.starts or start is None:
        return ids
    return [start] * form.starts + ids if form.starts > 0 else ids[1:] if ids[:1] == [start] else ids


def _unclosed(ids: list[int], pattern: list[int]) -> list[int]:
    """Cut off what follows an answer; `pattern` has the same ids around it."""
    start = _alike(ids, pattern)
    return ids[: len(ids) - _alike(ids[start:][::-1], pattern[start:][::-1])]


def _framed(tokenizer: PreTrainedTokenizerBase, form: Form, ids: list[int]) -> list[int]:
    """Put the tokens that mark start and end around a reward model's whole text."""
    if form.chat:
        return ids
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    if start is not None and end is not None:
        return [start, *ids, end]
    return _with_start(tokenizer, form, _ended(ids, len(ids) + 1, tokenizer.eos_token_id))


def _ended(ids: list[int], limit: int, end: int | None) -> list[int]:
    """Cut a response to `limit` ids; where nothing is cut, `end` closes it."""
    if len(ids) >= limit:
        return ids[:limit]
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _cut(ids: list[int], pattern: list[int], limit: int) -> list[int] | None:
    """Cut a response's end to fit; `pattern` has the same ids around it. None where the prompt leaves no room."""
    if len(ids) <= limit:
        return ids
    start = _alike(ids, pattern)
    close = _alike(ids[start:][::-1], pattern[start:][::-1])
    if limit - start - close < 1:
        return None
    return ids[: limit - close] + ids[len(ids) - close :]


def _alike(ids: Sequence[int], other_ids: Sequence[int]) -> int:
    """Return the length of the common start of two sequences."""
    pairs = zip(ids, other_ids, strict=False)
    return next(
        (i for i, (left_id, right_id) in enumerate(pairs) if left_id != right_id), min(len(ids), len(other_ids))
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    if marked(text):
        return spelling(tokenizer).encode(text)[0]
    # The callers cut or leave out what is too long for the window: no warning is needed.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _all_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokenize many texts in one call, which a fast tokenizer distributes over the cores."""
    if any(map(marked, texts)):
        return [_ids(tokenizer, text) for text in texts]
    return list(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]) if texts else []


def refusals() -> tuple[type[Exception], ...]:
    """Return the errors that a chat template raises for a chat that it cannot render: two user turns in a row, a system turn."""
    from jinja2 import TemplateError

    return (TemplateError,)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, form: Form, chats: Sequence[list[Message]], **options: bool
) -> list[str]:
    """Render a row's chats, which have the same roles, by the tokenizer's chat template; tell once what turns it leaves out.

    Raises:
        TemplateError: The template cannot render such a chat.
        ModelError: The template fails, takes too long, or leaves out the question or the answer.
    """
    roles = tuple(turn["role"] for turn in chats[0])
    try:
        texts = _applied(tokenizer, form, chats, options)
    except refusals() as error:
        reason = f"refuses chats such as {', '.join(roles)}, which have no score: {brief(str(error), 200)}"
        _tell(tokenizer, form, "a refusal", reason)
        raise
    if (key := (tokenizer.name_or_path, form.source, roles)) not in _looked_at:
        _tell_left_out(tokenizer, form, roles, options)
        _looked_at.add(key)
    return texts


def _tell_left_out(
    tokenizer: PreTrainedTokenizerBase, form: Form, roles: tuple[str, ...], options: Mapping[str, bool]
) -> None:
    """Tell which turns of a chat with these roles the chat template does not write.

    Raises:
        ModelError: It writes no user's turn, or not the answer.
    """
    said = [f"{_TURN}{number}{_TURN}" for number in range(len(roles))]
    marked_chat = [Message(role=role, content=text) for role, text in zip(roles, said, strict=True)]
    try:
        (text,) = _applied(tokenizer, form, [marked_chat], options)
    except refusals():
        # It refuses what these texts say, and not the roles.
        return
    missing = [number for number, turn in enumerate(said) if turn not in text]
    users = [number for number, role in enumerate(roles) if role == "user"]
    template_name = f"the chat template of {tokenizer.name_or_path}"
    if users and set(users) <= set(missing):
        raise ModelError(
            f"{template_name} writes nothing of what the user says: its turns may have to be parts, as images are, which "
            "are not read here; set `form: plain`, or save another template with the tokenizer"
        )
    if len(roles) - 1 in missing and not options.get("add_generation_prompt"):
        raise ModelError(
            f"{template_name} does not write the answer; set `form: plain`, or save another template with the tokenizer"
        )
    if missing:
        turns = " and ".join(f"turn {number + 1} ({roles[number]})" for number in missing)
        _tell(
            tokenizer,
            form,
            f"no {' or '.join(sorted({roles[number] for number in missing}))}",
            f"leaves out {turns} of chats such as {', '.join(roles)}: what is said there is not scored; take another template "
            "or form, or leave such rows out",
        )
    if options.get("add_generation_prompt"):
        _tell_headless(tokenizer, form, marked_chat, text)


def _tell_headless(tokenizer: PreTrainedTokenizerBase, form: Form, chat: list[Message], text: str) -> None:
    """Tell where `text`, which a policy continues, is a chat without the header that stands before answers elsewhere."""
    with suppress(*refusals()):
        (plain,) = _applied(tokenizer, form, [chat], {})
        (answered,) = _applied(tokenizer, form, [[*chat, Message(role="assistant", content=_ANSWER)]], {})
        before = answered.partition(_ANSWER)[0]
        if plain == text and before.startswith(text) and before != text:
            _tell(
                tokenizer,
                form,
                "no header",
                f"reads no `add_generation_prompt`: a policy continues its prompts without {before[len(text) :]!r:.80}, which "
                "stands before answers elsewhere; mend the template, or set `form`",
            )


def _tell(tokenizer: PreTrainedTokenizerBase, form: Form, what: str, message: str) -> None:
    """Warn of something that a chat template does, once a process."""
    if (key := (tokenizer.name_or_path, form.source, what)) not in _told:
        _told.add(key)
        note(f"warning: the chat template of {tokenizer.name_or_path} {message}")


def _applied(
    tokenizer: PreTrainedTokenizerBase, form: Form, chats: Sequence[list[Message]], options: Mapping[str, bool]
) -> list[str]:
    """Apply the tokenizer's chat template to chats, within the seconds that it has for a row."""
    from jinja2 import TemplateError, TemplateSyntaxError

    rendered: Future[list[str]] = Future()
    arguments = {"chat_template": form.source, "tokenize": False, **form.arguments, **options}

    def render() -> None:
        try:
            rendered.set_result([str(tokenizer.apply_chat_template(turns, **arguments)) for turns in chats])
        except BaseException as error:
            rendered.set_exception(error)

    # Not in an executor: Python waits for an executor's threads when it exits.
    threading.Thread(target=render, daemon=True).start()
    template_name = f"the chat template of {tokenizer.name_or_path}"
    try:
        return rendered.result(_SECONDS)
    except TimeoutError as error:
        raise ModelError(f"{template_name} is not done with a row after {_SECONDS:g} seconds; {_HINT}") from error
    except Exception as error:
        if isinstance(error, TemplateError) and not isinstance(error, TemplateSyntaxError):
            raise
        raise ModelError(f"{template_name} fails: {type(error).__name__}: {brief(str(error), 200)}; {_HINT}") from error


_HINT = "correct it, or take another model"
