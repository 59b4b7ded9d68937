"""`TextWorldEnv`: games of Microsoft's TextWorld, the cooking games of the First TextWorld Problems among them.

The games run in TextWorld's own interpreter; here is what makes them an environment: one command an action, a reward
for winning only, and observations without the hints that the game gives about its score.
"""

import random
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

from .textworld_games import GameSpec, Split, check_split, ftwp_names, game_file, require_textworld
from .vocabulary import expert_vocabulary

__all__ = ["TextWorldEnv", "expert_action", "ftwp_names", "make_tasks", "vocabulary"]

DEFAULT_GAME = "tw-cooking-recipe1+take1+cook+cut+go1"
MAX_ACTION_CHARS = 120
"""The interpreter's line buffer is short, and no command of a game is nearly as long."""

# What Inform understands outside of the world: files, the interpreter, the last command, the score, TextWorld's own
# probes. Its dictionary knows nine characters of a word.
_META = (
    *("save", "restore", "restart", "quit", "q", "undo", "oops", "o", "again", "g", "verify", "version", "score"),
    *("script", "transcript", "noscript", "unscript", "record", "recording", "replay", "notify", "pronouns", "nouns"),
    *("brief", "normal", "superbrief", "short", "verbose", "long", "fullscore", "full", "yes", "y", "no"),
    *("restrict", "print_state", "enable", "disable", "help", "actions", "rules", "showme", "trace", "tree", "random"),
)
_META_WORDS = frozenset(word[:9] for word in _META)
_PLAIN = re.compile(r"[ -~]+")
_CHAIN = re.compile(r"[.\"]|\bthen\b")

