"""How long the environment is waited for before praise alone may lead. numpy only.

Where all returns of a batch are equal the environment's advantages vanish, and whitening brings praise to unit scale
whatever alpha is: a judge that is wrong then leads, and nothing contradicts it. Own derivation, see "Patience" in
docs/method.md.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .calibration import RETURN_TOLERANCE

DEFAULT_PATIENCE = 256
"""Episodes: above a success rate of 3 / 256, about 1%, the environment leads."""


def all_equal(outcomes: np.ndarray, axis: int = -1) -> np.ndarray:
    """Whether the numbers along the axis are the same, but for rounding; NaN stands for none, and none at all are."""
    known = ~np.isnan(outcomes)
    most = np.where(known, outcomes, -np.inf).max(axis=axis, initial=-np.inf)
    least = np.where(known, outcomes, np.inf).min(axis=axis, initial=np.inf)
    largest = np.where(known, np.abs(outcomes), 0.0).max(axis=axis, initial=0.0)
    equal: np.ndarray = most - least <= RETURN_TOLERANCE * largest
    return equal


class Patience:
    """Praise may lead only where N episodes in a row were silent.

    A batch *speaks* if its returns are not all equal; then praise weighs alpha beside the environment's advantages. In
    a silent one alpha is 0 while no more than N episodes have passed since a batch spoke (or since the start). At a
    rate of success p, N episodes are silent with probability (1 - p)^N, less than 5% from p = 3 / N on (the "rule of
    three"): above that rate the environment leads, and below it there is little else to follow than praise.

    Args:
        episodes (`int`): N, of all processes together; at least 1.
    """

    def __init__(self, episodes: int) -> None:
        if episodes < 1:
            raise ValueError(f"hindsight_patience must be at least 1 episode here, got {episodes}; 0 does without")
        self.episodes = episodes
        self._silent = 0

    @property
    def holds(self) -> bool:
        """Whether alpha is 0 in the batch that was heard last."""
        return 0 < self._silent <= self.episodes

    def hear(self, outcomes: np.ndarray) -> None:
        """Takes in what the environment says of a batch, before praise is placed in it.

        Args:
            outcomes (`np.ndarray`): `(N,)` returns, or advantages made of them; of all processes.

        Raises:
            ValueError: one is not finite.
        """
        outcomes = np.asarray(outcomes, dtype=np.float64)
        if not np.isfinite(outcomes).all():
            raise ValueError("returns must be finite; leave out episodes without one")
        self._silent = self._silent + len(outcomes) if all_equal(outcomes) else 0

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"silent": self._silent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._silent = int(state["silent"])
