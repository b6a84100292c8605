"""Reward models behind a server: vLLM's `/classify`, SGLang's `/v1/embeddings`, OpenRLHF's `/get_reward`.

One rule: the tokens are built here, exactly as a local classifier's are, so that no server adds a second BOS, a template of its
own, or a cut. vLLM and SGLang are sent token ids. OpenRLHF takes text alone: it is sent the text that gives these tokens, and
an answer without such a text has no reward.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, JsonValue, field_validator, model_validator

from seamcurate.errors import ModelError
from seamcurate.models import probe, tokens, weights
from seamcurate.models.backend import RewardConfig
from seamcurate.models.distinct import distinct
from seamcurate.models.endpoint import Address
from seamcurate.models.labels import Output, Outputs
from seamcurate.models.local import model_errors
from seamcurate.models.protocols import Columns, Prompt, Rating, Responses, RewardModel
from seamcurate.models.scoring_client import Post, RefusedError, ScoringClient, UnreadError
from seamcurate.models.sequence_classifier import SequenceClassifier, own_pad, segment_kinds
from seamcurate.models.served import ServedText, listed_window

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Logits: TypeAlias = list[float]
"""What a server gives for one text: a number for each output of the classifier."""

_AT_ONCE = 16
"""Answers of one request: they share a prompt, which a server's prefix cache then reads once."""
_LOOKS = 2
"""How often a first look at a server is repeated."""
_PROBE = ("What is a set?", "A collection of distinct things.")
"""What a server is asked first: until a request was answered, any failure is the server's."""


class RewardServer(ServedText[SequenceClassifier], RewardConfig):
    """Name a reward model behind a server: vLLM, SGLang or OpenRLHF's `serve_rm`.

    `path` is the server's address. The value is frozen and asks nothing until a step runs. Prompts and answers become tokens
    here, by the model's own tokenizer and chat template, as those of `SequenceClassifier` do; a reward is the raw logit. Before
    the server scores a column, some rows are scored by it and by the same weights here: see `same_as`.

    Raises:
        ModelError: By `load`, where the server is not there, speaks another API, serves another model, or its window is
            shorter than the texts may be.

    Example:
        >>> from seamcurate import RewardServer
        >>> reward = RewardServer(path="http://127.0.0.1:8000", api="vllm", model="org/rm", max_tokens=1024)
        >>> reward.title
        'reward_server org/rm'
        >>> reward.load().rewards(["What is a set?"], [["A collection.", "A dog."]])  # doctest: +SKIP
        [[2.31, -0.87]]
    """

    key: ClassVar[str] = "reward_server"
    local_kind: ClassVar[type[SequenceClassifier]] = SequenceClassifier
    of_local: ClassVar[tuple[str, ...]] = ("form", "template", "date", "pair", "max_tokens", "output", "outputs")

    path: Address
    """The server's address, such as `http://127.0.0.1:8000`, without the API's own path. Not part of a fingerprint."""
    api: Literal["vllm", "sglang", "openrlhf"]
    """What the server speaks: `vllm` is /classify, `sglang` /v1/embeddings of a reward model, `openrlhf` /get_reward."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of prompt and response together; the response's end is cut to fit. Default: the model's window, at most 2,048."""
    pair: bool = False
    """Read prompt and response as two segments, as encoder reward models such as OpenAssistant's expect."""

    output: Output | None = None
    """The output that is the reward, by its name (`id2label` of the model's configuration) or its number, from 0. A model with
    several outputs needs it."""
    outputs: Outputs = ()
    """Outputs that become columns beside the reward, `reward_{name}`: a list of names or numbers, or `all`."""

    @field_validator("api", mode="before")
    @classmethod
    def _spoken(cls, api: object) -> object:
        if api == "verl":
            raise ValueError(
                "verl's reward loop has no API of its own, it asks vLLM or SGLang: name that, vllm or sglang"
            )
        return api

    @model_validator(mode="after")
    def _is_a_classifier(self) -> Self:
        # Refuses what a local classifier refuses.
        self.named(self.model)
        return self

    def identity(self) -> JsonValue:
        """Return what decides a reward: the API, the weights that the server was shown to have, and the texts."""
        identity: dict[str, JsonValue] = {self.key: self.api, **self.weights_identity()}
        if self.same_as == "itself":
            texts = self.texts()
            identity |= {"tokens": tokens.REVISION, "tokenizer": weights.small_identity(texts.origin)}
            settings = texts.model_dump(mode="json")
            decisive = {name: settings[name] for name in self.of_local if name not in ("output", "outputs")}
            identity |= {name: value for name, value in decisive.items() if value not in (None, False)}
            if self.output is not None or self.outputs:
                identity["outputs"] = list(texts.positions(texts.labels()))
        return identity

    def output_names(self) -> tuple[str, ...]:
        """Name the outputs that become columns of their own."""
        return self.texts().output_names() if self.same_as not in (None, "itself") or self.outputs else ()

    def gives_reasons(self) -> bool:
        """Return True: an answer whose request failed says so."""
        return True

    def check_server(self) -> None:
        """Refuse a server that is not there or serves another model; nothing is scored."""
        _check(self)

    def load(self) -> RewardModel:
        """Open the tokenizer, and ask the server for its model and one reward."""
        return _Asked(self)

    def load_uncached(self) -> RewardModel | None:
        """Return the model asking without vLLM's prefix cache; None for other servers, which have no word for that."""
        return _Asked(self, cached=False) if self.api == "vllm" else None


