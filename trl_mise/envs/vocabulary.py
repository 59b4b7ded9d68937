"""The words of a game, for tokenizers that know no others."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .base import TextEnv, admissible_actions

_WORD = re.compile(r"[A-Za-z0-9]+(?:[-'][A-Za-z0-9]+)*|[^\sA-Za-z0-9]")


def split_words(text: str) -> list[str]:
    """Runs of letters, digits, hyphens and apostrophes, and single signs."""
    return _WORD.findall(text)


def expert_vocabulary(
    env: TextEnv, tasks: Sequence[Mapping[str, Any]], expert_action: Callable[[Any], str]
) -> list[str]:
    """All words that the expert reads and says in these tasks, and those of all their admissible actions, sorted.

    Words are those of [`split_words`]. The environment is left open.
    """
    texts: set[str] = set()
    for task in tasks:
        observation, info = env.reset(seed=task.get("seed"), options=task)
        texts |= {observation, str(info.get("instruction", ""))}
        done = False
        while not done:
            texts.update(admissible_actions(info))
            action = expert_action(env)
            observation, _, terminated, truncated, info = env.step(action)
            texts |= {action, observation}
            done = terminated or truncated
    return sorted({word for text in texts for word in split_words(text)})
