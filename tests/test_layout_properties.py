"""What holds for every token layout: random turns, lengths, observations, truncation. 2,000 batches in every run."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_episodes import VOCAB

from trl_mise.advantages import (
    action_layout,
    gae,
    mean_by_turn,
    per_turn,
    place_rewards,
    spread_over_tokens,
    sum_by_turn,
    whiten,
)
from trl_mise.micro_batches import make_micro_batches
from trl_mise.types import StopReason, Trajectory, Turn

STOPS = (StopReason.TERMINATED, StopReason.ENV_TRUNCATED, StopReason.MAX_TURNS)
TURNS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 4), st.floats(-3, 3, width=32)), max_size=6
)  # action tokens, observation tokens after them, reward
EPISODES = st.tuples(st.integers(1, 6), TURNS, st.sampled_from(STOPS))
BATCHES = st.lists(EPISODES, min_size=1, max_size=5).filter(lambda batch: any(turns for _, turns, _ in batch))


def trajectory(
    prompt: int, turns: list[tuple[int, int, float]], stop: StopReason, rng: np.random.Generator
) -> Trajectory:
    end, records = prompt, []
    for action, observation, reward in turns:
        span = (end, end + action)
        end = span[1] + observation
        records.append(Turn("", "", reward, span, result_end=end))
    return Trajectory(tuple(int(i) for i in rng.integers(VOCAB, size=end)), tuple(records), stop)


@settings(max_examples=2000, deadline=None)
@given(BATCHES, st.integers(0, 2**16), st.integers(1, 4))
def test_every_layout(batch: list[tuple[int, list[tuple[int, int, float]], StopReason]], seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    trajectories = [trajectory(*episode, rng) for episode in batch]
    layout = action_layout(trajectories)
    mask_and_spans(trajectories, layout)
    rewards_and_advantages(trajectories, layout, torch.Generator().manual_seed(seed))
    micro_batches(trajectories, layout, size, rng)


def mask_and_spans(trajectories: list[Trajectory], layout) -> None:  # type: ignore[no-untyped-def]
    for b, t in enumerate(trajectories):
        where = [i for turn in t.turns for i in range(*turn.action_span)]
        row = layout.mask[b]
        assert layout.position[b][row].tolist() == where, "the sampled tokens and no others, in their order"
        assert layout.token_ids[b][row].tolist() == [t.token_ids[i] for i in where]
        assert row.tolist() == sorted(row.tolist(), reverse=True), "a prefix of every row"
        counts = [end - start for start, end in (turn.action_span for turn in t.turns)]
        assert layout.turn[b][row].tolist() == [k for k, count in enumerate(counts) for _ in range(count)]
        assert layout.turn_mask[b].sum() == len(t.turns)
        for k, turn in enumerate(t.turns):
            first, last = (int(layout.position[b, column[b, k]]) for column in (layout.turn_first, layout.turn_last))
            assert (first, last + 1) == turn.action_span


def rewards_and_advantages(trajectories: list[Trajectory], layout, generator: torch.Generator) -> None:  # type: ignore[no-untyped-def]
    turn_rewards = per_turn([[turn.reward for turn in t.turns] for t in trajectories], layout).double()
    rewards = place_rewards(turn_rewards, layout)
    torch.testing.assert_close(sum_by_turn(rewards, layout), turn_rewards)  # all of it, in its turn
    last = torch.zeros_like(layout.mask)
    episode, turn = layout.turn_mask.nonzero(as_tuple=True)
    last[episode, layout.turn_last[episode, turn]] = True
    assert not rewards[~last].any(), "on the last sampled token of the turn"
    values = torch.randn(layout.mask.shape, generator=generator, dtype=torch.float64) * layout.mask
    truncated = torch.tensor([t.stop_reason.truncated for t in trajectories])
    bootstrap = torch.randn(len(trajectories), generator=generator, dtype=torch.float64) * truncated
    advantages, returns = gae(rewards, values, layout.mask, bootstrap, gamma=1.0, lam=1.0)
    assert not advantages[~layout.mask].any() and not returns[~layout.mask].any()
    to_go = rewards.flip(1).cumsum(1).flip(1) + bootstrap[:, None]
    torch.testing.assert_close(returns, to_go * layout.mask)  # lambda = 1: what is still to come
    short, _ = gae(rewards, values, layout.mask, bootstrap, gamma=0.9, lam=0.0)
    following = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
    ends = layout.mask & ~torch.cat((layout.mask[:, 1:], torch.zeros_like(layout.mask[:, :1])), dim=1)
    following = torch.where(ends, bootstrap[:, None], following)
    torch.testing.assert_close(short, (rewards + 0.9 * following - values) * layout.mask)  # lambda = 0: one step
    poison = torch.where(layout.mask, values, torch.full_like(values, 1e9))
    assert torch.equal(gae(rewards, poison, layout.mask, bootstrap, gamma=0.9, lam=0.5)[0] * layout.mask,
                       gae(rewards, values, layout.mask, bootstrap, gamma=0.9, lam=0.5)[0])  # fmt: skip
    turn_values = torch.randn(layout.turn_mask.shape, generator=generator, dtype=torch.float64) * layout.turn_mask
    torch.testing.assert_close(mean_by_turn(spread_over_tokens(turn_values, layout), layout), turn_values)
    whitened = whiten(advantages, layout.mask)
    assert float(whitened[layout.mask].mean()) == pytest.approx(0, abs=1e-6)


def micro_batches(trajectories: list[Trajectory], layout, size: int, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    batches = make_micro_batches(trajectories, layout, size, rng)
    assert all(len(batch.episodes) <= size for batch in batches)
    seen = torch.zeros_like(layout.mask, dtype=torch.long)
    for batch in batches:
        seen.index_add_(0, batch.episodes, batch.mask.long())
        state_row, state = batch.states
        row, column = batch.mask.nonzero(as_tuple=True)
        assert torch.equal(row, state_row)
        position = layout.position[batch.episodes][row, column]
        assert torch.equal(state, position - 1), "an action token is predicted at the token before it"
        read = batch.tokens.input_ids[row, position]
        assert torch.equal(read, layout.token_ids[batch.episodes][row, column])
    assert torch.equal(seen, layout.mask.long()), "every sampled token is trained on once"
