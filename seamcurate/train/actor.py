"""The policy and its value function as one module; imported where training starts, since it needs torch to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from seamcurate.errors import TrainError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Actor(torch.nn.Module):
    """A policy with what predicts its reward: a linear head on its last hidden state, or a value model of its own.

    Dropout is off for good: with it the same response has another probability in every pass, and PPO's ratio means nothing.
    """

    def __init__(self, policy: PreTrainedModel, critic: PreTrainedModel | None, temperature: float) -> None:
        super().__init__()
        self.policy: Any = policy
        self.critic: Any = critic
        self.temperature = temperature
        self.head: torch.nn.Linear | None = None
        if critic is None:
            # From zero: the first values are 0 whatever the scale of the hidden states.
            width = int(policy.config.get_text_config().hidden_size)
            self.head = torch.nn.Linear(width, 1, device=policy.device)
            torch.nn.init.zeros_(self.head.weight)
            torch.nn.init.zeros_(self.head.bias)
        module: Any
        for module in self.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        self.eval()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, context: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and values of the tokens from `context` on, each batch × tokens, float32.

        A token's value is that of the state before it: what is still to come when it is chosen.
        """
        arguments = _model_arguments(ids, mask)
        token_count = ids.shape[1] - context + 1
        output = self.policy(**arguments, logits_to_keep=token_count, output_hidden_states=self.head is not None)
        logprobs = _token_logprobs(output.logits[:, -token_count:-1], ids[:, context:], self.temperature)
        if self.head is not None:
            values = self.head(output.hidden_states[-1][:, -token_count:-1].float())
        else:
            critic = self.critic.get_base_model() if _is_adapted(self.critic) else self.critic
            hidden = getattr(critic, critic.base_model_prefix)(**arguments).last_hidden_state
            values = critic.score(hidden[:, -token_count:-1])
        return logprobs, values.squeeze(-1).float()


def reference_logprobs(
    policy: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, context: int, temperature: float
) -> torch.Tensor:
    """Return the log-probabilities of the tokens from `context` on, adapters switched off where there are any."""
    token_count = ids.shape[1] - context + 1
    model: Any = policy
    if _is_adapted(policy):
        with model.disable_adapter():
            logits = model(**_model_arguments(ids, mask), logits_to_keep=token_count).logits
    else:
        logits = model(**_model_arguments(ids, mask), logits_to_keep=token_count).logits
    return _token_logprobs(logits[:, -token_count:-1], ids[:, context:], temperature)


def check_critic(critic: PreTrainedModel, name: str) -> None:
    """Refuse a model that has no value at each token."""
    if not isinstance(getattr(critic, "score", None), torch.nn.Module):
        raise TrainError(
            f"value_model {name} is a {type(critic).__name__}, which reads the whole text at once; "
            "give a decoder's reward model, or none"
        )


def _is_adapted(model: PreTrainedModel) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _model_arguments(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """Return what a model is called with; positions count from each row's first token, not from its padding."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}


def _token_logprobs(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    scaled = logits.float() / temperature
    return scaled.gather(-1, ids[..., None]).squeeze(-1) - scaled.logsumexp(-1)
