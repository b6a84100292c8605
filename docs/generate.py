"""Write what follows from other files: `python docs/generate.py`.

The pages of docs/reference come from the code; the contents in `mkdocs.yml` and `docs/llms.txt` from `docs/index.md`;
notebooks from the tutorials. One rule: what is written holds only what these say, so that it is the same on every machine. The tests write each file in
memory and compare.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
import tempfile
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
import website
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic.fields import FieldInfo

import seamcurate
from seamcurate import FakeModel, RewardEnsemble, Truth, errors
from seamcurate.cli import app
from seamcurate.data.source import REJECTED
from seamcurate.explore.inline import Explorer
from seamcurate.models.backend import Backend, NamedModel
from seamcurate.publish.diff import Difference
from seamcurate.publish.export import Exported
from seamcurate.publish.hub import Pushed
from seamcurate.publish.reproduce import Reproduced
from seamcurate.run.draft import Draft
from seamcurate.run.integrity import CheckResult
from seamcurate.run.local import Report
from seamcurate.run.plan import Plan
from seamcurate.run.recipe import STEPS
from seamcurate.score import measured
from seamcurate.select import views
from seamcurate.select.answer import Answer
from seamcurate.select.ledger import Ledger
from seamcurate.step import SAMPLE_SETS, Step
from seamcurate.store import store as stores
from seamcurate.study import STUDIES

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py from the code. Change the code, then run `python docs/generate.py`. -->"
UNFORMATTED = "<!-- fmt: off -->"
"""Lets ruff leave the examples as they stand in the docstrings."""


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────────────────


def prose(text: str) -> str:
    """Return plain text as Markdown that shows it as it is; what stands between backticks is code already."""
    parts = re.split(r"(`[^`]*`|\*\*[^*]+\*\*|(?<!\S)\*[a-z]+\*(?!\S))", text)
    return "".join(
        piece if piece.startswith("`") or re.fullmatch(r"\*.+\*", piece) else re.sub(r"([*<\[\]])", r"\\\1", piece)
        for piece in parts
    )


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", r"\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def code(text: str) -> str:
    """Return text as inline code, also where it holds a backtick; nothing for nothing."""
    return f"`{text}`" if text else ""


def page(title: str, *parts: str) -> str:
    """Return a page of Markdown."""
    return (
        "\n\n".join([f"# {title}", NOTE, UNFORMATTED, *(piece.strip("\n") for piece in parts if piece.strip())]) + "\n"
    )


def sentence(text: str) -> str:
    """Return text with a capital first letter and a full stop."""
    text = re.sub(r"\s+", " ", text).strip()
    first_word = text.split(" ", 1)[0]
    return (text[:1].upper() + text[1:] if first_word.isalpha() else text) + (
        "" if not text or text[-1] in ".!?…`)" else "."
    )


slug = website.slug


_SECTION = re.compile(r"(Args|Arguments|Returns|Yields|Raises|Example|Examples|Note):\s*(.*)")
_SECTION_TITLES = {"Args": "Arguments", "Examples": "Example"}


def docstring(value: object, arguments: bool = True) -> str:
    """Return a docstring as Markdown: sections become bold titles, `name: meaning` lines a list, examples code.

    Args:
        value: What has the docstring.
        arguments: Write the arguments too; a page that has a table of them leaves them out.
    """
    parts: list[str] = []
    lines = (inspect.getdoc(value) or "").splitlines()
    while lines:
        line = lines.pop(0)
        if not line.strip():
            continue  # a blank line ends a paragraph, and begins none
        if (section := _SECTION.fullmatch(line)) is None:
            indented = line.startswith("    ")
            block = [line]
            while (
                lines
                and lines[0].strip()
                and lines[0].startswith("    ") == indented
                and not _SECTION.fullmatch(lines[0])
            ):
                block.append(lines.pop(0))
            if indented:
                parts.append("```text\n" + textwrap.dedent("\n".join(block)) + "\n```")
            else:
                parts.append(_paragraph(block))
            continue
        body: list[str] = [section[2]] if section[2] else []
        while lines and (not lines[0].strip() or lines[0].startswith("    ")):
            body.append(lines.pop(0))
        if section[1] in ("Args", "Arguments") and not arguments:
            continue
        parts.append(_section(section[1], textwrap.dedent("\n".join(body)).strip("\n")))
    return "\n\n".join(parts)


def _paragraph(lines: Sequence[str]) -> str:
    if lines[0].startswith(("- ", "* ")):
        return prose("\n".join(lines)).replace(r"\* ", "* ")
    return prose("\n".join(lines))


def _section(name: str, body: str) -> str:
    title = f"**{_SECTION_TITLES.get(name, name)}**"
    if title == "**Example**":
        return f"{title}\n\n```{'pycon' if '>>>' in body else 'python no-run'}\n{body}\n```"
    items = re.split(r"\n(?=\S)", body)
    if all(re.match(r"[\w.*]+: ", item) for item in items):
        listed = []
        for item in items:
            key, meaning = item.split(": ", 1)
            listed.append(f"- `{key.lstrip('*')}`: {prose(' '.join(meaning.split()))}")
        return title + "\n\n" + "\n".join(listed)
    return title + "\n\n" + prose(body)


# ── Types and fields ─────────────────────────────────────────────────────────────────────────────────────

_PLAIN_TYPES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    type(None): "none",
}
_SECTIONS = {
    "Source": "[source](#rows-and-corpus)",
    "Criterion": "criteria of `name`, `text`, `weight` and `scale`",
    "Models": "[models](#models)",
    "Step": "[step](#steps)",
    "Split": "[split](#splits)",
    "Augment": "[augment](#augment)",
    "Order": "[order](#order)",
    "AtMost": "[at_most](#at_most)",
    "Balance": "[balance](#balance)",
    "Distribution": "[shape](#shape)",
    "date": "date",
}
"""Types with a section of their own on the page of recipes."""


def type_name(annotation: Any) -> str:
    """Return a type in words, the same in every version of Python."""
    if annotation is JsonValue:
        return "any value"
    if isinstance(annotation, type(JsonValue)):
        annotation = annotation.__value__
    if isinstance(annotation, type) and annotation in _PLAIN_TYPES:
        return _PLAIN_TYPES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " or ".join(code(str(value)) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        named = [type_name(piece) for piece in arguments if piece is not type(None)]
        # A fake stands in for each kind of model; it has a section of its own.
        return " or ".join(dict.fromkeys(named))
    if origin in (list, tuple, Sequence, frozenset, set):
        inner = [type_name(piece) for piece in arguments if piece is not Ellipsis]
        return f"list of {inner[0]}" if len(set(inner)) == 1 and len(inner) < 2 else f"[{', '.join(inner)}]"
    if origin in (dict, Mapping):
        return f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Backend):
        return f"[{annotation.key}](#{slug(model_heading(annotation))})"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(code(str(member.value)) for member in annotation)
    name = getattr(annotation, "__name__", None) or str(annotation)
    return _SECTIONS.get(name, "any value" if annotation is Any else name)


def model_heading(kind: type[Backend]) -> str:
    """Return the heading of a kind of model on the page of recipes: its key, told apart from a step of the same name."""
    return f"{kind.key} as a reward model" if kind.key in STEPS else kind.key


_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def bounds(metadata: Iterable[object]) -> str:
    """Return what a number must lie between."""
    constraints = [
        (sign, getattr(item, key)) for item in metadata for key, sign in _BOUNDS.items() if hasattr(item, key)
    ]
    return ", ".join(f"{sign} {_number(value)}" for sign, value in constraints)


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def literal(value: object) -> str:
    """Return a default as YAML writes it."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Path):
        value = value.as_posix()
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value):
        return value
    return json.dumps(value, ensure_ascii=False, default=list)


