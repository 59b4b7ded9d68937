"""The PPO losses: golden numbers on both sides of every clip, signs of the gradients, sums over micro-batches."""

import math
from dataclasses import fields, replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from trl_mise.losses import PPOCoefficients, PPOLoss, TokenTargets, kl_estimate, ppo_loss

COEFFICIENTS = PPOCoefficients(cliprange=0.2, cliprange_value=0.2, vf_coef=0.0, kl_coef=0.0)
SUMS = ("total", "policy", "value", "kl", "entropy", "ratio", "approx_kl")
SHARES = ("policy_clip_fraction", "value_clip_fraction")


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def targets_of(n: int, **known: Tensor) -> TokenTargets:
    zeros = torch.zeros(n, dtype=torch.float64)
    given = {f.name: zeros for f in fields(TokenTargets)} | {"value_mask": torch.ones(n, dtype=torch.bool)} | known
    return TokenTargets(**given)


def loss_of(
    log_probs: Tensor,
    targets: TokenTargets,
    *,
    values: Tensor | None = None,
    entropy: Tensor | None = None,
    **coefficients: float,
) -> PPOLoss:
    """The loss of a mini-batch that is exactly these tokens."""
    zeros = torch.zeros_like(log_probs)
    return ppo_loss(
        log_probs,
        zeros if values is None else values,
        zeros if entropy is None else entropy,
        targets,
        replace(COEFFICIENTS, **coefficients),
        num_tokens=len(log_probs),
        num_values=float(targets.value_mask.sum()),
    )


def slope_of(leaf: Tensor) -> float:
    assert leaf.grad is not None
    return leaf.grad.item()


class TestSurrogate:
    @pytest.mark.parametrize(
        ("ratio", "advantage", "expected", "slope", "clipped"),
        [
            (1.5, 2.0, -2.4, 0.0, 1.0),  # praised and already 50% more likely: the gain is capped at 1.2
            (0.5, 2.0, -1.0, -1.0, 0.0),  # praised but less likely: pulled back in full
            (1.5, -2.0, 3.0, 3.0, 0.0),  # blamed but more likely: pushed back in full
            (0.5, -2.0, 1.6, 0.0, 1.0),  # blamed and already half as likely: the gain is capped at 0.8
            (1.1, 2.0, -2.2, -2.2, 0.0),  # inside the range nothing is clipped
            (0.9, -2.0, 1.8, 1.8, 0.0),
        ],
    )
    def test_golden(self, ratio: float, advantage: float, expected: float, slope: float, clipped: float) -> None:
        log_probs = tensor(math.log(0.3 * ratio)).requires_grad_()
        loss = loss_of(log_probs, targets_of(1, old_log_probs=tensor(math.log(0.3)), advantages=tensor(advantage)))
        loss.total.backward()
        assert float(loss.policy) == pytest.approx(expected, abs=1e-12)
        assert float(loss.total.detach()) == pytest.approx(expected, abs=1e-12)
        assert slope_of(log_probs) == pytest.approx(slope, abs=1e-12)
        assert float(loss.policy_clip_fraction) == clipped
        assert float(loss.ratio) == pytest.approx(ratio)
        assert float(loss.ratio_max_deviation) == pytest.approx(abs(ratio - 1))
        assert float(loss.approx_kl) == pytest.approx(0.5 * math.log(ratio) ** 2)

    def test_at_the_old_policy_the_loss_is_the_mean_advantage_and_all_ratios_are_one(self) -> None:
        old = tensor(-0.5, -1.0, -3.0)
        loss = loss_of(old.clone(), targets_of(3, old_log_probs=old, advantages=tensor(1.0, -4.0, 6.0)))
        assert float(loss.policy) == -1.0
        assert float(loss.ratio_max_deviation) == 0.0 and float(loss.approx_kl) == 0.0 and float(loss.ratio) == 1.0

    def test_the_largest_deviation_is_a_maximum_in_both_directions(self) -> None:
        loss = loss_of(tensor(0.0, math.log(0.25), math.log(1.5)), targets_of(3))
        assert float(loss.ratio_max_deviation) == pytest.approx(0.75)

    def test_entropy_is_logged_and_never_trained(self) -> None:
        entropy = tensor(1.0, 2.0).requires_grad_()
        loss = loss_of(tensor(0.0, 0.0).requires_grad_(), targets_of(2), entropy=entropy)
        loss.total.backward()
        assert float(loss.entropy) == 1.5 and entropy.grad is None


