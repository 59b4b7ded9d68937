"""Which tasks come next: seeded epochs over the dataset's rows. No torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class TaskSampler:
    """Shuffles the rows anew in every epoch; batches never mix epochs, the rest of an epoch is dropped.

    Args:
        num_rows (`int`): rows of the dataset.
        batch_size (`int`): rows of a batch over all processes.
        seed (`int`): of the shuffles; the same on all processes.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        if num_rows < batch_size:
            raise ValueError(f"{num_rows} rows are fewer than one batch of {batch_size}")
        self.num_rows, self.batch_size = num_rows, batch_size
        self._rng = np.random.default_rng(seed)
        self._queue: list[int] = []

    def next_batch(self) -> list[int]:
        """`batch_size` row numbers."""
        if len(self._queue) < self.batch_size:
            self._queue = self._rng.permutation(self.num_rows).tolist()
        batch, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
        return batch

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"rng": self._rng.bit_generator.state, "queue": list(self._queue)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = dict(state["rng"])
        self._queue = [int(row) for row in state["queue"]]
