"""Calibration and health, as Trainer callbacks."""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from .calibration import CalibrationExample, ReplayBuffer, make_calibrator
from .calibration_losses import anchor_loss, step_target_loss, sum_target_loss, verdict_log_odds
from .health import HealthMonitor, HealthThresholds, HindsightHealthWarning
from .hindsight import HindsightReward
from .live import LiveViewCallback
from .metrics import hindsight_metrics
from .packing import plan_batches
from .sharding import is_sharded
from .types import HindsightScores, StepCredit, Trajectory
from .writing import written_loss
from .written import balanced_advantages, calibration_rewards


@dataclass
class UpdateRecord:
    """What one update leaves behind; passed to every callback's `on_step_end` as `update=`.

    Args:
        trajectories (`list[Trajectory]`): episodes of this update.
        scores ([`HindsightScores`], *optional*): verdicts on their steps; `None` with `hindsight_coef=0`.
        hindsight ([`HindsightReward`], *optional*): the reward wrapper.
        policy (`nn.Module`): the unwrapped policy.
        reference: context manager that gives the reference policy.
        accelerator (`Accelerator`): the trainer's.
        number (`int`): counts the updates of the run, from 1.
        metrics (`dict[str, float]`): logged after the callbacks ran; they may add to it.
        reference_verdicts (`Mapping[int, Tensor]`): `(T, K)` verdict logits of the reference model, by the index of
            the episode, as far as they are known.
        agreement (`np.ndarray`): `(B,)` mean_t A_t^env n_t of each episode, see [`AgreementGate`]; may be empty.
        credit ([`StepCredit`], *optional*): what the steps were given to learn from.
        warnings (`list[str]`): what was said of this update; callbacks that come later may show or store it, and the
            trainer passes it on to those with an `on_event`.
    """

    trajectories: list[Trajectory]
    scores: HindsightScores | None
    hindsight: HindsightReward | None
    policy: nn.Module
    reference: Callable[[], AbstractContextManager[nn.Module]]
    accelerator: Any
    number: int
    metrics: dict[str, float] = field(default_factory=dict)
    reference_verdicts: Mapping[int, Tensor] = field(default_factory=dict)
    agreement: np.ndarray = field(default_factory=lambda: np.zeros(0))
    credit: StepCredit | None = None
    warnings: list[str] = field(default_factory=list)


