"""Environments in processes of their own: whatever they do, one call fails, all traces go, and `reset` works again."""

import functools
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_envs import (
    KINDS,
    MISDEEDS,
    BrokenFactoryEnv,
    ClosingEnv,
    HostileEnv,
    ListingEnv,
    NeedyEnv,
    PoliteEnv,
    SlowEnv,
    TracingEnv,
)
from worker_traces import Traces, episode, tidy_workers, watchdog

from trl_mise.envs.base import BackgroundEnv, EnvironmentFailure, admissible_actions
from trl_mise.envs.check import check_env
from trl_mise.envs.kitchen import KitchenEnv
from trl_mise.envs.pool import EnvironmentPool
from trl_mise.envs.webshop import SMALL_SHOP, WebShopEnv
from trl_mise.envs.workers import EnvironmentWorkers, WorkerFailure, needs_process

KIND_OF = {misdeed: kind for kind, misdeeds in KINDS.items() for misdeed in misdeeds}
SHOP = functools.partial(WebShopEnv, **SMALL_SHOP)


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EnvironmentWorkers]]:
    with tidy_workers(tmp_path, monkeypatch) as make:
        yield make


def test_every_misdeed_is_expected() -> None:
    assert set(KIND_OF) == set(MISDEEDS)


@pytest.mark.parametrize("misdeed", sorted(MISDEEDS))
def test_a_misdeed_costs_one_call(workers: Callable[..., EnvironmentWorkers], misdeed: str) -> None:
    """In the middle of an episode."""
    # Short where the deadline is what is tested, and long where only a busy machine could reach it.
    env = workers(timeout=0.7 if KIND_OF[misdeed] == "timeout" else 30.0)()
    env.reset(seed=3)
    env.step("polite")
    traces = Traces(env)
    with pytest.raises(WorkerFailure) as caught, watchdog(env._timeout + 5):
        env.step(misdeed)
    assert caught.value.kind == KIND_OF[misdeed], str(caught.value)
    assert f"HostileEnv.step(action={misdeed!r}" in str(caught.value)
    assert len(str(caught.value)) < 20_000
    traces.assert_gone()
    with pytest.raises(WorkerFailure, match="of environment 0 took the process down.*starts another"):
        env.step("polite")  # the episode is over
    assert episode(env, seed=4) == episode(PoliteEnv(), seed=4)


@pytest.mark.parametrize("misdeed", ["raise", "sleep", "die", "surrogate", "orphan and die", "bytes"])
def test_a_misdeed_during_reset(workers: Callable[..., EnvironmentWorkers], misdeed: str) -> None:
    env = workers(reset_timeout=2.0 if misdeed == "sleep" else 60.0)()
    with pytest.raises(WorkerFailure, match=r"HostileEnv.reset\(seed=3") as caught:
        env.reset(seed=3, options={"on_reset": misdeed})
    assert caught.value.kind == KIND_OF[misdeed]
    assert episode(env, seed=4) == episode(PoliteEnv(), seed=4)


def test_killed_from_outside(workers: Callable[..., EnvironmentWorkers]) -> None:
    env = workers()()
    env.reset(seed=0)
    traces = Traces(env)
    os.kill(traces.group, signal.SIGKILL)
    with pytest.raises(WorkerFailure, match="crash: it was killed by SIGKILL") as caught:
        env.step("polite")
    assert caught.value.kind == "crash"
    traces.assert_gone()
    assert episode(env, seed=1) == episode(PoliteEnv(), seed=1)


def test_killed_while_it_is_reset(workers: Callable[..., EnvironmentWorkers]) -> None:
    env = workers()()
    env.begin_reset(seed=0, options={"on_reset": "sleep"})
    traces = Traces(env)
    os.kill(traces.group, signal.SIGKILL)
    with pytest.raises(WorkerFailure, match="reset.*crash: it was killed by SIGKILL"):
        env.result()
    traces.assert_gone()


def test_a_failure_tells_what_the_process_wrote(workers: Callable[..., EnvironmentWorkers]) -> None:
    env = workers()()
    env.reset(seed=0)
    with pytest.raises(WorkerFailure, match=r"ValueError: lost the thread; the process wrote:(.|\n)*in _raise"):
        env.step("raise")


def test_a_failure_tells_where_it_hung(workers: Callable[..., EnvironmentWorkers]) -> None:
    env = workers(timeout=0.5)()
    env.reset(seed=0)
    with pytest.raises(WorkerFailure, match=r"no answer within 0.5 s(.|\n)*most recent call last(.|\n)*in _sleep"):
        env.step("sleep")


