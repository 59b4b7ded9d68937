"""`PlainWords`: a game's text as a word-level tokenizer wants it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from .base import EnvironmentFactory
from .vocabulary import split_words

__all__ = ["PlainWords"]


class PlainWords:
    """Another environment, whose text becomes lower-case words and signs with single spaces between them.

    Actions go through as they are. Asks for a process of its own, as games of C and Java code do.

    Args:
        factory (`Callable[[], TextEnv]`): makes the environment.
    """

    needs_process: ClassVar[bool] = True

    def __init__(self, factory: EnvironmentFactory) -> None:
        self.env: Any = factory()
        self.text = ""
        """The last observation as the environment wrote it."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.text, info = self.env.reset(seed=seed, options=options)
        instruction = info.get("instruction")
        return plain(self.text), {**info, **({} if instruction is None else {"instruction": plain(instruction)})}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.text, reward, terminated, truncated, info = self.env.step(action)
        return plain(self.text), reward, terminated, truncated, info

    def close(self) -> None:
        self.env.close()


def plain(text: str) -> str:
    """Lower-case words and signs, with single spaces between them."""
    return " ".join(split_words(text)).lower()
