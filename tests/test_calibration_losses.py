"""Calibration losses: golden numbers, and what their gradients pull on."""

import numpy as np
import pytest
import torch

from trl_mise.calibration_losses import anchor_loss, step_target_loss, sum_target_loss, verdict_log_odds

INDEX = torch.tensor([0, 0, 0, 1, 1])
RETURNS = torch.tensor([1.0, 0.25], dtype=torch.float64)


def log_odds(requires_grad=True):
    return torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4], dtype=torch.float64, requires_grad=requires_grad)


def bce(p, y):
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z)))


def test_log_odds_of_good_and_bad_is_their_difference_exactly():
    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 30
    z = verdict_log_odds(logits, torch.tensor([1.0, 0.0]))
    assert torch.equal(z, logits[:, 0] - logits[:, 1])
    assert torch.equal(verdict_log_odds(logits, torch.tensor([0.0, 1.0])), -z)


def test_log_odds_are_the_logit_of_the_expected_utility():
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    utilities = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    expected = logits.softmax(-1) @ utilities
    torch.testing.assert_close(verdict_log_odds(logits, utilities), torch.logit(expected), rtol=1e-12, atol=1e-12)


def test_log_odds_do_not_saturate_and_have_finite_gradients():
    logits = torch.tensor([[200.0, 0.0, -200.0], [-300.0, 0.0, 300.0]], requires_grad=True)
    z = verdict_log_odds(logits, torch.tensor([1.0, 0.5, 0.0]))
    # 1 - h ~ q_mid / 2 = e^-200 / 2 in the first row
    torch.testing.assert_close(z, torch.tensor([200.0, -300.0]) + torch.tensor([1.0, -1.0]) * np.log(2))
    z.sum().backward()
    assert torch.isfinite(logits.grad).all()
    torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(2), atol=1e-6, rtol=0)  # a shift changes nothing
    assert verdict_log_odds(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor([1.0, 0.0])).dtype == torch.float32


def test_sum_target_golden():
    z = log_odds()
    loss = sum_target_loss(z, INDEX, RETURNS, bias=-0.5)
    totals = sigmoid([-0.5 + 1.1, -0.5 + 0.3])
    assert loss.item() == pytest.approx((bce(totals[0], 1.0) + bce(totals[1], 0.25)) / 2, abs=1e-12)


def test_sum_target_pulls_every_step_of_an_episode_alike():
    z = log_odds()
    bias = torch.nn.Parameter(torch.tensor([0.2]))
    sum_target_loss(z, INDEX, RETURNS, bias).backward()
    bias_value = float(bias.detach())
    errors = sigmoid([1.1 + bias_value, 0.3 + bias_value]) - RETURNS.numpy()
    np.testing.assert_allclose(z.grad.numpy(), (errors / 2)[INDEX.numpy()], atol=1e-12)
    assert bias.grad.item() == pytest.approx(errors.sum() / 2, rel=1e-5)


def test_sum_target_does_not_depend_on_the_order_of_steps():
    order = torch.tensor([4, 1, 3, 0, 2])
    z = log_odds(requires_grad=False)
    shuffled = sum_target_loss(z[order], INDEX[order], RETURNS, 0.1)
    torch.testing.assert_close(shuffled, sum_target_loss(z, INDEX, RETURNS, 0.1))


def test_step_target_golden_is_a_mean_over_steps_then_episodes():
    h, returns = sigmoid([0.3, -1.2, 2.0, 0.7, -0.4]), [1.0, 0.25]
    per_episode = [np.mean([bce(p, returns[0]) for p in h[:3]]), np.mean([bce(p, returns[1]) for p in h[3:]])]
    loss = step_target_loss(log_odds(), INDEX, RETURNS)
    assert loss.item() == pytest.approx(np.mean(per_episode), abs=1e-12)