class CalibrationCallback(TrainerCallback):
    """Regresses the verdicts toward the sparse returns after every update; it affects only the next update.

    Episodes come from a replay buffer, balanced between successes and failures: at 2% success an unbalanced regression
    only learns "bad". Before the first success (or the first failure) it does nothing.

    Args:
        target (`"sum"`, `"step"` or `"none"`): `"sum"`: BCE(sigmoid(c + sum_t z_t), R) with a learned c, which leaves
            credit between the steps free; `"step"`: every step's score toward R; `"none"`: only the post-hoc map.
        learning_rate (`float`, *optional*): defaults to a third of the trainer's.
        batch_size (`int`): episodes per step, at least 2; with several processes all of them see the same ones.
        every (`int`): calibrate after every n-th update.
        buffer_size (`int`): episodes kept.
        anchor_coef (`float`): weight of BCE(h_t, h_t^ref), the reference model's own verdicts.
        posthoc (`str`): `"identity"`, `"affine"`, `"platt"` or `"isotonic"`; see [`make_calibrator`].
        max_tokens (`int`, *optional*): most padded tokens of one forward pass with gradient.
        seed (`int`): of the sampling from the buffer.
    """

    def __init__(
        self,
        *,
        target: Literal["sum", "step", "none"] = "sum",
        learning_rate: float | None = None,
        batch_size: int = 32,
        every: int = 1,
        buffer_size: int = 512,
        anchor_coef: float = 1.0,
        posthoc: str = "identity",
        max_tokens: int | None = 16384,
        seed: int = 0,
    ) -> None:
        if target not in ("sum", "step", "none"):
            raise ValueError(f"calibration target={target!r} is unknown; choose 'sum', 'step' or 'none'")
        if every < 1:
            raise ValueError(f"calibration every={every} must be at least 1")
        if batch_size < 2:
            raise ValueError(f"calibration batch_size={batch_size} must be at least 2: one success and one failure")
        if not anchor_coef >= 0:
            raise ValueError(f"calibration anchor_coef={anchor_coef} must be at least 0; 0 switches the anchor off")
        self.target = target
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.every = every
        self.anchor_coef = anchor_coef
        self.max_tokens = max_tokens
        self.buffer = ReplayBuffer(buffer_size)
        self.posthoc = posthoc
        self.calibrator = make_calibrator(posthoc)
        self.rng = np.random.default_rng(seed)
        self.bias: Tensor | None = None  # c of the sum target
        self.optimizer: torch.optim.Optimizer | None = None
        self._optimizer_state: dict[str, Any] | None = None

    @classmethod
    def from_config(cls, config: Any) -> "CalibrationCallback":
        """The calibration that a [`MISEConfig`] describes, once the trainer has worked out its batch size."""
        return cls(
            target=config.calibration_target,
            learning_rate=config.calibration_learning_rate,
            batch_size=config.calibration_batch_size or min(32, max(4, config.batch_size // 4)),
            every=config.calibration_every,
            buffer_size=config.calibration_buffer_size,
            anchor_coef=config.calibration_anchor_coef,
            posthoc=config.posthoc_calibrator,
            max_tokens=config.scoring_max_tokens,
            seed=config.seed,
        )

    def on_step_end(
        self, args: Any, state: Any, control: Any, update: UpdateRecord | None = None, **kwargs: Any
    ) -> None:
        """Adds the update's episodes to the buffer, calibrates, and adds `calibration/*` and verdict metrics."""
        if update is None or update.scores is None or update.hindsight is None:
            return
        hindsight = update.hindsight
        update.metrics.update(hindsight_metrics(update.scores, update.trajectories, hindsight.utilities))
        self._move_gate(update, hindsight)
        if self._regresses(hindsight) and is_sharded(update.policy):
            raise ValueError(
                f"calibration_target={self.target!r} takes steps with the policy's own parameters, but these are "
                "shared out between processes (FSDP); set calibration_target='none' (posthoc_calibrator and the gate "
                "go on), or train an adapter data parallel (examples/accelerate/ddp.yaml)"
            )
        is_due = update.number % self.every == 0
        if hindsight.writes:
            if is_due and self._regresses(hindsight):
                update.metrics.update(self._reward_writing(args, update))
            return
        reference = {i: _expected(logits, hindsight) for i, logits in update.reference_verdicts.items()}
        episodes = enumerate(zip(update.trajectories, update.scores.split(), strict=True))
        examples = [CalibrationExample(trajectory, scores, reference.get(i)) for i, (trajectory, scores) in episodes]
        if update.accelerator.num_processes > 1:
            # With the same buffer everywhere, either all processes take a step or none does; else one would wait.
            examples = gather_object(examples)
        self.buffer.add(examples)
        if is_due:
            if self._regresses(hindsight):
                update.metrics.update(self._regress(args, update))
            self._refit(hindsight)

    @staticmethod
    def _move_gate(update: UpdateRecord, hindsight: HindsightReward) -> None:
        """Logs what patience and the gate let through in this update, and moves the gate for the next one."""
        if hindsight.patience is not None:
            update.metrics["hindsight/held"] = float(hindsight.patience.holds)
        gate = hindsight.gate
        if gate is None:
            return
        update.metrics["hindsight/gate"] = hindsight.let_through
        agreement = update.agreement.tolist()
        if update.accelerator.num_processes > 1:
            agreement = gather_object(agreement)
        gate.update(np.asarray(agreement))
        update.metrics["hindsight/agreement_z"] = gate.z

    def attach(self, hindsight: HindsightReward) -> None:
        """Gives the judge its post-hoc map back, if it had been fitted when the state that was loaded was saved."""
        if self.calibrator.state_dict() != make_calibrator(self.posthoc).state_dict():
            hindsight.calibrator = self.calibrator

    def _regresses(self, hindsight: HindsightReward) -> bool:
        """A frozen judge, or one that is no language model, is only corrected by the post-hoc map."""
        return self.target != "none" and hindsight.evaluator == "policy" and hindsight.asks_a_model

    def is_anchored(self, hindsight: HindsightReward | None) -> bool:
        """Whether it will want the reference model's verdicts on the episodes of an update."""
        return hindsight is not None and self._regresses(hindsight) and self.anchor_coef > 0

    def _regress(self, args: Any, update: UpdateRecord) -> dict[str, float]:
        batch = self.buffer.sample_balanced(self.batch_size, self.rng)
        update.metrics["calibration/buffer_size"] = float(len(self.buffer))
        if not batch:
            return {"calibration/skipped": 1.0}
        hindsight = update.hindsight
        assert hindsight is not None
        optimizer, bias = self._optimizer(args, update.policy)
        if self.anchor_coef > 0:
            batch = self._with_reference_scores(batch, update)
        optimizer.zero_grad()
        metrics: dict[str, float] = {}
        for part in _split_by_tokens(batch, hindsight, self.max_tokens):
            # Means over episodes and (the anchor) over steps, so that the parts add up to the whole batch's means.
            shares = {"loss": len(part) / len(batch), "anchor": _num_steps(part) / _num_steps(batch)}
            with update.accelerator.autocast():
                losses = self._losses(part, update, bias)
            losses = {name: shares[name] * loss for name, loss in losses.items()}
            sum(losses.values(), torch.zeros((), device=bias.device)).backward()
            for name, loss in losses.items():
                metrics[f"calibration/{name}"] = metrics.get(f"calibration/{name}", 0.0) + float(loss.detach())
        if not self._step(optimizer, args, update.accelerator):
            return {"calibration/skipped": 1.0}
        return {**metrics, "calibration/bias": float(bias.detach())}

    def _reward_writing(self, args: Any, update: UpdateRecord) -> dict[str, float]:
        """One PPO step on the evaluations of this update, rewarded for agreeing with the returns."""
        scores, hindsight = update.scores, update.hindsight
        assert scores is not None and hindsight is not None and self.target != "none"
        returns = [trajectory.episode_return for trajectory in update.trajectories]
        won = np.array([trajectory.success for trajectory in update.trajectories], dtype=bool)
        utilities = scores.split()
        rewards = calibration_rewards(utilities, np.array(_to_unit(returns, returns)), self.target)
        chosen = self._some_of_each(won & np.array([np.isfinite(u).any() for u in utilities], dtype=bool), ~won)
        advantages = balanced_advantages([rewards[i] for i in chosen], won[chosen]) if len(chosen) else []
        written = scores.split_written()
        pairs = [
            (evaluation, float(advantage))
            for i, of_episode in zip(chosen, advantages, strict=True)
            for evaluation, advantage, reward in zip(written[i], of_episode, rewards[i], strict=True)
            if np.isfinite(reward)
        ]
        shared = update.accelerator.num_processes > 1
        if not any(gather_object([bool(pairs)]) if shared else [bool(pairs)]):
            return {"calibration/skipped": 1.0}
        optimizer, _ = self._optimizer(args, update.policy)
        optimizer.zero_grad()
        metrics = {"calibration/reward": float(np.nanmean(np.concatenate(rewards)))} if rewards else {}
        if pairs:
            with update.accelerator.autocast():
                loss, parts = written_loss(
                    update.policy,
                    update.reference(),
                    [written for written, _ in pairs],
                    np.array([advantage for _, advantage in pairs]),
                    temperature=hindsight.writing.temperature or 1.0,
                    cliprange=args.cliprange,
                    kl_coef=args.kl_coef,
                    max_tokens=self.max_tokens,
                )
            loss.backward()
            metrics.update({"calibration/loss": parts["policy"], "calibration/kl": parts["kl"]})
        return metrics if self._step(optimizer, args, update.accelerator) else {"calibration/skipped": 1.0}

    def _some_of_each(self, won: np.ndarray, lost: np.ndarray) -> np.ndarray:
        """Indices of at most `batch_size // 2` episodes of each class; empty while one is missing."""
        classes = [np.flatnonzero(flags) for flags in (won, lost)]
        if min(map(len, classes)) == 0:
            return np.zeros(0, dtype=int)
        size = self.batch_size // 2
        return np.concatenate([self.rng.permutation(indices)[:size] for indices in classes])

    def _losses(self, batch: list[CalibrationExample], update: UpdateRecord, bias: Tensor) -> dict[str, Tensor]:
        hindsight = update.hindsight
        assert hindsight is not None
        trajectories = [example.trajectory for example in batch]
        logits = hindsight.verdict_logits(update.policy, trajectories, requires_grad=True).logits.float()
        z = verdict_log_odds(logits, torch.as_tensor(hindsight.utilities, dtype=logits.dtype, device=logits.device))
        counts = torch.tensor([example.trajectory.num_steps for example in batch], device=z.device)
        episode = torch.arange(len(batch), device=z.device).repeat_interleave(counts)
        returns = torch.tensor(self._unit_returns(batch), dtype=z.dtype, device=z.device)
        if self.target == "sum":
            losses = {"loss": sum_target_loss(z, episode, returns, bias.to(z.dtype))}
        else:
            losses = {"loss": step_target_loss(z, episode, returns)}
        if self.anchor_coef > 0:
            known = [e.reference_scores for e in batch if e.reference_scores is not None]
            reference = torch.as_tensor(np.concatenate(known), dtype=z.dtype, device=z.device)
            losses["anchor"] = self.anchor_coef * anchor_loss(z, reference)
        return losses

    def _with_reference_scores(
        self, batch: list[CalibrationExample], update: UpdateRecord
    ) -> list[CalibrationExample]:
        """Asks the reference model about episodes that it has not judged yet; the buffer remembers its verdicts."""
        hindsight = update.hindsight
        assert hindsight is not None
        fresh = list({id(e): e for e in batch if e.reference_scores is None}.values())
        if fresh:
            with update.reference() as reference, update.accelerator.autocast():
                probs = hindsight.verdict_probs(reference, [example.trajectory for example in fresh])
            ends = np.cumsum([example.trajectory.num_steps for example in fresh])[:-1]
            replaced = self.buffer.set_reference_scores(fresh, np.split(probs @ hindsight.utilities, ends))
            return [replaced.get(id(example), example) for example in batch]
        return batch

    def _unit_returns(self, batch: list[CalibrationExample]) -> list[float]:
        """Returns in [0, 1], as the cross entropy needs them; other ranges are mapped by the buffer's extremes."""
        known = [example.episode_return for example in self.buffer.examples]
        return _to_unit([example.episode_return for example in batch], known)

    def _optimizer(self, args: Any, policy: nn.Module) -> tuple[torch.optim.Optimizer, Tensor]:
        if self.optimizer is None or self.bias is None:
            parameters = [p for p in policy.parameters() if p.requires_grad]
            start = torch.zeros((), device=parameters[0].device) if self.bias is None else self.bias
            self.bias = nn.Parameter(start.detach().to(parameters[0].device))
            learning_rate = args.learning_rate / 3 if self.learning_rate is None else self.learning_rate
            self.optimizer = torch.optim.Adam([*parameters, self.bias], lr=learning_rate)
            if self._optimizer_state is not None:
                self.optimizer.load_state_dict(self._optimizer_state)
                self._optimizer_state = None
        return self.optimizer, self.bias

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, args: Any, accelerator: Any) -> bool:
        """Whether a step was taken: not with a gradient that is not finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if accelerator.num_processes > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
        norm = torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm or float("inf"))
        is_finite = bool(norm.isfinite())
        if is_finite:
            optimizer.step()
        # The PPO update accumulates into the same gradients.
        optimizer.zero_grad()
        return is_finite

    def _refit(self, hindsight: HindsightReward) -> None:
        """Refits the post-hoc map g on (h_t, R) of the buffer's episodes, balanced by outcome."""
        if self.posthoc == "identity":
            return
        batch = self.buffer.sample_balanced(max(2, len(self.buffer)), self.rng)
        if batch:
            returns = self._unit_returns(batch)
            per_step = np.concatenate([np.full(len(e.scores), r) for e, r in zip(batch, returns, strict=True)])
            self.calibrator.fit(np.concatenate([e.scores for e in batch]), per_step)
            hindsight.calibrator = self.calibrator

    def save_state(self, directory: str) -> None:
        """Writes the buffer, the post-hoc map, c, the generator and the optimizer into a checkpoint folder.

        The trainer calls it for every checkpoint, as the `save_state` of any callback that has one.
        """
        os.makedirs(directory, exist_ok=True)
        payload = {
            "buffer": self.buffer.state_dict(),
            "posthoc": self.posthoc,
            "calibrator": self.calibrator.state_dict(),
            "bias": None if self.bias is None else float(self.bias.detach()),
            "rng": self.rng.bit_generator.state,
        }
        with open(os.path.join(directory, "calibration.json"), "w", encoding="utf-8") as file:
            json.dump(payload, file)
        if self.optimizer is not None:
            torch.save(self.optimizer.state_dict(), os.path.join(directory, "calibration_optimizer.pt"))

    def load_state(self, directory: str) -> None:
        """Restores what [`save_state`] wrote.

        Raises:
            FileNotFoundError: the folder holds no calibration state.
            ValueError: it was written with another post-hoc map.
        """
        with open(os.path.join(directory, "calibration.json"), encoding="utf-8") as file:
            payload = json.load(file)
        if payload["posthoc"] != self.posthoc:
            raise ValueError(
                f"{directory} was written with posthoc_calibrator={payload['posthoc']!r}, this callback has "
                f"{self.posthoc!r}; construct it with the same map"
            )
        self.buffer.load_state_dict(payload["buffer"])
        self.calibrator.load_state_dict(payload["calibrator"])
        self.bias = None if payload["bias"] is None else torch.tensor(payload["bias"])
        self.rng.bit_generator.state = payload["rng"]
        self.optimizer = None
        path = os.path.join(directory, "calibration_optimizer.pt")
        self._optimizer_state = (
            torch.load(path, map_location="cpu", weights_only=True) if os.path.exists(path) else None
        )


class HealthCallback(TrainerCallback):
    """Gives a [`HindsightHealthWarning`] where the judge seems to fail; changes nothing.

    Args:
        thresholds ([`HealthThresholds`], *optional*): when something counts as ill.
    """

    def __init__(self, thresholds: HealthThresholds | None = None) -> None:
        self.monitor = HealthMonitor(thresholds)

    def save_state(self, directory: str) -> None:
        """Writes what the monitor remembers into a checkpoint folder."""
        with open(os.path.join(directory, "health.json"), "w", encoding="utf-8") as file:
            json.dump(self.monitor.state_dict(), file)

    def load_state(self, directory: str) -> None:
        """Restores what [`save_state`] wrote."""
        with open(os.path.join(directory, "health.json"), encoding="utf-8") as file:
            self.monitor.load_state_dict(json.load(file))

    def on_step_end(
        self, args: Any, state: Any, control: Any, update: UpdateRecord | None = None, **kwargs: Any
    ) -> None:
        """Looks at the update's metrics and verdicts; on the main process."""
        if update is None or update.scores is None or not state.is_world_process_zero:
            return
        scores = update.scores.episode_scores
        won = np.array([trajectory.success for trajectory in update.trajectories], dtype=bool)
        judged = np.isfinite(scores)
        for message in self.monitor.update(update.metrics, scores[judged], won[judged]):
            update.warnings.append(message)
            warnings.warn(f"update {state.global_step}: {message}", HindsightHealthWarning, stacklevel=2)


def call_hooks(callbacks: Sequence[TrainerCallback], name: str, *values: Any) -> None:
    """Calls the method of this name of all callbacks that have one.

    Beside transformers' events the trainers know `on_phase(phase, detail)`, when a part of an update begins or gets
    on; `on_event(kind, message, update)`, when there is something to be told (`"health"`, `"skipped"`); `on_open()`,
    when an evaluation outside of a run begins; `on_failure(error)`, when an error ends a run; and `on_close()`, when
    a run, or an evaluation outside of one, is over, however it ended.
    """
    for callback in callbacks:
        hook = getattr(callback, name, None)
        if callable(hook):
            hook(*values)


@contextmanager
def warnings_told(callbacks: Sequence[TrainerCallback], record: UpdateRecord) -> Iterator[None]:
    """Passes on to `on_event` what callbacks say of an update within.

    Also where a filter makes an error of a warning: then it is what ended the run.
    """
    try:
        yield
    finally:
        for message in record.warnings:
            call_hooks(callbacks, "on_event", "health", message, record.number)


def stateful_callbacks(callbacks: Sequence[TrainerCallback]) -> list[Any]:
    """Those with something to keep in a checkpoint: `save_state(directory)` and `load_state(directory)`."""
    return [
        callback
        for callback in callbacks
        if callable(getattr(callback, "save_state", None)) and callable(getattr(callback, "load_state", None))
    ]


def load_callbacks(callbacks: Sequence[TrainerCallback], directory: str, hindsight: HindsightReward | None) -> None:
    """Restores what they kept; the judge gets its post-hoc map back."""
    for callback in stateful_callbacks(callbacks):
        callback.load_state(directory)
        if isinstance(callback, CalibrationCallback) and hindsight is not None:
            callback.attach(hindsight)


def _expected(logits: Tensor, hindsight: HindsightReward) -> np.ndarray:
    """`(T, K)` verdict logits -> `(T,)` expected verdicts."""
    return logits.double().softmax(-1).cpu().numpy() @ hindsight.utilities


def _to_unit(returns: Sequence[float], known: Sequence[float]) -> list[float]:
    """Returns mapped to [0, 1] where the extremes of the known ones leave it."""
    low, high = min([0.0, *known]), max([1.0, *known])
    return [(value - low) / (high - low) for value in returns]


def _num_steps(batch: list[CalibrationExample]) -> int:
    return sum(example.trajectory.num_steps for example in batch)


def _split_by_tokens(
    batch: list[CalibrationExample], hindsight: HindsightReward, max_tokens: int | None
) -> list[list[CalibrationExample]]:
    """Parts that go through the model together: padded trajectories and questions within `max_tokens` where one is."""
    if max_tokens is None:
        return [batch]
    lengths = [row.packed_length for row in hindsight.questions([example.trajectory for example in batch])]
    return [[batch[i] for i in part] for part in plan_batches(lengths, max_tokens)]


PhaseProgressCallback = LiveViewCallback
"""Its name when it was a progress bar."""
