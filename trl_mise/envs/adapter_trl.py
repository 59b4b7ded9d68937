"""Environments written for TRL's GRPOTrainer as text environments: see [`from_trl_environment`]."""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .adapter_common import begin_episode, check_episode, clean_text, joined, shortened
from .adapter_loop import LoopThread
from .adapter_tool_calls import Call, MalformedCall, ToolCallParser
from .adapter_tool_schemas import tool_prompt, tool_schema
from .base import EnvironmentFailure

_TOOL_ERRORS = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)
"""A tool that runs the policy's code raises what the code raises, `exit()` among it; all but the user's Ctrl-C."""


def from_trl_environment(
    cls: Callable[[], Any],
    tokenizer: Any = None,
    *,
    reward: Callable[[Any, str], float] | None = None,
    is_done: Callable[[Any], bool] | None = None,
    max_tool_calling_iterations: int | None = None,
    instruction: str | None = None,
) -> "TRLToolEnv":
    """Makes a [`TextEnv`] of a class written for `environment_factory` of TRL's GRPOTrainer, unchanged.

    As there, `reset(**row)` gets the dataset row and may return text, the public methods are the tools (but a
    `close()` without arguments, which `close()` calls), and `get_reward()` is paid once, at the end. An answer may
    call several tools; they run in order, and their results are the next observation. A bad call (no such tool, wrong
    arguments, an exception in the tool, `exit()` too, malformed JSON) is answered with the error and marked
    `info["action_valid"] = False`. An answer without a tool call ends the episode. The policy is told of the tools in
    the instruction, behind the row's `prompt`, as text: a chat template that knows tools is not needed.

    Two things differ. Results come in user messages, not in `tool` messages. And the trainer's own limits
    (`max_turns`, `max_episode_tokens`) cut an episode before its reward is known: set `max_tool_calling_iterations`
    below `max_turns`, then the reward is always paid.

    Args:
        cls (`type` or callable): the class, or a zero-argument callable that makes the environment.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the policy's, for its own format of tool calls; see
            [`ToolCallParser`].
        reward (`Callable[[Any, str], float]`, *optional*): (environment, last answer) -> reward, in place of
            `get_reward()`. A reward function `f` for GRPOTrainer that reads environments only becomes
            `lambda env, answer: f(environments=[env])[0]`.
        is_done (`Callable[[Any], bool]`, *optional*): ends the episode right after a call, such as
            `lambda env: env.done`, without waiting for an answer that calls no tool.
        max_tool_calling_iterations (`int`, *optional*): answers whose calls are executed; the next answer is the
            last one, whatever it says. GRPOTrainer has the same option.
        instruction (`str`, *optional*): in place of the description of the tools.

    Raises:
        TypeError: `cls` cannot be called (an instance was passed), or what it makes has no `reset`.
        ValueError: it has no tools, or neither `get_reward` nor `reward=`.

    Example:
    ```python
    class GuessEnv:
        def reset(self, secret, **kwargs) -> str:
            self.secret, self.found = secret, False
            return "I think of a number."

        def guess(self, number: int) -> str:
            '''Guesses the number.

            Args:
                number: Your guess.
            '''
            self.found = number == self.secret
            return "Right." if self.found else "Wrong."

        def get_reward(self) -> float:
            return float(self.found)

    trainer = MISETrainer(..., environment_factory=partial(from_trl_environment, GuessEnv, tokenizer))
    ```
    """
    return TRLToolEnv(
        cls,
        tokenizer,
        reward=reward,
        is_done=is_done,
        max_tool_calling_iterations=max_tool_calling_iterations,
        instruction=instruction,
    )