class TestValueLoss:
    @pytest.mark.parametrize(
        ("value", "expected", "slope", "clipped"),
        [
            (0.1, 0.5 * 0.9**2, -0.9, 0.0),  # within .2 of the old value: the plain squared error
            (0.5, 0.5 * 0.8**2, 0.0, 1.0),  # moved .5 toward the return: no credit beyond .2
            (-0.5, 0.5 * 1.5**2, -1.5, 0.0),  # moved away: the larger, unclipped error counts
        ],
    )
    def test_golden(self, value: float, expected: float, slope: float, clipped: float) -> None:
        values = tensor(value).requires_grad_()
        loss = loss_of(tensor(0.0), targets_of(1, returns=tensor(1.0)), values=values, vf_coef=0.1)
        loss.total.backward()
        assert float(loss.value) == pytest.approx(expected)
        assert float(loss.total.detach()) == pytest.approx(0.1 * expected)
        assert slope_of(values) == pytest.approx(0.1 * slope, abs=1e-12)
        assert float(loss.value_clip_fraction) == clipped

    def test_only_masked_values_count_and_only_they_are_averaged(self) -> None:
        values = tensor(0.1, 99.0, -0.1).requires_grad_()
        mask = torch.tensor([True, False, True])
        loss = loss_of(torch.zeros(3, dtype=torch.float64), targets_of(3, value_mask=mask), values=values, vf_coef=1.0)
        loss.total.backward()
        assert float(loss.value) == pytest.approx(0.5 * (0.01 + 0.01) / 2)
        assert values.grad is not None and values.grad.tolist() == pytest.approx([0.05, 0.0, -0.05])


class TestKL:
    def test_golden(self) -> None:
        """pi = .5, pi_ref = .25: r = .5, k1 = log 2, k3 = .5 - 1 + log 2."""
        log_probs, ref = tensor(math.log(0.5)), tensor(math.log(0.25))
        assert float(kl_estimate(log_probs, ref, "k1")) == pytest.approx(math.log(2))
        assert float(kl_estimate(log_probs, ref, "k3")) == pytest.approx(math.log(2) - 0.5)
        assert float(kl_estimate(ref, log_probs, "k1")) == pytest.approx(-math.log(2)), "k1 may be negative"

    @given(st.floats(-20, 0), st.floats(-20, 0))
    def test_k3_is_never_negative_and_zero_where_equal(self, log_prob: float, ref: float) -> None:
        assert float(kl_estimate(tensor(log_prob), tensor(ref), "k3")) >= -1e-15
        assert float(kl_estimate(tensor(log_prob), tensor(log_prob), "k3")) == 0
        assert float(kl_estimate(tensor(log_prob), tensor(log_prob), "k1")) == 0

    def test_k3_is_precise_near_the_reference(self) -> None:
        """x^2 / 2 for a small log-ratio x; exp(x) - 1 - x in float32 would be off by a factor of several."""
        near = kl_estimate(torch.tensor([1e-4]), torch.tensor([0.0]), "k3")
        assert float(near) == pytest.approx(5e-9, rel=1e-2)

    def test_both_estimate_the_same_divergence(self) -> None:
        """In expectation over pi, exactly: sum_a pi(a) k(a) = KL(pi || pi_ref)."""
        pi, ref = tensor(0.5, 0.3, 0.2), tensor(0.2, 0.2, 0.6)
        expected = float((pi * (pi / ref).log()).sum())
        for estimator in ("k1", "k3"):
            assert float((pi * kl_estimate(pi.log(), ref.log(), estimator)).sum()) == pytest.approx(expected)

    def test_as_a_loss_it_pulls_toward_the_reference(self) -> None:
        """d k3 / d log pi = 1 - r: down where the policy is the more certain of the two, up where it is less."""
        log_probs = tensor(math.log(0.5), math.log(0.2)).requires_grad_()
        known = targets_of(2, old_log_probs=log_probs.detach(), ref_log_probs=tensor(math.log(0.25), math.log(0.4)))
        loss = loss_of(log_probs, known, kl_coef=0.1)
        loss.total.backward()
        k3 = ((math.log(2) - 0.5) + (1 - math.log(2))) / 2
        assert float(loss.kl) == pytest.approx(k3) and float(loss.total.detach()) == pytest.approx(0.1 * k3)
        assert log_probs.grad is not None and log_probs.grad.tolist() == pytest.approx([0.025, -0.05])

    def test_is_logged_but_not_trained_without_a_coefficient(self) -> None:
        log_probs = tensor(math.log(0.5)).requires_grad_()
        known = targets_of(1, old_log_probs=log_probs.detach(), ref_log_probs=tensor(math.log(0.25)))
        loss = loss_of(log_probs, known)
        loss.total.backward()
        assert float(loss.kl) > 0 and float(loss.total.detach()) == 0 and slope_of(log_probs) == 0


