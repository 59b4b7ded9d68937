"""Where rewards go, and what advantages become of them: golden numbers, identities, and TRL's own whitening."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor
from toy_episodes import in_lockstep, toy_episode

from trl_mise.advantages import (
    ActionLayout,
    Reduce,
    action_layout,
    gae,
    masked_moments,
    per_turn,
    place_rewards,
    scaled_advantages,
    shaped_advantages,
    spread_over_tokens,
    sum_by_turn,
    whiten,
)

TOLERANCE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}

lengths = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=4)
fractions = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)


def layout_of(action_lengths: Sequence[Sequence[int]]) -> ActionLayout:
    return action_layout([toy_episode(turns, seed=i) for i, turns in enumerate(action_lengths)])


def rows(*values: Sequence[float]) -> Tensor:
    """Rows of unequal length, padded with 0."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(v, dtype=torch.float64) for v in values], batch_first=True)


def noise(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestActionLayout:
    def test_golden(self) -> None:
        """Prompts of 3 tokens, results of 2: episode 0 acts at 3-4 and 7, episode 1 at 3-5."""
        first, second = toy_episode([2, 1], seed=1), toy_episode([3], seed=2)
        layout = action_layout([first, second])
        assert layout.position.tolist() == [[3, 4, 7], [3, 4, 5]]
        assert layout.turn.tolist() == [[0, 0, 1], [0, 0, 0]]
        assert layout.turn_mask.tolist() == [[True, True], [True, False]]
        assert layout.turn_first.tolist() == [[0, 2], [0, 0]]
        assert layout.turn_last.tolist() == [[1, 2], [2, 0]]
        assert layout.num_tokens == 6
        assert layout.token_ids[0].tolist() == [first.token_ids[i] for i in (3, 4, 7)]

    @given(lengths)
    def test_holds_exactly_the_tokens_of_the_action_mask(self, action_lengths: list[list[int]]) -> None:
        episodes = [toy_episode(turns, seed=i) for i, turns in enumerate(action_lengths)]
        layout = action_layout(episodes)
        for b, episode in enumerate(episodes):
            positions = layout.position[b][layout.mask[b]].tolist()
            assert positions == [i for i, sampled in enumerate(episode.action_mask) if sampled]
            assert layout.token_ids[b][layout.mask[b]].tolist() == [episode.token_ids[i] for i in positions]
            assert layout.mask[b].tolist() == sorted(layout.mask[b].tolist(), reverse=True), "a prefix of the row"

    def test_an_episode_without_turns_is_an_empty_row(self) -> None:
        layout = action_layout([toy_episode([]), toy_episode([2])])
        assert layout.mask.tolist() == [[False, False], [True, True]]

    def test_refuses_what_cannot_be_trained(self) -> None:
        with pytest.raises(ValueError, match="nothing to train on"):
            action_layout([toy_episode([])])
        with pytest.raises(ValueError, match=r"turn 2 of episode 1 has the empty action span \(6, 6\)"):
            action_layout([toy_episode([1]), toy_episode([1, 0])])


class TestRewardPlacement:
    @given(lengths, seeds)
    def test_each_reward_is_on_the_last_sampled_token_of_its_turn(
        self, action_lengths: list[list[int]], seed: int
    ) -> None:
        layout = layout_of(action_lengths)
        turn_rewards = noise(layout.turn_mask.shape, seed) * layout.turn_mask
        placed = place_rewards(turn_rewards, layout)
        expected = rows(
            *(
                [
                    float(turn_rewards[b, t]) if i == size - 1 else 0.0
                    for t, size in enumerate(turns)
                    for i in range(size)
                ]
                for b, turns in enumerate(action_lengths)
            )
        )
        assert torch.equal(placed, expected)
        torch.testing.assert_close(placed.sum(1), turn_rewards.sum(1), **TOLERANCE)

    def test_rewards_of_turns_that_do_not_exist_go_nowhere(self) -> None:
        layout = layout_of([[2, 1], [1]])
        assert place_rewards(torch.tensor([[1.0, 2.0], [4.0, 8.0]]), layout).tolist() == [[0, 1, 2], [4, 0, 0]]

    def test_per_turn_pads_with_zeros(self) -> None:
        layout = layout_of([[2, 1], [1]])
        assert per_turn([[0.5, -1.0], [2.0]], layout).tolist() == [[0.5, -1.0], [2.0, 0.0]]
        with pytest.raises(ValueError):
            per_turn([[0.5, -1.0]], layout)


class TestSpreadAndSum:
    @given(lengths, seeds)
    def test_summing_what_was_spread_multiplies_by_the_turns_length(
        self, action_lengths: list[list[int]], seed: int
    ) -> None:
        layout = layout_of(action_lengths)
        turn_values = noise(layout.turn_mask.shape, seed) * layout.turn_mask
        sizes = rows(*action_lengths)
        torch.testing.assert_close(
            sum_by_turn(spread_over_tokens(turn_values, layout), layout), turn_values * sizes, **TOLERANCE
        )
        assert torch.equal(sum_by_turn(place_rewards(turn_values, layout), layout), turn_values)

    def test_golden(self) -> None:
        layout = layout_of([[2, 1], [1]])
        assert spread_over_tokens(torch.tensor([[3.0, 4.0], [5.0, 6.0]]), layout).tolist() == [[3, 3, 4], [5, 0, 0]]
        # Padding counts as turn 0 in the layout, yet it must not leak into that turn's sum.
        assert sum_by_turn(torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]), layout).tolist() == [[3, 4], [8, 0]]


