"""What every model behind a server has beside the server's settings: the model that its scores have to equal.

A served score counts only after it was shown to be the same, see `seamcurate.score.compared`: as that of the same weights
here, or, where they are too large for here, as the server's own whatever is asked beside it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, ClassVar, Generic, Literal, TypeAlias, TypeVar

from pydantic import Field, JsonValue

from seamcurate.errors import ModelError
from seamcurate.models import weights
from seamcurate.models.backend import Backend
from seamcurate.models.endpoint import ServerSettings
from seamcurate.models.local import LocalModel

LocalT = TypeVar("LocalT", bound=LocalModel)
Accepted: TypeAlias = Annotated[float, Field(ge=0)] | bool


class Served(Backend, ServerSettings, Generic[LocalT]):
    """Name a model behind a server. A kind of model adds its address, its API, and `same_as` of the local kind's type.

    A kind's `identity` is its API, what decides the texts that are sent, and `weights_identity`; neither the address nor
    the settings of a server are part of it.
    """

    local_kind: ClassVar[type[LocalModel]]
    """The kind of local model that has such scores."""

    model: str
    """The name by which the server knows the model; where it is no folder here and no Hub id, `same_as` names the weights."""
    same_as: LocalT | Literal["itself"] | None = None
    """The model here that some rows are scored by as well, before the server scores any; by default the one that `model`
    names. `itself` where the weights are too large for here: the server is then held against itself alone."""
    accept_difference: Accepted = False
    """The largest difference that is accepted beyond the noise floor, in the unit of the score (log-probabilities: nats a
    token); `true` accepts any. It is told, and kept with the column."""

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
        return self._named(self.model)

    def _named(self, path: str) -> LocalT:
        return self.local_kind(path=path)  # type: ignore[return-value]

    def parts(self) -> Iterator[Backend]:
        """Yield the model, and the local one that it is held against."""
        yield self
        if isinstance(self.same_as, LocalModel):
            yield self.same_as
