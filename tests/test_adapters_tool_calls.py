"""Tool calls out of text: what is read, what is an error, and that nothing raises."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trl_mise.envs.adapter_tool_calls import (
    MAX_CALLS,
    MalformedCall,
    ToolCall,
    ToolCallParser,
    _parses_with_tools,
    format_tool_call,
)
from trl_mise.envs.adapter_tool_schemas import tool_schema

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.builds(ToolCall, st.text(min_size=1, max_size=8), st.dictionaries(st.text(), JSON, max_size=3))
GARBAGE = st.lists(
    st.sampled_from(
        ["<tool_call>", "</tool_call>", "<think>", "</think>", "{", "}", "[", "]", '"name"', ":", '"', ",", "```json",
         '{"name": "a", "arguments": {}}', '{"name": 3}', '"arguments"', "\\", "\n", "1e999", "NaN", "\x00", "🤣"]
    )
    | st.text(max_size=5),
    max_size=30,
).map("".join)  # fmt: skip


def parse(text: str, *tools: str) -> list[Any]:
    return ToolCallParser(tools).parse(text)


GUESS = ToolCall("guess", {"number": 3})
BODY = '{"name": "guess", "arguments": {"number": 3}}'


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{BODY}</tool_call>",
        f"<tool_call>\n{BODY}\n</tool_call>",
        f"I try three.\n<tool_call>{BODY}</tool_call> Well.",
        f"<tool_call>{BODY}",  # cut off, or the closing tag was the stop token
        f"<tool_call>[{BODY}]</tool_call>",
        BODY,
        f"  {BODY}  ",
        f"I try three. {BODY}",  # special tokens around it were dropped
        f"```json\n{BODY}\n```",
        f"```\n[{BODY}]\n```",
        '{"name": "guess", "parameters": {"number": 3}}',  # Llama
        '{"type": "function", "function": ' + BODY + "}",
        '{"tool_calls": [{"type": "function", "function": ' + BODY + "}]}",
        '{"function": {"name": "guess", "arguments": "{\\"number\\": 3}"}}',  # OpenAI
        f"<think>Not {{'a'}} <tool_call>{{}}</tool_call></think>\n<tool_call>{BODY}</tool_call>",
        f"so it is three\n</think>\n\n<tool_call>{BODY}</tool_call>",  # the template opened <think>
        f"[maybe] {BODY}",
    ],
)
def test_one_call_in_many_spellings(text: str) -> None:
    assert parse(text) == [GUESS]


def test_several_calls_keep_their_order() -> None:
    one, two = format_tool_call("a", {"x": 1}), format_tool_call("b", {})
    expected = [ToolCall("a", {"x": 1}), ToolCall("b", {})]
    assert parse(one + two) == expected
    assert parse(f"first {one}\nthen {two}") == expected
    assert parse('[{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": null}]') == expected
    assert parse('{"name": "a", "arguments": {"x": 1}}\n{"name": "b", "arguments": {}}') == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "The answer is 3.", "42", "[1, 2]", '{"answer": 3}', '{"name": "Ada", "born": 1815}', "look {around}",
     f"<think>{BODY}</think> I am done.", f"<think>{BODY}", '"name"', '{"name": "guess"}']
)  # fmt: skip
def test_answers_that_call_nothing(text: str) -> None:
    assert parse(text) == []


def test_a_name_alone_is_a_call_where_such_a_tool_exists() -> None:
    assert parse('{"name": "look"}', "look") == [ToolCall("look", {})]
    assert parse('<tool_call>{"name": "look"}</tool_call>') == [ToolCall("look", {})]
    assert parse('{"name": "look", "far": true}', "look") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<tool_call>guess 3</tool_call>", "one JSON object"),
        (f"<tool_call>{BODY}}}</tool_call>", "one JSON object"),  # a brace too many
        ('<tool_call>{"name": "guess", "arguments": {"number": 3}</tool_call>', "one JSON object"),  # one too few
        ("<tool_call>", "one JSON object"),
        ('<tool_call>{"arguments": {}}</tool_call>', "a name"),
        ('<tool_call>{"name": 7, "arguments": {}}</tool_call>', "a name"),
        ("<tool_call>[3]</tool_call>", "a name"),
        ('<tool_call>{"name": "guess", "arguments": [3]}</tool_call>', "arguments of 'guess'"),
        ('{"name": "guess", "arguments": "3"}', "arguments of 'guess'"),
        ('{"name": "guess", "arguments": {"number": 3}', "not valid JSON"),
        ('```json\n[{"name": "guess"\n```', "not valid JSON"),
    ],
)
def test_malformed_calls_say_what_is_wrong(text: str, problem: str) -> None:
    (call,) = parse(text)
    assert isinstance(call, MalformedCall) and problem in call.problem


def test_a_malformed_call_does_not_hide_the_others() -> None:
    calls = parse(f"<tool_call>what</tool_call><tool_call>{BODY}</tool_call><tool_call>{{<tool_call>{BODY}")
    assert [type(call) for call in calls] == [MalformedCall, ToolCall, MalformedCall, ToolCall]


def test_the_number_of_calls_is_bounded() -> None:
    assert len(parse(format_tool_call("a", {}) * MAX_CALLS)) == MAX_CALLS
    calls = parse(format_tool_call("a", {}) * (MAX_CALLS + 5))
    assert len(calls) == MAX_CALLS + 1 and isinstance(calls[-1], MalformedCall)
    assert len(parse("<tool_call>" * 1000)) == MAX_CALLS + 1


@settings(max_examples=200, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=3), st.sampled_from(["", "\n", " and "]))
@example([ToolCall("say", {"text": "</tool_call><tool_call></think><think>"})], "")
def test_round_trip_with_tags(calls: list[ToolCall], between: str) -> None:
    assert parse(between.join(format_tool_call(call.name, call.arguments) for call in calls)) == calls


@settings(max_examples=200, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=3))
def test_round_trip_as_bare_json(calls: list[ToolCall]) -> None:
    text = json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls])
    # A tag inside an argument is the one thing that a bare list cannot carry.
    assert parse(text) == calls or "<tool_call>" in text


@settings(max_examples=500, deadline=None)
@given(GARBAGE | st.text())
@example("[" * 10_000)
@example('{"a":' * 2_000)
@example("<tool_call>" + "[" * 10_000)
@example('{"name": "a", "arguments": ' + '{"a":' * 900 + "1" + "}" * 901)
@example("1" * 10_000 + '{"name": "a", "arguments": {"x": ' + "1" * 10_000 + "}}")
def test_garbage_never_raises(text: str) -> None:
    for parser in (ToolCallParser(("a",)), ToolCallParser(("a",), FakeTokenizer(error=ValueError("no")))):
        calls = parser.parse(text)
        assert len(calls) <= MAX_CALLS + 1
        for call in calls:
            assert isinstance(call, MalformedCall) or isinstance(call.arguments, dict)


# The tokenizer's own parser


class FakeTokenizer:
    """Has a format of its own, `!name(number)`, closed by the end of the turn."""

    eos_token = "<end>"

    def __init__(self, *, legacy: bool = False, error: Exception | None = None) -> None:
        self.error, self.prefixes = error, []
        setattr(self, "response_schema" if legacy else "response_template", {"fields": {}})

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        return "<user>x<assistant><think>"

    def parse_response(self, text: str, **kwargs: Any) -> dict[str, Any]:
        self.prefixes.append(kwargs.get("prefix"))
        if self.error is not None:
            raise self.error
        if not text.endswith(self.eos_token) or not text.startswith("!"):
            return {"role": "assistant", "content": text}
        name, _, number = text.removesuffix(self.eos_token)[1:].rstrip(")").partition("(")
        return {"tool_calls": [{"type": "function", "function": {"name": name, "arguments": {"number": int(number)}}}]}


def test_the_tokenizers_own_format_comes_first() -> None:
    """Its closing token was the end of the turn, which the rollout has cut off."""
    tokenizer = FakeTokenizer()
    assert ToolCallParser((), tokenizer).parse("!guess(3)") == [GUESS]
    assert set(tokenizer.prefixes) == {"<user>x<assistant><think>"}
    legacy = FakeTokenizer(legacy=True)
    assert ToolCallParser((), legacy).parse("!guess(3)") == [GUESS]
    assert set(legacy.prefixes) == {None}


@pytest.mark.parametrize("error", [None, ValueError("no"), KeyError("name"), RecursionError()])
def test_what_the_tokenizer_does_not_find_is_looked_for_as_json(error: Exception | None) -> None:
    parser = ToolCallParser((), FakeTokenizer(error=error))
    assert parser.parse(BODY) == parser.parse(f"<tool_call>{BODY}</tool_call>") == [GUESS]
    assert parser.parse("three") == []


def test_a_tokenizer_without_a_format_is_not_asked() -> None:
    tokenizer = FakeTokenizer(error=AssertionError())
    del tokenizer.response_template
    assert ToolCallParser((), tokenizer).parse(BODY) == [GUESS]
    assert tokenizer.prefixes == []


def guess(number: int) -> str:
    """Guesses.

    Args:
        number: to guess.
    """
    return str(number)


def post(code: str) -> str:
    """Posts.

    Args:
        code: where to.
    """
    return code


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("qwen3_template", f"Hm.\n<tool_call>\n{BODY}\n</tool_call>"),
        ("qwen3_template", BODY),  # its tags dropped
        ("llama3_template", '{"name": "guess", "parameters": {"number": 3}}'),
        (
            "qwen3_5_template",
            "<tool_call>\n<function=guess>\n<parameter=number>\n3\n</parameter>\n</function>\n</tool_call>",
        ),
        ("glm4moe_template", "<tool_call>guess\n<arg_key>number</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"),
    ],
)
def test_formats_of_well_known_models(template: str, text: str) -> None:
    """TRL's response templates, and answers of these models without their special tokens."""
    known = pytest.importorskip("trl.chat_template_utils", reason="TRL is not installed")
    if not hasattr(known, template):
        pytest.skip(f"this TRL has no {template}")
    from trl_mise.tiny import build_tokenizer

    tokenizer = build_tokenizer(["x"])
    if not hasattr(tokenizer, "get_response_parser"):
        pytest.skip("transformers before 5.13 has no response templates")
    tokenizer.response_template = getattr(known, template)
    assert ToolCallParser((), tokenizer, [tool_schema(guess)]).parse(text) == [GUESS]


