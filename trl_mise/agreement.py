"""The gate: how far the judge is trusted, by whether its praise and the environment's advantages agree. numpy only.

By the performance difference lemma (Kakade and Langford, 2002), a small step of the policy toward praised actions,
`pi'(a|s) ∝ pi(a|s) exp(eta n(s, a))`, changes the expected return at the rate

    dJ/d eta = E_{s, a ~ pi}[ A^env(s, a) n(s, a) ]      (up to the positive factor of the visits)

so praise helps exactly as far as this mean is positive: that, and not whether verdicts are right, is what a user must
fear or not. It is estimated from the advantages and scores that every update has anyway. Own derivation, see "The
gate" in the docs.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class AgreementGate:
    """Multiplies alpha: 1 while nothing speaks against the judge, toward 0 when its praise lowers the return.

        x_n = mean_t A_nt^env n_nt   of episode n,      m, v = running mean and variance of the batch means of x
        gate = min(1, 2 Phi(m / sqrt(v)))               twice the probability that the mean is positive, at most 1

    Batches in which all advantages vanish (every return the same, and expected) say nothing and are left out. The
    running sums forget with `momentum`, so that a judge that drifts, or gets better, is judged anew.

    Args:
        momentum (`float`): of the running sums, in [0, 1): about `1 / (1 - momentum)` updates are looked back on.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}; 0 looks at the last update only")
        self.momentum = momentum
        self._mean_sum = self._variance_sum = 0.0

    @property
    def z(self) -> float:
        """The running mean of the agreement over its standard error; 0 while nothing is known."""
        return self._mean_sum / math.sqrt(self._variance_sum) if self._variance_sum > 0 else 0.0

    @property
    def value(self) -> float:
        """In [0, 1]."""
        return min(1.0, 1.0 + math.erf(self.z / math.sqrt(2.0)))

    def update(self, agreement: np.ndarray) -> None:
        """Takes in an update's `(N,)` episodes; fewer than two, or all exactly alike, are no evidence.

        Args:
            agreement (`np.ndarray`): `(N,)` x_n; any positive scale that stays the same within a run.
        """
        agreement = np.asarray(agreement, dtype=np.float64)
        if not np.isfinite(agreement).all():
            raise ValueError("agreement must be finite; leave out episodes without advantages")
        if len(agreement) < 2 or agreement.std() == 0:
            return
        self._mean_sum = self.momentum * self._mean_sum + float(agreement.mean())
        # Variances of independent means add with the squares of their weights.
        self._variance_sum = self.momentum**2 * self._variance_sum + float(agreement.var(ddof=1)) / len(agreement)

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"mean_sum": self._mean_sum, "variance_sum": self._variance_sum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._mean_sum, self._variance_sum = float(state["mean_sum"]), float(state["variance_sum"])
