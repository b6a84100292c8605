"""The weight of the KL penalty: fixed, or moved so that the policy stays at a distance from where it began."""

from __future__ import annotations


class KLController:
    """A coefficient that is raised while KL is above its target and lowered below it (Ziegler 2019, §2.2).

    Args:
        coefficient: Where it starts; the papers start at .2.
        target: Nats per response to stay at; None keeps the coefficient as it is.
        horizon: Responses over which it may change e-fold at most .2 times; the papers take 10,000.
    """

    def __init__(self, coefficient: float, target: float | None = 6.0, horizon: int = 10_000) -> None:
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, responses: int) -> float:
        """Return the coefficient after `responses` more, whose mean KL was `kl` nats."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * responses / self.horizon
        return self.coefficient
