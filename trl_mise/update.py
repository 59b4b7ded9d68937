"""Evaluate the rollout's tokens, then update on them: the PPO half of an iteration."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .actor_critic import hidden_and_verdicts
from .advantages import ActionLayout, Reduce
from .losses import PPOCoefficients, PPOLoss, TokenTargets, ppo_loss
from .micro_batches import MicroBatch
from .scorers import Questionnaire
from .token_log_probs import DEFAULT_HEAD_BYTES, token_log_probs


@dataclass(frozen=True)
class Evaluation:
    """Log-probabilities and values of a rollout's action tokens under the weights that sampled them.

    Args:
        log_probs, ref_log_probs, values (`Tensor`): `(B, A)`, 0 where there is no action token.
        final_values (`Tensor`): `(B,)` V(s_T) at each episode's last token; used where it was truncated.
        verdicts, ref_verdicts (`dict[int, Tensor]`): `(T, K)` verdict logits of the policy and of the reference on the
            steps of an episode, by its index; of those episodes that were asked about on this pass.
    """

    log_probs: Tensor
    ref_log_probs: Tensor
    values: Tensor
    final_values: Tensor
    verdicts: dict[int, Tensor] = field(default_factory=dict)
    ref_verdicts: dict[int, Tensor] = field(default_factory=dict)


@torch.no_grad()
def evaluate_rollout(
    model: nn.Module,
    reference: Callable[[], AbstractContextManager[nn.Module]],
    layout: ActionLayout,
    micro_batches: Sequence[MicroBatch],
    temperature: float,
    *,
    head_max_bytes: int = DEFAULT_HEAD_BYTES,
    questions: Questionnaire | None = None,
    ref_questions: Questionnaire | None = None,
) -> Evaluation:
    """One pass of the trained module and one of the reference over the rollout; hindsight questions ride on them.

    Args:
        model (`nn.Module`): [`ActorCritic`], possibly wrapped.
        reference: context manager that gives the reference policy.
        temperature (`float`): of the sampling; log-probabilities are those of the tempered policy.
        head_max_bytes (`int`): bound on the reference's logits; `model` has its own.
        questions, ref_questions ([`Questionnaire`], *optional*): about all episodes, for policy and reference.
    """
    shape, device = layout.mask.shape, layout.mask.device
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    log_probs, ref_log_probs, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(3))
    final_values = torch.zeros(shape[0], device=device, dtype=dtype)
    verdicts: dict[int, Tensor] = {}
    ref_verdicts: dict[int, Tensor] = {}
    for batch in micro_batches:
        tokens = layout.token_ids[batch.episodes][batch.mask]
        value_index = tuple(torch.cat(pair) for pair in zip(batch.states, batch.last, strict=True))
        asked = _questions_about(batch, questions)
        outputs = model(batch.tokens, batch.states, tokens, temperature, value_index, asked)
        verdicts.update(_by_episode(batch, asked, outputs.verdict_logits))
        _scatter(log_probs, batch, outputs.log_probs)
        _scatter(values, batch, outputs.values[: len(tokens)])
        final_values[batch.episodes[batch.last[0]]] = outputs.values[len(tokens) :].to(dtype)
    with reference() as ref_model:
        for batch in (batch for batch in micro_batches if len(batch.states[0])):
            tokens = layout.token_ids[batch.episodes][batch.mask]
            asked = _questions_about(batch, ref_questions)
            hidden, verdict_logits = hidden_and_verdicts(ref_model, batch.tokens, asked)
            ref_verdicts.update(_by_episode(batch, asked, verdict_logits))
            states = hidden[batch.states]
            flat, _ = token_log_probs(ref_model, states, tokens, temperature, max_bytes=head_max_bytes)
            _scatter(ref_log_probs, batch, flat)
    return Evaluation(log_probs, ref_log_probs, values, final_values, verdicts, ref_verdicts)


def _questions_about(batch: MicroBatch, questions: Questionnaire | None) -> Questionnaire | None:
    return None if questions is None else questions.select(batch.episodes.tolist())


def _by_episode(batch: MicroBatch, asked: Questionnaire | None, logits: Tensor | None) -> dict[int, Tensor]:
    """Cuts the micro-batch's `(S, K)` verdicts into one `(T, K)` per episode."""
    if asked is None or logits is None:
        return {}
    counts = [tree.num_suffixes for tree in asked.trees if tree is not None]
    return dict(zip(batch.episodes.tolist(), logits.split(counts), strict=True))


def _scatter(target: Tensor, batch: MicroBatch, flat: Tensor) -> None:
    """Writes the micro-batch's flat action values `(N,)` to their places in the rollout's `(B, A)` tensor."""
    row, column = batch.mask.nonzero(as_tuple=True)
    target[batch.episodes[row], column] = flat.to(target.dtype)


@dataclass(frozen=True)
class UpdateTargets:
    """`(B, A)` tensors that the update regresses on; see [`TokenTargets`]."""

    advantages: Tensor
    returns: Tensor
    value_mask: Tensor

    def num_trained(self, batch: MicroBatch) -> Tensor:
        """`(2,)` action tokens, and values, that the micro-batch trains on."""
        return torch.stack([batch.mask.sum(), (self.value_mask[batch.episodes] & batch.mask).sum()]).float()

    def select(self, evaluation: Evaluation, batch: MicroBatch) -> TokenTargets:
        tensors = (
            evaluation.log_probs,
            evaluation.ref_log_probs,
            self.advantages,
            evaluation.values,
            self.returns,
            self.value_mask,
        )
        return TokenTargets(*(tensor[batch.episodes][batch.mask] for tensor in tensors))


