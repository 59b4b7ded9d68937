"""TextWorld's games as an environment: one command an action, nothing given away, and no way out of the game."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_mise.envs.base import admissible_actions
from trl_mise.envs.check import GARBAGE_ACTIONS, check_env
from trl_mise.envs.textworld_games import CookingGame, ftwp_names

pytest.importorskip("textworld", reason='needs pip install "trl-mise[textworld]"')

from trl_mise.envs.textworld import (  # noqa: E402
    MAX_ACTION_CHARS,
    TextWorldEnv,
    expert_action,
    make_tasks,
    vocabulary,
)
from trl_mise.envs.textworld_games import GameSpec, game_file  # noqa: E402
from trl_mise.envs.vocabulary import split_words  # noqa: E402

EASY = "tw-cooking-recipe1+take1+cook+cut+go1"
FULL = "tw-cooking-recipe3+take2+cook+cut+open+drop+go9"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Games of this file, generated once."""
    return str(tmp_path_factory.mktemp("games"))


@pytest.fixture
def env(cache: str) -> Iterator[TextWorldEnv]:
    made = TextWorldEnv(EASY, cache_dir=cache)
    yield made
    made.close()


def play_expert(env: TextWorldEnv, row: dict[str, Any]) -> list[tuple[str, str, float, bool, bool, dict[str, Any]]]:
    """Every step of the expert's episode: action and what came back."""
    env.reset(seed=row.get("seed"), options=row)
    steps = []
    while len(steps) < 100:
        action = expert_action(env)
        steps.append((action, *env.step(action)))
        if steps[-1][3] or steps[-1][4]:
            break
    return steps


def world(env: TextWorldEnv) -> Any:
    """Everything that can be known about the state without changing it."""
    bytes_of_memory = env._game.unwrapped._jericho.get_state()
    return [str(part) for part in bytes_of_memory]


