"""Episodes without an environment: steps of a response, and the reward model's score as their sparse return."""

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, tiny_reward_model
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import DataCollatorWithPadding

from trl_mise.single_turn import StepCutter, collect_responses, reward_model_scores, score_responses
from trl_mise.types import StopReason, Trajectory, Turn

TOKENIZER = byte_tokenizer(None)
EOS = TOKENIZER.eos_token_id
CPU = torch.device("cpu")


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def steps(text: str, delimiter: str | None = None) -> list[str]:
    """The text of each step."""
    tokens = ids(text)
    return [TOKENIZER.decode(tokens[start:end]) for start, end in StepCutter(TOKENIZER, delimiter).cut(tokens)]


class TestStepCutter:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("one line", ["one line"]),
            ("one\ntwo", ["one\n", "two"]),
            ("one\n\n\ntwo\n", ["one\n\n\n", "two\n"]),
            ("\n\none\ntwo", ["\n\none\n", "two"]),  # no step is blank
            ("one\n \n\t\ntwo", ["one\n", " \n\t\ntwo"]),
            ("one\ntwo<|eos|>", ["one\n", "two<|eos|>"]),
            ("one\n<|eos|>", ["one\n<|eos|>"]),  # an eos alone is no step
            ("\n \n", ["\n \n"]),
            ("<|eos|>", ["<|eos|>"]),
        ],
    )
    def test_lines(self, text: str, expected: list[str]) -> None:
        assert steps(text) == expected

    def test_delimiter_is_literal(self) -> None:
        assert steps("a. b\n. c.d", ". ") == ["a. ", "b\n. ", "c.d"]

    def test_delimiter_of_several_bytes(self) -> None:
        """A byte of it is not yet the delimiter, though it decodes to as many characters."""
        assert steps("好。学。", "。") == ["好。", "学。"]

    def test_a_token_that_runs_over_the_delimiter_belongs_to_the_step_before(self) -> None:
        """`g` + `o` is one token: a step can only end between tokens."""
        assert steps("agoa", "g") == ["ago", "a"]

    def test_empty_response_and_empty_delimiter(self) -> None:
        assert StepCutter(TOKENIZER).cut([]) == [(0, 0)]
        with pytest.raises(ValueError, match="step_delimiter must not be empty; use None for newlines"):
            StepCutter(TOKENIZER, "")

    pieces = st.sampled_from(["\n", "\n\n", " ", "go", "g", "。", "é", "<|eos|>"]) | st.text(max_size=3)

    @given(text=st.lists(pieces, max_size=12).map("".join), delimiter=st.sampled_from([None, "\n\n", "。", "go", "g"]))
    def test_spans_partition_the_response_at_delimiters(self, text: str, delimiter: str | None) -> None:
        tokens = ids(text)
        spans = StepCutter(TOKENIZER, delimiter).cut(tokens)
        assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
        assert spans[-1][1] == len(tokens)
        pattern = r"\n+" if delimiter is None else re.escape(delimiter)
        whole = TOKENIZER.decode(tokens)
        upto = [whole[: match.end()] for match in re.finditer(pattern, whole)]
        for start, end in spans[:-1]:
            assert start < end
            shown, shown_before = TOKENIZER.decode(tokens[:end]), TOKENIZER.decode(tokens[: end - 1])
            completed = [shown.startswith(t) and not shown_before.startswith(t) for t in upto]
            assert any(completed), "the last token of a step is the one that completes a delimiter"
        for start, end in spans if len(spans) > 1 else []:
            assert TOKENIZER.decode(tokens[start:end], skip_special_tokens=True).strip(), "no step is blank"

    @given(text=st.text("ab \n.", max_size=20), delimiter=st.sampled_from([None, ".", "\n\n"]))
    def test_every_piece_with_words_in_it_is_a_step(self, text: str, delimiter: str | None) -> None:
        """Where every character is a token, the number of steps is known without the cutter."""
        found = re.split(r"\n+" if delimiter is None else re.escape(delimiter), text)
        if delimiter == ".":  # its own text is not blank: a full stop alone is a step, except at the very end
            expected = len(found[:-1]) + bool(found[-1].strip())
        else:
            expected = sum(bool(piece.strip()) for piece in found)
        assert len(steps(text, delimiter)) == max(1, expected)

    @given(tokens=st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=20))
    def test_any_sampled_ids(self, tokens: list[int]) -> None:
        """A policy samples bytes that are no characters, too."""
        spans = StepCutter(TOKENIZER).cut(tokens)
        assert sum((tokens[start:end] for start, end in spans), []) == tokens


