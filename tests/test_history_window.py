"""Long episodes: the policy sees a window, the update has a row per turn, and nothing else may change."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import CountingEnv, ScriptedEnv, byte_tokenizer, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from trainer_fakes import LetterEnv, largest_difference, make_policy, make_tokenizer, make_trainer, tasks, weights

from trl_mise.advantages import action_layout
from trl_mise.chat import ChatFormat
from trl_mise.compression import compress
from trl_mise.envs.base import TextEnv
from trl_mise.micro_batches import last_state_batches, make_micro_batches
from trl_mise.rollout import RolloutLimits, collect_rollouts
from trl_mise.serialization import trajectory_from_dict, trajectory_to_dict
from trl_mise.types import StopReason, Trajectory

CHAT = ChatFormat(word_tokenizer())
BYTES = ChatFormat(byte_tokenizer("chatml"))


class Mouth:
    """Says its lines in order, whatever it reads, and remembers what it read."""

    def __init__(self, lines: Sequence[Sequence[int]]) -> None:
        self.lines, self.contexts = list(lines), []

    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[list[int]]:
        (context,) = contexts
        self.contexts.append(list(context))
        return [list(self.lines[len(self.contexts) - 1])]


def say(text: str, chat: ChatFormat = CHAT, *, closed: bool = True) -> list[int]:
    return [*chat.encode_text(text), *([chat.stop_token_ids[0]] if closed else [])]


def play(
    env: TextEnv,
    lines: Sequence[Sequence[int]],
    history: int | None,
    *,
    max_episode_tokens: int = 1000,
    max_turns: int = 99,
    max_new_tokens: int = 4,
    chat: ChatFormat = CHAT,
) -> tuple[Trajectory, list[list[int]]]:
    """One episode, and the contexts that the policy was given."""
    mouth = Mouth(lines)
    limits = RolloutLimits(max_turns, max_new_tokens, max_episode_tokens, history)
    (trajectory,) = collect_rollouts([{"seed": 0}], [env], mouth, chat, limits)
    return trajectory, mouth.contexts


def words(ids: Sequence[int]) -> str:
    return " ".join(CHAT.tokenizer.convert_ids_to_tokens(list(ids)))


class TestWhatThePolicyReads:
    def test_the_last_turns_and_the_instruction(self) -> None:
        """In words; the window is one turn wide."""
        trajectory, contexts = play(CountingEnv(goal=3), [say("go")] * 3, history=1)
        assert [words(context) for context in contexts] == [
            "<|user|> reach 3 task 0 count 0 <|assistant|>",
            "<|user|> reach 3 task 0 count 0 <|assistant|> go <|end|> <|user|> count 1 <|assistant|>",
            "<|user|> reach 3 count 1 <|assistant|> go <|end|> <|user|> count 2 <|assistant|>",
        ]
        assert [list(trajectory.context(t)) for t in range(3)] == contexts

    def test_only_the_present(self) -> None:
        _, contexts = play(CountingEnv(goal=3), [say("go")] * 3, history=0)
        assert words(contexts[2]) == "<|user|> reach 3 count 2 <|assistant|>"

    def test_without_an_instruction_the_first_observation_says_what_to_do(self) -> None:
        _, contexts = play(ScriptedEnv(["task red", "blue", "count", "done"]), [say("go")] * 3, history=1)
        assert words(contexts[2]) == ("<|user|> task red blue <|assistant|> go <|end|> <|user|> count <|assistant|>")

    def test_an_action_cut_off_keeps_the_end_that_it_was_given(self) -> None:
        lines = [say("go"), say("wait", closed=False), say("go"), say("go")]
        _, contexts = play(CountingEnv(goal=3), lines, history=1)
        assert "wait <|end|> <|user|>" in words(contexts[2])

    def test_a_window_that_covers_the_episode_changes_nothing(self) -> None:
        lines = [say("wait"), say("go", closed=False), say("go"), say("go")]
        whole, contexts = play(CountingEnv(goal=3), lines, history=None)
        wide, same = play(CountingEnv(goal=3), lines, history=99)
        assert contexts == same
        assert trajectory_to_dict(wide) | {"windows": []} == trajectory_to_dict(whole)

    def test_older_turns_leave_before_the_episode_is_truncated(self) -> None:
        _, roomy = play(CountingEnv(goal=6), [say("go")] * 6, history=3)
        trajectory, contexts = play(CountingEnv(goal=6), [say("go")] * 6, history=3, max_episode_tokens=20)
        assert trajectory.stop_reason is StopReason.TERMINATED and trajectory.success
        assert max(len(context) for context in roomy) > 16
        assert max(len(context) for context in contexts) <= 20 - 4

    def test_an_observation_that_does_not_fit_alone_truncates(self) -> None:
        env = ScriptedEnv(["red", "blue", "red " * 30, "blue"])
        trajectory, contexts = play(env, [say("go")] * 3, history=2, max_episode_tokens=20)
        assert trajectory.stop_reason is StopReason.TOKEN_BUDGET and trajectory.num_steps == 2
        assert len(trajectory.windows) == 2, "nothing is read at the last state"
        assert trajectory.turns[-1].result_in_tokens, "the evaluator may still see it, shortened"

    def test_a_truncated_episode_has_a_window_for_its_last_state(self) -> None:
        trajectory, _ = play(CountingEnv(goal=9), [say("go")] * 3, history=1, max_turns=3)
        assert trajectory.stop_reason is StopReason.MAX_TURNS and len(trajectory.windows) == 4
        ended, _ = play(CountingEnv(goal=3), [say("go")] * 3, history=1)
        assert len(ended.windows) == 3

    def test_windows_survive_json(self) -> None:
        trajectory, _ = play(CountingEnv(goal=3), [say("go")] * 3, history=1)
        assert trajectory_from_dict(trajectory_to_dict(trajectory)) == trajectory

    def test_a_negative_window(self) -> None:
        with pytest.raises(ValueError, match="history_window must be at least 0, got -1; None shows all"):
            RolloutLimits(1, 1, 1, -1)


@given(data=st.data())
def test_any_window(data: st.DataObject) -> None:
    """Rows hold exactly the sampled tokens, each once, after what the policy read; no limit is broken."""
    turns = data.draw(st.integers(1, 7))
    texts = [data.draw(st.sampled_from(["red", "blue red", "count 1 2 3", "go go go go"])) for _ in range(turns + 1)]
    terminated = data.draw(st.booleans())
    env = ScriptedEnv(texts, terminated=terminated, truncated=not terminated)
    lines = [
        say(data.draw(st.sampled_from(["go", "go wait", "wait 0 1"])), closed=data.draw(st.booleans()))
        for _ in range(turns)
    ]
    history, budget = data.draw(st.integers(0, 8)), data.draw(st.integers(9, 60))
    trajectory, contexts = play(env, lines, history, max_episode_tokens=budget)
    if trajectory.failed:
        return
    assert [list(trajectory.context(t)) for t in range(trajectory.num_steps)] == contexts
    assert all(len(context) + 4 <= budget for context in contexts)
    layout = action_layout([trajectory])
    batches = make_micro_batches([trajectory], layout, 3, np.random.default_rng(0))
    trained = torch.zeros(layout.mask.shape, dtype=torch.long)
    for batch in batches:
        rows, columns = batch.states
        next_tokens = batch.tokens.input_ids[rows, columns + 1]
        assert torch.equal(next_tokens, layout.token_ids[batch.episodes][batch.mask])
        for b, episode in enumerate(batch.episodes.tolist()):
            trained[episode] += batch.mask[b]
    assert torch.equal(trained.bool(), layout.mask) and trained.max() == 1
    last = [*batches, *last_state_batches([trajectory], layout, 3)]
    assert sum(len(batch.last[0]) for batch in last) == 1


class LongEnv(LetterEnv):
    """Six turns, some with more to read; nothing but the last reward pays."""

    def __init__(self, turns: int = 6) -> None:
        super().__init__(turns)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        return (f"{observation} step {len(self._said) % 6}", *rest)  # type: ignore[return-value]


def trained(tmp_path: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Weights after two updates of a policy in float64, and the log."""
    tokenizer = make_tokenizer()
    trainer = make_trainer(
        tmp_path,
        tokenizer=tokenizer,
        model=make_policy(tokenizer).double(),
        environment_factory=LongEnv,
        max_turns=options.pop("max_turns", 6),
        hindsight_coef=0.5,
        rollout_keep_cache=False,
        **options,
    )
    trainer.train()
    return weights(trainer.actor_critic), trainer.state.log_history


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_turns": 4},  # truncated: V(s_T) has a row of its own
        {"gae_level": "token", "kl_placement": "reward"},
        {"hindsight_placement": "return", "evaluator_view": "prefix"},
        {"evaluator_model": "reference", "posthoc_calibrator": "platt"},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    ],
)
def test_a_window_that_covers_the_episode_trains_the_same(tmp_path: Path, options: Mapping[str, Any]) -> None:
    """A row per turn computes the same losses, calibration included: equal up to the order of sums."""
    whole, log = trained(tmp_path, **options)
    by_turn, same_log = trained(tmp_path, history_window=99, hindsight_context_tokens=250, **options)
    assert largest_difference(whole, by_turn) < 1e-6
    for one, other in zip(log, same_log, strict=True):
        for name in set(one) & set(other):
            if isinstance(one[name], float) and not re.search("runtime|per_second|^time/", name):
                assert one[name] == pytest.approx(other[name], abs=1e-6), name


