"""`ScienceWorldEnv`: thirty tasks of elementary science in a house with a workshop, a greenhouse and a stove.

The simulator is ScienceWorld's own (Wang et al. 2022, arXiv 2203.07540), in a Java process; here is what makes it an
environment: a task by name and split, one command an action, one reward at the end, and a count of steps that counts
every one.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

from .scienceworld_server import DEFAULT_HEAP_MB, ScienceWorldServer, require_scienceworld
from .vocabulary import expert_vocabulary

__all__ = ["ScienceWorldEnv", "expert_action", "make_tasks", "task_names", "vocabulary"]

Split = Literal["train", "dev", "test"]
Reward = Literal["success", "final_score"]

DEFAULT_TASK = "find-living-thing"
SIMPLIFICATIONS = ("teleportAction", "selfWateringFlowerPots", "openContainers", "openDoors", "noElectricalAction")
MAX_ACTION_CHARS = 400
"""The longest valid actions, which tell apart two plants in two pots in one room, have about 200."""

_PLAIN = re.compile(r"[ -~]+")
# It forgets what was achieved so far, which a reward for the final state should not depend on.
_REFUSED = frozenset({"reset task"})
_NOT_UNDERSTOOD = ("No known action matches that input", "Unknown action", "It's not clear how to get there")


class ScienceWorldEnv:
    """A task of ScienceWorld; its reward is paid once, at the end.

    An action is one command. Refused, with `info["action_valid"]` False and nothing changed: `reset task`, and what is
    no command line (empty, over 400 characters, not printable ASCII). Commands that the simulator does not understand
    are not valid either; it says so. Where a command could mean several things, the answer lists them, and the next
    action is the number of one. A wrong focus ends the episode.

    Args:
        task (`str`, *optional*): of [`task_names`], or its number in the paper (`"1-1"`); `"find-living-thing"` if
            neither this nor the row names one.
        variation (`int`, *optional*): of the task. Default: drawn from the split by the seed.
        split (`str`): `"train"`, `"dev"` or `"test"`: disjoint variations.
        simplifications (`str` or `Sequence[str]`): `"easy"` (doors are open, flower pots water themselves, `teleport`
            works, and electrical actions are left out where the task needs none), or some of `SIMPLIFICATIONS`.
        max_steps (`int`, *optional*): the environment truncates the episode after so many steps. Gold paths have up to
            200.
        reward (`str`): `"success"` pays 1 for a score of 100; `"final_score"` pays the normalised score at the end,
            and needs `max_steps`.
        heap_mb (`int`): most MiB of the Java heap; the process takes 200 MiB at first, and up to 200 more than
            its heap later.

    A task row may name its own `"task"`, `"variation"`, `"split"` and `"simplifications"`.

    `info` has `instruction` (from `reset`), `admissible_actions` (a callable; it takes up to 0.1 s), `score` (in
    [0, 1]; a wrong focus, which ScienceWorld scores -100, is 0), `max_score` (1), `action_valid`, and, at the end,
    `won`.
    """

    needs_process: ClassVar[bool] = True
    """Java can hang: the trainer isolates it by default."""

    def __init__(
        self,
        task: str | None = None,
        *,
        variation: int | None = None,
        split: str = "train",
        simplifications: str | Sequence[str] = "",
        max_steps: int | None = None,
        reward: Reward = "success",
        heap_mb: int = DEFAULT_HEAP_MB,
    ) -> None:
        require_scienceworld()
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}; use None for no limit")
        if reward not in get_args(Reward):
            raise ValueError(f"reward must be one of {get_args(Reward)}, got {reward!r}")
        if reward == "final_score" and max_steps is None:
            raise ValueError("reward='final_score' needs max_steps: an episode that others end pays nothing")
        if heap_mb < 64:
            raise ValueError(f"heap_mb must be at least 64, got {heap_mb}")
        self._task = _checked_task(task or DEFAULT_TASK)
        self._variation, self._split = variation, _checked_split(split)
        self._simplifications = _checked_simplifications(simplifications, self._task)
        self._max_steps, self._reward, self._heap_mb = max_steps, reward, heap_mb
        self._server: ScienceWorldServer | None = None
        self._gold_server: ScienceWorldServer | None = None
        self._gold: dict[tuple[str, int, str], list[str]] = {}
        self.actions: list[str] = []
        """What reached the simulator in this episode."""
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts the variation that the row and the seed name; also Java, where it does not run (any more)."""
        if self._server is not None and not self._server.is_running:
            self.close()
        row = options or {}
        task = _checked_task(row.get("task") or self._task)
        given = row.get("simplifications")
        simplifications = _checked_simplifications(self._simplifications if given is None else given, task)
        # A variation of the constructor's belongs to its task.
        variation = row.get("variation", None if row.get("task") else self._variation)
        if variation is None:
            split = _checked_split(row.get("split") or self._split)
            variation = random.Random(f"scienceworld-{seed or 0}").choice(_variations(self._simulator, task, split))
        self._running = False
        last = int(self._simulator.call("getTaskMaxVariations", task)) - 1
        if isinstance(variation, bool) or not isinstance(variation, int) or not 0 <= variation <= last:
            raise ValueError(f"variation must be an int from 0 to {last} for task {task!r}, got {variation!r}")
        self._simulator.load(task, variation, simplifications)
        self._loaded = task, variation, simplifications
        self.actions, self._steps = [], 0
        self._terminated = self._truncated = False
        self._running = True
        self._observation = str(self._simulator.call("freeActionLook")).strip()
        self._read_score()
        instruction = str(self._simulator.call("getTaskDescription")).strip()
        return self._observation, {"instruction": instruction, **self._info(valid=True)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Returns (observation, reward, terminated, truncated, info). After the end nothing changes any more."""
        if not self._running:
            raise RuntimeError("ScienceWorldEnv.step was called before reset; call reset() first")
        if self._terminated or self._truncated:
            return self._observation, 0.0, self._terminated, self._truncated, self._info(valid=False)
        self._steps += 1
        command = _command(action)
        valid = False
        if command is None:
            self._observation = "That is not a command."
        else:
            self.actions.append(command)
            self._observation = str(self._simulator.call("step", command)).strip()
            valid = not self._observation.startswith(_NOT_UNDERSTOOD)
            completed = bool(self._simulator.call("getCompleted"))
            # A wrong focus cannot be made good, but the simulator itself would play on.
            self._terminated = self._read_score() < 0 or completed
        self._truncated = not self._terminated and self._max_steps is not None and self._steps >= self._max_steps
        return self._observation, self._paid(), self._terminated, self._truncated, self._info(valid)

    def close(self) -> None:
        """Ends the Java processes. May be called twice."""
        for server in (self._server, self._gold_server):
            if server is not None:
                server.close()
        self._server = self._gold_server = None
        self._running = False

    def admissible_actions(self) -> list[str]:
        """The simulator's own list of commands, sorted; after an ambiguous one, the numbers.

        It also names what is in closed containers and cannot be reached.
        """
        if not self._running or self._terminated or self._truncated:
            return []
        listed = self._simulator.items("getValidActionObjectCombinations")
        return sorted({action for action in map(str, listed) if _command(action) is not None})

    def gold_path(self) -> list[str]:
        """Commands that score 100 from the start of this variation, from ScienceWorld's own scripts.

        They come from a simulator of their own: making them plays the task, and once asked for them a simulator makes
        them at every start.
        """
        if not self._running:
            raise RuntimeError("ScienceWorldEnv.gold_path was called before reset; call reset() first")
        if self._loaded not in self._gold:
            if self._gold_server is None:
                self._gold_server = ScienceWorldServer(self._heap_mb)
            self._gold_server.load(*self._loaded, gold_path=True)
            self._gold[self._loaded] = [str(action) for action in self._gold_server.items("getGoldActionSequence")]
        return list(self._gold[self._loaded])

    @property
    def _simulator(self) -> ScienceWorldServer:
        if self._server is None:
            self._server = ScienceWorldServer(self._heap_mb)
        return self._server

    @property
    def _won(self) -> bool:
        return self._score >= 1.0

    def _read_score(self) -> float:
        """The simulator's, of which 1 is called 100, and a wrong focus is -1."""
        raw = float(self._simulator.call("getScore"))
        self._score = min(1.0, max(0.0, raw))
        return raw

    def _paid(self) -> float:
        if not (self._terminated or self._truncated):
            return 0.0
        return float(self._won) if self._reward == "success" else self._score

    def _info(self, valid: bool) -> dict[str, Any]:
        info: dict[str, Any] = {
            "admissible_actions": self.admissible_actions,
            "score": self._score,
            "max_score": 1.0,
            "action_valid": valid,
        }
        return {**info, "won": self._won} if self._terminated or self._truncated else info


def task_names() -> list[str]:
    """The thirty tasks, in the order of the paper."""
    require_scienceworld()
    from scienceworld.constants import ID2TASK

    return list(ID2TASK.values())


def expert_action(env: ScienceWorldEnv) -> str:
    """The next command of the gold path.

    Raises:
        RuntimeError: the episode has left it, or it is at its end.
    """
    path, done = env.gold_path(), len(env.actions)
    if path[:done] != env.actions:
        raise RuntimeError("the episode has left ScienceWorld's gold path; there is no other expert")
    if done >= len(path):
        raise RuntimeError("ScienceWorld's gold path has ended, and the task has not")
    return path[done]


def make_tasks(
    split: str,
    n: int,
    seed: int = 0,
    *,
    task: str | Sequence[str] | None = None,
    simplifications: str | Sequence[str] = "",
) -> list[dict[str, Any]]:
    """Dataset rows `{"task", "variation", "split", "simplifications", "seed"}` for `ScienceWorldEnv`.

    The tasks take turns; each goes through its variations of the split, shuffled, and begins again when all were used.
    Starts a Java process, for a second or two.

    Args:
        split (`str`): `"train"`, `"dev"` or `"test"`: disjoint variations.
        n (`int`): rows.
        seed (`int`): of the shuffle.
        task (`str` or `Sequence[str]`, *optional*): default: all thirty.
        simplifications (`str` or `Sequence[str]`): see [`ScienceWorldEnv`].
    """
    _checked_split(split)
    names = [task] if isinstance(task, str) else task_names() if task is None else list(task)
    if not names:
        raise ValueError("task is an empty list; name at least one, or leave it out for all")
    names = [_checked_task(name) for name in names]
    simplified = [_checked_simplifications(simplifications, name) for name in names]
    order: dict[str, list[int]] = {}
    if n > 0:
        server = ScienceWorldServer()
        for name in names[:n]:
            order[name] = _variations(server, name, split)
            random.Random(f"scienceworld-{split}-{seed}-{name}").shuffle(order[name])
        server.close()
    rows = []
    for i in range(n):
        turn, which = divmod(i, len(names))
        variations = order[names[which]]
        rows.append(
            {
                "task": names[which],
                "variation": variations[turn % len(variations)],
                "split": split,
                "simplifications": simplified[which],
                "seed": i,
            }
        )
    return rows


def vocabulary(tasks: Sequence[Mapping[str, Any]], **env_kwargs: Any) -> list[str]:
    """All words that the expert reads and says in these tasks, and those of all their admissible actions, sorted."""
    env = ScienceWorldEnv(**env_kwargs)
    try:
        return expert_vocabulary(env, tasks, expert_action)
    finally:
        env.close()


def _variations(server: ScienceWorldServer, task: str, split: str) -> list[int]:
    server.load(task, 0, "")
    return [int(variation) for variation in server.items(f"getVariations{split.capitalize()}")]


def _command(action: str) -> str | None:
    """The action as one line for the simulator; None where it is refused."""
    stripped = action.strip()
    if len(stripped) > MAX_ACTION_CHARS or not _PLAIN.fullmatch(stripped):
        return None
    command = " ".join(stripped.split())
    return None if command.lower() in _REFUSED else command


def _checked_task(task: Any) -> str:
    from scienceworld.constants import ID2TASK

    name = ID2TASK.get(task, task)
    if name not in ID2TASK.values():
        raise ValueError(f"task {task!r} is unknown; choose one of {', '.join(ID2TASK.values())}")
    return str(name)


def _checked_split(split: str) -> str:
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    return split


def _checked_simplifications(simplifications: str | Sequence[str], task: str) -> str:
    """As the simulator wants them."""
    given = simplifications.split(",") if isinstance(simplifications, str) else list(simplifications)
    names = [name.strip() for name in given if name.strip()]
    unknown = [name for name in names if name not in ("easy", *SIMPLIFICATIONS)]
    if unknown:
        raise ValueError(
            f"simplifications {unknown} are unknown; choose 'easy' or some of {', '.join(SIMPLIFICATIONS)}"
        )
    if "noElectricalAction" in names and ("power-component" in task or "conductivity" in task):
        raise ValueError(f"simplifications: task {task!r} needs electrical actions; leave out 'noElectricalAction'")
    return ",".join(names)