_SCORE_LINES = re.compile(
    r"^\W*(your score has just gone (up|down) by .*|you (have so far )?scored .* out of .*|would you like to restart.*"
    r"|please give one of the answers above.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_STATUS_TAIL = re.compile(r"(-= .+? =-)\s*-?\d+/\d+\s*$")


class TextWorldEnv:
    """A game of TextWorld; 1 is paid when it is won, and nothing before.

    An action is one command. Refused, with `info["action_valid"]` False and nothing changed: what would chain commands
    (a newline, a period, "then"), what reaches out of the game (`save`, `restore`, `restart`, `quit`, `undo`, `again`,
    `score`, `tw-...` and their like), and what is no command line (empty, over 120 characters, not printable ASCII).
    Commands that the game does not understand are not valid either; the game says so.

    Args:
        game (`str`): an FTWP name (`tw-cooking-recipe3+take2+cook+cut+open+drop+go9`), the name of another TextWorld
            challenge with its `settings`, or the path of a game file (`.z8`, with the `.json` that TextWorld wrote
            beside it; without one it has no admissible actions and no expert).
        split (`str`): `"train"`, `"valid"` or `"test"`: disjoint foods and preparations of the cooking games.
        settings (`Mapping`, *optional*): of the challenge.
        max_steps (`int`, *optional*): the environment truncates the episode after so many steps.
        cache_dir (`str`, *optional*): of generated games; see [`game_file`].

    A task row may name its own `"game"`, `"split"` and `"settings"`; its seed, from 0, is the seed of the generation
    (without one: 0). The first episode of a game that is not in the cache waits a few seconds for it.

    `info` has `instruction` (from `reset`), `admissible_actions` (a callable; a second copy of the game follows the
    first once it was called), `score` (the game's own, in [0, 1]), `max_score` (1), `action_valid`, and, at the end,
    `won`.
    """

    needs_process: ClassVar[bool] = True
    """The interpreter is C code: the trainer isolates it by default."""

    def __init__(
        self,
        game: str = DEFAULT_GAME,
        *,
        split: str = "train",
        settings: Mapping[str, Any] | None = None,
        max_steps: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        require_textworld()
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}; use None for no limit")
        self._game_name, self._split, self._settings = game, check_split(split), settings
        self._max_steps, self._cache_dir = max_steps, cache_dir
        self._path: Path | None = None
        self._game: Any = None  # TextWorld's environment of self._path
        self._shadow: _Shadow | None = None
        self.commands: list[str] = []
        """What reached the game in this episode."""
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts the game that the row and the seed name."""
        row = options or {}
        game, split = str(row.get("game") or self._game_name), str(row.get("split") or self._split)
        # Settings are of one game; those of another would not fit.
        settings = row.get("settings") or (None if row.get("game") else self._settings)
        self._load(self._find(game, settings, split, seed))
        state = self._game.reset()
        self.commands, self._steps, self._won = [], 0, False
        self._terminated = self._truncated = False
        self._running = True
        self._state = state
        self._max_score = state.max_score or 0
        self._score = self._normalised(state.score)
        instruction, self._observation = _opening(state.feedback, state.objective)
        return self._observation, {"instruction": instruction, **self._info(valid=True)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Returns (observation, reward, terminated, truncated, info). After the end nothing changes any more."""
        if not self._running:
            raise RuntimeError("TextWorldEnv.step was called before reset; call reset() first")
        if self._terminated or self._truncated:
            return self._observation, 0.0, self._terminated, self._truncated, self._info(valid=False)
        self._steps += 1
        command = _command(action)
        valid = command is not None and self._send(command)
        if command is None:
            self._observation = "That is not a command of this game."
        self._truncated = not self._terminated and self._max_steps is not None and self._steps >= self._max_steps
        return self._observation, float(self._won), self._terminated, self._truncated, self._info(valid)

    def close(self) -> None:
        """Ends the interpreter. May be called twice."""
        if self._shadow is not None:
            self._shadow.close()
        if self._game is not None:
            self._game.close()
        self._shadow = self._game = self._path = None
        self._running = False

    def admissible_actions(self) -> list[str]:
        """Every command that changes the state now, sorted; empty for a game that TextWorld did not make."""
        return [] if self._over else self._at_shadow("admissible_commands")

    def plan(self) -> list[str]:
        """Commands that win from here, as far as TextWorld knows them."""
        if self._over:
            return []
        walkthrough = list(self._state.get("extra.walkthrough") or [])
        done = len(self.commands)
        if walkthrough[:done] == self.commands and walkthrough[done:]:
            return walkthrough[done:]
        return self._at_shadow("policy_commands")

    @property
    def _over(self) -> bool:
        return not self._running or self._terminated or self._truncated

    def _find(self, game: str, settings: Mapping[str, Any] | None, split: str, seed: int | None) -> Path:
        if Path(game).suffix == ".ulx":
            raise ValueError(f"game {game!r}: TextWorld 1.7 no longer plays Glulx (.ulx); compile it to .z8")
        if not re.fullmatch(r"\.z[1-8]", Path(game).suffix):
            return game_file(GameSpec.of(game, settings, split, seed or 0), self._cache_dir)
        path = Path(game).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"game {game!r}: there is no such file")
        return path.resolve()

    def _load(self, path: Path) -> None:
        if path == self._path:
            if self._shadow is not None:
                self._shadow.restart()
            return
        self.close()
        self._game = _start(path, score=True, max_score=True, won=True, lost=True, moves=True)
        self._path = path

    def _send(self, command: str) -> bool:
        """Plays one command; whether the game understood it."""
        moves = self._state.moves
        self.commands.append(command)
        self._state, _, done = self._game.step(command)
        self._observation = _without_score(self._state.feedback)
        self._won = bool(self._state.won)
        self._terminated = bool(done or self._state.won or self._state.lost)
        self._score = self._normalised(self._state.score)
        # A command that the parser does not understand takes no turn; where turns are not counted, all are understood.
        return self._terminated or moves is None or self._state.moves != moves

    def _at_shadow(self, what: str) -> list[str]:
        assert self._path is not None
        if not self._path.with_suffix(".json").is_file():
            return []
        if self._shadow is None:
            self._shadow = _Shadow(self._path)
        return self._shadow.ask(self.commands, what)

    def _normalised(self, score: Any) -> float:
        return min(1.0, max(0.0, float(score or 0) / self._max_score)) if self._max_score else 0.0

    def _info(self, valid: bool) -> dict[str, Any]:
        info: dict[str, Any] = {
            "admissible_actions": self.admissible_actions,
            "score": self._score,
            "max_score": 1.0,
            "action_valid": valid,
        }
        return {**info, "won": self._won} if self._terminated or self._truncated else info