class TestNames:
    @given(
        recipe=st.integers(1, 3),
        take=st.integers(0, 3),
        flags=st.tuples(*[st.booleans()] * 4),
        go=st.sampled_from([1, 6, 9, 12]),
        order=st.randoms(use_true_random=False),
    )
    def test_names_and_settings_are_the_same(self, recipe: int, take: int, flags: Any, go: int, order: Any) -> None:
        game = CookingGame(recipe, min(take, recipe), *flags, go)
        assert CookingGame.parse(game.name) == game
        parts = game.name.removeprefix("tw-cooking-").split("+")
        order.shuffle(parts)
        assert CookingGame.parse("tw-cooking-" + "+".join(parts)) == game

    def test_golden_name(self) -> None:
        assert CookingGame(3, 2, True, True, True, True, 9).name == FULL
        assert CookingGame.parse(EASY) == CookingGame(1, 1, cook=True, cut=True)

    def test_all_names(self) -> None:
        names = ftwp_names()
        assert len(names) == len(set(names)) == (2 + 3 + 4) * 2**4 * 4 and FULL in names and EASY in names
        assert all(CookingGame.parse(name).name == name for name in names)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("tw-cooking-recipe4+go1", "recipe4: a recipe has 1 to 3 ingredients"),
            ("tw-cooking-recipe1+take2+go1", "take2.* recipe1"),
            ("tw-cooking-recipe1+go7", r"go7: .* one of \(1, 6, 9, 12\)"),
            ("tw-cooking-recipe1+boil+go1", "unknown part 'boil'; parts are recipe1-3"),
            ("tw-cooking-recipe1+cook+cook+go1", "'cook' stands there twice"),
            ("tw-cooking-recipe1", r"lacks \['go'\]; e.g. tw-cooking-recipe1"),
            ("tw-cooking-", "unknown part ''"),
            ("cooking-recipe1+go1", "must begin with 'tw-cooking-'"),
            ("tw-cooking-recipe1+go1\n", "unknown part"),
            ("tw-cooking-recipe\u0661+go1", "unknown part"),
        ],
    )
    def test_what_is_wrong_is_named(self, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CookingGame.parse(name)


class TestGames:
    def test_a_game_is_made_once(self, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = GameSpec.of(EASY, None, "train", 0)
        path = game_file(spec, cache)
        written = path.stat().st_mtime_ns
        monkeypatch.setattr(subprocess, "run", None)  # nothing may be generated now
        assert game_file(spec, cache) == path and path.stat().st_mtime_ns == written
        assert path.name.startswith("tw-cooking-train-recipe1+take1+cook+cut+go1-") and path.suffix == ".z8"

    def test_a_broken_one_is_made_again(self, tmp_path: Path) -> None:
        spec = GameSpec.of("tw-cooking-recipe1+go1", None, "train", 0)
        path = game_file(spec, tmp_path)
        whole = path.read_bytes()
        path.write_bytes(whole[:1000])
        assert game_file(spec, tmp_path).read_bytes() == whole
        (path.parent / "manifest.json").write_text("{", encoding="utf-8")
        assert game_file(spec, tmp_path).read_bytes() == whole
        assert [entry.name for entry in path.parent.parent.iterdir()] == [path.parent.name]

    def test_the_same_game_in_every_process(self, cache: str, tmp_path: Path) -> None:
        """TextWorld by itself makes another one whenever Python's hash seed differs."""
        spec = GameSpec.of(EASY, None, "train", 0)
        code = (
            "import sys; from trl_mise.envs.textworld_games import GameSpec, game_file; "
            f"print(game_file(GameSpec.of({EASY!r}, None, 'train', 0), sys.argv[1]))"
        )
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": root}
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert Path(done.stdout.strip()).read_bytes() == game_file(spec, cache).read_bytes()

    def test_two_processes_at_once(self, tmp_path: Path) -> None:
        code = (
            "import sys; from trl_mise.envs.textworld_games import GameSpec, game_file; "
            "print(game_file(GameSpec.of('tw-cooking-recipe1+go1', None, 'train', 5), sys.argv[1]))"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", code, str(tmp_path)]
        both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        paths = [Path(process.communicate()[0].strip()) for process in both]
        assert paths[0] == paths[1] and paths[0].is_file()
        assert len(list((tmp_path / "textworld").iterdir())) == 1, "nothing half-made is left"

    def test_seeds_and_splits_are_different_games(self) -> None:
        keys = {GameSpec.of(EASY, None, split, seed).key for split in ("train", "valid", "test") for seed in (0, 1)}
        assert len(keys) == 6

    def test_a_seed_that_textworld_cannot_make(self, cache: str) -> None:
        """In this split, this seed needs a food for which TextWorld has no preparation left."""
        spec = GameSpec.of("tw-cooking-recipe3+take1+cut+open+drop+go9", None, "valid", 10)
        assert game_file(spec, cache).is_file()

    @pytest.mark.parametrize(
        ("game", "settings", "message"),
        [
            ("tw-nothing", None, r"'tw-nothing' is neither a file .*tw-coin_collector"),
            ("tw-coin_collector", None, r"needs the setting 'level' .*settings=\{'level': ...\}"),
            ("tw-coin_collector", {"levle": 1}, r"no settings \['levle'\]; its settings are \['level'\]"),
            ("tw-simple", {"rewards": "rich", "goal": "brief"}, "rewards='rich' must be one of"),
        ],
    )
    def test_what_is_no_game(self, game: str, settings: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            GameSpec.of(game, settings, "train", 0)

    def test_splits_are_checked(self) -> None:
        with pytest.raises(ValueError, match=r"split must be one of .*, got 'dev'"):
            TextWorldEnv(split="dev")

    def test_other_challenges(self, cache: str) -> None:
        env = TextWorldEnv("tw-coin_collector", settings={"level": 2}, cache_dir=cache)
        steps = play_expert(env, {"seed": 1})
        assert steps[-1][2] == 1.0 and steps[-1][5]["won"]
        env.close()

    def test_a_game_file(self, cache: str, tmp_path: Path) -> None:
        path = game_file(GameSpec.of(EASY, None, "train", 0), cache)
        env = TextWorldEnv(str(path))
        assert play_expert(env, {})[-1][2] == 1.0
        env.close()
        alone = tmp_path / "alone.z8"
        alone.write_bytes(path.read_bytes())
        env = TextWorldEnv(str(alone))
        observation, info = env.reset()
        assert "Kitchen" in observation and admissible_actions(info) == []
        assert "carrying" in env.step("inventory")[0]
        env.close()
        with pytest.raises(FileNotFoundError, match="no such file"):
            TextWorldEnv(str(tmp_path / "none.z8")).reset()
        with pytest.raises(ValueError, match="no longer plays Glulx"):
            TextWorldEnv(str(tmp_path / "game.ulx")).reset()


class TestEpisode:
    def test_the_expert_wins_and_only_winning_pays(self, env: TextWorldEnv) -> None:
        steps = play_expert(env, {"seed": 0})
        assert [reward for _, _, reward, *_ in steps] == [0.0] * (len(steps) - 1) + [1.0]
        assert steps[-1][3] and not steps[-1][4] and steps[-1][5]["won"] is True
        scores = [info["score"] for *_, info in steps]
        assert scores == sorted(scores) and scores[-1] == 1.0 and 0 < scores[-2] < 1
        assert "won" not in steps[0][5]

    def test_nothing_tells_the_score(self, cache: str) -> None:
        env = TextWorldEnv(FULL, cache_dir=cache)
        observation, info = env.reset(seed=1)
        texts = [observation, info["instruction"], *(text for _, text, *_ in play_expert(env, {"seed": 1}))]
        env.close()
        assert info["instruction"].startswith("You are hungry!") and "hungry" not in observation
        assert observation.startswith("-= ")
        for text in texts:
            assert "score" not in text.lower() and "$$" not in text and "RESTART" not in text and "\n\n\n" not in text
            assert not text.endswith(">") and "/1" not in text
        assert texts[-1].endswith("*** The End ***")

    def test_after_the_end_nothing_changes(self, env: TextWorldEnv) -> None:
        last = play_expert(env, {"seed": 0})[-1]
        for action in ("restart", "look", "undo", "yes", ""):
            observation, reward, terminated, truncated, info = env.step(action)
            assert (observation, reward, terminated, truncated) == (last[1], 0.0, True, False)
            assert info["won"] is True and info["score"] == 1.0 and admissible_actions(info) == []

    def test_a_lost_game(self, env: TextWorldEnv) -> None:
        """Cooking the food twice burns it, and that is the end."""
        plan = [action for action, *_ in play_expert(env, {"seed": 0})]
        env.reset(seed=0)
        cooking = next(action for action in plan if action.startswith("cook"))
        for action in plan[: plan.index(cooking) + 1]:
            env.step(action)
        observation, reward, terminated, truncated, info = env.step(cooking)
        assert (reward, terminated, truncated, info["won"]) == (0.0, True, False, False), observation
        assert "You lost" in observation and "score" not in observation
        assert env.step("look")[2] is True
        with pytest.raises(RuntimeError, match="no plan that wins"):
            expert_action(env)

    def test_our_own_step_limit(self, cache: str) -> None:
        env = TextWorldEnv(EASY, max_steps=3, cache_dir=cache)
        env.reset(seed=0)
        assert [env.step(action)[2:4] for action in ("look", "", "nonsense")] == [(False, False)] * 2 + [(False, True)]
        assert env.step("look")[2:4] == (False, True)
        env.close()
        with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
            TextWorldEnv(max_steps=0)

    def test_the_plan_knows_the_way_back(self, env: TextWorldEnv) -> None:
        """After a detour it is no longer the walkthrough, but TextWorld's own policy from there."""
        plan = [action for action, *_ in play_expert(env, {"seed": 0})]
        env.reset(seed=0)
        env.step("inventory")
        env.step(next(action for action in plan if action.startswith("take")))
        for _ in range(20):
            *_, terminated, _, info = env.step(expert_action(env))
            if terminated:
                break
        assert info["won"] is True

    def test_rows_name_the_game(self, cache: str) -> None:
        env = TextWorldEnv(EASY, cache_dir=cache)
        one = env.reset(seed=0)[0]
        other = env.reset(seed=0, options={"game": "tw-cooking-recipe1+go1"})[0]
        assert env.reset(seed=0, options={"game": None, "split": None})[0] == one != other
        env.close()

    def test_step_needs_a_reset(self, cache: str) -> None:
        env = TextWorldEnv(EASY, cache_dir=cache)
        with pytest.raises(RuntimeError, match="step was called before reset"):
            env.step("look")
        env.close()
        env.close()

    def test_the_contract(self, cache: str) -> None:
        check_env(lambda: TextWorldEnv(EASY, cache_dir=cache))
        check_env(
            lambda: TextWorldEnv(EASY, cache_dir=cache), task={"seed": 0, "split": "train"}, actions=["look", "x"]
        )


HOSTILE = [
    *GARBAGE_ACTIONS,
    *("look\ninventory", "\x1b[2J", "look\x00", "look\rlook", "look\u2028look"),
    *("look. take knife", "look.inventory", "look then look", "look THEN look", "take knife.", '"look"'),
    *("save", "SAVE", "  save  ", "save game", "restore", "restart", "quit", "q", "undo", "again", "g", "oops look"),
    *("script", "transcript on", "unscript", "superbrief", "superbriefly", "verbose", "brief", "score", "version"),
    *(
        "notify off",
        "verify",
        "pronouns",
        "tw-extra-infos score",
        "tw-trace-actions",
        "TW-PRINT version",
        "print_state",
    ),
    *("restrict commands", "enable print state option", "save, look", ", save", "; save", "yes", "no", "y"),
    *("reset task", "look " * 40, "\N{POT OF FOOD}", "na\u00efve"),
]


class TestHostileActions:
    def test_none_reaches_the_game(self, env: TextWorldEnv) -> None:
        """The interpreter's whole memory is what it was; `reset task` and the like are only unknown words."""
        env.reset(seed=0)
        env.step("inventory")
        before, moves = world(env), env._state.moves
        reached: list[str] = []
        for action in HOSTILE:
            commands = len(env.commands)
            observation, reward, terminated, truncated, info = env.step(action)
            assert (reward, terminated, truncated, info["action_valid"]) == (0.0, False, False, False), action
            assert len(observation) < 200, action
            if len(env.commands) == commands:
                assert world(env) == before, action
            else:
                reached.append(action)
                before = world(env)
            assert env._state.moves == moves, action
        assert reached == ["<|im_end|>", "reset task"]
        assert "carrying" in env.step("inventory")[0]

    def test_a_newline_at_the_end_is_only_white_space(self, env: TextWorldEnv) -> None:
        env.reset(seed=0)
        assert env.step(" inventory \n")[4]["action_valid"] is True

    @pytest.mark.parametrize("action", ["take nothing", "xyzzy", "take", "cook"])
    def test_what_the_game_does_not_understand_is_invalid(self, env: TextWorldEnv, action: str) -> None:
        env.reset(seed=0)
        assert env.step(action)[4]["action_valid"] is False
        assert env.step("look")[4]["action_valid"] is True

    @given(st.text(max_size=MAX_ACTION_CHARS + 20))
    def test_any_text(self, text: str) -> None:
        from trl_mise.envs.textworld import _command

        command = _command(text)
        assert command is None or (
            command.isascii() and command.isprintable() and "." not in command and len(command) <= MAX_ACTION_CHARS
        )


class TestTasks:
    def test_rows(self) -> None:
        rows = make_tasks("train", 5, game=[EASY, FULL], num_games=4)
        assert [row["game"] for row in rows] == [EASY, FULL, EASY, FULL, EASY]
        assert len({row["seed"] for row in rows}) == 4 and rows[4] == rows[0]
        assert all(row["split"] == "train" for row in rows)
        assert make_tasks("train", 5) == make_tasks("train", 5) != make_tasks("train", 5, seed=1)

    def test_no_seed_is_in_two_splits(self) -> None:
        seeds = [{row["seed"] for row in make_tasks(split, 200)} for split in ("train", "valid", "test")]
        assert not (seeds[0] & seeds[1] or seeds[1] & seeds[2] or seeds[0] & seeds[2])

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="split must be one of"):
            make_tasks("dev", 1)
        with pytest.raises(ValueError, match="num_games must be at least 1, got 0"):
            make_tasks("train", 1, num_games=0)
        with pytest.raises(ValueError, match="game is an empty list"):
            make_tasks("train", 1, game=[])

    def test_vocabulary(self, cache: str) -> None:
        tasks = [{"seed": 0, "game": EASY}]
        words = vocabulary(tasks, cache_dir=cache)
        assert {"cookbook", "Kitchen", "knife", "-", "=", "!"} <= set(words) and words == sorted(set(words))
        env = TextWorldEnv(EASY, cache_dir=cache)
        for action, observation, *_ in play_expert(env, tasks[0]):
            assert set(split_words(f"{action} {observation}")) <= set(words)
        env.close()


PARTS = [
    "tw-cooking-recipe1+go1",
    "tw-cooking-recipe1+take1+cook+go6",
    "tw-cooking-recipe2+take1+cut+open+go6",
    "tw-cooking-recipe2+take2+cook+cut+drop+go9",
    FULL,
    "tw-cooking-recipe3+take3+cook+cut+open+drop+go12",
]


def wins(names: list[str], cache: str) -> int:
    env = TextWorldEnv(cache_dir=cache)
    splits = ("train", "valid", "test")
    rows = [{"game": name, "seed": i, "split": splits[i % 3]} for i, name in enumerate(names)]
    won = sum(play_expert(env, row)[-1][5].get("won", False) for row in rows)
    env.close()
    return won


def test_the_expert_wins_whatever_the_game_asks_for(cache: str) -> None:
    """All skills, all sizes, all splits."""
    assert wins(PARTS, cache) == len(PARTS)


@pytest.mark.slow
def test_the_expert_wins_twenty_of_twenty(cache: str) -> None:
    every = ftwp_names()
    assert wins([*PARTS, *every[:: len(every) // 14]][:20], cache) == 20


def test_in_a_worker_process(cache: str) -> None:
    """As the trainer runs it: in a process of its own, whose killing costs an episode."""
    import functools
    import signal

    from trl_mise.envs.pool import EnvironmentPool
    from trl_mise.envs.workers import WorkerFailure

    pool = EnvironmentPool(functools.partial(TextWorldEnv, EASY, cache_dir=cache))
    assert pool.isolated
    (isolated,) = pool.take(1)
    first, info = isolated.reset(seed=0)
    assert "inventory" in admissible_actions(info) or admissible_actions(info)
    os.kill(isolated._worker._process._popen.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    with pytest.raises(WorkerFailure, match="SIGKILL"):
        isolated.step("look")
    assert isolated.reset(seed=0)[0] == first
    assert json.dumps(isolated.step("look")[4].get("won")) == "null"
    pool.close()
