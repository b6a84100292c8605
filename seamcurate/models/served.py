"""What every model behind a server has beside the server's settings: the model that its scores have to equal.

A served score counts only after it was shown to be the same, see `seamcurate.score.compared`: as that of the same weights
here, or, where they are too large for here, as the server's own whatever is asked beside it.
"""

from __future__ import annotations

import datetime
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Generic, Literal, Self, TypeVar

from pydantic import JsonValue, ValidationError, field_validator, model_validator

from seamcurate.errors import ModelError
from seamcurate.models import weights
from seamcurate.models.backend import Backend, NamedModel
from seamcurate.models.endpoint import ServerSettings
from seamcurate.models.local import LocalModel
from seamcurate.models.scoring_client import ScoringClient
from seamcurate.models.template import FormSettings

LocalT = TypeVar("LocalT", bound=LocalModel)


class Served(Backend, ServerSettings, Generic[LocalT]):
    """Name a model behind a server. A kind of model adds its address, its API, and `same_as` of the local kind's type.

    A kind's `identity` is its API, what decides the texts that are sent, and `weights_identity`; neither the address nor
    the settings of a server are part of it.
    """

    local_kind: ClassVar[type[LocalModel]]
    """The kind of local model that has such scores."""
    of_local: ClassVar[tuple[str, ...]] = ()
    """The settings that a local model has too: they decide what is sent, and which of the numbers are read."""

    model: str
    """The name by which the server knows the model; where it is no folder here and no Hub id, `same_as` names the weights."""
    same_as: LocalT | Literal["itself"] | None = None
    """The model here that some rows are scored by as well, before the server scores any; by default the one that `model`
    names. `itself` where the weights are too large for here: the server is then held against itself alone."""
    accept_difference: float | bool = False
    """The largest difference that is accepted beyond the noise floor, in the unit of the score (log-probabilities: nats a
    token); `true` accepts any. It is told, and kept with the column."""

    @field_validator("same_as", mode="before")
    @classmethod
    def _is_local(cls, value: object) -> object:
        """Read a local model here: errors about a value that may be of two types would name both of them."""
        if not isinstance(value, dict) and (value is None or value == "itself" or isinstance(value, cls.local_kind)):
            return value
        key = cls.local_kind.key
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"the same weights here are {{{key}: …}}; `itself` holds the server against itself")
        try:
            return cls.local_kind.model_validate(value)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            location = "".join(f"{part}: " for part in problem["loc"])
            raise ValueError(f"{location}{problem['msg'].removeprefix('Value error, ')}") from error

    @field_validator("accept_difference", mode="before")
    @classmethod
    def _is_a_difference(cls, value: object) -> object:
        if not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"a number from 0 on, or true, not {value!r:.60}")
        return value

    @property
    def title(self) -> str:
        """Name the kind of model, and the model."""
        return f"{self.key} {self.model}"

    def weights_identity(self) -> dict[str, JsonValue]:
        """Return what decides the scores: the weights that they were shown to be of, or the served name where none were."""
        local = self.local()
        if local is None:
            return {"model": self.model}
        identity = local.identity()
        assert isinstance(identity, dict)
        # The server has a precision of its own.
        return {"same_as": {name: value for name, value in identity.items() if name != "dtype"}}

    @abstractmethod
    def load(self) -> object:
        """Return the model that asks the server."""

    def check_server(self) -> None:
        """Refuse a server that is not there, speaks another API or serves another model, before anything is scored."""
        self.load()

    def load_uncached(self) -> object | None:
        """Return the model asking without the server's prefix cache; None where the API has no word for that."""
        return None

    def local(self) -> LocalT | None:
        """Return the local model that the server is held against; None where it is held against itself.

        Raises:
            ModelError: The model is not here under the name that the server has for it.
        """
        if self.same_as == "itself":
            return None
        if self.same_as is not None:
            return self.same_as
        try:
            weights.check(weights.Origin(self.model))
        except ModelError as error:
            raise ModelError(
                f"{self.title}: some rows are scored by the same weights here first, and {self.model} is not here: name them "
                f"by `same_as: {{{self.local_kind.key}: …}}`, or say `same_as: itself` where they are too large ({error})"
            ) from error
        return self.named(self.model)

    def named(self, path: str) -> LocalT:
        """Return the local model of a folder or Hub id that reads texts as the settings here say."""
        return self.local_kind(path=path, **{name: getattr(self, name) for name in self.of_local})  # type: ignore[return-value]

    def set_here(self) -> list[str]:
        """List the settings of a local model that are set beside the server."""
        return [name for name in self.of_local if getattr(self, name) != type(self).model_fields[name].default]

    def parts(self) -> Iterator[Backend]:
        """Yield the model, and the local one that it is held against."""
        yield self
        if isinstance(self.same_as, LocalModel):
            yield self.same_as


