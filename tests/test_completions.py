"""GRPOTrainer's completions as trajectories: steps from the tool mask, texts, and where a question may follow."""

from typing import Any

import numpy as np
import pytest
import torch
from fakes import DIALECTS, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from trainer_fakes import make_tokenizer

from trl_mise.chat import ChatFormat
from trl_mise.completions import completion_episodes
from trl_mise.single_turn import StepCutter
from trl_mise.types import StopReason


def padded(rows: list[list[int]], pad: int, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids, masks = [], []
    for row in rows:
        rest = width - len(row)
        ids.append([pad] * rest + row if left else row + [pad] * rest)
        masks.append([0] * rest + [1] * len(row) if left else [1] * len(row) + [0] * rest)
    return torch.tensor(ids), torch.tensor(masks)


def make_batch(
    prompts: list[list[int]], completions: list[list[int]], tools: list[list[int]] | None, pad: int
) -> dict[str, torch.Tensor]:
    prompt_ids, prompt_mask = padded(prompts, pad, left=True)
    completion_ids, completion_mask = padded(completions, pad)
    batch = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
    }
    if tools is not None:
        batch["tool_mask"] = padded(tools, 1)[0]  # TRL pads it with 1
    return batch


def episodes_of(tokenizer: Any, batch: dict[str, torch.Tensor], returns: list[float], delimiter: str | None = None):
    return completion_episodes(
        batch,
        returns,
        ChatFormat(tokenizer),
        StepCutter(tokenizer, delimiter),
        tasks=[{"row": row} for row in range(len(returns))],
    )


def conversation(name: str) -> tuple[Any, list[int], list[list[int]], list[bool]]:
    """A tokenizer, a prompt, and what follows it: two actions with a tool's answer after each."""
    tokenizer = byte_tokenizer(name)
    chat = ChatFormat(tokenizer)
    end = [tokenizer.convert_tokens_to_ids(DIALECTS[name].turn_end)] if DIALECTS[name].turn_end else []
    parts = [
        [*chat.encode_text("go left"), *end],
        [*chat.result("a wall", closed=bool(end)), *chat.reply_prompt()],
        [*chat.encode_text("go right"), *end],
        [*chat.result("the exit", closed=bool(end)), *chat.reply_prompt()],
    ]
    return tokenizer, chat.opening("find the exit"), parts, [True, False, True, False]


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_steps_texts_and_spans(name: str) -> None:
    tokenizer, prompt, parts, sampled = conversation(name)
    completion = [token for part in parts for token in part]
    tools = [int(flag) for part, flag in zip(parts, sampled, strict=True) for _ in part]
    short = parts[0]
    batch = make_batch([prompt, prompt[1:]], [completion, short], [tools, [1] * len(short)], tokenizer.pad_token_id)
    found = episodes_of(tokenizer, batch, [1.0, 0.25])
    first, second = found.trajectories
    assert first.token_ids == (*prompt, *completion) and second.token_ids == (*prompt[1:], *short)
    assert [turn.action for turn in first.turns] == ["go left", "go right"]
    assert [turn.reward for turn in first.turns] == [0.0, 1.0] and [turn.reward for turn in second.turns] == [0.25]
    assert "a wall" in first.turns[1].observation and "the exit" in first.final_observation
    assert "find the exit" in first.instruction and first.turns[0].observation == first.instruction
    assert (first.won, second.won) == (True, False)
    assert first.task == {"row": 0} and second.task == {"row": 1}
    assert all(turn.closed for turn in (*first.turns, *second.turns))
    assert first.stop_reason is StopReason.TERMINATED
    assert list(first.action_mask) == [False] * len(prompt) + [bool(flag) for flag in tools]
    # Up to the message that holds the result, without what closes it and opens the next reply.
    chat = ChatFormat(tokenizer)
    for turn in first.turns:
        rest = list(first.token_ids[turn.result_end :])
        assert rest[: len(chat.reply_prompt())] == chat.reply_prompt()
    steps = found.step_of_token[0].tolist()
    assert steps == [0] * len(parts[0]) + [-1] * len(parts[1]) + [1] * len(parts[2]) + [-1] * len(parts[3])
    assert found.step_of_token[1].tolist() == [0] * len(short) + [-1] * (len(completion) - len(short))


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_a_question_after_a_result_is_what_the_template_would_write(name: str) -> None:
    """The tool's message goes on with the question, and the assistant is asked to answer: no header is doubled."""
    tokenizer, prompt, parts, sampled = conversation(name)
    completion = [token for part in parts for token in part]
    tools = [int(flag) for part, flag in zip(parts, sampled, strict=True) for _ in part]
    found = episodes_of(tokenizer, make_batch([prompt], [completion], [tools], tokenizer.pad_token_id), [1.0])
    chat = ChatFormat(tokenizer)
    (trajectory,) = found.trajectories
    asked = [
        *trajectory.token_ids[: trajectory.turns[-1].result_end],
        *chat.question("good or bad?", after="observation"),
    ]
    messages = [
        {"role": "user", "content": "find the exit"},
        {"role": "assistant", "content": "go left"},
        {"role": "user", "content": "a wall"},
        {"role": "assistant", "content": "go right"},
        {"role": "user", "content": "the exit\n\ngood or bad?"},
    ]
    written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(asked) == written