def naive_gae(
    rewards: Sequence[float], values: Sequence[float], bootstrap: float, gamma: float, lam: float
) -> list[float]:
    """A_j = sum_l (gamma lam)^l delta_{j+l}, literally."""
    following = [*values, bootstrap][1:]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[j:])) for j in range(len(deltas))]


class TestGAE:
    def test_golden_terminated(self) -> None:
        """deltas .4, .1 and .4 with gamma = lam = .5: A_2 = .4, A_1 = .1 + .25 * .4, A_0 = .4 + .25 * .2."""
        advantages, returns = gae(
            rows([0.5, 0.0, 1.0]),
            rows([0.2, 0.2, 0.6]),
            torch.ones(1, 3, dtype=torch.bool),
            torch.zeros(1, dtype=torch.float64),
            gamma=0.5,
            lam=0.5,
        )
        torch.testing.assert_close(advantages, rows([0.45, 0.2, 0.4]), **TOLERANCE)
        torch.testing.assert_close(returns, rows([0.65, 0.4, 1.0]), **TOLERANCE)

    def test_golden_truncated(self) -> None:
        """The same, but the episode would have gone on from a state of value .8: delta_2 = .4 + .5 * .8 = .8."""
        advantages, _ = gae(
            rows([0.5, 0.0, 1.0]),
            rows([0.2, 0.2, 0.6]),
            torch.ones(1, 3, dtype=torch.bool),
            torch.full((1,), 0.8, dtype=torch.float64),
            gamma=0.5,
            lam=0.5,
        )
        torch.testing.assert_close(advantages, rows([0.475, 0.3, 0.8]), **TOLERANCE)

    @given(st.lists(st.integers(0, 6), min_size=1, max_size=4), fractions, fractions, seeds)
    def test_equals_the_double_loop(self, sizes: list[int], gamma: float, lam: float, seed: int) -> None:
        shape = (len(sizes), max(sizes))
        mask = torch.arange(shape[1]) < torch.tensor(sizes)[:, None]
        rewards, values = noise(shape, seed), noise(shape, seed + 1)  # noise in the padding too: it must not matter
        bootstrap = noise(shape[:1], seed + 2)
        advantages, returns = gae(rewards, values, mask, bootstrap, gamma=gamma, lam=lam)
        for b, size in enumerate(sizes):
            expected = naive_gae(
                rewards[b, :size].tolist(), values[b, :size].tolist(), float(bootstrap[b]), gamma, lam
            )
            assert advantages[b, :size].tolist() == pytest.approx(expected, abs=1e-12)
        torch.testing.assert_close(returns, (advantages + values) * mask, **TOLERANCE)
        assert not advantages[~mask].any() and not returns[~mask].any()

    @given(st.integers(1, 6), fractions, seeds)
    def test_lambda_one_is_returns_minus_values(self, size: int, gamma: float, seed: int) -> None:
        rewards, values, bootstrap = noise((1, size), seed), noise((1, size), seed + 1), noise((1,), seed + 2)
        advantages, returns = gae(
            rewards, values, torch.ones(1, size, dtype=torch.bool), bootstrap, gamma=gamma, lam=1.0
        )
        discounted = [
            sum(gamma ** (k - j) * float(rewards[0, k]) for k in range(j, size))
            + gamma ** (size - j) * float(bootstrap)
            for j in range(size)
        ]
        assert returns[0].tolist() == pytest.approx(discounted, abs=1e-12)
        torch.testing.assert_close(advantages, rows(discounted) - values, **TOLERANCE)

    @given(st.integers(1, 6), fractions, seeds)
    def test_lambda_zero_is_the_td_error(self, size: int, gamma: float, seed: int) -> None:
        rewards, values, bootstrap = noise((1, size), seed), noise((1, size), seed + 1), noise((1,), seed + 2)
        advantages, _ = gae(rewards, values, torch.ones(1, size, dtype=torch.bool), bootstrap, gamma=gamma, lam=0.0)
        following = torch.cat([values[:, 1:], bootstrap[:, None]], dim=1)
        torch.testing.assert_close(advantages, rewards + gamma * following - values, **TOLERANCE)

    @given(st.lists(st.integers(1, 5), min_size=1, max_size=4), fractions, fractions, seeds)
    def test_turns_of_one_token_make_both_levels_agree(
        self, num_turns: list[int], gamma: float, lam: float, seed: int
    ) -> None:
        layout = layout_of([[1] * n for n in num_turns])
        turn_rewards, bootstrap = noise(layout.turn_mask.shape, seed), noise((len(num_turns),), seed + 1)
        values = noise(layout.mask.shape, seed + 2) * layout.mask
        by_token = gae(place_rewards(turn_rewards, layout), values, layout.mask, bootstrap, gamma=gamma, lam=lam)
        turn_values = values.gather(1, layout.turn_first) * layout.turn_mask
        by_turn = gae(turn_rewards, turn_values, layout.turn_mask, bootstrap, gamma=gamma, lam=lam)
        for token_level, turn_level in zip(by_token, by_turn, strict=True):
            torch.testing.assert_close(spread_over_tokens(turn_level, layout), token_level, **TOLERANCE)

    def test_refuses_unequal_shapes(self) -> None:
        with pytest.raises(ValueError, match="must be equal"):
            gae(
                torch.zeros(1, 2),
                torch.zeros(1, 3),
                torch.ones(1, 2, dtype=torch.bool),
                torch.zeros(1),
                gamma=1,
                lam=1,
            )