def test_the_schema_says_whether_digits_are_a_number() -> None:
    """A format of plain text writes a postcode and a count alike."""
    known = pytest.importorskip("trl.chat_template_utils", reason="TRL is not installed")
    from trl_mise.tiny import build_tokenizer

    tokenizer = build_tokenizer(["x"])
    if not hasattr(known, "_XML_INLINE_VALUE_PARSER") or not _parses_with_tools(tokenizer):
        pytest.skip("this TRL, or this transformers, guesses the type from the text")
    tokenizer.response_template = known.qwen3_5_template
    text = "<tool_call>\n<function=post>\n<parameter=code>\n75001\n</parameter>\n</function>\n</tool_call>"
    assert ToolCallParser((), tokenizer, [tool_schema(post)]).parse(text) == [ToolCall("post", {"code": "75001"})]


@pytest.mark.parametrize("special", [True, False])
def test_tags_that_are_tokens_survive_decoding_or_are_not_needed(special: bool) -> None:
    """The rollout decodes without special tokens, so the tags of some models never arrive."""
    from tokenizers import AddedToken

    from trl_mise.chat import PlainFormat
    from trl_mise.tiny import build_tokenizer

    words = ['{"name"', '"guess"', '"arguments"', '{"number"', "3}}", "try"]
    tokenizer = build_tokenizer(words)
    tokenizer.add_tokens([AddedToken(tag, special=special) for tag in ("<tool_call>", "</tool_call>")])
    compact = BODY.replace(" ", "")
    ids = tokenizer(f"try <tool_call>{compact}</tool_call><tool_call>{compact}</tool_call>")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    text = PlainFormat(tokenizer).decode(ids)
    assert ("<tool_call>" in text) is not special
    assert parse(text) == [GUESS, GUESS]


def test_deep_json_is_bounded_by_the_parser_not_by_us() -> None:
    """A list in a list in a list is no call, however deep; nothing here recurses."""
    depth = min(900, sys.getrecursionlimit() // 2)
    assert parse("[" * depth + BODY + "]" * depth) == []


def test_nothing_of_it_needs_torch_or_transformers() -> None:
    code = """
import sys
from trl_mise.envs.adapters import as_trl_environment, from_trl_environment
from trl_mise.envs.kitchen import KitchenEnv

env = from_trl_environment(as_trl_environment(KitchenEnv))
env.reset(seed=1)
env.step('{"name": "step", "arguments": {"action": "x"}}')
print(sorted({"torch", "transformers", "trl", "gymnasium", "openenv"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
