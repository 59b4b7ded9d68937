"""Episodes as records, whoever played them, and how a terminal shows them."""

import json
import shutil
from collections.abc import Mapping
from typing import Any

from ..display import score_colour
from ..envs.base import EnvironmentFactory, TextEnv
from ..types import is_success

SHOWN_CHARACTERS = 600
"""Of an observation; web pages are longer than anybody reads."""


class Transcripts:
    """An environment factory whose environments write down what happens in them.

    For agents that play in this process and look into the environment: whatever it has besides, they find.

    Args:
        factory (`EnvironmentFactory`): makes the environments.
    """

    def __init__(self, factory: EnvironmentFactory) -> None:
        self._factory = factory
        self.episodes: list[dict[str, Any]] = []

    def __call__(self) -> Any:
        return _WrittenDown(self._factory(), self.episodes)


class _WrittenDown:
    def __init__(self, env: TextEnv, episodes: list[dict[str, Any]]) -> None:
        self._env, self._episodes = env, episodes
        self._seen = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Any:
        answer = self._env.reset(seed=seed, options=options)
        observation, info = answer
        record = {"task": dict(options or {}), "seed": seed, "instruction": info.get("instruction", ""), "turns": []}
        self._episodes.append({**record, "final_observation": observation, "return": 0.0, "success": False})
        self._won: bool | None = None
        return answer

    def step(self, action: str) -> Any:
        answer = self._env.step(action)
        observation, reward, terminated, truncated, info = answer
        record = self._episodes[-1]
        record["turns"].append(
            {
                "observation": record["final_observation"],
                "action": action,
                "reward": float(reward),
                "action_valid": bool(info.get("action_valid", True)),
            }
        )
        self._won = info.get("won", self._won)
        record["final_observation"] = observation
        record["return"] += float(reward)
        record["success"] = is_success(None if self._won is None else bool(self._won), record["return"])
        # Where neither is said, whoever plays has had enough.
        record["stop_reason"] = "terminated" if terminated else "env_truncated" if truncated else "max_turns"
        return answer


def print_episode(record: Mapping[str, Any], *, title: str = "", full: bool = False, width: int | None = None) -> None:
    """One episode on the terminal: what was seen, done, paid, and in hindsight thought of it.

    Args:
        record (`Mapping`): as in `trajectories.jsonl`.
        title (`str`): its first line, before the task.
        full (`bool`): whole observations.
        width (`int`, *optional*): columns; the terminal's by default.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    # Into a file lines are as long as they are.
    console = Console(width=width, soft_wrap=False, highlight=False)
    if width is None and not console.is_terminal:
        console = Console(width=max(100, shutil.get_terminal_size().columns), highlight=False)
    console.print(Text(f"{title}task {json.dumps(record['task'], default=str)}", style="bold"))
    if record.get("instruction"):
        console.print(Padding(Text(printable(record["instruction"])), (0, 0, 0, 4), expand=False))
    for number, turn in enumerate(record["turns"], 1):
        console.print(Padding(Text(_shortened(turn["observation"], full), style="dim"), (0, 0, 0, 4), expand=False))
        done = (printable(f"{number:>3} > {turn['action']}"), "bold")
        console.print(Text.assemble(done, *_judged(turn)))
    console.print(
        Padding(Text(_shortened(record["final_observation"], full), style="dim"), (0, 0, 0, 4), expand=False)
    )
    if record.get("error"):
        console.print(Text(f"failed: {printable(record['error'])}", style="red"))
    outcome = "won" if record["success"] else "lost"
    style = "green" if record["success"] else "red"
    stop = record.get("stop_reason", "")
    console.print(Text.assemble((outcome, f"bold {style}"), f", return {record['return']:.3f} ({stop})\n"))


def _judged(turn: Mapping[str, Any]) -> list[Any]:
    """Reward and score behind an action; the score also as a colour, from orange over grey to blue."""
    parts: list[Any] = []
    if not turn["action_valid"]:
        parts.append(("  (not understood)", "yellow"))
    if turn["reward"]:
        parts.append(f"  reward {turn['reward']:g}")
    if "score" in turn:
        score = float(turn["score"])
        parts.append(("  score ", ""))
        parts.append((f" {score:.2f} ", f"black on {score_colour(score)}"))
    if turn.get("evaluation"):
        parts.append((f"\n      {printable(turn['evaluation'])}", "italic"))
    return parts


def _shortened(text: str, full: bool) -> str:
    shown = printable(text)
    if full or len(shown) <= SHOWN_CHARACTERS:
        return shown
    return f"{shown[:SHOWN_CHARACTERS]} … ({len(shown) - SHOWN_CHARACTERS:,} more characters)"


def printable(text: str) -> str:
    """Text from environments and models, without what would command the terminal."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
