"""Games for `TextWorldEnv`: names of the First TextWorld Problems, generation on demand, and a cache on disk.

TextWorld draws from sets whose order depends on Python's hash seed: in two processes the same seed gives two games
with the same uuid. So a game is generated in a process of its own, whose hash seed is fixed.
"""

import hashlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from ..cache import cache_root, staged
from .webshop_files import sha256
from .worker_process import child_environment

Split = Literal["train", "valid", "test"]

_PREFIX = "tw-cooking"
_ROOMS = (1, 6, 9, 12)
_COUNTED = ("recipe", "take", "go")
_ORDER = ("recipe", "take", "cook", "cut", "open", "drop", "go")
_MANIFEST = "manifest.json"
_ATTEMPTS, _NEXT_SEED = 20, 1_000_000_007


@dataclass(frozen=True, slots=True)
class CookingGame:
    """Settings of a cooking game, as the names of the First TextWorld Problems (FTWP) spell them.

    Args:
        recipe (`int`): ingredients of the recipe, 1 to 3.
        take (`int`): how many of them must be found, 0 to `recipe`.
        cook, cut (`bool`): ingredients must be cooked, cut.
        open (`bool`): doors and containers are closed at first.
        drop (`bool`): the inventory has limited capacity.
        go (`int`): rooms: 1, 6, 9 or 12.
    """

    recipe: int = 1
    take: int = 0
    cook: bool = False
    cut: bool = False
    open: bool = False
    drop: bool = False
    go: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.recipe <= 3:
            raise ValueError(f"{_PREFIX}: recipe{self.recipe}: a recipe has 1 to 3 ingredients")
        if not 0 <= self.take <= self.recipe:
            raise ValueError(
                f"{_PREFIX}: take{self.take} must be between 0 and the {self.recipe} of recipe{self.recipe}"
            )
        if self.go not in _ROOMS:
            raise ValueError(f"{_PREFIX}: go{self.go}: the number of rooms must be one of {_ROOMS}")

    @property
    def name(self) -> str:
        """Its FTWP name, e.g. `tw-cooking-recipe3+take2+cook+cut+open+drop+go9`."""
        parts = (
            f"{part}{getattr(self, part)}" if part in _COUNTED else part for part in _ORDER if getattr(self, part)
        )
        return f"{_PREFIX}-{'+'.join(parts)}"

    @classmethod
    def parse(cls, name: str) -> "CookingGame":
        """The settings that a name spells; its parts may come in any order.

        Raises:
            ValueError: names the part that is wrong.
        """
        prefix, dash, parts = name.partition(f"{_PREFIX}-")
        if prefix or not dash:
            raise ValueError(f"game {name!r} must begin with {_PREFIX + '-'!r}, e.g. {cls(take=1).name!r}")
        found: dict[str, Any] = {}
        for part in parts.split("+"):
            match = re.fullmatch(r"(recipe|take|go)([0-9]{1,3})|(cook|cut|open|drop)", part)
            if match is None:
                raise ValueError(
                    f"game {name!r}: unknown part {part!r}; parts are recipe1-3, take1-3, cook, cut, open, drop and "
                    "go1, go6, go9 or go12, joined by '+'"
                )
            key, value = (match[1], int(match[2])) if match[1] else (match[3], True)
            if key in found:
                raise ValueError(f"game {name!r}: {key!r} stands there twice")
            found[key] = value
        missing = [part for part in ("recipe", "go") if part not in found]
        if missing:
            raise ValueError(f"game {name!r} lacks {missing}; e.g. {_PREFIX}-recipe1+take1+go1")
        return cls(**found)


def ftwp_names() -> list[str]:
    """Every valid name: all combinations of the seven skills."""
    return [
        CookingGame(recipe, take, cook, cut, opened, drop, go).name
        for recipe in (1, 2, 3)
        for take in range(recipe + 1)
        for cook, cut, opened, drop in itertools.product((False, True), repeat=4)
        for go in _ROOMS
    ]


@dataclass(frozen=True, slots=True)
class GameSpec:
    """What a generated game is made from; equal specs are the same game.

    Args:
        challenge (`str`): name of a TextWorld challenge.
        settings (`tuple`): its settings, sorted pairs.
        seed (`int`): of the generation.
    """

    challenge: str
    settings: tuple[tuple[str, Any], ...]
    seed: int

    @classmethod
    def of(cls, game: str, settings: Mapping[str, Any] | None, split: str, seed: int) -> "GameSpec":
        """From an FTWP name, or from the name of a challenge and its settings.

        Raises:
            ValueError: a name, setting or split that there is not; the message lists those that there are.
        """
        check_split(split)
        require_textworld()
        if game.startswith(f"{_PREFIX}-"):
            cooking = CookingGame.parse(game)
            game = _PREFIX
            named = {field.name: getattr(cooking, field.name) for field in fields(cooking)}
            settings = {**named, "recipe_seed": 0, "split": split, **(settings or {})}
        return cls(game, tuple(sorted(_checked_settings(game, dict(settings or {})).items())), int(seed))

    @property
    def key(self) -> str:
        """Folder of the game in the cache."""
        text = json.dumps([self.challenge, self.settings, self.seed, version("textworld")], sort_keys=True)
        return f"{self.challenge}-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_split(split: str) -> str:
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    return split


