"""Shares of independent trials: how sure one is of them.

One rule: columns of a step, studies and audits take their intervals from here, so that they agree.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Doubles: TypeAlias = npt.NDArray[np.float64]

QUANTILE = 1.959963984540054
"""The normal quantile of a 95 % interval."""


def wilson(share: Doubles, count: Doubles) -> tuple[Doubles, Doubles]:
    """Return the ends of Wilson's 95 % score interval of shares of `count` trials each (Wilson 1927); NaN where a share is.

    Example:
        >>> import numpy as np
        >>> from seamcurate.score.proportions import wilson
        >>> low, high = wilson(np.array([0.5]), np.array([8.0]))
        >>> round(float(low[0]), 3), round(float(high[0]), 3)
        (0.215, 0.785)
    """
    # The shares p with |share − p| ≤ z · √(p(1 − p) / n), solved for p: the interval never leaves [0, 1].
    n, z2 = np.maximum(count, 1), QUANTILE**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)