class TestWhiten:
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])

    def test_mean_and_variance_are_those_of_the_unmasked(self) -> None:
        values = noise(self.mask.shape, 0) * 5 + 3
        whitened = whiten(values, self.mask)
        assert float(whitened[self.mask].mean()) == pytest.approx(0, abs=1e-9)
        assert float(whitened[self.mask].var()) == pytest.approx(1, abs=1e-6)
        assert not whitened[~self.mask].any()
        poisoned = torch.where(self.mask, values, torch.full_like(values, 1e6))
        torch.testing.assert_close(whiten(poisoned, self.mask), whitened, **TOLERANCE)

    @pytest.mark.parametrize("shift_mean", [True, False])
    def test_equals_trl(self, shift_mean: bool) -> None:
        trl = pytest.importorskip("trl.experimental.ppo.ppo_trainer")
        values = noise(self.mask.shape, 1) * 2 - 1
        expected = trl.masked_whiten(values, self.mask.double(), shift_mean=shift_mean)
        torch.testing.assert_close(whiten(values, self.mask, shift_mean=shift_mean), expected * self.mask, **TOLERANCE)

    def test_a_single_value_is_centred_and_nothing_is_nan(self) -> None:
        one = torch.tensor([[True, False]])
        assert masked_moments(torch.tensor([[3.0, 9.0]]), one)[1].item() == 0
        assert whiten(torch.tensor([[3.0, 9.0]]), one).tolist() == [[0, 0]]
        assert whiten(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool)).tolist() == [[0, 0]]