def require_textworld() -> None:
    """Raises an `ImportError` that says how to install TextWorld."""
    if importlib.util.find_spec("textworld") is None:
        raise ImportError(
            'TextWorldEnv needs TextWorld: pip install "trl-mise[textworld]" (Linux or macOS; its dependency Jericho '
            "is compiled on installation, which needs make and a C compiler)"
        )


def _checked_settings(challenge: str, given: dict[str, Any]) -> dict[str, Any]:
    """The challenge's settings with its defaults."""
    from textworld.challenges import CHALLENGES

    if challenge not in CHALLENGES:
        raise ValueError(
            f"game {challenge!r} is neither a file (.z8), nor an FTWP name such as {CookingGame(take=1).name!r}, nor "
            f"a challenge of TextWorld: {sorted(CHALLENGES)}"
        )
    known = {a.dest: a for a in CHALLENGES[challenge][2]()._actions if a.dest != "help"}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{challenge} has no settings {unknown}; its settings are {sorted(known)}")
    settings = {name: given.get(name, action.default) for name, action in known.items()}
    for name, action in known.items():
        if action.required and name not in given:
            raise ValueError(
                f"{challenge} needs the setting {name!r} ({action.help}); pass settings={{{name!r}: ...}}"
            )
        if action.choices is not None and settings[name] not in (*action.choices, action.default):
            raise ValueError(f"{challenge}: {name}={settings[name]!r} must be one of {list(action.choices)}")
    return settings


def game_file(spec: GameSpec, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The compiled game, from the cache or generated now (a few seconds).

    A cached game is checked against its checksums, and made again where it is broken. Several processes may ask for
    the same game at once. A few seeds TextWorld cannot make (some splits have no food for some skills); then it is the
    game of the next seed that it can, the same every time.

    Args:
        spec ([`GameSpec`]): what to make.
        cache_dir (`str` or `PathLike`, *optional*): defaults to the environment variable `TRL_MISE_CACHE`, else to
            `~/.cache/trl-mise`.

    Raises:
        RuntimeError: TextWorld could not make the game; the message has its last words.
    """
    folder = cache_root(cache_dir) / "textworld" / spec.key
    found = _intact(folder)
    if found is not None:
        return found
    with staged(folder, lambda: _intact(folder) is not None) as staging:
        _generate(spec, staging)
    found = _intact(folder)
    if found is None:
        raise RuntimeError(f"the game in {folder} was broken as soon as it was made; is the disk full?")
    return found


def _intact(folder: Path) -> Path | None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        right = all(sha256(folder / name) == digest for name, digest in manifest["files"].items())
        return folder / manifest["game"] if right else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _generate(spec: GameSpec, folder: Path) -> None:
    request = json.dumps({"challenge": spec.challenge, "settings": dict(spec.settings), "seed": spec.seed})
    done = subprocess.run(
        [sys.executable, "-m", __name__, request, str(folder)],
        env=child_environment(PYTHONHASHSEED="0"),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        last = "\n    ".join(done.stderr.strip().splitlines()[-8:])
        raise RuntimeError(f"TextWorld could not make {spec}:\n    {last}")


def _make(request: Mapping[str, Any], folder: Path) -> None:
    """Runs in the process whose hash seed is fixed."""
    from textworld import GameOptions
    from textworld.challenges import CHALLENGES
    from textworld.generator import compile_game

    def make(seed: int) -> tuple[Any, Any]:
        options = GameOptions()
        options.seeds = seed
        options.path = f"{folder}{os.sep}"
        return CHALLENGES[request["challenge"]][1](dict(request["settings"]), options), options

    game, options = _first_that_works(make, request["seed"])
    path = Path(compile_game(game, options))
    path.with_suffix(".ni").unlink(missing_ok=True)
    files = {file.name: sha256(file) for file in (path, path.with_suffix(".json"))}
    (folder / _MANIFEST).write_text(json.dumps({"game": path.name, "files": files}), encoding="utf-8")


def _first_that_works(make: Callable[[int], Any], seed: int) -> Any:
    for attempt in range(_ATTEMPTS):
        try:
            return make((seed + attempt * _NEXT_SEED) % 2**32)
        except Exception:
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


if __name__ == "__main__":
    _make(json.loads(sys.argv[1]), Path(sys.argv[2]))
