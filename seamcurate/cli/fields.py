"""Options of a command made from the fields of a pydantic class: type, default, bounds, and the docstring as help."""

from __future__ import annotations

import datetime
import inspect
import json
import pkgutil
import re
import types
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
import typer.core

from seamcurate.errors import TrainError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


def configured_by(settings: str, excluded: Collection[str] = ()) -> type[typer.core.TyperCommand]:
    """Return a kind of command that takes the fields of a pydantic class as options, and has its value as `context.obj`.

    The class is imported when the command itself is used, not by `seamcurate --help`.

    Args:
        settings: Where the class is, as `module:Class`.
        excluded: Fields that no option sets.
    """

    class Configured(typer.core.TyperCommand):
        added: list[Any] | None = None

        @staticmethod
        def options() -> Callable[..., None]:
            return options(pkgutil.resolve_name(settings), excluded)

        def get_params(self, ctx: Any) -> list[Any]:
            if self.added is None:
                typed = typer.Typer(add_completion=False)
                typed.command()(self.options())
                self.added = list(typer.main.get_command(typed).params)
            *own_options, help_option = super().get_params(ctx)
            return [*own_options, *self.added, help_option]

        def invoke(self, ctx: Any) -> Any:
            fields = pkgutil.resolve_name(settings).model_fields
            values = {name: ctx.params.pop(name) for name in fields if name in ctx.params}
            ctx.obj = pkgutil.resolve_name(settings)(**_values(fields, values))
            return super().invoke(ctx)

    return Configured


def options(settings: type[BaseModel], excluded: Collection[str] = ()) -> Callable[..., None]:
    """Return a function with a parameter for each field, which typer reads: type, default, and the docstring as help."""

    def typed(**values: object) -> None: ...

    parameters = []
    for name, field in settings.model_fields.items():
        if name in excluded:
            continue
        kind, default, flags = field.annotation, field.default, []
        base = _base(field)
        if kind is bool:
            dashed = name.replace("_", "-")
            flags = [f"--{dashed}/--no-{dashed}" if default else f"--{dashed}"]
        elif base is tuple:
            kind, default = list[str] | None, None
        elif base in (dict, datetime.date):
            kind = str | None
        elif _is_positive_or_none(field):
            kind, default = float, default or 0.0
        metavar = "YYYY-MM-DD" if base is datetime.date else None
        option = typer.Option(*flags, help=_help(settings, name), metavar=metavar)
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        )
    typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return typed


def _values(fields: Mapping[str, FieldInfo], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of fields from those of their options."""
    read = dict(values)
    for name, value in values.items():
        if _base(fields[name]) is tuple:
            read[name] = tuple(value or ())
        elif _base(fields[name]) is dict:
            read[name] = _json_object(name, value)
        elif _is_positive_or_none(fields[name]):
            read[name] = value or None
    return read


def _base(field: FieldInfo) -> Any:
    """Return a field's class, without its parameters and without None."""
    kind: Any = field.annotation
    if get_origin(kind) is types.UnionType:
        kind = get_args(kind)[0]
    return get_origin(kind) or kind


def _is_positive_or_none(field: FieldInfo) -> bool:
    """Tell whether a field is a number above 0 or None, for which one types 0."""
    optional = type(None) in get_args(field.annotation)
    return optional and any(getattr(bound, "gt", None) == 0 for bound in field.metadata)


def _help(settings: type[BaseModel], name: str) -> str:
    """Return a field's docstring, or that of the field it overrides, with option names, and its bounds in words."""
    from pydantic import BaseModel

    classes = [kind for kind in settings.__mro__ if issubclass(kind, BaseModel) and name in kind.model_fields]
    text = next((text for kind in classes if (text := kind.model_fields[name].description)), "")
    text = " ".join(text.split())
    text = re.sub(
        r"`(\w+)`",
        lambda match: "--" + match[1].replace("_", "-") if match[1] in settings.model_fields else match[1],
        text,
    ).replace("`", "")
    field = settings.model_fields[name]
    if _is_positive_or_none(field):
        return f"{text} 0 stands for none."
    if _base(field) is tuple:
        return f"{text} Repeat the option for more."
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = ", ".join(
        f"{word} {limit:g}"
        for bound in field.metadata
        for key, word in words.items()
        # Nobody takes a count below 0.
        if (limit := getattr(bound, key, None)) is not None and not (key == "ge" and limit == 0 and _base(field) is int)
    )
    return f"{text} {bounds.capitalize()}." if bounds else text


def _json_object(name: str, value: str | None) -> dict[str, Any] | None:
    if value is None:
        return None
    example = '{"enable_thinking": false}'
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise TrainError(f"--{name} is no JSON ({error}); write it like '{example}'") from error
    if not isinstance(parsed, dict):
        raise TrainError(f"--{name} is a JSON object, like '{example}'")
    return parsed