def test_a_header_of_another_role_is_cut_off_too() -> None:
    """A template may open a reply after a tool in its own way; what ends the tool's message is found all the same."""
    tokenizer = byte_tokenizer("chatml")
    chat = ChatFormat(tokenizer)
    body = tokenizer("<|im_end|>\n<|im_start|>assistant\n<think>\n", add_special_tokens=False)["input_ids"]
    assert chat.closing_length([*chat.encode_text("text <|im_end|> text"), *body]) == len(body)
    assert chat.closing_length(chat.encode_text("an answer that nothing closes")) == 0


def test_what_cannot_be_trained_on_is_left_out() -> None:
    tokenizer = make_tokenizer()
    say = tokenizer("say 1")["input_ids"]
    letters = tokenizer("a b <|end|>")["input_ids"]
    batch = make_batch([say] * 3, [letters] * 3, None, tokenizer.pad_token_id)
    batch["completion_mask"][1] = 0  # cut off, and masked by `mask_truncated_completions`
    found = episodes_of(tokenizer, batch, [1.0, 1.0, float("nan")])  # the third has no reward
    assert found.rows.tolist() == [0] and len(found.trajectories) == 1
    assert found.step_of_token.tolist() == [[0, 0, 0], [-1, -1, -1], [-1, -1, -1]]
    assert found.per_token([np.array([2.0])]).tolist() == [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_without_tools_a_completion_is_cut_at_the_delimiter() -> None:
    tokenizer = make_tokenizer()
    say = tokenizer("say 1")["input_ids"]
    batch = make_batch([say], [tokenizer("a b . c . d <|end|>")["input_ids"]], None, tokenizer.pad_token_id)
    found = episodes_of(tokenizer, batch, [0.5], delimiter=".")
    (trajectory,) = found.trajectories
    assert [turn.action for turn in trajectory.turns] == ["a b .", "c .", "d"]
    assert [turn.closed for turn in trajectory.turns] == [False, False, True]
    assert found.step_of_token.tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    whole = episodes_of(tokenizer, batch, [0.5])
    assert whole.trajectories[0].num_steps == 1  # no line breaks in it


def test_an_answer_that_ran_out_of_tokens_is_truncated() -> None:
    tokenizer = make_tokenizer()
    say = tokenizer("say 1")["input_ids"]
    batch = make_batch([say], [tokenizer("a b")["input_ids"]], None, tokenizer.pad_token_id)
    (trajectory,) = episodes_of(tokenizer, batch, [0.0]).trajectories
    assert trajectory.stop_reason is StopReason.TOKEN_BUDGET and not trajectory.turns[-1].closed


TOKENIZER = make_tokenizer()


@given(
    st.lists(
        st.tuples(
            st.lists(st.booleans(), min_size=1, max_size=12),
            st.integers(1, 4),
            st.floats(0, 1, allow_nan=False),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_mask(rows: list[tuple[list[bool], int, float]]) -> None:
    """Every sampled token belongs to one step, no other does, steps are in order, and the return is on the last."""
    word = TOKENIZER("a")["input_ids"][0]
    batch = make_batch(
        [[word] * length for _, length, _ in rows],
        [[word] * len(flags) for flags, _, _ in rows],
        [[int(flag) for flag in flags] for flags, _, _ in rows],
        TOKENIZER.pad_token_id,
    )
    found = episodes_of(TOKENIZER, batch, [value for _, _, value in rows])
    trained = (batch["completion_mask"] * batch["tool_mask"]).bool()
    assert torch.equal(found.step_of_token >= 0, trained)
    kept = [row for row, (flags, _, _) in enumerate(rows) if any(flags)]
    assert found.rows.tolist() == kept
    for row, trajectory in zip(kept, found.trajectories, strict=True):
        flags, length, value = rows[row]
        assert trajectory.action_mask == tuple([False] * length + flags)
        steps = found.step_of_token[row][trained[row]].tolist()
        assert steps == sorted(steps) and set(steps) == set(range(trajectory.num_steps))
        assert [turn.reward for turn in trajectory.turns] == [0.0] * (trajectory.num_steps - 1) + [value]
        for turn, later in zip(trajectory.turns, trajectory.turns[1:], strict=False):
            assert turn.action_span[1] <= turn.result_end <= later.action_span[0]
    spread = found.per_token([np.arange(1.0, t.num_steps + 1) for t in found.trajectories])
    assert torch.equal(spread, (found.step_of_token + 1).float())
