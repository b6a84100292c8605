"""Policies: causal language models of transformers, which say how likely a response is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import model_validator

from seamcurate.errors import ModelError
from seamcurate.models import eight_bit, prefix, probe, tokens, vocabulary, weights
from seamcurate.models.batching import moved
from seamcurate.models.protocols import Likelihood, Policy, Prompt, Responses, Sampler

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seamcurate.models.distinct import distinct
from seamcurate.models.local import PromptedModel, model_errors
from seamcurate.models.sampling import LocalSampler
from seamcurate.progress import note


class CausalLM(PromptedModel):
    """Name a policy: any causal language model of transformers, on disk or on the Hugging Face Hub.

    The value is frozen and loads nothing until `load` is called. Weights are read from safetensors, or from one GGUF file.
    A LoRA adapter is merged, in memory, into the base that it names. A score is the sum of a response's log-probabilities in nats, end
    token included; it depends neither on the batch nor on the rows beside it.

    Raises:
        ModelError: By `load`, where the files are damaged or lack weights, or each token sees the tokens after it.

    Example:
        >>> from seamcurate import CausalLM, FakeModel
        >>> policy = CausalLM(path="my-org/sft-7b", dtype="bfloat16")
        >>> policy.load().logprobs(["What is a set?"], [["A collection.", "A dog."]])  # doctest: +SKIP
        [[Likelihood(logprob=-9.1, tokens=4, boundary=False), Likelihood(logprob=-21.7, tokens=4, boundary=False)]]

        Without weights, and in the same form:

        >>> ((likelihood, _),) = FakeModel().load().logprobs(["What is a set?"], [["A collection.", "A dog."]])
        >>> likelihood.tokens, likelihood.logprob < 0
        (3, True)
    """

    key: ClassVar[str] = "causal_lm"
    kind: ClassVar[str] = "a language model"
    reads_gguf: ClassVar[bool] = True
    max_response_tokens: int = 512
    """Longer responses are cut to this length and scored without the end-of-sequence token."""

    tokenizer_of: str | None = None
    """Whose tokenizer a GGUF file is read with, in place of its own: a folder, a Hub id, or `id@revision`."""

    @model_validator(mode="after")
    def _of_gguf(self) -> Self:
        if self.base is not None and self.origin.is_gguf:
            raise ValueError("a GGUF file is no adapter; leave base out")
        if self.tokenizer_of is not None and not self.origin.is_gguf:
            raise ValueError("tokenizer_of is for a GGUF file; a folder holds its tokenizer")
        return self

    @property
    def origin(self) -> weights.Origin:
        """Where its files are."""
        return weights.Origin(self.path, self.revision, self.base, self.tokenizer_of)

    def named_paths(self) -> list[str]:
        """List the folders and Hub ids that a recipe names for it."""
        other = self.tokenizer_of
        return [*super().named_paths(), *([] if other is None else [other, weights.at_revision(other).path])]

    def load(self) -> Policy:
        """Load tokenizer and weights.

        Raises:
            ModelError: The files are damaged or lack weights, or the model is no causal one.
        """
        from transformers import AutoModelForCausalLM

        tokenizer, model = self.open_weights(AutoModelForCausalLM)
        with model_errors(self.title):
            loaded = _LoadedCausalLM(self, tokenizer, model)
            if self.dtype == eight_bit.NAME:
                # How it can be read was measured in single precision; the head stays in it.
                eight_bit.quantise(model.base_model)
            return loaded

    def load_sampler(self) -> Sampler:
        """Load tokenizer and weights to sample answers.

        An answer ends by the token that closes a turn: the tokenizer's EOS, or another one that the model's generation
        configuration names. Nothing else of that configuration is read, neither `top_k` nor a repetition penalty.

        Example:
            >>> from seamcurate.models import Sampling
            >>> sampler = CausalLM(path="my-org/sft-7b").load_sampler()  # doctest: +SKIP
            >>> list(sampler.samples([("What is a set?", [0])], Sampling(max_tokens=8)))  # doctest: +SKIP
            [(0, 0, Sample(text='A collection.', tokens=4, finish='stop', logprob=-9.1, logprob_1=-9.1))]

        Raises:
            ModelError: The files are damaged or lack weights, or the model is no causal one.
        """
        from transformers import AutoModelForCausalLM

        if self.dtype == eight_bit.NAME:
            raise ModelError(f"{self.title}: `dtype: int8` is for scoring; sample in float32 or bfloat16")
        tokenizer, model = self.open_weights(AutoModelForCausalLM)
        with model_errors(self.title):
            probe.check_causal(model, self.title)
            ends = weights.model_ends(model)
            form = self.prompt_form(tokenizer, ends)
            closing = {*ends, tokenizer.eos_token_id, form.end} - {None}
            window = weights.window(model, tokenizer)
            sampler = LocalSampler(model, tokenizer, form, closing, window, self.batch_tokens)
        if sampler.decoders.alone:
            note(
                f"{self.title}: answers are sampled one at a time, which is slower: they would change each other in a batch"
            )
        return sampler


class _LoadedCausalLM:
    def __init__(self, config: CausalLM, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self.config, self.tokenizer, self.model = config, tokenizer, model
        self.form = config.prompt_form(tokenizer, weights.model_ends(model))
        self.window = weights.window(model, tokenizer)
        name = f"causal_lm {config.path}"
        probe.check_causal(model, name)
        parts = prefix.output_head(model, model.get_output_embeddings())
        self.reader = prefix.PrefixReader(model, parts, config.batch_tokens)
        if self.reader.longest_batched == 0:
            probe.tell_alone(name)
        else:
            probe.tell_longer(name, self.reader.longest_batched, self.window)

    def logprobs(self, prompts: Sequence[Prompt], responses: Responses) -> list[list[Likelihood | None]]:
        """Score by group; see `Policy`."""
        rows = distinct(prompts, responses)
        fits: list[list[int]] = []
        tokenized: list[list[tuple[int, bool]]] = []

        def groups() -> Iterator[prefix.Group]:
            for prompt, answers in rows.groups:
                try:
                    prompt_ids, response_ids, crossed = tokens.policy_group(
                        self.tokenizer, prompt, answers, self.config.max_response_tokens, self.form
                    )
                except tokens.refusals():
                    prompt_ids, response_ids, crossed = [], [[] for _ in answers], [False] * len(answers)
                if any(len(ids) >= self.config.max_response_tokens for ids in response_ids):
                    probe.tell_cut(self.config.title, self.config.max_response_tokens, "max_response_tokens")
                window_left = self.window - len(prompt_ids)
                readable = prompt_ids and probe.is_readable(self.model, prompt_ids)
                fits.append(
                    [
                        i
                        for i, ids in enumerate(response_ids)
                        if readable and 0 < len(ids) <= window_left and probe.is_readable(self.model, ids)
                    ]
                )
                tokenized.append([(len(ids), crosses) for ids, crosses in zip(response_ids, crossed, strict=True)])
                yield prefix.Group(prompt_ids, [response_ids[i] for i in fits[-1]])

        sums = self.reader.score(groups(), self._sums)
        scored: list[list[Likelihood | None]] = []
        for (_, answers), positions, counts, values in zip(rows.groups, fits, tokenized, sums, strict=True):
            likelihoods: list[Likelihood | None] = [None] * len(answers)
            for i, value in zip(positions, values, strict=True):
                likelihoods[i] = None if value is None else Likelihood(value, *counts[i])
            scored.append(likelihoods)
        return rows.regroup(scored)

    def _sums(self, outputs: prefix.Outputs, pack: prefix.Pack) -> torch.Tensor:
        """Return the sum of each response's log-probabilities; logits are computed in parts, their softmax in float32."""
        import torch

        device = self.model.device
        row_tensor = moved([row for p in pack.targets for row in (p.before, *range(p.start, p.end - 1))], device)
        target = moved([token for answer in pack.answers for token in answer], device)
        if vocabulary.is_blockwise(outputs.head):
            logprobs = vocabulary.logprobs(outputs.hidden[row_tensor], outputs.head, target)
        else:
            logprobs = torch.cat(
                [
                    -torch.nn.functional.cross_entropy(
                        outputs(row_tensor[part]).float(), target[part], reduction="none"
                    )
                    for part in (slice(start, start + self._slice) for start in range(0, len(target), self._slice))
                ]
            )
        lengths = moved([len(answer) for answer in pack.answers], device)
        # The response that each position belongs to; sums are in double precision.
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths, output_size=len(target))
        return torch.zeros(len(lengths), dtype=torch.float64, device=device).index_add_(0, owner, logprobs.double())

    @property
    def _slice(self) -> int:
        """Return how many positions have their logits in memory at once: 16 MiB on a CPU, 512 MiB on a GPU."""
        room = 2**22 if self.model.device.type == "cpu" else 2**27
        return max(64, room // probe.vocabulary(self.model))