def shape(env: Tensor, turn_scores: Tensor, coef: float, layout: ActionLayout, *reduce: Reduce) -> Tensor:
    """Both steps: the environment's advantages to unit spread, and the verdicts beside them."""
    return shaped_advantages(scaled_advantages(env, layout, *reduce), turn_scores, coef, layout)


class TestShapedAdvantages:
    def test_golden(self) -> None:
        """Advantages 1, 3, 5 have a standard deviation of 2; verdicts 1 and -2 are weighed with alpha = .1."""
        layout = layout_of([[2, 1]])
        shaped = shape(rows([1.0, 3.0, 5.0]), rows([1.0, -2.0]), 0.1, layout)
        torch.testing.assert_close(shaped, rows([0.6, 1.6, 2.3]), **TOLERANCE)

    def test_golden_floor(self) -> None:
        """A standard deviation of .01 counts as .05, so that noise is not blown up beside the verdicts."""
        layout = layout_of([[1, 1, 1]])
        shaped = shape(rows([0.0, 0.01, 0.02]), rows([0.0, 0.0, 1.0]), 0.1, layout)
        torch.testing.assert_close(shaped, rows([0.0, 0.2, 0.5]), **TOLERANCE)

    def test_verdicts_alone_remain_where_the_environment_is_silent(self) -> None:
        layout = layout_of([[2, 1], [1]])
        shaped = shape(torch.zeros(2, 3), torch.tensor([[1.0, -1.0], [3.0, 7.0]]), 0.5, layout)
        assert shaped.tolist() == [[0.5, 0.5, -0.5], [1.5, 0, 0]]

    @given(lengths, seeds, st.data())
    def test_a_verdict_moves_the_tokens_of_its_own_turn_only(
        self, action_lengths: list[list[int]], seed: int, data: st.DataObject
    ) -> None:
        """Never summed over the future: earlier turns do not profit from praise of later ones."""
        layout = layout_of(action_lengths)
        b = data.draw(st.integers(0, len(action_lengths) - 1))
        t = data.draw(st.integers(0, len(action_lengths[b]) - 1))
        env, scores = noise(layout.mask.shape, seed), noise(layout.turn_mask.shape, seed + 1)
        praised = scores.clone()
        praised[b, t] += 2.0
        moved = shape(env, praised, 0.1, layout) - shape(env, scores, 0.1, layout)
        own = torch.zeros_like(layout.mask)
        own[b] = (layout.turn[b] == t) & layout.mask[b]
        torch.testing.assert_close(moved, own * torch.tensor(0.2, dtype=torch.float64), **TOLERANCE)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_two_processes_are_one_batch(shift_mean: bool) -> None:
    """Moments are sums over all processes, so that each process gets its rows of the whole batch's result."""
    layout = layout_of([[2, 1], [3], [1, 1, 1], [2]])
    values, scores = noise(layout.mask.shape, 0), noise(layout.turn_mask.shape, 1)
    ranks = [slice(0, 3), slice(3, 4)]

    def work(rank: int, reduce: Reduce) -> tuple[Tensor, Tensor]:
        rows_of_rank = ranks[rank]
        part = ActionLayout(*(getattr(layout, f.name)[rows_of_rank] for f in dataclasses.fields(layout)))
        return (
            shape(values[rows_of_rank], scores[rows_of_rank], 0.1, part, reduce),
            whiten(values[rows_of_rank], part.mask, reduce, shift_mean=shift_mean),
        )

    shaped, whitened = map(torch.cat, zip(*in_lockstep(2, work), strict=True))
    torch.testing.assert_close(shaped, shape(values, scores, 0.1, layout), **TOLERANCE)
    torch.testing.assert_close(whitened, whiten(values, layout.mask, shift_mean=shift_mean), **TOLERANCE)
