"""Environments by name: what is there, one's own, and what is said where something is not."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trl_mise.envs import registry
from trl_mise.envs.base import TextEnv
from trl_mise.envs.kitchen import KitchenEnv
from trl_mise.envs.registry import ENVIRONMENTS, FTWP_GAMES, SCIENCEWORLD_TASKS, EnvironmentSpec, environment_spec

OURS = [
    pytest.param(name, marks=pytest.mark.skipif(not spec.is_installed, reason=f"needs {spec.package}"))
    for name, spec in ENVIRONMENTS.items()
    if (Path(registry.__file__).parent / f"{name}.py").exists()
]


class OwnEnv:
    """Somebody's environment.

    More about it.
    """

    def __init__(self, size: int = 1) -> None:
        self.size = size


def make_own(size: int = 3) -> OwnEnv:
    return OwnEnv(size)


NOT_CALLABLE = 3


@pytest.mark.parametrize("name", OURS)
class TestOurs:
    def test_makes_an_environment(self, name: str) -> None:
        env = environment_spec(name).factory()()
        assert isinstance(env, TextEnv)
        env.close()

    def test_makes_the_same_tasks_again(self, name: str) -> None:
        spec = environment_spec(name)
        rows = [spec.make_tasks("test", 12, seed, **spec.evaluation_tasks) for seed in (0, 0, 1)]
        assert len(rows[0]) == 12 and rows[0] == rows[1] != rows[2]
        assert rows[0] != spec.make_tasks("train", 12, 0, **spec.evaluation_tasks)

    def test_has_an_expert(self, name: str) -> None:
        assert callable(environment_spec(name).expert_action())


def test_factories_take_arguments_and_travel_to_workers() -> None:
    factory = environment_spec("kitchen").factory(stations=2)
    env = pickle.loads(pickle.dumps(factory))()
    assert isinstance(env, KitchenEnv) and len(env.stations) == 2


def test_ftwp_games_cover_every_part_of_a_name() -> None:
    parts = {part for name in FTWP_GAMES for part in name.removeprefix("tw-cooking-").split("+")}
    counted = {f"{word}{number}" for word in ("recipe", "take") for number in (1, 2, 3)}
    assert parts == counted | {"cook", "cut", "open", "drop"} | {f"go{rooms}" for rooms in (1, 6, 9, 12)}
    pytest.importorskip("textworld", reason="the names are checked against TextWorld's")
    from trl_mise.envs.textworld import ftwp_names

    assert set(FTWP_GAMES) <= set(ftwp_names())


def test_scienceworld_tasks_are_one_of_each_topic() -> None:
    constants = pytest.importorskip("scienceworld.constants", reason="the names are checked against ScienceWorld's")
    topics = {name: number.split("-")[0] for number, name in constants.ID2TASK.items()}
    assert sorted(topics[name] for name in SCIENCEWORLD_TASKS) == sorted(set(topics.values()))


class TestOnesOwn:
    def test_a_class(self) -> None:
        spec = environment_spec(f"{__name__}:OwnEnv")
        assert spec.factory(size=2)().size == 2  # type: ignore[attr-defined]
        assert spec.description == "Somebody's environment." and spec.is_installed

    def test_a_function(self) -> None:
        assert environment_spec(f"{__name__}:make_own").factory()().size == 3  # type: ignore[attr-defined]

    def test_tasks_are_seeds(self) -> None:
        spec = environment_spec(f"{__name__}:OwnEnv")
        rows = spec.make_tasks("test", 5, seed=1)
        assert [set(row) for row in rows] == [{"seed"}] * 5 and len({row["seed"] for row in rows}) == 5
        assert rows == spec.make_tasks("test", 5, seed=1)
        assert rows != spec.make_tasks("train", 5, seed=1) and rows != spec.make_tasks("test", 5, seed=2)

    def test_has_neither_expert_nor_task_arguments(self) -> None:
        spec = environment_spec(f"{__name__}:OwnEnv")
        with pytest.raises(ValueError, match="has no expert"):
            spec.expert_action()
        with pytest.raises(ValueError, match="a task is a seed.*'level': 2"):
            spec.make_tasks("test", 1, level=2)


@pytest.mark.parametrize(
    "name, kind, message",
    [
        (
            "kitchn",
            ValueError,
            "'kitchn' is unknown; choose one of kitchen, tasting, webshop, textworld, scienceworld, or name",
        ),
        ("", ValueError, "unknown"),
        (":OwnEnv", ValueError, "unknown"),
        ("module:", ValueError, "unknown"),
        ("no_such_module:Env", ImportError, "'no_such_module:Env': cannot import no_such_module: No module named"),
        (f"{__name__}:Missing", ValueError, "has no class or function 'Missing'"),
        (f"{__name__}:NOT_CALLABLE", ValueError, "has no class or function 'NOT_CALLABLE'"),
    ],
)
def test_what_there_is_not(name: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        environment_spec(name)


def test_a_missing_extra_is_named_with_the_command() -> None:
    spec = EnvironmentSpec("far", "far away", "far.away:Env", package="no_such_package_1", extra="far")
    assert not spec.is_installed
    with pytest.raises(ImportError) as raised:
        spec.factory()
    assert str(raised.value) == "environment 'far' needs no_such_package_1; run: pip install \"trl-mise[far]\""


@pytest.mark.parametrize("name", ["textworld", "scienceworld"])
def test_extras_are_those_of_the_package(name: str) -> None:
    assert ENVIRONMENTS[name].install_command == f'pip install "trl-mise[{name}]"'


def test_nothing_is_imported_before_its_use() -> None:
    script = (
        "import sys; from trl_mise.envs.registry import *; environment_spec('textworld');"
        "print([m for m in ('numpy', 'torch', 'textworld', 'trl_mise.envs.kitchen') if m in sys.modules])"
    )
    command: list[Any] = [sys.executable, "-c", script]
    root = Path(registry.__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, stdin=subprocess.DEVNULL)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_benchmark_has_a_row_for_every_environment(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="benchmarks need it")
    from benchmarks import environments

    result = environments.main(["--quick", "--threads", "1", "--device", "cpu", "--env", "kitchen", "webshop"])
    assert [row["environment"] for row in result["rows"]] == ["kitchen", "webshop"]
    assert all(row["steps"] > 0 and row["steps/s"] > 0 for row in result["rows"])
    assert "with admissible actions" in capsys.readouterr().out


def test_the_benchmark_says_what_is_missing() -> None:
    pytest.importorskip("torch", reason="benchmarks need it")
    from benchmarks.environments import row

    spec = EnvironmentSpec("far", "far away", "far.away:Env", package="no_such_package_1", extra="far")
    assert row(spec, episodes=1, repeats=1)["note"].endswith('run: pip install "trl-mise[far]"')