class TestCollectResponses:
    def collect(self, texts: Sequence[str], responses: Sequence[str], **tokenizer_options: Any) -> list[Trajectory]:
        tokenizer = byte_tokenizer(None, **tokenizer_options)
        tokenizer.padding_side = "left"
        self.contexts: list[list[int]] = []

        def generate(contexts: Sequence[Sequence[int]]) -> list[list[int]]:
            self.contexts += [list(context) for context in contexts]
            return [ids(response) for response in responses]

        rows = [{"input_ids": ids(text)} for text in texts]
        return collect_responses(rows, DataCollatorWithPadding(tokenizer), generate, StepCutter(tokenizer))

    def test_steps_become_turns(self) -> None:
        one, two = self.collect(["ask", "a longer question"], ["first\nsecond<|eos|>", "only"])
        assert self.contexts == [ids("ask"), ids("a longer question")]
        assert one.token_ids == tuple(ids("askfirst\nsecond<|eos|>"))
        assert [turn.action for turn in one.turns] == ["first", "second"]
        assert [turn.action_span for turn in one.turns] == [(3, 9), (9, 16)]
        assert [turn.result_in_tokens for turn in one.turns] == [False, False]
        assert (one.instruction, two.instruction) == ("ask", "a longer question")
        assert one.stop_reason is StopReason.TERMINATED and one.episode_return == 0.0
        assert one.action_mask == (False,) * 3 + (True,) * 13

    @pytest.mark.parametrize("pad_is_eos", [False, True])
    def test_eos_inside_a_prompt_is_no_padding(self, pad_is_eos: bool) -> None:
        texts = ["<|eos|>b<|eos|>", "a longer question"]
        one, _ = self.collect(texts, ["yes", "no"], pad_is_eos=pad_is_eos)
        assert self.contexts[0] == ids("<|eos|>b<|eos|>") and one.turns[0].action_span == (3, 6)

    def test_a_collator_without_attention_mask_pads_nothing(self) -> None:
        def collator(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

        (one,) = collect_responses(
            [{"input_ids": [5, EOS]}], collator, lambda contexts: [ids("x")], StepCutter(TOKENIZER)
        )
        assert one.token_ids == (5, EOS, *ids("x"))


ROWS = [[5, 6, 7, 8, 9], [5], [9, 1, 1], [4, 3, 2, 6], [1, 1]]


class TestRewardModel:
    @pytest.mark.parametrize("pad_token_id", [0, 1], ids=["own pad", "pad is eos"])
    @pytest.mark.parametrize("batch_size", [2, 16])
    def test_scores_are_those_of_the_rows_alone(self, batch_size: int, pad_token_id: int) -> None:
        """Read at the last token of each row, found by its length: ids that also pad do not move it."""
        model = tiny_reward_model(12, pad_token_id=pad_token_id)
        scores = reward_model_scores(model, ROWS, CPU, batch_size)
        with torch.no_grad():
            alone = [float(model.score(model.model(torch.tensor([row]))[0][0, -1])) for row in ROWS]
        assert scores == pytest.approx(alone, abs=1e-5)
        assert len(set(scores)) == len(ROWS)

    def test_agrees_with_the_models_own_forward(self) -> None:
        model = tiny_reward_model(12, pad_token_id=0)
        with torch.no_grad():
            expected = [float(model(torch.tensor([row])).logits) for row in ROWS]
        assert reward_model_scores(model, ROWS, CPU) == pytest.approx(expected, abs=1e-5)


class FixedScores(nn.Module):
    """A reward model whose score is a table entry of the last token."""

    base_model_prefix = "model"

    def __init__(self, table: dict[int, float]) -> None:
        super().__init__()
        self.table = table
        self.model = lambda input_ids, **kwargs: (input_ids[..., None].float(),)

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[self.table[int(token)]] for token in hidden[:, 0]])


def response(*tokens: int, prompt: tuple[int, ...] = (EOS, 5)) -> Trajectory:
    """A response of two steps: its first token, and the rest."""
    spans = [(len(prompt), len(prompt) + 1), (len(prompt) + 1, len(prompt) + len(tokens))]
    turns = tuple(Turn("", "", 0.0, span, span[1], closed=False) for span in spans)
    return Trajectory((*prompt, *tokens), turns, StopReason.TERMINATED)


class TestScoreResponses:
    MODEL = FixedScores({7: 1.0, EOS: 3.0, 8: float("nan")})

    def score(self, *trajectories: Trajectory, penalty: float | None = None) -> list[Trajectory]:
        return score_responses(trajectories, self.MODEL, CPU, eos_token_id=EOS, missing_eos_penalty=penalty)

    def test_score_is_the_reward_of_the_last_step(self) -> None:
        one, two = self.score(response(6, 7), response(6, EOS))
        assert [turn.reward for turn in one.turns] == [0.0, 1.0] and two.episode_return == 3.0
        assert one.token_ids == response(6, 7).token_ids

    def test_won_is_above_the_mean(self) -> None:
        assert [t.success for t in self.score(response(6, 7), response(6, EOS), response(5, 7))] == [
            False,
            True,
            False,
        ]
        assert [t.won for t in self.score(response(6, 7), response(5, 7))] == [False, False], "equal: nobody won"

    def test_missing_eos_costs(self) -> None:
        """Also where the *prompt* holds an eos: the response has to end itself."""
        one, two = self.score(response(6, 7), response(6, EOS), penalty=0.5)
        assert (one.episode_return, two.episode_return) == (0.5, 3.0)

    def test_non_finite_score_names_the_response(self) -> None:
        with pytest.raises(ValueError, match="response 1: reward_model returned the non-finite score nan"):
            self.score(response(6, 7), response(6, 8))

    def test_reward_model_is_required(self) -> None:
        with pytest.raises(ValueError, match="reward_model is required without an environment"):
            score_responses([response(6, 7)], None, CPU, eos_token_id=EOS)


def test_cutter_needs_only_decode() -> None:
    """A tokenizer of another kind: one character per id."""
    letters = SimpleNamespace(decode=lambda tokens, **kwargs: "".join(map(chr, tokens)))
    assert StepCutter(letters).cut([97, 10, 98]) == [(0, 2), (2, 3)]
