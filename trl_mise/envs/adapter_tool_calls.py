"""Tool calls out of an answer's text: the tokenizer's own parser where it has one, JSON otherwise. Never raises."""

import inspect
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .adapter_common import quote

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALLS = 32
"""Calls of one answer that are read: a policy that babbles must not fill the context with error messages."""

_JSON = json.JSONDecoder()
_JSON_START = re.compile(r"[\[{]")
_CALL_START = re.compile(r'(\[\s*)?\{\s*"')
_FENCE = re.compile(r"\A```[a-z]*\s*|\s*```\Z")
_GENERATION_PROMPT = [{"role": "user", "content": "x"}]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that can be made.

    Args:
        name (`str`): of the tool; it need not exist.
        arguments (`Mapping[str, Any]`): keyword arguments.
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """Something that was meant to be a call.

    Args:
        problem (`str`): what is wrong with it, for the policy to read.
    """

    problem: str


Call = ToolCall | MalformedCall


def format_tool_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The call as [`ToolCallParser`] reads it back, with or without a tokenizer of its own format.

    Example:
    ```python
    >>> format_tool_call("guess", {"number": 3})
    '<tool_call>{"name": "guess", "arguments": {"number": 3}}</tool_call>'
    ```
    """
    call = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"{OPEN}{call}{CLOSE}"


class ToolCallParser:
    """Reads the tool calls of an answer.

    With a tokenizer that can parse its model's answers (`response_template`, `response_schema` before transformers
    5.13; `trl.chat_template_utils.add_response_schema` sets it for well-known models), that parser comes first. The
    text of an action has lost its special tokens, so a format whose delimiters are special tokens may not be found by
    it. Where it finds no call of a tool that exists, calls are looked for as JSON:

    - `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, the closing tag optional; anything else between the
      tags is a malformed call;
    - without tags, every JSON object (also in lists, fences and prose) with a name and arguments: so a call whose
      tags were special tokens is found as well. `parameters` may stand for `arguments`, and a `function` object or a
      `tool_calls` list may be around it. An object with a name only counts if a tool has this name.

    What is said inside `<think>` is not looked at.

    Args:
        tools (`Collection[str]`): names of the tools.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the policy.
        schemas (`Sequence[Mapping]`, *optional*): of the tools, from [`tool_schema`]. Formats that write arguments as
            plain text (Qwen3.5, GLM-4) do not say which are numbers; with transformers 5.15 or newer the schemas do.
    """

    def __init__(
        self, tools: Collection[str] = (), tokenizer: Any = None, schemas: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._tools = frozenset(tools)
        self._tokenizer = tokenizer
        self._typing = {"tools": list(schemas)} if schemas and _parses_with_tools(tokenizer) else {}
        self._prefix: str | None = None

    def parse(self, text: str) -> list[Call]:
        """The calls in their order, at most `MAX_CALLS` and a notice; empty if the answer makes none."""
        calls = self._native_calls(text)
        if not self._names_a_tool(calls):
            # The tools' description asks for JSON, which some formats with the same tags read as a strange name.
            as_json = self._json_calls(text)
            calls = as_json if not calls or self._names_a_tool(as_json) else calls
        if len(calls) > MAX_CALLS:
            return [*calls[:MAX_CALLS], MalformedCall(f"Only the first {MAX_CALLS} calls of an answer are made.")]
        return calls

    def _names_a_tool(self, calls: Sequence[Call]) -> bool:
        return any(isinstance(call, ToolCall) and call.name in self._tools for call in calls)

    # The tokenizer's parser

    def _native_calls(self, text: str) -> list[Call]:
        tokenizer = self._tokenizer
        if not hasattr(tokenizer, "parse_response"):
            return []
        # The end of the turn was sampled as a token and cut off; some formats close a call with nothing else.
        end = getattr(tokenizer, "eos_token", None) or ""
        for attempt in dict.fromkeys((text, f"{text}{end}")):
            try:
                parsed = self._parse_response(attempt)
            except (
                Exception
            ):  # a parser of regular expressions and JSON that the tokenizer brings: it may raise anything
                continue
            found = parsed.get("tool_calls") if isinstance(parsed, Mapping) else None
            calls = self._read(found, certain=True) if isinstance(found, list) else []
            if calls:
                return calls
        return []

    def _parse_response(self, text: str) -> Any:
        if getattr(self._tokenizer, "response_template", None) is not None:
            if self._prefix is None:  # a template may have written the beginning of the answer, such as <think>
                self._prefix = self._tokenizer.apply_chat_template(
                    _GENERATION_PROMPT, tokenize=False, add_generation_prompt=True
                )
            return self._tokenizer.parse_response(text, prefix=self._prefix, **self._typing)
        if getattr(self._tokenizer, "response_schema", None) is not None:
            return self._tokenizer.parse_response(text)
        return None

    # JSON

    def _json_calls(self, text: str) -> list[Call]:
        text = _without_thoughts(text)
        return list(self._tagged_calls(text)) if OPEN in text else self._bare_calls(text)

    def _tagged_calls(self, text: str) -> Iterator[Call]:
        position = text.find(OPEN)
        while position >= 0:
            start = position + len(OPEN)
            body = text[start:].lstrip()
            start = len(text) - len(body)
            try:
                # Not up to the closing tag: that may be part of an argument.
                value, length = _JSON.raw_decode(body)
            except (ValueError, RecursionError):
                value, length = None, 0
            ends = [text.find(tag, start + length) for tag in (OPEN, CLOSE)]
            end = min((found for found in ends if found >= 0), default=len(text))
            if length == 0 or text[start + length : end].strip():
                yield MalformedCall('A tool call must be one JSON object: {"name": ..., "arguments": {...}}.')
            else:
                yield from self._read(value, certain=True)
            position = text.find(OPEN, end)

    def _bare_calls(self, text: str) -> list[Call]:
        body = _FENCE.sub("", text.strip())
        if _CALL_START.match(body) and '"name"' in body and not _starts_with_json(body):
            return [MalformedCall('The tool call is not valid JSON: {"name": ..., "arguments": {...}}.')]
        calls: list[Call] = []
        position = 0
        while match := _JSON_START.search(text, position):
            try:
                value, position = _JSON.raw_decode(text, match.start())
            except RecursionError:
                break  # it would be raised at every bracket of the thousands that follow
            except ValueError:
                position = match.start() + 1
                continue
            calls.extend(self._read(value, certain=False))
        return calls

    def _read(self, value: Any, *, certain: bool) -> list[Call]:
        """The calls in a JSON value. `certain`: it stands where calls stand, so what is none is a malformed one."""
        # One level of lists, no recursion: the depth of what a policy writes is nothing to rely on.
        items = value if isinstance(value, list) else [value]
        calls: list[Call] = []
        for item in items:
            inner = item.get("tool_calls") if isinstance(item, dict) else None
            for call in inner if isinstance(inner, list) else [item]:
                found = self._read_one(call, certain=certain)
                calls.extend([] if found is None else [found])
        return calls

    def _read_one(self, value: Any, *, certain: bool) -> Call | None:
        call = value.get("function", value) if isinstance(value, dict) else None
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(name, str):
            return MalformedCall("A tool call must have a name.") if certain else None
        given = next((key for key in ("arguments", "parameters") if key in call), None)
        if given is None and not certain and (name not in self._tools or len(call) > 1):
            return None  # an answer that happens to be JSON: {"name": "Ada", "born": 1815}
        arguments = {} if given is None else _arguments(call[given])
        if arguments is None:
            return MalformedCall(f"The arguments of {quote(name)} must be a JSON object.")
        return ToolCall(name, arguments)


def _parses_with_tools(tokenizer: Any) -> bool:
    parse = getattr(tokenizer, "parse_response", None)
    return parse is not None and "tools" in inspect.signature(parse).parameters


def _starts_with_json(text: str) -> bool:
    try:
        _JSON.raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _without_thoughts(text: str) -> str:
    """The answer after its reasoning. The template may have opened the reasoning, so that only its end is here."""
    thoughts, closed, answer = text.partition("</think>")
    if text.lstrip().startswith("<think>"):
        return answer
    # Otherwise the tag may be part of an argument.
    starts_with_call = OPEN in thoughts or thoughts.lstrip().startswith(("{", "[", "`"))
    return answer if closed and not starts_with_call else text


def _arguments(value: Any) -> dict[str, Any] | None:
    """The arguments as a `dict`: none are an empty one, and some models write the object as a string."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if value is None:
        return {}
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else None
