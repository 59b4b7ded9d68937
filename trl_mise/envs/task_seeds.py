"""Seeds of generated tasks: those of the splits never meet. No dependency."""

import operator
import random
from collections.abc import Mapping
from typing import Any

SPLITS = ("train", "test")
SEEDS_PER_SPLIT = 2**30


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")


def chosen_seed(seed: int | None, options: Mapping[str, Any] | None) -> int:
    """The seed of an episode: `reset`'s own, else the task row's, else one that no other environment draws."""
    chosen = seed if seed is not None else (options or {}).get("seed")
    if chosen is None:
        # The operating system's entropy: environments that play side by side must not meet the same episodes.
        return random.SystemRandom().randrange(SEEDS_PER_SPLIT)
    try:
        return operator.index(chosen)  # 3 and np.int64(3) name the same episode
    except TypeError:
        raise ValueError(f"seed must be an integer, got {chosen!r}; see make_tasks() for task rows") from None


def draw_seeds(game: str, split: str, n: int, seed: int) -> list[int]:
    """`n` different seeds of a split: train seeds lie below 2**30, test seeds from there to 2**31.

    A longer list from the same `seed` does not in general start with the shorter one.
    """
    check_split(split)
    if not 0 <= n <= SEEDS_PER_SPLIT:
        raise ValueError(f"n must be between 0 and {SEEDS_PER_SPLIT}, got {n}")
    start = SPLITS.index(split) * SEEDS_PER_SPLIT
    rng = random.Random(f"{game}-tasks-{split}-{seed}")
    return rng.sample(range(start, start + SEEDS_PER_SPLIT), n)