@dataclass(frozen=True)
class UpdateSchedule:
    """Shape of an update: every epoch takes one optimizer step per mini-batch."""

    epochs: int
    mini_batches: int
    max_grad_norm: float | None


class StepHooks:
    """What the trainer wants to hear about; the default hears nothing."""

    def before_optimizer_step(self) -> None: ...

    def after_optimizer_step(self) -> None: ...

    def skipped_step(self, episodes: Sequence[int]) -> None:
        """A step was not taken, because loss or gradient were not finite.

        Args:
            episodes: indices of those that it was about.
        """


def split_mini_batches(
    micro_batches: Sequence[MicroBatch], count: int, rng: np.random.Generator
) -> Iterator[list[MicroBatch]]:
    """Shuffles the micro-batches and deals them into `count` mini-batches of nearly equal size."""
    order = rng.permutation(len(micro_batches))
    for group in np.array_split(order, min(count, len(micro_batches))):
        yield [micro_batches[i] for i in group]


def ppo_update(
    model: nn.Module,
    optimizer: Any,
    accelerator: Any,
    layout: ActionLayout,
    micro_batches: Sequence[MicroBatch],
    evaluation: Evaluation,
    targets: UpdateTargets,
    coefficients: PPOCoefficients,
    schedule: UpdateSchedule,
    temperature: float,
    rng: np.random.Generator,
    reduce: Reduce,
    hooks: StepHooks,
) -> dict[str, float]:
    """PPO epochs over the rollout: one optimizer step per mini-batch, gradients summed over its micro-batches.

    Losses are means over the mini-batch's tokens *of all processes*. A step whose gradient is not finite is not taken:
    it would spoil the weights, and the optimizer's averages for long after.

    Returns:
        `dict[str, float]`: means over the optimizer steps, their number under `"num_optimizer_steps"`, and under
        `"num_skipped_steps"` that of those which were not taken.
    """
    steps: list[dict[str, float]] = []
    skipped = 0
    for _ in range(schedule.epochs):
        for mini_batch in split_mini_batches(micro_batches, schedule.mini_batches, rng):
            counts = reduce(torch.stack([targets.num_trained(batch) for batch in mini_batch]).sum(0))
            losses = []
            for i, batch in enumerate(mini_batch):
                is_last = i + 1 == len(mini_batch)
                with nullcontext() if is_last else accelerator.no_sync(model):
                    loss = _micro_batch_loss(
                        model, layout, batch, evaluation, targets, coefficients, temperature, counts
                    )
                    # DistributedDataParallel averages gradients, the counts are sums over processes.
                    accelerator.backward(loss.total * accelerator.num_processes)
                losses.append(loss)
            hooks.before_optimizer_step()
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), schedule.max_grad_norm or math.inf)
            # Gradients have been averaged, so all processes see the same. With fp16 the loss scaler does the skipping.
            if getattr(accelerator, "scaler", None) is None and not math.isfinite(float(grad_norm)):
                optimizer.zero_grad()
                skipped += 1
                hooks.skipped_step(_suspects(mini_batch, losses))
                continue
            optimizer.step()
            optimizer.zero_grad()
            hooks.after_optimizer_step()
            steps.append(_step_metrics(losses, grad_norm if schedule.max_grad_norm else None))
    means = {name: float(np.mean([step[name] for step in steps])) for name in (steps[0] if steps else {})}
    if steps:
        means["val/ratio_max_deviation"] = max(step["val/ratio_max_deviation"] for step in steps)
    return {**means, "num_optimizer_steps": float(len(steps)), "num_skipped_steps": float(skipped)}


def _suspects(mini_batch: Sequence[MicroBatch], losses: Sequence[PPOLoss]) -> list[int]:
    """Episodes of the micro-batches whose loss is not finite; of all, where it is the gradient alone."""
    pairs = list(zip(mini_batch, losses, strict=True))
    bad = [batch for batch, loss in pairs if not math.isfinite(float(loss.total))] or list(mini_batch)
    return sorted({episode for batch in bad for episode in batch.episodes.tolist()})


def _micro_batch_loss(
    model: nn.Module,
    layout: ActionLayout,
    batch: MicroBatch,
    evaluation: Evaluation,
    targets: UpdateTargets,
    coefficients: PPOCoefficients,
    temperature: float,
    counts: Tensor,
) -> PPOLoss:
    tokens = layout.token_ids[batch.episodes][batch.mask]
    outputs = model(batch.tokens, batch.states, tokens, temperature, batch.states)
    num_tokens, num_values = (max(count, 1.0) for count in counts.tolist())
    return ppo_loss(
        outputs.log_probs,
        outputs.values.to(evaluation.values.dtype),
        outputs.entropy,
        targets.select(evaluation, batch),
        coefficients,
        num_tokens=num_tokens,
        num_values=num_values,
    )


def _step_metrics(losses: Sequence[PPOLoss], grad_norm: Any) -> dict[str, float]:
    """Metrics of one optimizer step; micro-batches are shares of the same mini-batch, so they add up."""
    names = {
        "loss/policy_avg": "policy",
        "loss/value_avg": "value",
        "policy/entropy_avg": "entropy",
        "policy/approxkl_avg": "approx_kl",
        "policy/clipfrac_avg": "policy_clip_fraction",
        "val/clipfrac_avg": "value_clip_fraction",
        "val/ratio": "ratio",
    }
    metrics = {metric: sum(float(getattr(loss, name)) for loss in losses) for metric, name in names.items()}
    metrics["val/ratio_max_deviation"] = max(float(loss.ratio_max_deviation) for loss in losses)
    if grad_norm is not None:
        metrics["grad_norm"] = float(grad_norm)
    return metrics
