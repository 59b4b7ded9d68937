"""The real OpenEnv clients behind the contract, against real servers on a loopback port of this process."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from trl_mise.envs.adapters import format_tool_call, from_openenv
from trl_mise.envs.check import check_env

pytest.importorskip("openenv.core", reason="openenv-core is not installed")
pytest.importorskip("uvicorn", reason="uvicorn, a dependency of openenv-core, is not installed")


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
    from openenv.core.generic_client import GenericEnvClient

    hostile = ("", "\n", "go. go. stop", "save", "quit", "reset task", "x" * 10_000, "\x00\x1b[2J", "🤣", "<|im_end|>")
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
            actions=["a", *hostile, "abc"],
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
    pytest.importorskip("fastmcp", reason="FastMCP, a dependency of openenv-core, is not installed")
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