def test_a_failure_tells_where_it_crashed(workers: Callable[..., EnvironmentWorkers]) -> None:
    env = workers()()
    env.reset(seed=0)
    with pytest.raises(WorkerFailure, match=r"killed by SIGSEGV(.|\n)*Segmentation fault(.|\n)*in _segfault"):
        env.step("segfault")


def test_failures_can_be_pickled() -> None:
    failure = pickle.loads(pickle.dumps(WorkerFailure("timeout", "late")))
    assert (failure.kind, str(failure)) == ("timeout", "late")


def test_no_process_can_be_started(
    workers: Callable[..., EnvironmentWorkers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no reason to stop either; what the attempt opened is closed again, see the fixture."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(11, "Resource temporarily unavailable")

    env = workers()()
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", refuse)
        env.begin_reset(seed=0)
        with pytest.raises(WorkerFailure, match="no process could be started.*temporarily unavailable") as caught:
            env.result()
    assert caught.value.kind == "crash" and len(os.listdir("/proc/self/fd")) == before
    assert episode(env, seed=4) == episode(PoliteEnv(), seed=4)


def test_a_factory_that_fails(workers: Callable[..., EnvironmentWorkers]) -> None:
    env = workers(BrokenFactoryEnv)()
    for _ in range(2):
        with pytest.raises(WorkerFailure, match="OSError: no license") as caught:
            env.reset(seed=0)
        assert caught.value.kind == "exception"


class TestAsOthers:
    @pytest.mark.parametrize("envs_per_worker", [1, 2])
    @pytest.mark.parametrize("factory", [KitchenEnv, SHOP])
    def test_the_contract_is_kept(
        self, workers: Callable[..., EnvironmentWorkers], factory: Any, envs_per_worker: int
    ) -> None:
        check_env(workers(factory, envs_per_worker=envs_per_worker))

    @pytest.mark.parametrize("factory", [KitchenEnv, SHOP])
    def test_the_same_episodes_as_in_this_process(
        self, workers: Callable[..., EnvironmentWorkers], factory: Any
    ) -> None:
        def travelled(info: dict[str, Any]) -> dict[str, Any]:
            return {**info, "admissible_actions": admissible_actions(info)}

        there, here = workers(factory)(), factory()
        for seed in range(3):
            (one, info), (other, same) = there.reset(seed=seed, options={}), here.reset(seed=seed, options={})
            assert one == other and travelled(info) == travelled(same)
            for _ in range(6):
                *answer, info = there.step(travelled(info)["admissible_actions"][-1])
                *expected, same = here.step(travelled(same)["admissible_actions"][-1])
                assert answer == expected and travelled(info) == travelled(same)
                if answer[2]:
                    break

    def test_info_travels_as_json(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers()()
        env.reset(seed=0)
        info = env.step("polite")[4]
        assert info["pair"] == [1, 2] and info["odd"] == repr(object) and info["won"] is False

    def test_half_characters_travel_as_escapes(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """In `info`, where they are nobody's text; in an observation they are garbage."""
        env = workers()()
        env.reset(seed=0)
        info = env.step("half a character")[4]
        assert info == {"note": "a\\ud800b", "\\ud800": 1, "emoji": "\N{GRINNING FACE}"}

    def test_arguments_reach_the_environment(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers(functools.partial(PoliteEnv, offset=7))()
        assert env.reset(seed=1)[0] == "seed 1 count 7"

    def test_listings_are_those_of_the_last_answer(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers(PoliteEnv)()
        _, first = env.reset(seed=0)
        assert first["admissible_actions"]() == first["admissible_actions"]() == ["say 0", "wait"]
        *_, second = env.step("a")
        assert second["admissible_actions"]() == ["say 1", "wait"]
        with pytest.raises(RuntimeError, match="called after the next step or reset"):
            first["admissible_actions"]()

    def test_a_listing_that_fails_costs_the_episode(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers(ListingEnv)()
        _, info = env.reset(seed=0)
        with pytest.raises(WorkerFailure, match="no list today"):
            info["admissible_actions"]()
        with pytest.raises(WorkerFailure):
            env.step("a")

    def test_environments_work_at_the_same_time(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """Three that would sleep forever are waited for together, and each fails by itself."""
        make = workers(timeout=1.0)  # short, since it is waited for
        envs = [make() for _ in range(4)]
        for number, env in enumerate(envs):
            assert isinstance(env, BackgroundEnv)
            env.begin_reset(seed=number)
        assert [env.result()[0] for env in envs] == [f"seed {i} count 0" for i in range(4)]
        for number, env in enumerate(envs):
            env.begin_step("polite" if number == 2 else "sleep")
        for number, env in enumerate(envs):
            if number == 2:
                assert env.result()[0] == "seed 2 count 1 polite"
            else:
                with pytest.raises(WorkerFailure, match="timeout: no answer within 1 s"):
                    env.result()

    def test_step_needs_a_reset(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        with pytest.raises(RuntimeError, match=r"step was called before reset; call reset\(\) first"):
            workers()().step("a")
        with pytest.raises(RuntimeError, match="no begin_reset or begin_step before it"):
            workers()().result()

    def test_one_call_at_a_time(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers()()
        env.reset(seed=0)
        env.begin_step("polite")
        with pytest.raises(RuntimeError, match=r"before the result\(\) of the call before it"):
            env.begin_step("polite")
        assert env.result()[0] == "seed 0 count 1 polite"

    def test_a_reset_does_not_wait_for_what_it_ends(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        env = workers(timeout=1e6)()
        env.reset(seed=0)
        env.begin_step("sleep")
        traces = Traces(env)
        with watchdog(20):
            assert episode(env, seed=1) == episode(PoliteEnv(), seed=1)
        traces.assert_gone()

    def test_waiting_can_be_interrupted(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """As by a user in a notebook, who then evaluates with the same environments."""

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        env = workers(timeout=1e6)()
        env.reset(seed=0)
        env.begin_step("sleep")
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            env.result()
        signal.signal(signal.SIGALRM, before)
        with watchdog(20):
            assert episode(env, seed=1) == episode(PoliteEnv(), seed=1)

    @pytest.mark.parametrize("action", ["polite", "a long page"])
    def test_nothing_is_late_because_nobody_looked(
        self, workers: Callable[..., EnvironmentWorkers], action: str
    ) -> None:
        """A long answer does not fit into the socket: the worker still sends when the deadline passes."""
        env = workers(timeout=0.5)()
        env.reset(seed=0)
        env.begin_step(action)
        Traces(env).wait_for_answer()
        time.sleep(0.6)
        assert len(env.result()[0]) == {"polite": 21, "a long page": 900_000}[action]


class TestGroups:
    def test_a_process_is_shared(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        make = workers(TracingEnv, envs_per_worker=2)
        pids = [make().reset(seed=0)[1]["pid"] for _ in range(5)]
        assert pids[0] == pids[1] and pids[2] == pids[3] and len(set(pids)) == 3

    def test_both_sides_have_much_to_say(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """More than sockets hold: neither side may wait for the other to read first."""
        make = workers(envs_per_worker=2)
        one, other = make(), make()
        one.reset(seed=0), other.reset(seed=0)
        one.begin_step("a long page")
        other.begin_reset(seed=7, options={"document": "d" * 4_000_000})
        assert other.result()[0] == "seed 7 count 0" and len(one.result()[0]) == 900_000

    def test_the_one_that_hangs_is_blamed(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """Also where another one's answer is asked for first."""
        make = workers(envs_per_worker=2, timeout=0.7)
        one, other = make(), make()
        one.reset(seed=0), other.reset(seed=0)
        one.begin_step("sleep")
        other.begin_step("polite")
        with pytest.raises(WorkerFailure, match=r"crash: step\(action='sleep'\) of environment 0 took") as caught:
            other.result()
        assert caught.value.kind == "crash"
        with pytest.raises(WorkerFailure, match="no answer within") as caught:
            one.result()
        assert caught.value.kind == "timeout"

    def test_an_answer_that_came_before_the_crash_counts(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        make = workers(envs_per_worker=2)
        one, other = make(), make()
        one.reset(seed=0), other.reset(seed=0)
        one.begin_step("polite")
        other.begin_step("fork and die")
        with pytest.raises(WorkerFailure, match="it exited with status 3"):
            other.result()
        assert one.result()[0] == "seed 0 count 1 polite"
        with pytest.raises(WorkerFailure, match=r"'fork and die'\) of environment 1 took the process down"):
            one.step("polite")

    def test_one_that_cannot_be_closed_harms_no_other(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        make = workers(ClosingEnv, envs_per_worker=2)
        one, other = make(), make()
        one.reset(seed=0), other.reset(seed=0)
        one.close()
        assert other.step("a")[0] == "seed 0 count 1 a"

    def test_they_fall_together_and_rise_again(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        make = workers(envs_per_worker=3)
        one, other, bystander = make(), make(), make()
        for env in (one, other, bystander):
            env.reset(seed=1)
        one.begin_step("die")
        other.begin_step("polite")
        with pytest.raises(WorkerFailure, match="SIGKILL"):
            one.result()
        with pytest.raises(
            WorkerFailure, match=r"environment 0 took the process down \(crash: it was killed by SIGKILL"
        ):
            other.result()
        assert episode(one, seed=5) == episode(PoliteEnv(), seed=5)
        with pytest.raises(WorkerFailure, match="took the process down"):
            bystander.step("polite")
        assert episode(bystander, seed=6) == episode(other, seed=6) == episode(PoliteEnv(), seed=6)

    def test_each_has_the_whole_time(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        """The second waits for the first, which takes most of a deadline; its own begins after that."""
        make = workers(functools.partial(SlowEnv, 0.7), envs_per_worker=3, timeout=1.2)
        envs = [make() for _ in range(3)]
        for env in envs:
            env.reset(seed=0)
        for env in envs:
            env.begin_step("a")
        assert [env.result()[0] for env in envs] == ["seed 0 count 1 a"] * 3

    def test_one_closes_and_the_others_go_on(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        make = workers(envs_per_worker=2)
        one, other = make(), make()
        one.reset(seed=0), other.reset(seed=0)
        traces = Traces(one)
        one.close()
        assert other.step("a")[0] == "seed 0 count 1 a"
        other.close()
        traces.assert_gone()


class TestArguments:
    def test_a_factory_that_cannot_be_pickled(self) -> None:
        for factory in (lambda: PoliteEnv(), functools.partial(lambda x: PoliteEnv(x), 1)):
            with pytest.raises(ValueError, match=r"environment_factory .*lambda.* cannot be sent .*functools.partial"):
                EnvironmentWorkers(factory)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"envs_per_worker": 0}, "envs_per_worker must be at least 1, got 0"),
            ({"timeout": 0.0}, "timeout must be a positive, finite number of seconds, got 0.0"),
            ({"timeout": float("inf")}, "timeout must be .* got inf"),
            ({"reset_timeout": -1.0}, "reset_timeout must be .* got -1.0"),
        ],
    )
    def test_out_of_range(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            EnvironmentWorkers(PoliteEnv, **options)

    def test_a_task_that_json_cannot_hold(self, workers: Callable[..., EnvironmentWorkers]) -> None:
        with pytest.raises(ValueError, match="cannot be sent to a worker process.*tasks may hold what JSON can"):
            workers(PoliteEnv)().reset(seed=0, options={"row": object()})

    def test_who_needs_a_process(self) -> None:
        assert needs_process(NeedyEnv) and needs_process(functools.partial(functools.partial(NeedyEnv, 1)))
        assert not needs_process(PoliteEnv) and not needs_process(lambda: NeedyEnv())


class TestPool:
    def test_isolation(self) -> None:
        assert EnvironmentPool(NeedyEnv).isolated and not EnvironmentPool(PoliteEnv).isolated
        assert EnvironmentPool(PoliteEnv, isolation="process").isolated
        assert not EnvironmentPool(NeedyEnv, isolation="none").isolated

    @pytest.mark.parametrize("isolation", ["process", "none"])
    def test_the_same_ones_every_time_until_it_is_closed(self, isolation: Any) -> None:
        pool = EnvironmentPool(HostileEnv, isolation=isolation)
        envs = pool.take(2)
        assert pool.take(1) == envs[:1] and pool.take(3)[:2] == envs
        assert [env.reset(seed=1)[0] for env in envs] == ["seed 1 count 0"] * 2
        for _ in range(2):
            with pytest.raises(Exception, match="lost the thread"):
                envs[0].step("raise")
            assert envs[0].reset(seed=2)[0] == "seed 2 count 0"
        pool.close()
        pool.close()
        assert pool.take(1)[0].reset(seed=3)[0] == "seed 3 count 0"
        pool.close()

    def test_an_environment_that_exits_does_not_take_this_process_along(self) -> None:
        pool = EnvironmentPool(HostileEnv, isolation="none")
        (env,) = pool.take(1)
        env.reset(seed=0)
        with pytest.raises(EnvironmentFailure, match=r"called exit\(\) \(SystemExit: 0\)"):
            env.step("exit")
        with pytest.raises(EnvironmentFailure, match=r"called exit\(\)"):
            env.reset(seed=0, options={"on_reset": "exit"})
        assert env.reset(seed=1)[0] == "seed 1 count 0"
        pool.close()
