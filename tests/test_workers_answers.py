"""What crosses the border between trainer and worker: answers are checked, and bytes are messages or nothing."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_mise.envs.answers import MAX_TEXT_CHARS, checked_reset, checked_step
from trl_mise.envs.base import EnvironmentFailure
from trl_mise.envs.worker_wire import MAX_MESSAGE_BYTES, Inbox, WireError, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class TestAnswers:
    def test_what_is_right_becomes_plain(self) -> None:
        np = pytest.importorskip("numpy")
        answer = checked_step(("text", np.float32(0.5), np.bool_(True), False, {"won": True}))
        assert (answer.reward, answer.terminated) == (0.5, True)
        assert type(answer.reward) is float and type(answer.terminated) is bool
        assert checked_step(("text", True, False, False, {})).reward == 1.0
        assert checked_reset(("text", {})).observation == "text"

    def test_as_long_as_it_may_be(self) -> None:
        assert len(checked_reset(("x" * MAX_TEXT_CHARS, {})).observation) == MAX_TEXT_CHARS
        with pytest.raises(EnvironmentFailure, match="1,000,001 characters, more than 1,000,000"):
            checked_reset(("x" * (MAX_TEXT_CHARS + 1), {}))

    def test_instructions_are_text_too(self) -> None:
        with pytest.raises(EnvironmentFailure, match=r"info\[\"instruction\"\] is no valid text"):
            checked_reset(("text", {"instruction": "\udcff"}))

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_nonsense_is_refused_by_name(self, nonsense: Any) -> None:
        for check in (checked_reset, checked_step):
            if check is checked_reset and isinstance(nonsense, tuple):
                continue
            with pytest.raises(EnvironmentFailure, match=r"must return \("):
                check(nonsense)

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ((b"text", 0.0, False, False, {}), "the observation is b'text' .bytes.; it must be a str"),
            (("a\ud800b", 0.0, False, False, {}), "no valid text .*at character 1"),
            (("text", float("inf"), False, False, {}), "the reward is inf .float.; it must be a finite float"),
            (("text", "1", False, False, {}), "the reward is '1' .str."),
            (("text", 0.0, 1, False, {}), "terminated is 1 .int.; it must be a bool"),
            (("text", 0.0, False, None, {}), "truncated is None .NoneType."),
            (("text", 0.0, False, False, None), "info is None .NoneType.; it must be a dict"),
            (("text", 0.0, False, {}), r"step must return \(observation, reward, .*got"),
        ],
    )
    def test_what_is_wrong_is_named(self, answer: Any, message: str) -> None:
        with pytest.raises(EnvironmentFailure, match=message):
            checked_step(answer)


class TestWire:
    @given(st.lists(JSON), st.lists(st.integers(1, 40)))
    def test_messages_arrive_however_they_are_cut(self, messages: list[Any], cuts: list[int]) -> None:
        data = b"".join(map(encode, messages))
        inbox, arrived = Inbox(), []
        for size in cuts:
            arrived += inbox.feed(data[:size])
            data = data[size:]
        arrived += inbox.feed(data)
        assert arrived == messages and not inbox.is_waiting

    @given(st.binary())
    def test_bytes_are_messages_or_refused(self, data: bytes) -> None:
        """Nothing but a `WireError`, and nothing that UTF-8 cannot hold."""
        for framed in (data, len(data).to_bytes(8, "big") + data):
            try:
                messages = Inbox().feed(framed)
            except WireError:
                continue
            json.dumps(messages, ensure_ascii=False).encode("utf-8")

    @pytest.mark.parametrize(
        "payload",
        [
            b"{",
            b"\xff\xfe",
            b'"\xed\xa0\x80"',  # half of a character as bytes
            b'"\\ud800"',  # and as an escape
            b'{"\\uDC00": 1}',
            b"[" * 1_000_000,
            b"9" * 10_000,
            b"",
        ],
    )
    def test_what_is_no_message(self, payload: bytes) -> None:
        if payload.isdigit() and not hasattr(sys, "get_int_max_str_digits"):
            pytest.skip("this Python reads integers of any length")
        with pytest.raises(WireError, match="the message is not JSON"):
            Inbox().feed(len(payload).to_bytes(8, "big") + payload)

    def test_whole_characters_as_escapes(self) -> None:
        payload = json.dumps(grin := "\N{GRINNING FACE}").encode("ascii")
        assert Inbox().feed(len(payload).to_bytes(8, "big") + payload) == [grin]

    @pytest.mark.parametrize("start", [(MAX_MESSAGE_BYTES + 1).to_bytes(8, "big"), b"\x01", b"h", b"\x00\x00\x01"])
    def test_too_long_is_known_at_once(self, start: bytes) -> None:
        with pytest.raises(WireError, match="bytes was announced, more than 16,777,216"):
            Inbox().feed(start)
