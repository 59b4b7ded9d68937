"""Environments by name: those of this package, and `module:factory` for one's own. Imported when used."""

import functools
import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .base import EnvironmentFactory

FTWP_GAMES = (
    "tw-cooking-recipe1+go1",
    "tw-cooking-recipe1+take1+go6",
    "tw-cooking-recipe1+cook+go1",
    "tw-cooking-recipe1+cut+go1",
    "tw-cooking-recipe1+take1+open+go6",
    "tw-cooking-recipe1+drop+go1",
    "tw-cooking-recipe2+take2+cook+go6",
    "tw-cooking-recipe2+take1+cook+cut+go9",
    "tw-cooking-recipe3+take3+open+drop+go9",
    "tw-cooking-recipe3+take2+cook+cut+open+drop+go12",
)
"""Every part of an FTWP name and each of its numbers occurs, from a single room to everything at once."""

SCIENCEWORLD_TASKS = (
    "boil",
    "use-thermometer",
    "power-component",
    "find-animal",
    "grow-plant",
    "chemistry-mix",
    "lifespan-longest-lived",
    "identify-life-stages-1",
    "inclined-plane-determine-angle",
    "mendelian-genetics-known-plant",
)
"""One task of each of ScienceWorld's ten topics."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """What there is to know about an environment before it is made.

    Args:
        name (`str`): how it is asked for.
        description (`str`): one line.
        environment (`str`): `module:attribute` of its class, or of what makes it.
        tasks (`str`, *optional*): `module:attribute` of its `make_tasks(split, n, seed=0, **kwargs)`; without one a
            task is a seed.
        expert (`str`, *optional*): `module:attribute` of its `expert_action(env)`.
        package (`str`, *optional*): the optional package that it needs.
        extra (`str`, *optional*): the extra of this package that installs it.
        max_steps (`int`): enough for its expert, with room for detours.
        system_prompt (`str`, *optional*): what tells an instruct model how to act in it.
        evaluation_tasks (`Mapping`): arguments of `make_tasks` that show the whole of it in a few episodes.
    """

    name: str
    description: str
    environment: str
    tasks: str | None = None
    expert: str | None = None
    package: str | None = None
    extra: str | None = None
    max_steps: int = 100
    system_prompt: str | None = None
    evaluation_tasks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_installed(self) -> bool:
        """Whether the optional package that it needs is there."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    @property
    def install_command(self) -> str:
        """What installs the optional package."""
        return f'pip install "trl-mise[{self.extra}]"' if self.extra else "pip install trl-mise"

    def factory(self, **env_kwargs: Any) -> EnvironmentFactory:
        """Makes environments with these arguments; can be pickled, for worker processes.

        Raises:
            ImportError: the package that it needs is missing; the message has the command that installs it.
        """
        if not self.is_installed:
            raise ImportError(f"environment {self.name!r} needs {self.package}; run: {self.install_command}")
        return functools.partial(_load(self.name, self.environment), **env_kwargs)

    def make_tasks(self, split: str, n: int, seed: int = 0, **kwargs: Any) -> list[dict[str, Any]]:
        """`n` dataset rows of a split."""
        if self.tasks is not None:
            rows: list[dict[str, Any]] = _load(self.name, self.tasks)(split, n, seed=seed, **kwargs)
            return rows
        if kwargs:
            raise ValueError(f"environment {self.name!r}: a task is a seed and has no arguments, got {kwargs}")
        draws = random.Random(f"tasks-{split}-{seed}")
        return [{"seed": draws.randrange(2**31)} for _ in range(n)]

    def expert_action(self) -> Callable[[Any], str]:
        """The function from an environment to the next action of a plan that wins.

        Raises:
            ValueError: nobody has written one.
        """
        if self.expert is None:
            raise ValueError(f"environment {self.name!r} has no expert; play it with another agent")
        expert: Callable[[Any], str] = _load(self.name, self.expert)
        return expert


