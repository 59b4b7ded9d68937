"""What GRPO's completions get: the advantages of their groups, and praise in units of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .completions import CompletionEpisodes
from .patience import all_equal
from .types import StepCredit


@dataclass(frozen=True)
class TokenAdvantages:
    """Per-token advantages of a batch of completions.

    Args:
        advantages (`Tensor`): `(B, C)`.
        agreement (`np.ndarray`): `(N,)` mean_t A_n n_nt of each episode, see [`AgreementGate`]; 0 throughout, which
            is no evidence to it, where all groups of all processes earn the same.
        shaping_share (`float`): how much of what the steps get is praise or blame.
        credit ([`StepCredit`]): the advantages of the N episodes by steps.
    """

    advantages: Tensor
    agreement: np.ndarray
    shaping_share: float
    credit: StepCredit


def silent_completions(
    rewards: np.ndarray, weights: np.ndarray, num_generations: int, *, by_reward: bool = False
) -> np.ndarray:
    """`(B,)` True for the completions of a group whose returns are the same, but for rounding.

    Their advantages should be 0 and are not always: eight returns of 0.7 miss their mean by 6e-8 in float32, which TRL
    divides by their spread, that is by the 1e-4 that it adds to it.

    Args:
        rewards (`np.ndarray`): `(B, F)` of all processes, group after group; NaN where a function gave none.
        weights (`np.ndarray`): `(F,)` of the reward functions.
        num_generations (`int`): completions per group.
        by_reward (`bool`): TRL compares reward by reward (`multi_objective_aggregation="normalize_then_sum"`) and not
            the weighted sums.
    """
    outcomes = rewards * weights
    if not by_reward:
        unscored = np.isnan(outcomes).all(axis=1, keepdims=True)
        outcomes = np.where(unscored, np.nan, np.nansum(outcomes, axis=1, keepdims=True))
    groups = outcomes.reshape(-1, num_generations, outcomes.shape[1])
    return all_equal(groups, axis=1).all(axis=1).repeat(num_generations)


def group_spread(group_advantages: np.ndarray, num_generations: int) -> np.ndarray:
    """What a unit of praise is worth to each completion: the spread of its group's advantages, `(B,)`.

    A group whose completions all earn the same is to GRPO what such a batch is to PPO: nothing in it contradicts the
    judge. So there is no praise in it, unless the whole batch is like that and praise is all there is (then 1; whether
    it may lead is for [`Patience`] to say).

    Args:
        group_advantages (`np.ndarray`): `(B,)` of all processes, group after group; NaN where there is no episode.
    """
    groups = group_advantages.reshape(-1, num_generations)
    if not np.nansum(np.abs(groups)) > 0:
        return np.ones(len(group_advantages))
    of_episodes = [group[~np.isnan(group)] for group in groups]
    return np.array([own.std(ddof=1) if len(own) > 1 else 0.0 for own in of_episodes]).repeat(num_generations)


def token_advantages(
    group_advantages: Tensor,
    episodes: CompletionEpisodes,
    step_scores: Sequence[np.ndarray],
    *,
    spread: np.ndarray,
    coef: float,
    gate: float,
) -> TokenAdvantages:
    """Hindsight scores beside GRPO's advantages: `A_bt = A_b + gate * coef * s_b * n_t` at every token of step t.

    A_b is what GRPO makes of the returns: the same for all tokens of a completion. n_t has unit spread and mean 0, so
    that `coef` weighs the two as in PPO (placement `"advantage"`, docs/method.md).

    Args:
        group_advantages (`Tensor`): `(B,)`.
        episodes ([`CompletionEpisodes`]): N of the B completions.
        step_scores (`Sequence[np.ndarray]`): n_t, one array `(T_n,)` per episode.
        spread (`np.ndarray`): `(B,)` s_b, see [`group_spread`].
        coef (`float`): alpha.
        gate (`float`): in [0, 1], how much of alpha is let through.
    """
    of_episodes = group_advantages.double().cpu().numpy()[episodes.rows]
    agreement = np.array([a * n.mean() for a, n in zip(of_episodes, step_scores, strict=True)])
    worth = gate * coef * spread[episodes.rows]
    shaping = tuple(w * np.asarray(n, dtype=np.float64) for w, n in zip(worth, step_scores, strict=True))
    praise = episodes.per_token(shaping)  # (B, C)
    sampled = episodes.step_of_token >= 0
    environment = group_advantages[:, None].expand_as(praise) * sampled
    total = float(praise.abs().sum() + environment.abs().sum())
    credit = StepCredit(shaping, tuple(a + s for a, s in zip(of_episodes, shaping, strict=True)))
    return TokenAdvantages(
        advantages=group_advantages[:, None] + praise.to(group_advantages.dtype),
        agreement=agreement,
        shaping_share=float(praise.abs().sum()) / total if total > 0 else 0.0,
        credit=credit,
    )