# ── what servers speak ──────────────────────────────────────────────────────────────────────────────────


class _Api(NamedTuple):
    """How one kind of server is asked."""

    path: str
    names: bool
    """Whether it lists its models under /v1/models, and names the one that answered."""
    body: Callable[[str, list[Any], bool], dict[str, JsonValue]]
    """(model, texts or token ids, cached) → the request."""
    rows: Callable[[Mapping[str, JsonValue]], list[object]]
    """The reply → the rewards of each text, in the order of the texts."""
    takes_text: bool
    hint: str
    """How such a server is started."""


def _vllm_body(model: str, inputs: list[Any], cached: bool) -> dict[str, JsonValue]:
    body: dict[str, JsonValue] = {"model": model, "input": inputs, "use_activation": False, "add_special_tokens": False}
    # A salt of its own makes a request share no prefix with any other.
    return body if cached else {**body, "cache_salt": uuid.uuid4().hex}


def _in_order(reply: Mapping[str, JsonValue], name: str) -> list[object]:
    """Return a key of each entry of `data`, in the order of their `index`."""
    data = reply.get("data")
    entries = [entry for entry in data if isinstance(entry, Mapping)] if isinstance(data, list) else []
    if not entries or len(entries) != len(data or ()):  # type: ignore[arg-type]
        raise UnreadError("no data")
    by_index = {entry.get("index", i): entry.get(name) for i, entry in enumerate(entries)}
    if sorted(map(str, by_index)) != sorted(map(str, range(len(entries)))):
        raise UnreadError("indices that do not count its data")
    return [by_index[i] for i in range(len(entries))]


def _rewards(reply: Mapping[str, JsonValue]) -> list[object]:
    rewards = reply.get("rewards")
    if not isinstance(rewards, list):
        raise UnreadError("no rewards")
    return [reward if isinstance(reward, list) else [reward] for reward in rewards]


_APIS: dict[str, _Api] = {
    "vllm": _Api(
        "/classify",
        True,
        _vllm_body,
        lambda reply: _in_order(reply, "probs"),
        False,
        "start vLLM with `--runner pooling` on a classifier",
    ),
    "sglang": _Api(
        "/v1/embeddings",
        True,
        lambda model, inputs, cached: {"model": model, "input": inputs},
        lambda reply: _in_order(reply, "embedding"),
        False,
        "start SGLang with `--is-embedding` on a reward model",
    ),
    "openrlhf": _Api(
        "/get_reward",
        False,
        lambda model, inputs, cached: {"query": inputs},
        _rewards,
        True,
        "start it by `python -m openrlhf.cli.serve_rm`",
    ),
}
"""The servers that are known, by `api`. To add one, add a row."""


def _check(config: RewardServer) -> int | None:
    """Refuse a server that is not there or does not have the model; return the window it reads, where it says so."""
    # Nothing is lost yet: a server that does not answer at once is told of at once.
    settings = config.model_copy(update={"retries": min(config.retries, _LOOKS)})
    client = ScoringClient(config.title, config.path, settings)
    if not _APIS[config.api].names:
        # It has no other path; any answer at all shows that it is there.
        client.look("/")
        return None
    return listed_window(client, config.model, config.api, "rewards")