def test_step_target_pulls_each_step_to_the_return():
    z = log_odds()
    step_target_loss(z, INDEX, RETURNS).backward()
    error = sigmoid(z.detach().numpy()) - RETURNS.numpy()[INDEX.numpy()]
    lengths = np.array([3, 3, 3, 2, 2])
    np.testing.assert_allclose(z.grad.numpy(), error / lengths / 2, atol=1e-12)
    optimum = torch.logit(torch.tensor([0.25, 0.25], dtype=torch.float64)).requires_grad_()
    step_target_loss(optimum, torch.tensor([0, 0]), RETURNS[1:]).backward()
    np.testing.assert_allclose(optimum.grad.numpy(), 0, atol=1e-15)


def test_sum_and_step_targets_agree_on_one_step_episodes():
    z = log_odds(requires_grad=False)[:2]
    index = torch.tensor([0, 1])
    torch.testing.assert_close(sum_target_loss(z, index, RETURNS), step_target_loss(z, index, RETURNS))


def test_anchor_golden_and_flat_at_the_reference():
    z = log_odds()
    reference = torch.tensor([0.5, 0.2, 0.9, 0.6, 0.0], dtype=torch.float64)
    h = sigmoid(z.detach().numpy())
    assert anchor_loss(z, reference).item() == pytest.approx(np.mean(bce(h, reference.numpy())), abs=1e-12)
    anchor_loss(z, torch.sigmoid(z.detach())).backward()
    np.testing.assert_allclose(z.grad.numpy(), 0, atol=1e-15)
    z.grad = None
    anchor_loss(z, reference).backward()
    np.testing.assert_allclose(z.grad.numpy(), (h - reference.numpy()) / 5, atol=1e-12)


def test_targets_carry_no_gradient_and_extremes_stay_finite():
    reference = torch.full((2,), 0.5, requires_grad=True)
    z = torch.tensor([800.0, -800.0], requires_grad=True)
    anchor_loss(z, reference).backward()
    assert reference.grad is None and torch.isfinite(z.grad).all()
    loss = sum_target_loss(z.detach(), torch.tensor([0, 1]), torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx(800.0)
    slightly_over = torch.tensor([1.0 + 1e-7, 0.0], dtype=torch.float64)  # a sum of rewards, rounded
    assert sum_target_loss(log_odds(), INDEX, slightly_over) == sum_target_loss(
        log_odds(), INDEX, slightly_over.round()
    )


@pytest.mark.parametrize("loss", [sum_target_loss, step_target_loss])
def test_losses_validate_shapes_and_values(loss):
    z = log_odds()
    with pytest.raises(ValueError, match=r"give \(S,\), \(S,\) and \(N,\)"):
        loss(z, INDEX[:4], RETURNS)
    with pytest.raises(ValueError, match="there are 3 returns; every episode from 0 to 2 needs at least one step"):
        loss(z, INDEX, torch.zeros(3))
    with pytest.raises(ValueError, match="there are 1 returns"):
        loss(z, INDEX, RETURNS[:1])
    with pytest.raises(ValueError, match="must hold integers, got torch.float32"):
        loss(z, INDEX.float(), RETURNS)
    with pytest.raises(ValueError, match=r"returns must lie in \[0, 1\]"):
        loss(z, INDEX, RETURNS * 4)
    with pytest.raises(ValueError, match=r"returns must lie in \[0, 1\]"):
        loss(z, INDEX, RETURNS * torch.nan)


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match=r"logits as \(S, K\)"):
        verdict_log_odds(torch.zeros(3, 2), torch.tensor([1.0, 0.5, 0.0]))
    for utilities in ([1.0, 1.0], [0.0, 0.0], [2.0, 0.0], [float("nan"), 0.0]):
        with pytest.raises(ValueError, match=r"utilities must lie in \[0, 1\]"):
            verdict_log_odds(torch.zeros(3, 2), torch.tensor(utilities))
    with pytest.raises(ValueError, match="bias must be one number"):
        sum_target_loss(log_odds(), INDEX, RETURNS, torch.zeros(2))
    with pytest.raises(ValueError, match="anchor_loss: z has shape"):
        anchor_loss(log_odds(), torch.zeros(4))