def raises_praised_tokens(loss: Any) -> bool:
    """One gradient step makes tokens with positive advantage likelier, and those with negative advantage rarer."""
    logits = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    tokens, advantages = torch.tensor([0, 1, 2, 3]), tensor(1.0, -1.0, 0.3, -2.0)

    def log_probs() -> Tensor:
        return logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)

    before = log_probs()
    loss(before, targets_of(4, old_log_probs=before.detach(), advantages=advantages)).total.backward()
    assert logits.grad is not None
    with torch.no_grad():
        logits -= 0.1 * logits.grad
    return bool(((log_probs() - before).sign() == advantages.sign()).all())


def test_advantage_has_the_right_sign() -> None:
    assert raises_praised_tokens(loss_of)


def test_a_negated_advantage_would_be_noticed() -> None:
    def mutant(log_probs: Tensor, targets: TokenTargets) -> PPOLoss:
        return loss_of(log_probs, replace(targets, advantages=-targets.advantages))

    assert not raises_praised_tokens(mutant)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 1000))
def test_micro_batches_of_unequal_length_add_up_to_the_mini_batch(sizes: list[int], seed: int) -> None:
    """Each is divided by the mini-batch's counts, so that a short one's tokens weigh as much as a long one's."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    log_probs, values, old, ref, advantages, old_values, returns = torch.randn(
        7, n, dtype=torch.float64, generator=generator
    )
    mask = torch.arange(n) % 2 == 0
    entropy = log_probs.exp()
    known = TokenTargets(old, ref, advantages, old_values, returns, mask)
    coefficients = PPOCoefficients(0.2, 0.2, 0.1, 0.05)
    counts = {"num_tokens": float(n), "num_values": float(mask.sum())}

    def part(start: int, end: int) -> tuple[PPOLoss, Tensor]:
        own = log_probs[start:end].clone().requires_grad_()
        targets = TokenTargets(*(getattr(known, f.name)[start:end] for f in fields(TokenTargets)))
        loss = ppo_loss(own, values[start:end], entropy[start:end], targets, coefficients, **counts)
        loss.total.backward()
        assert own.grad is not None
        return loss, own.grad

    whole, gradient = part(0, n)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [part(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    for name in (*SUMS, *SHARES):
        total = sum(getattr(loss, name).item() for loss, _ in parts)
        assert total == pytest.approx(getattr(whole, name).item(), abs=1e-6), name
    assert max(float(loss.ratio_max_deviation) for loss, _ in parts) == float(whole.ratio_max_deviation)
    torch.testing.assert_close(torch.cat([g for _, g in parts]), gradient, rtol=0, atol=1e-12)


def test_no_tokens_at_all_is_a_zero_that_can_be_differentiated() -> None:
    empty = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    loss = ppo_loss(empty, empty, empty, targets_of(0), COEFFICIENTS, num_tokens=1.0, num_values=1.0)
    loss.total.backward()
    assert float(loss.total.detach()) == 0 and float(loss.ratio_max_deviation) == 0