def argument_docs(value: object) -> dict[str, str]:
    """Return the meaning of each argument that a docstring has under `Args:`."""
    section = re.search(r"^Args:\n((?: {4}.*\n?)*)", inspect.getdoc(value) or "", re.MULTILINE)
    return dict(re.findall(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", section[1] if section else "", re.MULTILINE))


def field_docs(kind: type[BaseModel]) -> dict[str, str]:
    """Return the meaning of each field of a model: what its class's `Args:` say, the docstring under it, or its `description`.

    A class's own come before its base's.
    """
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        # `Served[CausalLM]`, a generic class with its argument, has no source of its own; `Served` has.
        if not issubclass(base, BaseModel) or base is BaseModel or base.__pydantic_generic_metadata__["origin"]:
            continue
        docs |= argument_docs(base) if base.__doc__ else {}
        docs |= {name: meaning for (owner, name), meaning in OF_FIELDS.items() if owner == base.__name__}
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for statement, next_statement in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(next_statement, ast.Expr)
                and isinstance(next_statement.value, ast.Constant)
            ):
                docs[statement.target.id] = str(next_statement.value.value)
    docs |= {name: field.description for name, field in kind.model_fields.items() if field.description}
    return docs


OF_FIELDS = {
    ("FakeModel", "path"): "A seed: fakes of different seeds answer differently.",
    ("OpenAIServer", "path"): "The model's name at the endpoint.",
    ("ModelReward", "reward"): "The reward model.",
    ("RerReward", "reward"): "RER, or the features that are multiplied: `li`, `rp`, `ar` and their products.",
}
"""What fields mean that have no docstring in their class; a docstring there takes precedence."""

_OF_ROLES = {
    "policy": "The policy; without one, the recipe's `models: policy`.",
    "reward": "The reward model; without one, the recipe's `models: reward`.",
    "encoder": "The sentence encoder; without one, the recipe's `models: encoder`.",
    "base": "The base model; without one, the recipe's `models: base`.",
    "generator": "The language model; without one, the recipe's `models: generator`.",
    "judge": "The language model; without one, the recipe's `models: judge`.",
}
_OF_EVERY_STEP = {
    "k": "Candidates a row has at most.",
    "variant": "The sample set: `contrast` is retrieved, `gpt` generated, `adv` attacked, `policy` sampled, `probe` of an audit, `given` the source's own.",
    "words": "How text is split into words: words and punctuation marks, or at white space.",
    "stop": "Texts that end a response; it is cut before the first of them.",
    "seed": "Seed of everything random.",
    "temperature": "Sampling temperature; left out, the server's own.",
    "top_p": "Nucleus sampling; left out, the server's own.",
    "concurrency": "Requests in the air at once.",
    "requests_per_minute": "Requests sent in a minute at most.",
    "tokens_per_minute": "Tokens sent and written in a minute at most.",
    "retries": "How often a request that failed is sent again.",
    "usd_per_million_input": "Price of a million tokens that are sent, in dollars.",
    "usd_per_million_output": "Price of a million tokens that are written, in dollars.",
    "batch_discount": "Share of the price that the Batch API takes off.",
    "dimensions": "Length of the fake's embeddings.",
    "method": "The attack: PWWS, TextFooler, BERT-Attack or the genetic algorithm.",
    "max_response_tokens": "Tokens of the longest response: F maps AR to the range from 0 to this / 100.",
    "combine": "How the features become one reward: their product, as in the paper, or their sum.",
    "clip": "Whether F(AR) is held inside the range from 0 to `max_response_tokens` / 100.",
    "fallback": "What takes the place of AR where a closed-ended query has no reference; without it RER is NULL there.",
    "band": "Lowest and highest cosine similarity of a candidate's prompt to the row's.",
    "bands": "Bands of the golden reward.",
    "likelihood": "How a candidate is weighed: by exp(log P / length), by −log P / length, by P, or all alike.",
}


def fields(kind: type[BaseModel]) -> list[list[str]]:
    """Return key, type, default and meaning of each field of a configuration."""
    docs = field_docs(kind)
    rows = []
    for name, field in kind.model_fields.items():
        key = kind.key if issubclass(kind, NamedModel) and name == "path" else name
        meaning = docs.get(name)
        if meaning is None:
            meaning = (_OF_ROLES.get(name) if issubclass(kind, Step) else None) or _OF_EVERY_STEP.get(name)
        if meaning is None:
            raise LookupError(f"{kind.__name__}.{name} has no meaning: write a docstring under the field")
        rows.append([code(key), field_type(field), default(field), prose(sentence(meaning))])
    return rows


def field_type(field: FieldInfo) -> str:
    """Return a field's type and bounds in words."""
    limits = bounds(field.metadata)
    return type_name(field.annotation) + (f", {limits}" if limits else "")


def default(field: FieldInfo) -> str:
    """Return a field's default."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    return "" if value is None or value in ((), {}, "") or isinstance(value, BaseModel) else code(literal(value))


# ── Command line ─────────────────────────────────────────────────────────────────────────────────────────


def command_line() -> str:
    """Return the page of every command, its arguments and options."""
    parts, rows = [], []
    for verb, parameters, help_text in commands(app):
        summary, _, details = help_text.partition("\n\n")
        rows.append([f"[`{verb}`](#{slug(verb)})", prose(sentence(summary))])
        parts.append(_command(verb, parameters, sentence(summary), details))
    introduction = (
        "Every command prints its answer to standard output, and progress and errors to standard error. "
        "`seamcurate COMMAND --help` shows the same text. [Exit codes](errors.md#exit-codes) are on the page of errors."
    )
    return page("Command line", introduction, table(["command", "what it does"], rows), *parts)


def commands(group: Any, prefix: str = "seamcurate") -> Iterator[tuple[str, dict[str, Any], str]]:
    """Iterate over the commands of a Typer application: name, parameters, help."""
    from typer.utils import get_params_from_function

    for command in group.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        parameters = get_params_from_function(command.callback)
        if fields := getattr(command.cls, "options", None):
            parameters |= get_params_from_function(fields())
        yield f"{prefix} {name}", parameters, inspect.cleandoc(command.help or command.callback.__doc__ or "")
    for inner in group.registered_groups:
        yield from commands(inner.typer_instance, f"{prefix} {inner.name}")


def _command(verb: str, parameters: dict[str, Any], summary: str, details: str) -> str:
    arguments, options, usage = [], [], [verb]
    for parameter in parameters.values():
        info = parameter.default
        if not hasattr(info, "help"):
            continue  # the context, which nobody types
        # A parameter without typer.Option is an option where it has a default.
        required = info.default is ... or info.default is inspect.Parameter.empty
        kind, annotation = type_name(parameter.annotation), parameter.annotation
        limits = ", ".join(
            f"{sign} {_number(value)}" for sign, value in (("≥", info.min), ("≤", info.max)) if value is not None
        )
        kind += f", {limits}" if limits else ""
        shown = "" if required or info.default in (None, False, ()) else code(literal(info.default))
        meaning = prose(sentence(info.help or ""))
        if type(info).__name__ == "ArgumentInfo":
            name = (info.metavar or parameter.name).strip("[]").upper()
            usage.append(name if required else f"[{name}]")
            arguments.append([code(name), kind, "**required**" if required else shown, meaning])
            continue
        names = [text for text in info.param_decls or () if text.startswith("-")]
        flag = annotation is bool
        if not names:
            dashed = "--" + parameter.name.replace("_", "-")
            names = [f"{dashed}/--no-{dashed[2:]}" if flag else dashed]
        if flag and info.default is True:
            shown = code(names[0].split("/")[0])
        metavar = info.metavar or ("" if flag or "`" in kind else parameter.name.upper())
        if required:
            usage.append(f"{names[0]} {metavar or '…'}")
        options.append(
            [", ".join(map(code, names)), "" if flag else kind, "**required**" if required else shown, meaning]
        )
    usage += ["[OPTIONS]"] if any(row[2] != "**required**" for row in options) else []
    examples = re.findall(r"^Example: (.*)$", details, re.MULTILINE)
    explanation = re.sub(r"^Example: .*$", "", details, flags=re.MULTILINE).strip()
    parts = [f"## {verb}", prose(summary), f"```text\n{' '.join(usage)}\n```", prose(explanation)]
    parts += [table(["argument", "type", "default", "meaning"], arguments)] if arguments else []
    parts += [table(["option", "type", "default", "meaning"], options)] if options else []
    parts += ["Example:\n\n```sh\n" + "\n".join(examples) + "\n```"] if examples else []
    return "\n\n".join(piece for piece in parts if piece)


# ── Python ───────────────────────────────────────────────────────────────────────────────────────────────


RESULTS = (Report, Plan, Draft, CheckResult, Answer, Ledger, Explorer, Exported, Pushed, Reproduced, Difference)
"""What public functions return and is no public name."""


def python() -> str:
    """Return the page of every public name."""
    names = [name for name in seamcurate.__all__ if not name.startswith("_")]
    kinds: dict[str, list[str]] = {"Functions": [], "Steps": [], "Models": [], "Recipe, data and rewards": []}
    for name in names:
        value = getattr(seamcurate, name)
        if not isinstance(value, type):
            kinds["Functions"].append(name)
        elif issubclass(value, Step):
            kinds["Steps"].append(name)
        elif issubclass(value, Backend):
            kinds["Models"].append(name)
        else:
            kinds["Recipe, data and rewards"].append(name)
    anchors: dict[str, str] = {}
    for name in names:
        earlier = sum(slug(heading) == slug(name) for heading in anchors)
        anchors[name] = slug(name) + (f"-{earlier}" if earlier else "")
    rows = [[kind, ", ".join(f"[`{name}`](#{anchors[name]})" for name in listed)] for kind, listed in kinds.items()]
    rows.append(["Results", ", ".join(f"[`{kind.__name__}`](#{slug(kind.__name__)})" for kind in RESULTS)])
    introduction = (
        "Everything is imported from `seamcurate`, but for the [results](#results), which functions return. What a step or a model "
        "takes is the same in Python and in a recipe; [recipe.md](recipe.md) has each key's meaning, [columns.md](columns.md) the "
        "columns of each step. Arguments after `*` are given by name."
    )
    places = {name: f"#{anchor}" for name, anchor in anchors.items()}
    places |= {kind.__name__: f"#{slug(kind.__name__)}" for kind in RESULTS}
    places |= {name: f"errors.md#{slug(name)}" for name in error_texts() if name not in _OTHER_TEXTS}
    results = "## Results\n\nWhat functions and methods return."
    parts = [_public_name(name) for name in names] + [results, *map(_result, RESULTS)]
    return page("Python", introduction, table(["", "names"], rows), *(_linked(part, places) for part in parts))


def _public_name(name: str) -> str:
    value = getattr(seamcurate, name)
    signature = _signature(name, value)
    has_table = isinstance(value, type) and issubclass(value, BaseModel) and not issubclass(value, Step)
    parts = [f"## {name}", f"```text\n{signature}\n```", docstring(value, arguments=not has_table)]
    if isinstance(value, type) and issubclass(value, Step) and value is not Step:
        parts.append(_links(value))
    elif has_table:
        parts += [table(["field", "type", "default", "meaning"], fields_of(value))]
    if value is seamcurate.Store:
        parts += [_store_method(method) for method in STORE_METHODS]
    elif isinstance(value, type) and not (issubclass(value, (Step, Backend, Exception)) and value is not Step):
        methods = list(_methods(value))
        parts += ["**Methods and properties**", "\n".join(methods)] if methods else []
    return "\n\n".join(piece for piece in [*parts[:2], _source(value), *parts[2:]] if piece)


def _source(value: Any) -> str:
    """Return where a public name is written; a result that it returns, too."""
    file = Path(inspect.getsourcefile(value) or "").relative_to(ROOT).as_posix()
    returned = getattr(value, "__annotations__", {}).get("return", "") if inspect.isfunction(value) else ""
    result = f"Returns: [`{returned}`](#{slug(returned)}). " if returned in {kind.__name__ for kind in RESULTS} else ""
    return f"{result}Source: [{file}](../../{file})."


def _linked(text: str, places: Mapping[str, str]) -> str:
    """Link names in a section to their own sections, and errors to their messages; code blocks stay as they are."""
    own = re.match(r"#+ (\w+)", text)

    def link(match: re.Match[str]) -> str:
        before, name = match[1], match[2]
        if name in places and name != (own and own[1]) and (name[0].isupper() or before):
            return f"{before}[`{name}`]({places[name]})"
        return match[0]

    parts = re.split(r"^(```.*\n(?:.*\n)*?```)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"((?:\b[Ss]ee )?)(?<!\[)`([A-Za-z_]+)`(?!\])", link, part) for part in parts[::2]]
    return "".join(piece for pair in zip(plain, [*parts[1::2], ""], strict=True) for piece in pair)


def _result(kind: type) -> str:
    parts = [f"### {kind.__name__}", _source(kind), docstring(kind)]
    if fields := vars(kind).get("_fields"):
        types_of_fields = {name: kind.__annotations__[name].__forward_arg__ for name in fields}
        meanings = _documented(kind)
        rows = [[code(name), code(types_of_fields[name]), prose(sentence(meanings[name]))] for name in fields]
        parts.append(table(["field", "type", "meaning"], rows))
    methods = list(_methods(kind))
    parts += ["**Methods and properties**", "\n".join(methods)] if methods else []
    return "\n\n".join(parts)


def _documented(kind: type) -> dict[str, str]:
    """Return the docstrings under the fields of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: str(text.value.value)
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def fields_of(kind: type[BaseModel]) -> list[list[str]]:
    """Return the fields of a configuration, with links to the recipe's page in place of those on this one."""
    rows = [[row[0], row[1].replace("(#", "(recipe.md#"), *row[2:]] for row in fields(kind)]
    for row in rows:
        if issubclass(kind, NamedModel) and row[0] == code(kind.key):
            row[0] = code("path")
    return rows


def _links(kind: type[Step]) -> str:
    keys = [key for key, maker in STEPS.items() if maker is kind]
    recipe = f"In a recipe: [`{keys[0]}`](recipe.md#{slug(keys[0])}). " if keys else ""
    return f"{recipe}Columns: [{kind.__name__}](columns.md#{slug(kind.__name__)})."


STORE_METHODS = (
    "sql",
    "ledger",
    "scan",
    "explore",
    "open",
    "columns",
    "schema",
    "facts",
    "noise",
    "table",
    "rows",
    "corpus",
    "corpus_store",
)
"""What a reader of a store needs; its other methods serve runs."""


def _store_method(name: str) -> str:
    member = inspect.getattr_static(seamcurate.Store, name)
    if isinstance(member, property):
        return f"### Store.{name}\n\n{docstring(member)}"
    return f"### Store.{name}\n\n```text\n{_signature(name, member)}\n```\n\n{docstring(member)}"


def _methods(kind: type) -> Iterator[str]:
    for name in vars(kind):
        member = inspect.getattr_static(kind, name)
        inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if name.startswith("_") or name == "model_config" or not inspect.isfunction(inner) or not inner.__doc__:
            continue
        if hasattr(inner, "decorator_info") or "validator" in type(member).__name__.lower():
            continue
        shown = name if isinstance(member, property) else _signature(name, inner, method=True)
        yield f"- `{shown}`: {prose(sentence(inspect.cleandoc(inner.__doc__).split(chr(10) + chr(10))[0]))}"


def _signature(name: str, value: Any, method: bool = False) -> str:
    if isinstance(value, type) and issubclass(value, BaseModel):
        listed = []
        for key, field in value.model_fields.items():
            if field.is_required():
                listed.append(key)
            else:
                shown = field.get_default(call_default_factory=True)
                listed.append(f"{key}={type(shown).__name__ + '()' if isinstance(shown, BaseModel) else repr(shown)}")
        return _wrapped(name, ["*", *listed] if listed else [])
    if isinstance(value, type) and issubclass(value, Exception):
        return f"{name}(message)"
    function = value.__init__ if isinstance(value, type) else value
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    arguments = tree.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    listed = [piece.strip() for piece in _split(ast.unparse(arguments))]
    returns = f" -> {ast.unparse(tree.returns)}" if tree.returns and not isinstance(value, type) else ""
    joined = f"{name}({', '.join(listed)}){returns}"
    return joined if method else _wrapped(name, listed, returns)


def _split(text: str) -> list[str]:
    """Split arguments at the commas that lie in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [piece for piece in parts if piece.strip()]


def _wrapped(name: str, arguments: Sequence[str], returns: str = "") -> str:
    line = f"{name}({', '.join(arguments)}){returns}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){returns}"


# ── Recipe ───────────────────────────────────────────────────────────────────────────────────────────────

_MODEL_KINDS = (
    "CausalLM",
    "CompletionServer",
    "SequenceClassifier",
    "RewardFunction",
    "JudgeModel",
    "RubricModel",
    "RewardEnsemble",
    "SentenceEncoder",
    "EmbeddingServer",
    "RewardServer",
    "OpenAIServer",
    "FakeModel",
)
_HEAD = ["key", "type", "default", "meaning"]


def recipe() -> str:
    """Return the page of a recipe's keys."""
    introduction = (
        "A recipe is a YAML file. `seamcurate run RECIPE STORE` makes what it says. "
        "Paths in it are relative to its folder. An unknown key is refused, with the nearest that there is."
    )
    parts = [
        _keys("A recipe", seamcurate.Recipe),
        _keys("rows and corpus", seamcurate.Source),
        _keys("models", seamcurate.Models),
    ]
    kinds = [getattr(seamcurate, name) for name in _MODEL_KINDS]
    parts += [_keys(model_heading(kind), kind, 3) for kind in kinds]
    parts.append(
        "## steps\n\nA step is one name with its settings, such as `- retrieve: {k: 30}`. "
        "The columns of each are in [columns.md](columns.md).\n\n"
        + table(
            ["step", "what it does"], [[f"[`{key}`](#{slug(key)})", _first_line(maker)] for key, maker in STEPS.items()]
        )
    )
    parts += [_step(key, maker) for key, maker in STEPS.items()]
    parts.append(
        _keys("splits", seamcurate.Split)
        + "\n\nEvery further key is a parameter of the filter: `{by}` in the SQL stands for a column that the key `by` names, "
        "`$rate` for the value of the key `rate`. A line `-- default rate = 0.2` in the SQL gives a default."
    )
    parts.append(_keys("augment", seamcurate.Augment, 3))
    parts.append(_keys("order", seamcurate.Order, 3))
    parts.append(_keys("at_most", seamcurate.AtMost, 3))
    parts.append(_keys("balance", seamcurate.Balance, 3))
    parts.append(_keys("shape", seamcurate.Distribution, 3))
    return page("Recipe", introduction, *parts)


def _keys(title: str, kind: type[BaseModel], level: int = 2) -> str:
    return f"{'#' * level} {title}\n\n{docstring(kind, arguments=False)}\n\n{table(_HEAD, fields(kind))}"


def _first_line(maker: object) -> str:
    return prose(re.sub(r"\s+", " ", (inspect.getdoc(maker) or "").split("\n\n")[0]))


def _step(key: str, maker: Callable[..., Step | tuple[Step, ...]]) -> str:
    if isinstance(maker, type):
        rows = fields(maker) or [["", "", "", "No settings."]]
        links = f"Columns: [{maker.__name__}](columns.md#{slug(maker.__name__)})."
        return f"### {key}\n\n{docstring(maker, arguments=False)}\n\n{links}\n\n{table(_HEAD, rows)}"
    steps = maker(**_required(maker))
    assert isinstance(steps, tuple)
    parts = dict.fromkeys(type(step) for step in every_step(maker))
    known = {name: row for kind in reversed(parts) for name, row in zip(kind.model_fields, fields(kind), strict=True)}
    documented = argument_docs(maker)
    rows = []
    for name, parameter in inspect.signature(maker).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        shown = "" if required or parameter.default in (None, ()) else code(literal(parameter.default))
        shown = "**required**" if required else shown
        if name in known:
            rows.append([code(name), known[name][1], shown, known[name][3]])
        else:
            meaning = documented.get(name) or _OF_EVERY_STEP.get(name)
            if meaning is None:
                raise LookupError(f"{key}.{name} has no meaning: write it under `Args:` of the function")
            rows.append([code(name), type_name(typing.get_type_hints(maker)[name]), shown, prose(sentence(meaning))])
    listed = ", ".join(f"[{kind.__name__}](columns.md#{slug(kind.__name__)})" for kind in parts)
    return f"### {key}\n\n{docstring(maker, arguments=False)}\n\nStands for the steps {listed}.\n\n{table(_HEAD, rows)}"


# ── Columns ──────────────────────────────────────────────────────────────────────────────────────────────


def arrow_name(kind: pa.DataType) -> str:
    """Return an Arrow type in words, the same in every version of pyarrow."""
    if pa.types.is_list(kind):
        return f"list of {arrow_name(kind.value_type)}"
    if pa.types.is_struct(kind):
        return (
            "{"
            + ", ".join(f"{kind.field(i).name}: {arrow_name(kind.field(i).type)}" for i in range(kind.num_fields))
            + "}"
        )
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


_EXAMPLES: dict[str, object] = {"to": seamcurate.Source(jsonl="test.jsonl"), "name": "test"}
"""Values of required settings of functions of steps."""
_FREE = {"variant": "{variant}", "truth": "COLUMN", "set_name": "{name}"}
"""Settings that stand in names and meanings as what they are."""


def choices(kind: type[BaseModel]) -> Iterator[tuple[str, object]]:
    """Iterate over the settings of a step that have few values: each with every value but its default."""
    for name, field in kind.model_fields.items():
        if name in _FREE:
            continue
        annotation = field.annotation
        values: list[object] = [True, False] if annotation is bool else []
        for piece in [annotation, *get_args(annotation)]:
            values += get_args(piece) if get_origin(piece) is typing.Literal else []
        yield from ((name, value) for value in values if value != field.get_default())


def bare(kind: type[Step], **settings: object) -> Step:
    """Return a step for its declarations alone: a required setting is the name it is given in the docs."""
    required = {name: _FREE.get(name, name.upper()) for name, field in kind.model_fields.items() if field.is_required()}
    # A setting of this name that is a model has a default, None.
    free = {name: value for name, value in _FREE.items() if name in kind.model_fields and kind is not Truth}
    return kind.model_construct(None, **{**required, **free, **settings})


def _required(maker: Callable[..., Step | tuple[Step, ...]]) -> dict[str, object]:
    """Return values for the settings that a function of steps requires, for the declarations of its steps alone."""
    parameters = inspect.signature(maker).parameters.items()
    return {name: _EXAMPLES[name] for name, parameter in parameters if parameter.default is inspect.Parameter.empty}


def every_step(maker: Callable[..., Step | tuple[Step, ...]]) -> list[Step]:
    """Return the steps that a recipe's name can stand for, whatever its settings."""
    if isinstance(maker, type):
        return [bare(maker)]
    steps = list(typing.cast(tuple[Step, ...], maker(**_required(maker))))
    hints = typing.get_type_hints(maker)
    for name, parameter in inspect.signature(maker).parameters.items():
        values = (
            [FakeModel()]
            if name == "truth"
            else [True, False]
            if hints[name] is bool
            else get_args(hints[name])
            if get_origin(hints[name]) is typing.Literal
            else []
        )
        for value in values:
            if value == parameter.default:
                continue
            steps += [
                step
                for step in typing.cast(tuple[Step, ...], maker(**_required(maker), **{name: value}))
                if type(step) not in map(type, steps)
            ]
    return steps


class _WithOutputs(FakeModel):
    def output_names(self) -> tuple[str, ...]:
        return ("{output}",)


class _WithReasons(FakeModel):
    def gives_reasons(self) -> bool:
        return True


class _Binary(FakeModel):
    def is_binary(self) -> bool:
        return True


_REWARDS = {
    "a reward model that has further outputs": _WithOutputs(),
    "a reward model that gives reasons, such as a function or a judge": _WithReasons(),
    "rewards of 0 and 1": _Binary(),
    "an ensemble": RewardEnsemble(ensemble=(FakeModel(path="first"), FakeModel(path="second"))),
}
"""Reward models that add columns, by what the docs call them."""


def step_columns(kind: type[Step]) -> list[list[str]]:
    """Return name, type and meaning of each column a step adds, also of those that a setting or a kind of reward model adds."""
    rows: dict[str, list[str]] = {}
    settings_by_condition: list[tuple[str, dict[str, object]]] = [("", {})]
    for name, value in choices(kind):
        settings_by_condition.append((f"only with `{name}: {literal(value)}`", {name: value}))
    if "reward" in kind.model_fields:
        settings_by_condition += [(f"only with {words}", {"reward": model}) for words, model in _REWARDS.items()]
    if kind is Truth:
        settings_by_condition.append(("only with a truth that gives reasons", {"truth": _WithReasons()}))
    if "variant" in kind.model_fields:
        settings_by_condition += [
            (f"only for `{each.name}`", {"variant": each.name}) for each in SAMPLE_SETS if each.sampled
        ]
    for condition, settings in settings_by_condition:
        try:
            schema = bare(kind, **settings).adds
        except (ValidationError, ValueError, KeyError):
            continue
        for field in schema:
            general = field.name.replace(str(settings.get("variant", "{variant}")), "{variant}")
            if field.name not in rows and general not in rows:
                meaning = (field.metadata or {}).get(b"meaning", b"").decode()
                rows[field.name] = [
                    code(field.name),
                    arrow_name(field.type),
                    prose(meaning) + (f"; {condition}" if condition else ""),
                ]
    return list(rows.values())


SOURCE_COLUMNS = [
    ["`row_id`", "int64", "the row's place in its source, from 0; it never changes"],
    ["`prompt`", "string, or messages", "the prompt"],
    ["`response`", "string", "the golden response r; NULL where the source has none"],
    ["`reference`", "string", "the reference; NULL where the source has none"],
    ["others", "as in the source", "every other column of the source, under its own name"],
]


def columns() -> str:
    """Return the page of every step's columns."""
    kinds: dict[type[Step], list[str]] = {}
    for key, maker in STEPS.items():
        for step in every_step(maker):
            kinds.setdefault(type(step), []).append(key)
            for corpus_step in step.on_corpus:
                kinds.setdefault(type(corpus_step), [])
    sets = ", ".join(f"`{each.name}` ({each.meaning})" for each in SAMPLE_SETS)
    introduction = (
        "A step adds columns and changes nothing else. `seamcurate columns STORE` lists the columns of a store with how "
        f"much of each is computed. `{{variant}}` is a sample set: {sets}. "
        "A column is NULL where a row has no value: no candidate, a prompt that fills the model's window, or a score that "
        "is not finite."
    )
    parts = [introduction, "## Source\n\n" + table(["column", "type", "meaning"], SOURCE_COLUMNS)]
    for kind in sorted(kinds, key=lambda step: step.__name__):
        names = kinds[kind]
        makers = ", ".join(f"[`{key}`](recipe.md#{slug(key)})" for key in names)
        added = f"Added by {makers}." if makers else "Runs over the corpus, for the steps that retrieve from it."
        parts.append(
            f"## {kind.__name__}\n\n{_first_line(kind)}\n\n{added}\n\n{table(['column', 'type', 'meaning'], step_columns(kind))}"
        )
    return page("Columns", *parts, found_columns())


def found_columns() -> str:
    """Return what columns were measured to find, as a section."""
    by_column: dict[str, dict[str, str]] = {}
    for one in measured.every():
        shown = f"{one.auc:.2f} ({one.low:.2f} to {one.high:.2f})"
        by_column.setdefault(one.column, {})[one.place] = f"{shown}: {one.doubt}" if one.doubt else shown
    places = [place for place in measured.PLACES if any(place in found for found in by_column.values())]
    rows = [[code(name), *(found.get(place, "–") for place in places)] for name, found in by_column.items()]
    return (
        "## What columns were measured to find\n\nAUC of a column's bad end for the prompts that the reward misjudges: .5 is chance. "
        "From [gold-world.md](../evidence/gold-world.md) and [real-text.md](../evidence/real-text.md). A column that is not "
        "here was not measured.\n\n" + table(["column", *(measured.PLACES[place] for place in places)], rows)
    )


# ── Views ────────────────────────────────────────────────────────────────────────────────────────────────

_CANDIDATE_MEANINGS = {
    "row_id": "the row it is a candidate of",
    "variant": "the sample set: `contrast`, `gpt`, `adv`, `policy`, `probe` or `given`",
    "rank": "its place in the set, from 1",
    "response": "its text",
    "similarity": "for `contrast`: cosine of its prompt to the row's; for `adv`: of its text to what was perturbed",
    "source_row_id": "for `contrast`: the corpus row it answers",
    "reward": "the reward model's score of it as an answer to the row's prompt",
    "logprob": "its log-probability under the policy, summed over tokens; NULL where it was not asked for",
    "n_tokens": "its length in the policy's tokens",
    "misjudgement": "ε: its reward minus the reward of the golden response, at least 0; of rewards of 0 and 1, 1 where it passes",
    "weight": "w: its weight by the policy's likelihood; for `policy`, how often it was drawn",
    "reason": "why it has no reward, where the reward model gives reasons",
    "count": "for `policy`: how often it was drawn; 1 for every other set",
    "finish": "for `policy`: `stop`, or `length` where it was cut at max_tokens",
    "sampled_logprob": "for `policy`: its log-probability at the sampling temperature; `logprob` is at temperature 1",
}
_LEDGER_MEANINGS = {
    "row_id": "the row",
    "split": "the split",
    "kept": "whether the row is in the split",
    "rule": "the rule that decided, in the filter's words",
    "value": "the value it was decided by",
    "threshold": "what the value was compared with",
}
_REJECTED_MEANINGS = {
    "row_id": "the row's place in its source",
    "reason": "why it was set aside",
    "row": "the row, as JSON text",
}


def view_page() -> str:
    """Return the page of the SQL views."""
    described = dict(re.findall(r"^    (\w+) {2,}(.*)$", views.__doc__ or "", re.MULTILINE))
    rows = [[f"[`{name}`](#{name})", sentence(described[name])] for name in views.VIEWS]
    ledger = [[code(f.name), arrow_name(f.type), _LEDGER_MEANINGS[f.name]] for f in views.LEDGER]
    rejected = [[code(f.name), arrow_name(f.type), _REJECTED_MEANINGS[f.name]] for f in REJECTED]
    candidates = [[code(name), kind.lower(), _CANDIDATE_MEANINGS[name]] for name, kind in views.CANDIDATES.items()]
    head = ["column", "type", "meaning"]
    introduction = (
        '`seamcurate sql STORE "SELECT …"` and `seamcurate.query` answer one SELECT over these views, for reading only. '
        "With `--other STORE2` a second store's views are `other.rows`, `other.candidates` and so on."
    )
    return page(
        "Views",
        introduction,
        table(["view", "one row for"], rows),
        "## rows\n\nThe columns of the source and of every step: see [columns.md](columns.md). "
        "A column that is not computed yet is NULL; a column that is out of date is left out.",
        "## candidates\n\n" + table(head, candidates),
        "## corpus\n\nThe columns of the corpus' source, and those that steps added to it, such as `embedding`: see "
        "[columns.md](columns.md#embed). Without a corpus the view has no rows.",
        "## ledger\n\n" + table(head, ledger),
        "## rejected\n\n" + table(head, rejected),
    )


# ── Studies ──────────────────────────────────────────────────────────────────────────────────────────────


def study_page() -> str:
    """Return the page of the studies, from their table."""
    rows = [
        [f"[`{study.name}`](#{slug(study.name)})", sentence(study.meaning), prose(study.reads)] for study in STUDIES
    ]
    parts = [
        f"## {study.name}\n\n{docstring(study.run)}\n\n"
        + table(["column", "meaning"], [[code(name), sentence(meaning)] for name, meaning in study.columns.items()])
        for study in STUDIES
    ]
    introduction = (
        "`seamcurate study NAME` prints a study's table and its finding; `--out` writes both, and the figure. Intervals "
        "have 95 % confidence: a column NAME that has one is followed by NAME_low and NAME_high."
    )
    return page("Studies", introduction, table(["study", "what it asks", "reads"], rows), *parts)


# ── Errors ───────────────────────────────────────────────────────────────────────────────────────────────


def error_page() -> str:
    """Return the page of errors and exit codes."""
    rows = []

    def add(kind: type[Exception], depth: int) -> None:
        rows.append([f"{'&nbsp;' * 4 * depth}`{kind.__name__}`", prose(inspect.getdoc(kind) or "")])
        for child in (
            value for value in vars(errors).values() if isinstance(value, type) and value.__bases__ == (kind,)
        ):
            add(child, depth + 1)

    add(errors.SeamcurateError, 0)
    codes = [
        ["0", "The command did what it was asked."],
        [
            "1",
            "`reproduce`: a file came out otherwise. Elsewhere: a mistake in seamcurate; `SEAMCURATE_TRACEBACK=1` shows where.",
        ],
        ["2", "A `SeamcurateError`, or an option that does not exist. `check`: something is wrong with the store."],
        ["3", "`audit`: the reward has a fault that `--fail-on` names."],
        ["130", "The command was stopped by Ctrl-C. What was finished is kept."],
    ]
    texts = error_texts()
    by_class = {name: f"### {name}\n\n" for name in texts if name not in _OTHER_TEXTS}
    headings = by_class | {name: f"### {title}\n\n{note}\n\n" for name, (title, note) in _OTHER_TEXTS.items()}
    messages = [heading + "\n".join(f"- {prose(text)}" for text in texts[name]) for name, heading in headings.items()]
    introduction = (
        "Everything that seamcurate raises on purpose is a `seamcurate.SeamcurateError`; the others are in `seamcurate.errors`. "
        "A message is one line: what is wrong, where, and what to do. The command line prints it to standard error as `error: …`. "
        "Look for some words of yours under [messages](#messages)."
    )
    return page(
        "Errors",
        introduction,
        table(["class", "meaning"], rows),
        "## Exit codes\n\n" + table(["code", "meaning"], codes),
        "## Messages\n\nBy class, in the order of the alphabet, and last those of no class. `…` stands for what differs: a name, a number, a path. What to do "
        "follows the last colon or semicolon.",
        *messages,
    )


_OTHER_TEXTS = {
    "error": ("A package that is not installed", "Of the class of what was asked for."),
    "Problem": ("What check finds", "`seamcurate check` prints a line for each."),
    "ValueError": (
        "A value that does not fit",
        "In Python, a `ValueError` or pydantic's `ValidationError`. For a recipe or a model's file, the text stands in a "
        "`RecipeError` that names file and key.",
    ),
}
"""Headings and notes of the messages that are not made by a class of `seamcurate.errors`, by what the code calls."""


def error_texts() -> dict[str, list[str]]:
    """Return the texts of the package's errors, as the code writes them, by what it calls; what is computed is `…`."""
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    texts: dict[str, set[str]] = {}
    for file in sorted(Path(seamcurate.__file__).parent.rglob("*.py")):
        module = ast.parse(file.read_text(encoding="utf-8"))
        constants = {
            target.id: statement.value
            for statement in module.body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(module):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            name = node.func.id
            if name not in kinds | {*_OTHER_TEXTS} or (name == "error" and file.name != "extras.py"):
                continue
            # A problem has its file, what is wrong, and what to do.
            said = (
                [ast.Constant("…: "), node.args[1], ast.Constant("; "), node.args[2]]
                if name == "Problem"
                else node.args[:1]
            )
            text = re.sub("…+", "…", "".join(_text(piece, constants) for piece in said)).strip()
            # A text that is computed whole says nothing here.
            if len(re.findall(r"\w{2,}", text)) > 2:
                texts.setdefault(name, set()).add(text)
    return {name: sorted(texts[name], key=str.casefold) for name in sorted(texts)}


def _text(node: ast.expr, constants: Mapping[str, ast.expr]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(piece, constants) for piece in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, constants)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, constants) + _text(node.right, constants)
    if isinstance(node, ast.Name) and isinstance(constants.get(node.id), ast.Constant | ast.JoinedStr):
        return _text(constants[node.id], constants)
    return "…"


# ── File format ──────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a small store holds: its files, the keys of each JSON file and of its shards' metadata."""

    files: list[str]
    keys: dict[str, list[str]]
    metadata: dict[str, list[str]]


def example_store(folder: Path) -> Layout:
    """Make a small store with FakeModel and return what it holds; names of columns and splits become `NAME`."""
    rows = [
        {"prompt": f"how do I {v} a {n}", "response": f"{v} the {n}"} for v in ("sort", "copy") for n in ("list", "set")
    ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\nno JSON\n")
    fake = seamcurate.FakeModel()
    example = seamcurate.Recipe(
        rows=seamcurate.Source(jsonl=str(file)),
        corpus=seamcurate.Source(jsonl=str(file)),
        models=seamcurate.Models(policy=fake, reward=fake, encoder=fake),
        steps=(seamcurate.Retrieve(k=3, band=(-1.0, 0.99)), *seamcurate.seam()),
        splits={"train": seamcurate.Split(filter="SELECT row_id FROM rows")},
    )
    store = folder / "store"
    seamcurate.run_local(example, store)
    files, keys, metadata = set(), dict[str, set[str]](), dict[str, set[str]]()
    for path in sorted(store.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        name = re.sub(r"(columns|splits)/[^/]+", r"\1/NAME", path.relative_to(store).as_posix())
        name = re.sub(r"_shared/.*", "_shared/…", re.sub(r"\d{5,}\.parquet", "NNNNN.parquet", name))
        files.add(name)
        file_name = name.removeprefix("corpus/")
        if path.suffix == ".json" and not name.endswith("_shared/…"):
            keys.setdefault(file_name, set()).update(json.loads(path.read_text()))
        elif path.suffix == ".parquet" and not name.endswith("_shared/…"):
            held = pq.read_metadata(path).metadata or {}
            metadata.setdefault(file_name, set()).update(key.decode() for key in held if key.startswith(b"seamcurate"))
    return Layout(sorted(files), {n: sorted(k) for n, k in keys.items()}, {n: sorted(k) for n, k in metadata.items()})


KEY_MEANINGS = {
    "store.json": {
        "format": "the version of this layout",
        "rows": "fingerprint of the source that the rows were read from",
        "source": "what the source is: its files with their SHA-256, or its Hub commit, and the mapping of its columns",
        "shard_rows": "rows in a shard",
        "shards": "number of shards, once all rows are read",
        "complete": "whether all rows of the source are read",
        "seals": "checksums of the shards of `rows` and of `rejected`",
        "corpus": "where the corpus lies, relative to the store",
        "origin": "the Hub data set and its commit, where the rows come from it by way of other stores",
        "sha256": "checksum of this file, without this line",
    },
    "columns/NAME/_step.json": {
        "step": "the step's class",
        "name": "the folder's name",
        "config": "the step's settings, as they were given",
        "identity": "what decides the values: the settings, a hash of the weights in place of a model's path, the `revision`",
        "inputs": "fingerprints of the columns that the step reads",
        "corpus": "fingerprints of the corpus' columns that the step reads",
        "ancestry": "the identity of every step below, so that the record explains itself",
        "columns": "type and meaning of each added column",
        "schema": "the added columns as an Arrow schema, in base64",
        "fingerprint": "hash of identity and inputs; columns of another fingerprint are never mixed with these",
        "sha256": "checksum of this file, without this line",
    },
    "columns/NAME/_facts.json": {
        "summary": "the line that `run` and `columns` print",
        "warnings": "further lines, where there are any",
        "noise": "how far the same text's value moved with batch size, order and padding, by column",
        "finished_shards": "how many shards the columns had when they were finished: one that is lost since is an error, not NULL",
        "fingerprint": "fingerprint of the columns these facts are about",
        "sha256": "checksum of this file, without this line",
    },
    "splits/NAME/_split.json": {
        "name": "the split's name",
        "filter": "the SQL",
        "parameters": "the filter's parameters",
        "format": "what `export` writes",
        "reads": "fingerprints of what the filter could read",
        "made_of": "hash of the checksums of the shards it was decided by",
        "kept": "rows kept",
        "dropped": "rows dropped",
        "lines": "what a person should know of it",
        "fingerprint": "hash of filter, parameters, format and inputs",
        "sha256": "checksum of this file, without this line",
    },
}
"""What each key of a JSON file means. Further keys of `_facts.json` are the step's own numbers."""

METADATA_MEANINGS = {
    "seamcurate.maker": "fingerprint of the columns that the shard belongs to",
    "seamcurate.shard": "the shard's number",
    "seamcurate.sha256": "checksum of the whole file, computed with this value as 64 zeros",
    "seamcurate.made_of": "checksums of the shards that its values were computed from, by their folder",
}


def file_format() -> str:
    """Return the page of a store's files and their keys."""
    with tempfile.TemporaryDirectory() as folder:
        layout = example_store(Path(folder))
    tree, rest = re.split(r"\n\n(?! )", inspect.cleandoc(stores.__doc__ or ""), maxsplit=1)
    parts = [
        f"A store is a folder of Parquet shards and JSON files. This page is about format {stores.FORMAT}. "
        "pandas, pyarrow and DuckDB read `rows`, the folder of a column and the folder of a split as Parquet data sets.",
        f"```text\n{textwrap.dedent(tree.split(chr(10), 2)[2])}\n```",
        prose(rest),
    ]
    for name, meanings in KEY_MEANINGS.items():
        listed = [key for key in meanings if key in layout.keys[name] or key in ("origin", "warnings")]
        unexplained = set(layout.keys[name]) - set(meanings)
        if unexplained and not name.endswith("_facts.json"):
            raise LookupError(f"{name} has keys without a meaning: {', '.join(sorted(unexplained))}")
        note = "\n\nFurther keys are the step's own numbers." if name.endswith("_facts.json") else ""
        rows = [[code(key), meanings[key]] for key in listed]
        parts.append(f"## {name}\n\n" + table(["key", "meaning"], rows) + note)
    kinds = sorted({key for listed in layout.metadata.values() for key in listed})
    rows = [
        [code(key), METADATA_MEANINGS[key], ", ".join(f"`{n}`" for n, k in layout.metadata.items() if key in k)]
        for key in kinds
    ]
    parts.append("## Metadata of Parquet files\n\n" + table(["key", "meaning", "in"], rows))
    return page("File format", *parts)


PAGES: dict[str, Callable[[], str]] = {
    "command-line.md": command_line,
    "python.md": python,
    "recipe.md": recipe,
    "columns.md": columns,
    "views.md": view_page,
    "studies.md": study_page,
    "errors.md": error_page,
    "file-format.md": file_format,
}
"""Each page of docs/reference, and what writes it."""


# ── The manual's contents ────────────────────────────────────────────────────────────────────────────────

ROOT = REFERENCE.parent.parent
SUMMARY = (
    "seamcurate finds the prompts of an RLHF data set that a reward gets wrong, keeps its scores as Parquet columns beside "
    "the rows, and makes splits by SQL that any trainer loads."
)


def contents() -> dict[str, list[tuple[str, str, str]]]:
    """Return the pages that docs/index.md lists, by section: title, file, what it is for."""
    index = (REFERENCE.parent / "index.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)\n((?:.*\n)*?)(?=^## |\Z)", index, re.MULTILINE)
    listed = {name: re.findall(r"^- \[([^\]]+)\]\(([^)#]+)\): (.*)$", body, re.MULTILINE) for name, body in sections}
    return {name: pages for name, pages in listed.items() if pages}


def site_file() -> str:
    """Return `mkdocs.yml` with the manual's contents as its `nav`."""
    kept = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:\n")[0]
    lines = ["nav:", "  # Written by docs/generate.py from docs/index.md.", "  - Home: index.md"]
    for section, pages in contents().items():
        lines += [f"  - {section}:", *(f"      - {json.dumps(title)}: {file}" for title, file, _ in pages)]
    return kept + "\n".join(lines) + "\n"


def llms_txt() -> str:
    """Return the manual's contents for language models, in the form of llmstxt.org."""
    parts = [
        "# seamcurate",
        f"> {SUMMARY}",
        "Each page is plain Markdown. Every command of the command line explains itself by `--help`; errors are one line that "
        "says what to do.",
    ]
    for section, pages in contents().items():
        parts.append(f"## {section}\n\n" + "\n".join(f"- [{title}]({file}): {use}" for title, file, use in pages))
    return "\n\n".join(parts) + "\n"


# ── Notebooks of the tutorials ───────────────────────────────────────────────────────────────────────────

TUTORIALS = (
    "audit-a-reward.md",
    "first-store.md",
    "your-data-and-models.md",
    "read-scores-in-sql.md",
    "split-and-grpo.md",
    "rer-as-a-reward.md",
)
"""The tutorials in their order; each goes on in the folder of those before."""
NOTEBOOKS = ROOT / "examples" / "notebooks"


def tutorial_notebook(name: str) -> str:
    """Return a tutorial as a notebook: a cell for each block that is run, and the text between."""
    path = REFERENCE.parent / "tutorial" / name
    cells: list[dict[str, Any]] = []

    def add(kind: str, text: str) -> None:
        # Links of the page lead from another folder.
        text = re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", r"](../../docs/tutorial/\1)", text) if kind == "markdown" else text
        if text := re.sub(r"<!--.*?-->\n*", "", text).strip("\n"):
            cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
            cell |= {"execution_count": None, "outputs": []} if kind == "code" else {}
            cells.append({**cell, "source": text.splitlines(keepends=True)})

    parts = re.split(r"^```(.*)\n((?:.*\n)*?)```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for at in range(0, len(parts), 3):
        add("markdown", parts[at])
        kind, body = (parts[at + 1], parts[at + 2]) if at + 2 < len(parts) else ("", "")
        file = re.match(r"(?:#|--) ([\w./-]+\.(?:py|yaml|sql))\n", body)
        if file:
            add("code", f"%%writefile {file[1]}\n{body}")
        elif kind == "python":
            add("code", body)
        elif kind == "console":
            for command in re.findall(r"^\$ ((?:.*\\\n)*.*)$", body, re.MULTILINE):
                add("code", "!" + command)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


FILES: dict[Path, Callable[[], str]] = {
    **{REFERENCE / name: write for name, write in PAGES.items()},
    ROOT / "mkdocs.yml": site_file,
    REFERENCE.parent / "llms.txt": llms_txt,
    **{NOTEBOOKS / f"{Path(name).stem}.ipynb": functools.partial(tutorial_notebook, name) for name in TUTORIALS},
}
"""Each file that is written here, and what writes it."""


if __name__ == "__main__":
    for path, write in FILES.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(write(), encoding="utf-8")
        print(path.relative_to(ROOT))