_OURS = "trl_mise.envs"
ENVIRONMENTS: Mapping[str, EnvironmentSpec] = {
    spec.name: spec
    for spec in (
        EnvironmentSpec(
            name="kitchen",
            description="an order desk: irrevocable choices, paid if all were right; no dependency",
            environment=f"{_OURS}.kitchen:KitchenEnv",
            tasks=f"{_OURS}.kitchen:make_tasks",
            expert=f"{_OURS}.kitchen:expert_action",
        ),
        EnvironmentSpec(
            name="tasting",
            description="a chef's table: whether a choice was good is said several steps later; no dependency",
            environment=f"{_OURS}.tasting:TastingEnv",
            tasks=f"{_OURS}.tasting:make_tasks",
            expert=f"{_OURS}.tasting:expert_action",
        ),
        EnvironmentSpec(
            name="webshop",
            description="WebShop's text simulator, on a generated catalogue or on the official files",
            environment=f"{_OURS}.webshop:WebShopEnv",
            tasks=f"{_OURS}.webshop:make_tasks",
            expert=f"{_OURS}.webshop_policies:expert_action",
            max_steps=30,
            system_prompt=(
                "You are shopping in a text web shop. Answer every page with exactly one action and nothing else: "
                "search[your words] on the search page, or click[something shown on the page]. Find a product that "
                "fits the instruction, click its options, then click[Buy Now]."
            ),
        ),
        EnvironmentSpec(
            name="textworld",
            description="TextWorld: cooking games of the First TextWorld Problems, other challenges, game files",
            environment=f"{_OURS}.textworld:TextWorldEnv",
            tasks=f"{_OURS}.textworld:make_tasks",
            expert=f"{_OURS}.textworld:expert_action",
            package="textworld",
            extra="textworld",
            evaluation_tasks={"game": list(FTWP_GAMES)},
            system_prompt=(
                "You are playing a text adventure. Answer every message with exactly one command and nothing else, "
                "such as: look, inventory, open fridge, take red apple from counter, examine cookbook, cook red apple "
                "with oven, prepare meal, eat meal."
            ),
        ),
        EnvironmentSpec(
            name="scienceworld",
            description="ScienceWorld: thirty tasks of elementary science",
            environment=f"{_OURS}.scienceworld:ScienceWorldEnv",
            tasks=f"{_OURS}.scienceworld:make_tasks",
            expert=f"{_OURS}.scienceworld:expert_action",
            package="scienceworld",
            extra="scienceworld",
            max_steps=200,
            evaluation_tasks={"task": list(SCIENCEWORLD_TASKS)},
            system_prompt=(
                "You are doing science experiments in a text world. Answer every message with exactly one command and "
                "nothing else, such as: look around, inventory, open door to kitchen, go to kitchen, pick up "
                "thermometer, focus on thermometer, activate stove, wait1. Focus only on what the task says."
            ),
        ),
    )
}
"""The environments of this package, by name."""


def environment_spec(name: str) -> EnvironmentSpec:
    """The environment of that name; `module:attribute` names a class or a factory of one's own.

    Where the module of one's own also has a `make_tasks(split, n, seed=0, **kwargs)` or an `expert_action(env)`, they
    are its tasks and its expert.

    Raises:
        ValueError: there is none of that name; the message lists those that there are.
        ImportError: the module cannot be imported.
    """
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(
            f"environment {name!r} is unknown; choose one of {', '.join(ENVIRONMENTS)}, or name your own as "
            "'module:factory'"
        )
    made = _load(name, name)
    description = (made.__doc__ or "one of your own").strip().splitlines()[0]
    found = sys.modules[module]
    tasks, expert = (f"{module}:{f}" if hasattr(found, f) else None for f in ("make_tasks", "expert_action"))
    return EnvironmentSpec(name, description, environment=name, tasks=tasks, expert=expert)


def _load(name: str, path: str) -> Callable[..., Any]:
    """What `module:attribute` names."""
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ImportError(f"environment {name!r}: cannot import {module}: {error}") from error
    if not callable(found):
        raise ValueError(f"environment {name!r}: module {module} has no class or function {attribute!r}")
    return found