def test_a_narrow_window_trains_another_policy(tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    whole, _ = trained(tmp_path)
    narrow, _ = trained(tmp_path, history_window=1)
    assert largest_difference(whole, narrow) > 1e-4


@pytest.mark.parametrize("max_turns", [6, 5])
def test_log_probs_and_values_are_those_of_what_was_read(tmp_path: Path, max_turns: int) -> None:
    """Against the model on each context by itself; the last state included, and ratios are 1 before the first step."""
    tokenizer = make_tokenizer()
    trainer = make_trainer(
        tmp_path,
        tokenizer=tokenizer,
        model=make_policy(tokenizer).double(),
        environment_factory=LongEnv,
        history_window=2,
        max_turns=max_turns,
        learning_rate=0.0,
        calibration_target="none",
    )
    torch.nn.init.normal_(trainer.actor_critic.value_model.score[-1].weight)
    trajectories = trainer.collect([dict(row) for row in tasks(4)])
    layout = action_layout(trajectories)
    micro_batches = make_micro_batches(trajectories, layout, 3, np.random.default_rng(0))
    evaluation = trainer.evaluate_tokens(trajectories, layout, micro_batches)

    def by_itself(ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            output = trainer.policy(torch.tensor([list(ids)]), output_hidden_states=True)
            values = trainer.actor_critic.value_model(output.hidden_states[-1][0])
        return output.logits[0].log_softmax(-1), values

    for b, trajectory in enumerate(trajectories):
        for t, turn in enumerate(trajectory.turns):
            action = trajectory.token_ids[slice(*turn.action_span)]
            context = trajectory.context(t)
            log_probs, values = by_itself((*context, *action))
            own = layout.mask[b] & (layout.turn[b] == t)
            at = len(context) - 1 + torch.arange(len(action))
            assert torch.allclose(evaluation.log_probs[b][own], log_probs[at, list(action)], atol=1e-6)
            assert torch.allclose(evaluation.values[b][own].float(), values[at].float(), atol=1e-5)
        if max_turns == 5:
            window = trajectory.windows[5]
            _, values = by_itself((*window.head, *trajectory.token_ids[window.start :]))
            assert evaluation.final_values[b].item() == pytest.approx(values[-1].item(), abs=1e-5)
    trainer.train()
    (deviation,) = {entry["val/ratio_max_deviation"] for entry in trainer.state.log_history if "val/ratio" in entry}
    assert deviation == 0.0


def test_an_episode_that_no_context_could_hold(tmp_path: Path) -> None:
    """Thirty turns of a model with 64 positions: all of them are played, judged, trained on and calibrated."""
    tokenizer = make_tokenizer()
    model = make_policy(tokenizer, max_position_embeddings=64)
    options = {"max_turns": 30, "max_episode_tokens": 2048, "environment_factory": lambda: LongEnv(30)}
    cut = make_trainer(tmp_path / "whole", tokenizer=tokenizer, model=model, **options)
    assert all(t.stop_reason is StopReason.TOKEN_BUDGET for t in cut.collect([{"seed": 0}, {"seed": 1}]))

    trainer = make_trainer(
        tmp_path,
        tokenizer=tokenizer,
        model=model,
        history_window=4,
        hindsight_prompt="judge {{ step }}",
        max_new_tokens=1,  # 30 turns of an action, a stop token and two headers are longer than 64 tokens otherwise
        **options,
    )
    before = weights(trainer.actor_critic)
    too_short = pytest.raises(ValueError, match="hindsight_context_tokens: the markup of 30 turns alone")
    with pytest.warns(UserWarning, match="hindsight: the actions of an episode alone are longer"), too_short:
        trainer.train()
    trainer = make_trainer(
        tmp_path,
        tokenizer=tokenizer,
        model=make_policy(tokenizer, max_position_embeddings=160),
        history_window=4,
        hindsight_prompt="judge {{ step }}",
        max_new_tokens=1,
        **options,
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "env/episode_length" in entry]
    assert [entry["env/episode_length"] for entry in log] == [30.0, 30.0]
    assert largest_difference(before, weights(trainer.actor_critic)) > 0


def test_needs_an_environment(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="history_window needs an environment"):
        make_trainer(
            tmp_path, history_window=2, environment_factory=None, reward_model=torch.nn.Identity(), hindsight_coef=0.1
        )


def spoken(trajectory: Trajectory) -> list[tuple[int, ...]]:
    return [trajectory.token_ids[slice(*turn.action_span)] for turn in trajectory.turns]


class TestCompression:
    def episode(self, texts: Sequence[str], lines: Sequence[str], chat: ChatFormat = BYTES) -> Trajectory:
        env = ScriptedEnv(texts, instruction="reach it")
        trajectory, _ = play(
            env, [say(line, chat) for line in lines], None, chat=chat, max_episode_tokens=10**6, max_new_tokens=50
        )
        return trajectory

    def test_what_fits_is_left_alone(self) -> None:
        trajectory = self.episode(["red", "blue", "red"], ["go", "wait"])
        assert compress(trajectory, BYTES, trajectory.turns[-1].result_end) == trajectory

    def test_long_observations_are_cut_and_short_ones_are_not(self) -> None:
        texts = ["a long long look " * 20, "short", "another long look " * 30, "end"]
        trajectory = self.episode(texts, ["go", "wait", "go"])
        short = compress(trajectory, BYTES, 450)
        seen = [
            *(turn.observation for turn in short.turns),
            BYTES.decode(short.token_ids[short.turns[-1].action_span[1] :]),
        ]
        assert 350 < len(short.token_ids) <= 450
        assert spoken(short) == spoken(trajectory)
        assert seen[1] == "short" and seen[3].endswith("end")
        for cut, text in ((seen[0], texts[0]), (seen[2], texts[2])):
            assert cut.endswith(" ...") and text.startswith(cut.removesuffix(" ..."))
        assert abs(len(seen[0]) - len(seen[2])) < 20, "an even share"
        assert "reach it" in BYTES.decode(short.token_ids[:60])

    def test_spans_fit_the_new_tokens(self) -> None:
        trajectory = self.episode(["look " * 50, "see " * 50, "end " * 50], ["go", "wait"])
        short = compress(trajectory, BYTES, 200)
        for turn, old in zip(short.turns, trajectory.turns, strict=True):
            assert BYTES.decode(short.token_ids[slice(*turn.action_span)]) == old.action
            assert turn.result_end > turn.action_span[1]
        assert short.turns[-1].result_end == len(short.token_ids)

    @given(
        texts=st.lists(st.text(st.sampled_from("ab \n"), max_size=120), min_size=2, max_size=6),
        budget=st.integers(0, 900),
    )
    def test_any_budget(self, texts: list[str], budget: int) -> None:
        """Within the budget, with all actions, or refused with a reason."""
        trajectory = self.episode(texts, ["go wait"] * (len(texts) - 1))
        try:
            short = compress(trajectory, BYTES, budget)
        except ValueError as error:
            assert "hindsight_context_tokens" in str(error) and budget < 130 * len(texts)
            return
        assert short.turns[-1].result_end <= budget
        assert short.num_steps == trajectory.num_steps
        if len(spoken(short)[0]) == len(spoken(trajectory)[0]):
            assert spoken(short) == spoken(trajectory)

    def test_actions_are_cut_last(self) -> None:
        trajectory = self.episode(["red"] * 4, ["go " * 40] * 3)
        with pytest.warns(UserWarning, match="actions of an episode alone are longer than 250 tokens"):
            short = compress(trajectory, BYTES, 250)
        assert len(short.token_ids) <= 250 and short.num_steps == 3
        assert all(action[-1] in BYTES.stop_token_ids for action in spoken(short))