# ── asking ──────────────────────────────────────────────────────────────────────────────────────────────


class _Text(NamedTuple):
    """One answer on its way: what is sent, or why nothing is."""

    sent: list[int] | str | None
    reason: str | None = None
    size: int = 0


class _Asked(RewardModel):
    """The reward model that `RewardServer.load` returns."""

    def __init__(self, config: RewardServer, cached: bool = True) -> None:
        self.config, self.cached, self.api = config, cached, _APIS[config.api]
        self.client = ScoringClient(config.title, config.path, config)
        window = _check(config)
        self.sent = _Sent(config.texts(), config.title, self.api.takes_text)
        if window is not None and self.sent.limit > window:
            raise ModelError(
                f"{config.title} at {config.path} reads {window:,} tokens, and texts may have {self.sent.limit:,}; "
                f"set `max_tokens: {window}`, or start it with a longer window"
            )
        self.answers_as: set[str] = {config.model}
        """The names under which the model answers."""
        self._ask_first()

    def _ask_first(self) -> None:
        """Ask for a reward that any server of the API gives.

        Raises:
            ModelError: It gives none.
        """
        first = self.sent.text(*_PROBE)
        if first.sent is None:
            return
        if self.config.api == "sglang":
            # SGLang's embeddings come with the path of the weights for a name, whatever the model is served as.
            answer = self.client.look(self.api.path, self.api.body(self.config.model, [first.sent], True))
            if isinstance(answer.value, Mapping) and isinstance(name := answer.value.get("model"), str):
                self.answers_as.add(name)
        try:
            list(self.client.post_all(self.api.path, [self._post([first])]))
        except RefusedError as error:
            if error.status in (404, 405, 501):
                raise ModelError(f"{error}; {self.api.hint}") from error
            raise

    def rewards(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[float | None]]:
        """Score by group; see `RewardModel`."""
        return [[rating.reward for rating in row] for row in self.ratings(prompts, responses, {})]

    def ratings(self, prompts: Sequence[Prompt], responses: Responses, columns: Columns) -> list[list[Rating]]:
        """Score by group, with the reason where there is no reward; see `RewardModel`."""
        rows = distinct(prompts, responses)
        ratings: dict[tuple[int, int], Rating] = {}
        batches: list[list[tuple[tuple[int, int], _Text]]] = []

        def posts() -> Iterator[Post[list[Logits]]]:
            for number, (prompt, answers) in enumerate(rows.groups):
                texts = self.sent.group(prompt, answers)
                ratings.update(((number, i), self._without(text.reason)) for i, text in enumerate(texts))
                waiting = [((number, i), text) for i, text in enumerate(texts) if text.sent is not None]
                for start in range(0, len(waiting), _AT_ONCE):
                    batches.append(waiting[start : start + _AT_ONCE])
                    yield self._post([text for _, text in batches[-1]])

        again: list[tuple[tuple[int, int], _Text]] = []
        for i, received in enumerate(self.client.post_all(self.api.path, posts())):
            if received.value is not None:
                ratings.update(zip((key for key, _ in batches[i]), map(self._rating, received.value), strict=True))
            elif len(batches[i]) == 1:
                ratings[batches[i][0][0]] = self._without(received.failure)
            else:
                again += batches[i]
        # One text of a request may be at fault, and the others not.
        single = self.client.post_all(self.api.path, (self._post([text]) for _, text in again))
        for (key, _), received in zip(again, single, strict=True):
            ratings[key] = self._rating(received.value[0]) if received.value else self._without(received.failure)
        return rows.regroup([[ratings[number, i] for i in range(len(a))] for number, (_, a) in enumerate(rows.groups)])

    def _rating(self, logits: Logits) -> Rating:
        value, *others = (logits[i] for i in self.sent.positions)
        reason = None if math.isfinite(value) else f"the server's reward is {value}"
        return Rating(None if reason else value, reason, tuple(others))

    def _without(self, reason: str | None) -> Rating:
        return Rating(None, reason, (None,) * (len(self.sent.positions) - 1))

    def _post(self, texts: Sequence[_Text]) -> Post[list[Logits]]:
        inputs: list[Any] = [text.sent for text in texts]
        body = self.api.body(self.config.model, inputs, self.cached)
        return Post(body, lambda reply: self._read(reply, len(texts)), sum(text.size for text in texts))

    def _read(self, reply: JsonValue, count: int) -> list[Logits]:
        """Take a reply apart.

        Raises:
            UnreadError: It holds no reward for each text.
            ModelError: Another model answered, or one with another number of outputs.
        """
        if not isinstance(reply, Mapping):
            raise UnreadError("no object")
        if self.api.names and reply.get("model") not in self.answers_as:
            shown = self.client.shown(str(reply.get("model")), 60)
            raise ModelError(
                f"{self.config.title} at {self.config.path}: {shown} answered; was the server started anew?"
            )
        rows = self.api.rows(reply)
        if len(rows) != count:
            raise UnreadError(f"{len(rows)} rewards for {count} texts")
        logits = [_numbers(row) for row in rows]
        other = next((len(row) for row in logits if len(row) != self.sent.outputs), None)
        if other is not None:
            raise ModelError(
                f"{self.config.title} at {self.config.path}: it gives {other} numbers a text, and the model has "
                f"{self.sent.outputs} outputs; check `model`, and that a reward model is served"
            )
        return logits