class ServedText(Served[LocalT], NamedModel, FormSettings):
    """Name a served model that is sent tokens of prompts and answers, which its tokenizer and template make here."""

    tokenizer: str | None = None
    """The folder, or Hub id, of the tokenizer and `config.json`, where `same_as: itself` leaves no weights to take them from;
    by default `model`."""

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        if self.same_as not in (None, "itself"):
            said = self.set_here()
            if said or self.tokenizer:
                name = (said or ["tokenizer"])[0]
                raise ValueError(f"{name}: the tokens are those of `same_as`; set it there, and leave it out here")
        elif self.tokenizer and self.same_as is None:
            raise ValueError("tokenizer: is for `same_as: itself`; without that, it is that of the weights here")
        return self

    def texts(self) -> LocalT:
        """Return the local model whose tokens are sent; its weights are not read for that."""
        return self.local() or self.named(self.tokenizer or self.model)

    def dated(self, day: datetime.date) -> Self:
        """Return the model with `day` as its chat template's date; itself where a date is set or none is written."""
        texts = self.texts()
        if (dated := texts.dated(day)) is texts:
            return self
        changed = {"date": day} if self.same_as in (None, "itself") else {"same_as": dated}
        return self.model_copy(update=changed)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count tokens by the model's own tokenizer; no weights are read."""
        return self.texts().count_tokens(texts)


def listed_models(client: ScoringClient) -> Mapping[str, Mapping[str, JsonValue]] | None:
    """Return the models that a server lists under /v1/models, by name; None where it lists none.

    Raises:
        ModelError: The server is not there, refuses the key, or fails.
    """
    answer = client.look("/v1/models")
    if answer.status >= 500:
        raise ModelError(
            f"{client.title} at {client.address}: /v1/models answered {answer.status}; see the server's log"
        )
    if answer.status in (401, 403):
        key = client.settings.api_key
        hint = f"put a valid key into {key}" if key else "name its key by `api_key`"
        raise ModelError(f"{client.title} at {client.address}: /v1/models answered {answer.status}; {hint}")
    data = answer.value.get("data") if isinstance(answer.value, Mapping) else None
    if answer.status != 200 or not isinstance(data, list):
        return None
    return {str(entry.get("id")): entry for entry in data if isinstance(entry, Mapping)}


def window_of(client: ScoringClient, model: str, listed: Mapping[str, Mapping[str, JsonValue]]) -> int | None:
    """Return the tokens that a server's model reads at once, None where the server does not say.

    Raises:
        ModelError: The server has no such model.
    """
    if model not in listed:
        names = ", ".join(sorted(client.shown(name, 60) for name in listed)) or "none"
        raise ModelError(f"{client.title} at {client.address}: it serves {names}, not {model}; name that by `model`")
    window = listed[model].get("max_model_len")
    return window if isinstance(window, int) and window > 0 else None


def listed_window(client: ScoringClient, model: str, api: str, lacks: str) -> int | None:
    """Look for a model among those that a server lists under /v1/models.

    Args:
        client: Asks the server.
        model: The model's name.
        api: The API that the recipe names, such as `vllm`.
        lacks: What llama.cpp's server does not give.

    Returns:
        The tokens that the server reads at once, None where it does not say.

    Raises:
        ModelError: The server is not there, lists no models, is of another kind, or serves another model.
    """
    where = f"{client.title} at {client.address}"
    listed = listed_models(client)
    if listed is None:
        raise ModelError(
            f"{where}: it lists no models under /v1/models, so that it is no server of `api: {api}`; check the address and `api`"
        )
    owners = {str(entry.get("owned_by")) for entry in listed.values()}
    if "llamacpp" in owners:
        raise ModelError(
            f"{where}: it is llama.cpp's server, which gives no {lacks}; serve the model by vLLM or SGLang, or score it here"
        )
    other = next((kind for kind in ("vllm", "sglang") if owners == {kind} and kind != api), None)
    if other is not None:
        raise ModelError(f"{where}: it is no server of `api: {api}`; say `api: {other}`")
    return window_of(client, model, listed)
