"""What tools and users do wrong: `exit()` in a tool, megabytes, instances for factories, processes, garbage."""

import threading
from functools import partial
from typing import Any

import pytest
import test_adapters_gymnasium as gymnasium_tests
import test_adapters_openenv as openenv_tests
import test_adapters_trl as trl_tests
from hypothesis import given, settings
from hypothesis import strategies as st
from test_adapters_tool_calls import GARBAGE

from trl_mise.envs.adapter_loop import LoopThread
from trl_mise.envs.adapters import (
    ToolCall,
    ToolCallParser,
    as_trl_environment,
    format_tool_call,
    from_gymnasium,
    from_openenv,
    from_trl_environment,
)
from trl_mise.envs.answers import MAX_TEXT_CHARS, checked_step
from trl_mise.envs.base import EnvironmentFailure
from trl_mise.envs.pool import EnvironmentPool


class Interpreter:
    """Tools that do what the policy writes, which is the worst that a tool can be."""

    def reset(self, **kwargs: Any) -> None:
        self.calls = 0

    def run(self, code: str) -> str:
        """Runs Python code.

        Args:
            code: The code.
        """
        self.calls += 1
        exec(code)
        return "ran"

    async def run_later(self, code: str) -> str:
        """Runs Python code in a coroutine.

        Args:
            code: The code.
        """
        return self.run(code)

    def repeat(self, text: str, times: int) -> str:
        """Repeats a text.

        Args:
            text: The text.
            times: How often.
        """
        return text * times

    def get_reward(self) -> float:
        return 0.0


def started() -> Any:
    env = from_trl_environment(Interpreter)
    env.reset()
    return env


def in_time(call: Any) -> Any:
    """What the call returns; a deadlock fails the test instead of stopping all tests."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the call never came back"
    assert answers, "the call raised, see the thread's traceback"
    return answers[0]


@pytest.mark.parametrize("tool", ["run", "run_later"])
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise SystemExit(3)", "SystemExit 3"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
        ("raise ValueError('no')", "no"),
        ("raise ValueError", "ValueError"),
        ("class Mute(Exception):\n    def __str__(self):\n        raise TypeError\nraise Mute", "Mute"),
        ("def recurse():\n    globals()['_f']()\nglobals()['_f'] = recurse\nrecurse()", "recursion"),
    ],
)
def test_whatever_a_tool_raises_is_an_observation(tool: str, code: str, error: str) -> None:
    env = started()
    text = format_tool_call(tool, {"code": code}) + format_tool_call(tool, {"code": "1"})
    observation, reward, terminated, truncated, info = in_time(lambda: env.step(text))
    first, second = observation.split(f"\n{tool}: ")
    assert error in first and second == "ran"
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"action_valid": False})
    assert env.environment.calls == 2
    env.close()


def test_ctrl_c_stops_the_training_in_a_tool_too() -> None:
    with pytest.raises(KeyboardInterrupt):
        started().step(format_tool_call("run", {"code": "raise KeyboardInterrupt"}))


def test_the_loop_survives_a_task_that_exits() -> None:
    """asyncio raises a task's `SystemExit` out of the loop, whose thread would end with it."""
    import asyncio

    async def leave() -> None:
        raise SystemExit(7)

    async def gather() -> None:
        await asyncio.gather(leave())

    async def double(number: int) -> int:
        return 2 * number

    loop = LoopThread()
    for coroutine in (leave, gather):

        def code(make: Any = coroutine) -> Any:
            try:
                return loop.result(make())
            except SystemExit as error:
                return error.code

        assert in_time(code) == 7
        assert in_time(lambda: loop.result(double(2))) == 4
    in_time(lambda: loop.close() or True)


def test_megabytes_from_a_tool_are_cut_not_a_failure() -> None:
    """A failure would leave the episode out of the advantages: the policy could print its way out of a loss."""
    env = started()
    text = format_tool_call("repeat", {"text": "x", "times": 2 * MAX_TEXT_CHARS})
    answer = checked_step(env.step(text + format_tool_call("run", {"code": "1"})))
    assert answer.observation.startswith("repeat: xxx") and answer.observation.endswith("x...")
    whole = "x" * (MAX_TEXT_CHARS // 2)
    assert env.step(format_tool_call("repeat", {"text": whole, "times": 1}))[0] == whole
    ending = from_trl_environment(Interpreter, is_done=lambda environment: True)
    ending.reset()
    answer = checked_step(ending.step(text))
    assert answer.terminated and answer.observation.endswith("The task has ended. Reward: 0")


# Instances where factories are meant

SHARED_GUESS = trl_tests.GuessEnv()


@pytest.mark.parametrize(
    ("factory", "action"),
    [
        (
            partial(from_gymnasium, gymnasium_tests.Corridor(), render_observation=gymnasium_tests.render),
            "left",
        ),
        (partial(from_openenv, openenv_tests.CounterClient(), make_action=openenv_tests.make_action), "go"),
        (partial(from_trl_environment, lambda: SHARED_GUESS), trl_tests.call("hint")),
    ],
)
def test_episodes_that_share_an_instance_are_found_out(factory: Any, action: str) -> None:
    """One slot is fine; with two, each would play on in the other's episode, and nobody would notice."""
    one = factory()
    one.reset(seed=3, options={})
    one.step(action)
    other = factory()
    other.reset(seed=3, options={})
    with pytest.raises(EnvironmentFailure, match="another episode was begun in the same instance.*factory"):
        one.step(action)
    assert other.step(action)[-1]["action_valid"]
    one.reset(seed=3, options={})
    assert one.step(action)[-1]["action_valid"]
    with pytest.raises(EnvironmentFailure, match="another episode was begun"):
        other.step(action)


def test_an_adapter_that_is_gone_holds_nothing() -> None:
    corridor = gymnasium_tests.Corridor()
    make = partial(from_gymnasium, corridor, render_observation=gymnasium_tests.render)
    kept = make()
    kept.reset(options={"field": 2})
    make().reset(options={"field": 2})  # collected at once
    assert kept.step("right")[0] == "field 3"


def test_what_is_neither_class_nor_environment_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="got an object of class GuessEnv; pass GuessEnv itself"):
        from_trl_environment(trl_tests.GuessEnv())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="3 .int. is neither an environment .* nor callable"):
        as_trl_environment(3)  # type: ignore[arg-type]