def _numbers(row: object) -> Logits:
    """Return a text's numbers; servers that cannot write NaN in JSON write null."""
    logits = []
    for value in row if isinstance(row, list) else [row]:
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UnreadError("a reward that is no number")
        logits.append(math.nan if value is None else float(value))
    return logits


class _Sent:
    """Builds what is sent: a local classifier's tokens, or the text that gives them."""

    def __init__(self, config: SequenceClassifier, title: str, as_text: bool) -> None:
        self.config, self.title, self.as_text = config, title, as_text
        self.tokenizer: PreTrainedTokenizerBase = config.tokenizer()
        with model_errors(title):
            self.form = None if config.pair else config.prompt_form(self.tokenizer, ())
            self.model = _skeleton(config)
        window = weights.window(self.model, self.tokenizer)
        self.limit = min(config.max_tokens or 2048, window)
        names = config.labels()
        self.outputs, self.positions = len(names), config.positions(names)
        if config.pair and segment_kinds(self.model) > 1:
            raise ModelError(
                f"{title}: `pair: true` needs segment ids for this model, and no such server takes them beside token ids; "
                "score it here by `sequence_classifier`"
            )
        # A decoder's reward is read at the last token that is not padding: what follows is not sent, as servers read the last.
        self.pad = own_pad(self.model) if hasattr(self.model, "score") else None

    def text(self, prompt: Prompt, answer: str) -> _Text:
        """Return what is sent for one answer."""
        return self.group(prompt, [answer])[0]

    def group(self, prompt: Prompt, answers: Sequence[str]) -> list[_Text]:
        """Return what is sent for each answer to a prompt."""
        try:
            if self.config.pair:
                ids = [tokens.pair_ids(self.tokenizer, prompt, answer, self.limit) for answer in answers]
            else:
                shared, rest = tokens.reward_group(self.tokenizer, prompt, answers, self.limit, self.form)
                ids = [None if tail is None else shared + tail for tail in rest]
        except tokens.refusals() as error:
            return [_Text(None, f"the chat template refuses this chat: {error}"[:200])] * len(answers)
        return [self._text(sequence) for sequence in ids]

    def _text(self, ids: list[int] | None) -> _Text:
        if not ids:
            return _Text(None, f"the prompt leaves no room for the answer in {self.limit:,} tokens")
        if len(ids) >= self.limit:
            probe.tell_cut(self.title, self.limit, "max_tokens")
        if not probe.is_readable(self.model, ids):
            return _Text(None, "the model has no embedding for a token of the text")
        while self.pad is not None and len(ids) > 1 and ids[-1] == self.pad:
            ids = ids[:-1]
        if not self.as_text:
            return _Text(ids, None, len(ids))
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        with suppress(ValueError, TypeError):
            if list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) == ids:
                return _Text(text, None, len(ids))
        return _Text(None, "no text gives the tokens that the model should read, and this server takes text alone")


def _skeleton(config: SequenceClassifier) -> PreTrainedModel:
    """Return the model without weights, which tells its window, its vocabulary and its outputs."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    origin = weights.base(config.origin) or config.origin
    settings = AutoConfig.from_pretrained(weights.small_folder(origin), trust_remote_code=config.trust_remote_code)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            settings, trust_remote_code=config.trust_remote_code
        )
    return model