class _Shadow:
    """A second copy of the game that follows the first when it is asked: keeping track of the state is slow."""

    def __init__(self, path: Path) -> None:
        self._env = _start(path, admissible_commands=True, policy_commands=True)
        self.restart()

    def restart(self) -> None:
        self._state, self._followed = self._env.reset(), 0

    def ask(self, commands: Sequence[str], what: str) -> list[str]:
        for command in commands[self._followed :]:
            self._state, _, _ = self._env.step(command)
        self._followed = len(commands)
        return list(self._state.get(what) or [])

    def close(self) -> None:
        self._env.close()


def _start(path: Path, **infos: bool) -> Any:
    """The game in TextWorld's interpreter, which is to tell these things about it."""
    from jericho.jericho import UnsupportedGameWarning
    from textworld import EnvInfos
    from textworld.helpers import start

    # What Jericho misses of a game that it does not know, TextWorld has from the file beside it.
    warnings.filterwarnings("ignore", category=UnsupportedGameWarning)
    return start(str(path), EnvInfos(**infos))


def _command(action: str) -> str | None:
    """The action as one line for the interpreter; None where it is refused."""
    stripped = action.strip()
    if len(stripped) > MAX_ACTION_CHARS or not _PLAIN.fullmatch(stripped) or _CHAIN.search(stripped.lower()):
        return None
    command = " ".join(stripped.split())
    # The parser separates words at commas as well ("kitchen, save").
    words = re.findall(r"[^\s,;:!?]+", command.lower())
    refused = not words or any(word.startswith("tw-") for word in words) or words[0][:9] in _META_WORDS
    return None if refused else command


def _opening(feedback: str, objective: str | None) -> tuple[str, str]:
    """(instruction, first observation): the banner goes, and the objective is said once."""
    text = _without_score(feedback)
    task = _tidy(objective or "")
    before, found, after = text.partition(task) if task else ("", "", "")
    return task, (after.strip() if found and after.strip() else text)


def _without_score(feedback: str) -> str:
    text = _SCORE_LINES.sub("", _STATUS_TAIL.sub(r"\1", feedback.rstrip().removesuffix(">").rstrip()))
    return _tidy(text)


def _tidy(text: str) -> str:
    lines = (line.rstrip() for line in text.strip().splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip() if "***" in line else line for line in lines)).strip()


def expert_action(env: TextWorldEnv) -> str:
    """The next command of a winning plan.

    Raises:
        RuntimeError: TextWorld knows none from here.
    """
    plan = env.plan()
    if not plan:
        raise RuntimeError(f"TextWorld knows no plan that wins after {env.commands[-3:]}; the game may be lost")
    return plan[0]


def make_tasks(
    split: str,
    n: int,
    seed: int = 0,
    *,
    game: str | Sequence[str] = DEFAULT_GAME,
    num_games: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Dataset rows `{"seed", "game", "split"}` (and `"settings"`, where given) for `TextWorldEnv`.

    Seeds of different splits are disjoint.

    Args:
        split (`str`): `"train"`, `"valid"` or `"test"`.
        n (`int`): rows.
        seed (`int`): of the draw.
        game (`str` or `Sequence[str]`): one game, or several that take turns.
        num_games (`int`, *optional*): different games in all, repeated after that; each has to be generated once.
        settings (`Mapping`, *optional*): of the challenge.
    """
    names = [game] if isinstance(game, str) else list(game)
    if not names:
        raise ValueError("game is an empty list; name at least one game")
    if num_games is not None and num_games < 1:
        raise ValueError(f"num_games must be at least 1, got {num_games}; None draws a new game for every row")
    distinct = n if num_games is None else min(n, num_games)
    # The split is part of the seed and of the range, so that no seed is in two splits.
    index = get_args(Split).index(check_split(split))
    draws = random.Random(f"textworld-{split}-{seed}")
    seeds = [index * 2**30 + draws.randrange(2**30) for _ in range(distinct)]
    extra = {} if settings is None else {"settings": dict(settings)}
    return [
        {"seed": seeds[i % distinct], "game": names[i % distinct % len(names)], "split": split, **extra}
        for i in range(n)
    ]


def vocabulary(tasks: Sequence[Mapping[str, Any]], **env_kwargs: Any) -> list[str]:
    """All words that the expert reads and says in these games, and those of all their admissible commands, sorted."""
    env = TextWorldEnv(**env_kwargs)
    try:
        return expert_vocabulary(env, tasks, expert_action)
    finally:
        env.close()