# A tokenizer whose own format uses the same tags


class TaggedNames:
    """As GLM's format: between the tags stands the name, then the arguments."""

    response_template = {"fields": {}}  # noqa: RUF012
    eos_token = None

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        return ""

    def parse_response(self, text: str, **kwargs: Any) -> dict[str, Any]:
        if "<tool_call>" not in text:
            return {"content": text}
        name = text.partition("<tool_call>")[2].partition("</tool_call>")[0].split()[0]
        return {"tool_calls": [{"type": "function", "function": {"name": name, "arguments": {}}}]}


def test_the_json_that_the_instruction_asks_for_works_with_every_format() -> None:
    parser = ToolCallParser(("guess",), TaggedNames())
    assert parser.parse(format_tool_call("guess", {"number": 3})) == [ToolCall("guess", {"number": 3})]
    assert parser.parse("<tool_call>guess</tool_call>") == [ToolCall("guess", {})]
    # Neither reading names a tool: the tokenizer's is what the policy hears of.
    assert parser.parse("<tool_call>look</tool_call>") == [ToolCall("look", {})]


def test_json_under_glms_template() -> None:
    known = pytest.importorskip("trl.chat_template_utils", reason="TRL is not installed")
    from trl_mise.tiny import build_tokenizer

    tokenizer = build_tokenizer(["x"])
    if not hasattr(tokenizer, "get_response_parser") or not hasattr(known, "glm4moe_template"):
        pytest.skip("needs transformers 5.13 and a TRL with response templates")
    tokenizer.response_template = known.glm4moe_template
    parser = ToolCallParser(("guess",), tokenizer)
    assert parser.parse(format_tool_call("guess", {"number": 3})) == [ToolCall("guess", {"number": 3})]


# Processes and garbage


@pytest.mark.parametrize(
    ("factory", "action", "expected"),
    [
        (
            partial(from_gymnasium, gymnasium_tests.Corridor, render_observation=gymnasium_tests.render),
            "right",
            ("field 4", 1.0, True),
        ),
        (
            partial(from_trl_environment, trl_tests.GuessEnv),
            trl_tests.call("guess", number=3) + trl_tests.call("hint"),
            ("guess: Right.\nhint: {'odd': True, 'loud': False}", 0.0, False),
        ),
        (
            partial(from_openenv, openenv_tests.AsyncCounterClient, make_action=openenv_tests.make_action),
            "go",
            ("count 1", 0.0, False),
        ),
    ],
)
def test_adapters_in_processes(factory: Any, action: str, expected: tuple[Any, ...]) -> None:
    pool = EnvironmentPool(factory, isolation="process", envs_per_worker=2, timeout=60)
    try:
        one, other = pool.take(2)
        assert one.reset(seed=3, options={}) == other.reset(seed=3, options={})
        assert one.step(action)[:3] == expected
        assert other.step(action)[:3] == expected  # an environment of its own
    finally:
        pool.close()


ACTIONS = GARBAGE | st.text() | st.sampled_from(["left", "right", "go", trl_tests.call("guess", number=1)])


@pytest.mark.parametrize(
    "env",
    [
        from_gymnasium(gymnasium_tests.Corridor(), render_observation=gymnasium_tests.render),
        from_trl_environment(trl_tests.GuessEnv),
        from_openenv(openenv_tests.CounterClient(), make_action=openenv_tests.make_action),
    ],
)
@settings(max_examples=100, deadline=None)
@given(actions=st.lists(ACTIONS, min_size=1, max_size=6))
def test_no_action_is_a_failure(env: Any, actions: list[str]) -> None:
    env.reset(seed=1, options={})
    for action in actions:
        answer = checked_step(env.step(action))
        assert type(answer.info["action_valid"]) is bool
        if answer.terminated or answer.truncated:
            break
