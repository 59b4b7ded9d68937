"""What several processes tell each other; with one process nothing is sent."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from accelerate.utils import gather_object


def from_all(accelerator: Any, item: Any) -> list[Any]:
    """The item of every process, in their order."""
    return list(gather_object([item])) if accelerator.num_processes > 1 else [item]


def numbers_of_all(accelerator: Any, values: np.ndarray) -> np.ndarray:
    """`(S,)` numbers of this process -> those of all processes."""
    return np.concatenate(from_all(accelerator, values))


def means_over_all(accelerator: Any, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that all processes have, averaged over them."""
    of_all = from_all(accelerator, dict(metrics))
    names = [name for name in metrics if all(name in other for other in of_all)]
    return {name: float(np.mean([other[name] for other in of_all])) for name in names}
