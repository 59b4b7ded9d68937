"""OpenEnv clients behind the contract: scripted ones, and the real ones against servers in this process."""

import asyncio
import json
import pickle
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


# OpenEnv itself


def openenv() -> Any:
    return pytest.importorskip("openenv.core", reason="openenv-core is not installed")


def test_the_real_step_result() -> None:
    openenv()
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


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serves the app on a loopback port of the system's choice; gives its address."""
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def echo_app() -> Any:
    from openenv.core.env_server import create_fastapi_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State
    from pydantic import Field

    class Say(Action):
        text: str = Field(min_length=1, max_length=100)

    class Heard(Observation):
        echo: str

    class Echo(Environment):  # type: ignore[type-arg]
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: int | None = None, word: str = "abc", **kwargs: Any) -> Heard:
            self.word, self.steps = word, 0
            return Heard(echo=f"say {word} ({seed})")

        def step(self, action: Say, **kwargs: Any) -> Heard:  # type: ignore[override]
            self.steps += 1
            won = action.text == self.word
            return Heard(echo=f"{self.steps}: {action.text}", done=won, reward=float(won))

        @property
        def state(self) -> State:
            return State()

    return create_fastapi_app(Echo, Say, Heard, max_concurrent_envs=4)


def test_a_real_client_and_server() -> None:
    openenv()
    pytest.importorskip("uvicorn", reason="uvicorn, a dependency of openenv-core, is not installed")
    from openenv.core.generic_client import GenericEnvClient

    with serving(echo_app()) as url:
        for wrap in (lambda client: client, lambda client: client.sync()):
            env = from_openenv(lambda wrap=wrap: wrap(GenericEnvClient(url)), make_action=lambda text: {"text": text})
            assert env.reset(seed=3, options={"word": "xyz", "seed": 3})[0] == "say xyz (3)"
            observation, _, terminated, _, info = env.step("x" * 10_000)  # the server refuses it
            assert observation.startswith("say xyz (3)\n\n") and not terminated and not info["action_valid"]
            assert env.step("🤣\n\x00")[:4] == ("1: 🤣\n\x00", 0.0, False, False)
            assert env.step("xyz")[:4] == ("2: xyz", 1.0, True, False)
            env.close()
            env.close()
        check_env(
            lambda: from_openenv(GenericEnvClient(url), make_action=lambda text: {"text": text}),
            actions=["a", *HOSTILE, "abc"],
        )


def quiz_app() -> Any:
    from fastmcp import FastMCP
    from openenv.core.env_server import create_fastapi_app
    from openenv.core.env_server.mcp_environment import MCPEnvironment
    from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
    from openenv.core.env_server.types import Observation, State

    class Quiz(MCPEnvironment):
        """Tools `ask` and `answer`; the right answer ends the episode and pays."""

        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            server = FastMCP("quiz")

            @server.tool()
            def ask(topic: str) -> str:
                """Asks about a topic."""
                return f"{topic}: what is 6 times 7?"

            @server.tool()
            def answer(number: int) -> str:
                """Answers."""
                return "right" if number == 42 else "wrong"

            super().__init__(server)

        def reset(self, seed: int | None = None, **kwargs: Any) -> Observation:
            return Observation()

        def _step_impl(self, action: Any, **kwargs: Any) -> Observation:
            return Observation()

        async def step_async(self, action: Any, **kwargs: Any) -> Observation:
            observation = await super().step_async(action, **kwargs)
            if isinstance(action, CallToolAction) and isinstance(observation, CallToolObservation):
                observation.done = action.arguments.get("number") == 42
                observation.reward = float(observation.done)
            return observation

        @property
        def state(self) -> State:
            return State()

    return create_fastapi_app(Quiz, CallToolAction, CallToolObservation, max_concurrent_envs=4)


def test_the_tools_of_a_real_mcp_environment() -> None:
    openenv()
    for module in ("uvicorn", "fastmcp"):
        pytest.importorskip(module, reason=f"{module}, a dependency of openenv-core, is not installed")
    from openenv.core.mcp_client import MCPToolClient

    with serving(quiz_app()) as url:
        env = from_openenv(partial(MCPToolClient, url))
        observation, info = env.reset(seed=1)
        assert observation == ""
        listed = [json.loads(line) for line in info["instruction"].splitlines() if line.startswith('{"name": ')]
        assert [tool["name"] for tool in listed] == ["ask", "answer"]
        assert listed[1]["parameters"]["properties"]["number"]["type"] == "integer"
        assert env.step(format_tool_call("ask", {"topic": "maths"}))[:3] == ("maths: what is 6 times 7?", 0.0, False)
        calls = format_tool_call("answer", {"number": 41}) + format_tool_call("look", {}) + "<tool_call>?</tool_call>"
        observation, reward, terminated, truncated, info = env.step(calls)
        assert observation.splitlines()[:2] == ["answer: wrong", "look: {'error': 'Tool look not found.'}"]
        assert observation.splitlines()[2].startswith("error: {'error': 'A tool call must be one JSON object")
        assert (reward, terminated, info["action_valid"]) == (0.0, False, False)
        observation, _, terminated, _, info = env.step(format_tool_call("answer", {"number": "many"}))
        assert "error" in observation and not terminated and info["action_valid"] is False
        calls = format_tool_call("answer", {"number": 42}) + format_tool_call("answer", {"number": 42})
        assert env.step(calls)[:4] == ("answer: right", 1.0, True, False)  # nothing after the end
        env.reset()
        assert env.step("42")[:4] == ("The task has ended.", 0.0, True, False)
        env.close()
        check_env(
            partial(from_openenv, partial(MCPToolClient, url)), actions=[format_tool_call("ask", {"topic": "x"})]
        )


def test_without_openenv_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tools(CounterClient):
        def list_tools(self) -> list[Any]:
            return [SimpleNamespace(name="ask", description="", input_schema={})]

    monkeypatch.setitem(sys.modules, "openenv.core.env_server.mcp_types", None)
    env = from_openenv(Tools)
    env.reset()
    with pytest.raises(ImportError, match="pip install openenv-core"):
        env.step(format_tool_call("ask", {}))
