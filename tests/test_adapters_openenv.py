"""OpenEnv clients behind the contract, scripted; the real ones are in `test_adapters_openenv_server.py`."""

import asyncio
import pickle
import sys
import threading
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from trl_mise.envs.adapter_loop import LoopThread
from trl_mise.envs.adapters import format_tool_call, from_openenv
from trl_mise.envs.base import EnvironmentFailure, TextEnv
from trl_mise.envs.check import check_env

HOSTILE = (
    "", " ", "\n", "go\nstop", "go. go. stop", "save", "restore", "quit", "restart", "reset task", "x" * 10_000,
    "\x00\x1b[2J", "🤣", "<|im_end|>",
)  # fmt: skip


@dataclass
class Result:
    """As `openenv.core.client_types.StepResult`."""

    observation: Any
    reward: float | None = None
    done: bool = False


class CounterClient:
    """Counts up with `go`; at three the server says done and pays. `end` cuts the episode."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.resets: list[dict[str, Any]] = []
        self.closed = 0

    def reset(self, **kwargs: Any) -> Result:
        self.resets.append(kwargs)
        self.count = 0
        return Result({"message": "count 0", "done": False, "metadata": {"note": "text here does not count"}})

    def step(self, action: Any) -> Result:
        self.sent.append(action)
        self.count += action["by"]
        if action["by"] == 0:
            return Result({"message": "cut", "metadata": {"truncated": True}}, None, True)
        won = self.count >= 3
        return Result(
            {"message": f"count {self.count}", "metadata": {"won": won} if won else {}}, 1.0 if won else None, won
        )

    def close(self) -> None:
        self.closed += 1


class AsyncCounterClient(CounterClient):
    """The same with coroutines, all on one loop, which must not be that of the caller."""

    loop: Any = None

    async def reset(self, **kwargs: Any) -> Result:  # type: ignore[override]
        self._same_loop()
        await asyncio.sleep(0)
        return super().reset(**kwargs)

    async def step(self, action: Any) -> Result:  # type: ignore[override]
        self._same_loop()
        return super().step(action)

    async def close(self) -> None:  # type: ignore[override]
        self._same_loop()
        super().close()

    def _same_loop(self) -> None:
        self.loop = self.loop or asyncio.get_running_loop()
        assert asyncio.get_running_loop() is self.loop


def make_action(text: str) -> dict[str, int]:
    if text.strip() not in ("go", "end"):
        raise ValueError("say go or end")
    return {"by": int(text.strip() == "go")}


@pytest.mark.parametrize("client_class", [CounterClient, AsyncCounterClient])
def test_a_whole_episode(client_class: Any) -> None:
    env = from_openenv(client_class, make_action=make_action, instruction="Count.")
    assert isinstance(env, TextEnv)
    observation, info = env.reset(seed=3, options={"seed": 3, "level": 2, "absent": None})
    assert (observation, info) == ("count 0", {"instruction": "Count."})
    assert env.client.resets == [{"seed": 3, "level": 2}]
    assert env.step("go") == ("count 1", 0.0, False, False, {"action_valid": True})
    observation, reward, terminated, truncated, info = env.step("stop")
    assert observation == "count 1\n\n'stop' is no action here: say go or end"
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"action_valid": False})
    env.step("go")
    assert env.step(" go ") == ("count 3", 1.0, True, False, {"action_valid": True, "won": True})
    assert env.client.sent == [{"by": 1}] * 3
    with pytest.raises(EnvironmentFailure, match="CounterClient: step.. before reset"):
        env.step("go")
    env.reset()
    assert env.step("end") == ("cut", 0.0, False, True, {"action_valid": True})
    env.close()
    env.close()
    assert env.client.closed == 1


def test_a_coroutine_client_works_inside_a_running_loop() -> None:
    """As in a notebook."""

    async def play() -> str:
        env = from_openenv(AsyncCounterClient(), make_action=make_action)
        env.reset()
        observation = env.step("go")[0]
        env.close()
        return observation

    before = threading.active_count()
    assert asyncio.run(play()) == "count 1"
    assert threading.active_count() == before


def test_the_loop_can_be_closed_and_used_again() -> None:
    async def double(number: int) -> int:
        return 2 * number

    loop = LoopThread()
    loop.close()  # never started
    assert loop.result(3) == 3
    for _ in range(2):
        assert loop.result(double(2)) == 4
        loop.close()
        loop.close()


@pytest.mark.parametrize("action", HOSTILE)
def test_hostile_actions_do_not_reach_a_strict_action(action: str) -> None:
    env = from_openenv(CounterClient(), make_action=make_action)
    env.reset()
    observation, reward, terminated, truncated, info = env.step(action)
    assert env.client.sent == [] and len(observation) < 200
    assert (reward, terminated, truncated, info["action_valid"]) == (0.0, False, False, False)


def test_reset_gets_what_its_signature_takes() -> None:
    class Old(CounterClient):
        def reset(self) -> Result:  # type: ignore[override]
            return super().reset()

    env = from_openenv(Old(), make_action=make_action)
    env.reset(seed=1, options={"level": 2})
    assert env.client.resets == [{}]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Result("text", 0.5, False), ("text", 0.5, False, False)),
        (Result({"a": "one \ud800", "n": 3}, True, True), ("one ?", 1.0, True, False)),
        (
            Result(SimpleNamespace(message="inner", done=True, reward=0.25, metadata=None)),
            ("inner", 0.25, True, False),
        ),
        (Result(SimpleNamespace(message="cut", truncated=True), None, True), ("cut", 0.0, False, True)),
        (SimpleNamespace(observation="cut", reward=None, done=False, truncated=True), ("cut", 0.0, False, True)),
    ],
)
def test_what_results_may_look_like(result: Any, expected: tuple[Any, ...]) -> None:
    client = CounterClient()
    env = from_openenv(client, make_action=make_action)
    env.reset()
    client.step = lambda action: result  # type: ignore[method-assign]
    assert env.step("go")[:4] == expected


def test_observations_that_are_no_text() -> None:
    client = CounterClient()
    client.reset = lambda: Result({"a": "x", "b": "y"})  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="exactly one field with text.*render_observation="):
        from_openenv(client, make_action=make_action).reset()
    env = from_openenv(client, make_action=make_action, render_observation=lambda o: o["a"] + o["b"])
    assert env.reset()[0] == "xy"


def test_an_action_that_the_server_cannot_read_is_not_taken_but_other_errors_are_failures() -> None:
    client = CounterClient()
    env = from_openenv(client, make_action=make_action)
    env.reset()

    def step(action: Any) -> Result:
        raise RuntimeError(message)

    client.step = step  # type: ignore[method-assign]
    message = "Server error: Invalid message (code: VALIDATION_ERROR)"
    observation, _, terminated, _, info = env.step("go")
    assert observation == f"count 0\n\n{message}" and not terminated and info["action_valid"] is False
    message = "Server error: gone (code: EXECUTION_ERROR)"
    with pytest.raises(RuntimeError, match="gone"):
        env.step("go")


def test_without_make_action_there_must_be_tools() -> None:
    with pytest.raises(ValueError, match="CounterClient has no list_tools.*make_action="):
        from_openenv(CounterClient())


def test_the_contract_and_pickling() -> None:
    for client_class in (CounterClient, AsyncCounterClient):
        factory = pickle.loads(pickle.dumps(partial(from_openenv, client_class, make_action=make_action)))
        check_env(factory, actions=["go", *HOSTILE, "go", "go"])
        check_env(factory, actions=["go", "end"])


def test_the_real_step_result() -> None:
    pytest.importorskip("openenv.core", reason="openenv-core is not installed")
    from openenv.core.client_types import StepResult
    from openenv.core.env_server.types import Observation

    class Said(Observation):
        text: str

    client = CounterClient()
    client.reset = lambda: StepResult(Said(text="hello"))  # type: ignore[method-assign]
    client.step = lambda action: StepResult(  # type: ignore[method-assign]
        Said(text="bye", metadata={"is_success": True}), reward=0.5, done=True
    )
    env = from_openenv(client, make_action=make_action)
    assert env.reset()[0] == "hello"
    assert env.step("go") == ("bye", 0.5, True, False, {"action_valid": True, "won": True})


def test_without_openenv_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tools(CounterClient):
        def list_tools(self) -> list[Any]:
            return [SimpleNamespace(name="ask", description="", input_schema={})]

    monkeypatch.setitem(sys.modules, "openenv.core.env_server.mcp_types", None)
    env = from_openenv(Tools)
    env.reset()
    with pytest.raises(ImportError, match="pip install openenv-core"):
        env.step(format_tool_call("ask", {}))