class TRLToolEnv:
    """A tool environment behind the [`TextEnv`] contract; made by [`from_trl_environment`], which says more.

    Args:
        make (`Callable[[], Any]`), tokenizer, reward, is_done, max_tool_calling_iterations, instruction: see there.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        tokenizer: Any = None,
        *,
        reward: Callable[[Any, str], float] | None = None,
        is_done: Callable[[Any], bool] | None = None,
        max_tool_calling_iterations: int | None = None,
        instruction: str | None = None,
    ) -> None:
        if not callable(make):
            kind = type(make).__name__
            raise TypeError(
                f"from_trl_environment needs a class, or a callable that makes an environment, got an object of class "
                f"{kind}; pass {kind} itself"
            )
        self.environment = make()
        self.name = type(self.environment).__name__
        self._reward, self._is_done, self._limit = reward, is_done, max_tool_calling_iterations
        self._tools = _tools(self.environment)
        _check(self.environment, self.name, self._tools, reward, max_tool_calling_iterations)
        schemas = [tool_schema(tool) for tool in self._tools.values()]
        self._parser = ToolCallParser(self._tools, tokenizer, schemas)
        self._tool_text = tool_prompt(schemas) if instruction is None else instruction
        self._loop = LoopThread()
        self._running = self._closed = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts the episode of a dataset row: `environment.reset(**options)`, with `seed` where it takes one."""
        row = dict(options or {})
        if seed is not None:
            row.setdefault("seed", seed)
        parameters = inspect.signature(self.environment.reset).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        # Every row for GRPOTrainer has a prompt, every row for us may have a seed; a reset need not know of the other.
        unknown = {key for key in ("prompt", "seed") if not takes_all and key not in parameters}
        observation = self._loop.result(
            self.environment.reset(**{key: value for key, value in row.items() if key not in unknown})
        )
        self._running, self._iterations = True, 0
        begin_episode(self, self.environment)
        instruction = joined(_message_text(row.get("prompt")), self._tool_text)
        return _result_text(observation), {"instruction": clean_text(instruction)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Makes the calls of an answer, or ends the episode if there are none.

        Raises:
            EnvironmentFailure: there is no episode, it has ended, another one was begun in the same environment, or
                the reward is no number.
        """
        check_episode(self, self.environment, self._running)
        calls = self._parser.parse(action)
        if not calls or self._iterations == self._limit:
            return self._end(action, "", valid=True)
        self._iterations += 1
        results = [self._make(call) for call in calls]
        valid = all(succeeded for _, _, succeeded in results)
        # The tool is named only where there is something to tell apart.
        observation = shortened(
            "\n".join(text if len(results) == 1 else f"{name}: {text}" for name, text, _ in results)
        )
        if self._is_done is not None and self._is_done(self.environment):
            return self._end(action, observation, valid=valid)
        return observation, 0.0, False, False, {"action_valid": valid}

    def close(self) -> None:
        """Calls the environment's `close()`, if it has one that needs no arguments; may be called twice."""
        self._running = False
        close = getattr(self.environment, "close", None)
        if not self._closed and callable(close) and _is_cleanup(close):
            self._loop.result(close())
        self._closed = True
        self._loop.close()

    def _make(self, call: Call) -> tuple[str, str, bool]:
        """Makes one call; returns (name, result, success). The errors read as in GRPOTrainer."""
        if isinstance(call, MalformedCall):
            return "error", str({"error": call.problem}), False
        try:
            if call.name not in self._tools:
                raise ValueError(f"Tool {call.name} not found.")
            result = self._loop.result(self._tools[call.name](**call.arguments))
            return call.name, _result_text(result), True
        except EnvironmentFailure:
            raise  # the environment itself says that it is broken, which no policy can help
        except _TOOL_ERRORS as error:
            return clean_text(call.name), clean_text({"error": _error_text(error)}), False

    def _end(self, answer: str, observation: str, *, valid: bool) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._running = False
        if self._reward is not None:
            paid = self._reward(self.environment, answer)
        else:
            paid = self._loop.result(self.environment.get_reward())
        try:
            reward = float(paid)
        except (TypeError, ValueError):
            raise EnvironmentFailure(
                f"{self.name}: the reward at the end of the episode is {paid!r}; get_reward() or reward= must return "
                "a float"
            ) from None
        # No policy reads this any more; it shows the outcome to the evaluator.
        text = joined(observation, f"The task has ended. Reward: {reward:g}")
        return text, reward, True, False, {"action_valid": valid}


def _tools(environment: Any) -> dict[str, Callable[..., Any]]:
    """The public methods but those that TRL itself calls, and `close()`."""
    methods = inspect.getmembers(environment, predicate=inspect.ismethod)
    return {
        name: method
        for name, method in methods
        if name not in ("reset", "get_reward")
        and not name.startswith("_")
        and not (name == "close" and _is_cleanup(method))
    }


def _is_cleanup(method: Callable[..., Any]) -> bool:
    """A `close()` without arguments frees the environment; one that takes some is a tool (`close(door)`)."""
    return all(
        parameter.default is not parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in inspect.signature(method).parameters.values()
    )


def _check(environment: Any, name: str, tools: Mapping[str, Any], reward: Any, limit: int | None) -> None:
    if not callable(getattr(environment, "reset", None)):
        raise TypeError(f"{name} has no method reset(); from_trl_environment needs a class as GRPOTrainer takes it")
    if not tools:
        raise ValueError(f"{name} has no public method besides reset and get_reward: there is no tool to call")
    if reward is None and not callable(getattr(environment, "get_reward", None)):
        raise ValueError(f"{name} has no get_reward(); pass reward=, a callable (environment, last answer) -> float")
    if limit is not None and limit < 1:
        raise ValueError(f"max_tool_calling_iterations must be at least 1, got {limit}; leave it out for no limit")


def _error_text(error: BaseException) -> str:
    """What an exception says, as in GRPOTrainer; its class where that says nothing."""
    try:
        said = str(error)
    except Exception:
        said = ""
    return said if said and isinstance(error, Exception) else f"{type(error).__name__} {said}".strip()


def _result_text(result: Any) -> str:
    """What a tool or `reset` returned, as text; of a list of content blocks, the texts."""
    if result is None:
        return ""
    if isinstance(result, list) and result and all(isinstance(part, Mapping) and "type" in part for part in result):
        return clean_text("\n".join(str(part.get("text", f"[{part['type']}]")) for part in result))
    return clean_text(result)


def _message_text(prompt: Any) -> str:
    """The texts of a `prompt` column: a str, or the messages of a conversation."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return joined(*(_result_text(message.get("content")) for message in prompt))
