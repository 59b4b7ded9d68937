"""OpenEnv clients as text environments: see [`from_openenv`]."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .adapter_common import begin_episode, check_episode, clean_text, joined, make_one, quote, shortened, win_flag
from .adapter_loop import LoopThread
from .adapter_tool_calls import Call, MalformedCall, ToolCall, ToolCallParser
from .adapter_tool_schemas import tool_prompt

_ENVELOPE = ("done", "reward", "metadata")
"""Fields that every OpenEnv observation has; they are no part of what the policy reads."""


def from_openenv(
    client_or_factory: Any,
    *,
    make_action: Callable[[str], Any] | None = None,
    render_observation: Callable[[Any], str] | None = None,
    instruction: str | None = None,
    tokenizer: Any = None,
) -> "OpenEnvTextEnv":
    """Makes a [`TextEnv`] of an OpenEnv client, synchronous or asynchronous.

    The client needs `reset` and `step(action) -> StepResult(observation, reward, done)`, and may have `close`; what is
    a coroutine runs on an event loop of the adapter's own. Rewards pass through, `None` as 0; `done` becomes
    `terminated`, or `truncated` where the result, its observation or the observation's metadata says `truncated`.
    `reset` gets the seed and the dataset row, as far as its signature takes them.

    Without `make_action` the client must have `list_tools` (an MCP environment): the tools are described in the
    instruction, the calls in an answer are made in order, one step each, and an answer without a call ends the
    episode.

    Args:
        client_or_factory: the client, or a zero-argument callable that makes one. The trainer needs a factory: wrap
            the callable, never one client.
        make_action (`Callable[[str], Any]`, *optional*): makes the client's action of the policy's text. Where it
            raises a `ValueError` (pydantic's errors are such), the action is not taken: the observation comes again
            with the error, and `info["action_valid"]` is False.
        render_observation (`Callable[[Any], str]`, *optional*): makes an observation text. Default: observations that
            are text, or have exactly one field with text.
        instruction (`str`, *optional*): the task, in front of the first observation. Default: the tools, if any.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the policy's, for its own format of tool calls.

    Raises:
        ValueError: there is no `make_action`, and the client has no tools.

    Example:
    ```python
    from functools import partial

    environment_factory = partial(
        from_openenv,
        partial(WordleClient, base_url="http://localhost:8000"),
        make_action=lambda text: WordleAction(guess=text),
        render_observation=lambda observation: observation.message,
    )
    ```
    """
    client = make_one(client_or_factory)
    if make_action is None and not callable(getattr(client, "list_tools", None)):
        raise ValueError(
            f"{type(client).__name__} has no list_tools(), so there must be make_action=, a callable that makes its "
            "action of a str"
        )
    return OpenEnvTextEnv(client, make_action, render_observation, instruction, tokenizer)


class _Result(NamedTuple):
    """What a client's `StepResult` says."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    metadata: Mapping[str, Any]
    failed: bool = False
    """A tool answered with an error."""

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


class _Refusal(NamedTuple):
    """An action that was not taken, with the text that the policy reads instead of a result."""

    observation: str
    failed: bool = True


class OpenEnvTextEnv:
    """An OpenEnv client behind the [`TextEnv`] contract; made by [`from_openenv`], which says more.

    Args:
        client, make_action, render_observation, instruction, tokenizer: see there.
    """

    def __init__(
        self,
        client: Any,
        make_action: Callable[[str], Any] | None,
        render_observation: Callable[[Any], str] | None,
        instruction: str | None,
        tokenizer: Any,
    ) -> None:
        self.client = client
        self._make_action, self._render = make_action, render_observation
        self._instruction, self._tokenizer = instruction, tokenizer
        self._parser: ToolCallParser | None = None
        self._loop = LoopThread()
        self._running = self._closed = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode on the server; columns of the row that are None are left out."""
        row = {**(options or {}), **({} if seed is None else {"seed": seed})}
        parameters = inspect.signature(self.client.reset).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        given = {key: value for key, value in row.items() if value is not None and (takes_all or key in parameters)}
        result = self._read(self._loop.result(self.client.reset(**given)))
        if self._make_action is None and self._parser is None:
            self._find_tools()
        self._running, self._observation = True, result.observation
        begin_episode(self, self.client)
        return self._observation, {**self._info(result), "instruction": clean_text(self._instruction or "")}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes the action, or makes the calls of an answer to a tool environment.

        Raises:
            EnvironmentFailure: there is no episode, it has ended, or another one was begun in the same instance.
        """
        check_episode(self, self.client, self._running)
        outcomes = self._call_tools(action) if self._make_action is None else [self._take(action)]
        if not outcomes:
            self._running = False
            return "The task has ended.", 0.0, True, False, {"action_valid": True}
        results = [outcome for outcome in outcomes if isinstance(outcome, _Result)]
        last = results[-1] if results else None
        self._running = last is None or not last.ended
        observation = "\n".join(outcome.observation for outcome in outcomes)
        observation = shortened(observation) if self._make_action is None else observation
        reward = sum(result.reward for result in results)
        info = {
            **({} if last is None else self._info(last)),
            "action_valid": not any(outcome.failed for outcome in outcomes),
        }
        return observation, float(reward), bool(last and last.terminated), bool(last and last.truncated), info

    def close(self) -> None:
        """Closes the client; may be called twice."""
        self._running = False
        close = getattr(self.client, "close", None)
        if not self._closed and callable(close):
            self._loop.result(close())
        self._closed = True
        self._loop.close()

    # Actions

    def _take(self, action: str) -> "_Result | _Refusal":
        assert self._make_action is not None
        try:
            native = self._make_action(action)
        except ValueError as error:
            return _Refusal(joined(self._observation, f"{quote(action)} is no action here: {clean_text(error)}"))
        outcome = self._send(native)
        if isinstance(outcome, _Refusal):
            return _Refusal(joined(self._observation, outcome.observation))
        self._observation = outcome.observation
        return outcome

    def _send(self, native: Any) -> "_Result | _Refusal":
        try:
            return self._read(self._loop.result(self.client.step(native)))
        except RuntimeError as error:
            # So a client reports an action that the server could not read; nothing has happened then.
            if "VALIDATION_ERROR" not in str(error):
                raise
            return _Refusal(clean_text(error))

    def _call_tools(self, answer: str) -> "list[_Result | _Refusal]":
        """What became of the answer's calls, up to the end of the episode; empty if it makes none."""
        assert self._parser is not None
        calls = self._parser.parse(answer)
        outcomes: list[_Result | _Refusal] = []
        for call in calls:
            outcome = self._call_tool(call)
            if len(calls) > 1:  # named only where there is something to tell apart
                name = "error" if isinstance(call, MalformedCall) else clean_text(call.name)
                outcome = outcome._replace(observation=f"{name}: {outcome.observation}")
            outcomes.append(outcome)
            if isinstance(outcome, _Result) and outcome.ended:
                break
        return outcomes

    def _call_tool(self, call: Call) -> "_Result | _Refusal":
        if isinstance(call, MalformedCall):
            return _Refusal(str({"error": call.problem}))
        if call.name not in self._tools:
            return _Refusal(clean_text({"error": f"Tool {call.name} not found."}))
        return self._send(_tool_action(call))

    def _find_tools(self) -> None:
        tools = self._loop.result(self.client.list_tools())
        self._tools = frozenset(tool.name for tool in tools)
        schemas = _schemas(tools)
        self._parser = ToolCallParser(self._tools, self._tokenizer, schemas)
        if self._instruction is None:
            self._instruction = tool_prompt(schemas)

    # Results

    def _read(self, result: Any) -> _Result:
        observation = result.observation
        metadata = _field(observation, "metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        reward = result.reward if result.reward is not None else _field(observation, "reward")
        truncated = any(_field(place, "truncated") for place in (result, observation, metadata))
        done = bool(result.done or _field(observation, "done"))
        return _Result(
            observation=self._text(observation),
            reward=0.0 if reward is None else float(reward),
            terminated=done and not truncated,
            truncated=bool(truncated),
            metadata=metadata,
            failed=_is_tool_answer(observation) and _field(observation, "error") is not None,
        )

    def _info(self, result: _Result) -> dict[str, Any]:
        won = win_flag(result.metadata)
        return {} if won is None else {"won": won}

    def _text(self, observation: Any) -> str:
        if self._render is not None:
            return clean_text(self._render(observation))
        if isinstance(observation, str):
            return clean_text(observation)
        if _is_tool_answer(observation):
            return _tool_text(observation)
        texts = [value for key, value in _fields(observation) if key not in _ENVELOPE and isinstance(value, str)]
        if len(texts) == 1:
            return clean_text(texts[0])
        if self._make_action is None:  # the first observation of an MCP environment usually says nothing
            return clean_text("\n".join(texts))
        raise TypeError(
            f"{type(self.client).__name__} returned the observation {quote(observation)} "
            f"({type(observation).__name__}), which is neither text nor has exactly one field with text; pass "
            "render_observation=, a callable that makes it a str"
        )


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _fields(observation: Any) -> list[tuple[str, Any]]:
    """The fields of a dict, a pydantic model or a dataclass."""
    if isinstance(observation, Mapping):
        return list(observation.items())
    return list(getattr(observation, "__dict__", {}).items())


def _is_tool_answer(observation: Any) -> bool:
    return _field(observation, "tool_name") is not None


def _tool_text(observation: Any) -> str:
    """What a tool answered: the data of FastMCP's result, or the error as GRPOTrainer words it."""
    error = _field(observation, "error")
    if error is not None:
        return clean_text({"error": _field(error, "message") or str(error)})
    result = _field(observation, "result")
    data = _field(result, "data")
    return clean_text(result if data is None else data)


def _tool_action(call: ToolCall) -> Any:
    try:
        from openenv.core.env_server.mcp_types import CallToolAction
    except ImportError as error:
        raise ImportError("tools of an OpenEnv client need OpenEnv: pip install openenv-core") from error
    return CallToolAction(tool_name=call.name, arguments=dict(call.arguments))


def _schemas(tools: Sequence[Any]) -> list[dict[str, Any]]:
    bodies = ({"name": t.name, "description": t.description, "parameters": t.input_schema} for t in tools)
    return [{"type": "function", "function": body} for body in bodies]
