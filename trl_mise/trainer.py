"""`MISETrainer`: TRL's PPOTrainer with multi-turn episodes and calibrated hindsight self-evaluation."""

import os
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import TrainOutput

from ._trl import PPOConfig, PPOTrainer, unwrap_model_for_generation
from .actor_critic import ActorCritic, ValueHead
from .advantages import (
    ActionLayout,
    action_layout,
    gae,
    per_turn,
    place_rewards,
    shaped_advantages,
    spread_over_tokens,
    sum_by_turn,
    whiten,
)
from .callback import CalibrationCallback, PhaseProgressCallback, UpdateRecord
from .chat import ChatFormat, PlainFormat, PromptFormat
from .config import MISEConfig
from .envs.base import EnvironmentFactory, TextEnv
from .envs.check import check_env
from .generation import Sampling, sample
from .heads import text_config
from .hindsight import DEFAULT_PROMPT, HindsightReward
from .losses import PPOCoefficients, kl_estimate
from .metrics import episode_metrics
from .rollout import RolloutLimits, collect_rollouts
from .single_turn import StepCutter, collect_responses, score_responses
from .tasks import TaskSampler
from .trajectory_log import TrajectoryLog
from .types import HindsightScores, Trajectory
from .update import (
    Evaluation,
    StepHooks,
    UpdateSchedule,
    UpdateTargets,
    build_targets,
    evaluate_rollout,
    make_micro_batches,
    ppo_update,
)

VALUE_HEAD_NAME = "value_head.safetensors"
VALUE_MODEL_DIR = "value_model"


class MISETrainer(PPOTrainer):
    """PPO for language model agents whose only reward comes at the end.

    The policy judges every step of its finished episodes in hindsight; the verdicts become dense rewards beside the
    environment's and are calibrated against the sparse returns (MISE, arXiv 2604.11611; the equations are in
    `docs/method.md`). Takes PPOTrainer's arguments, and:

    Args:
        args ([`MISEConfig`] or `PPOConfig`): a `PPOConfig` is upgraded.
        processing_class (`PreTrainedTokenizerBase`): with a chat template where episodes have several turns.
        model (`PreTrainedModel`): the policy.
        ref_model (`PreTrainedModel`, *optional*): reference policy; a copy of `model`, or the adapter switched off.
        reward_model (`nn.Module`, *optional*): not needed with an environment.
        train_dataset (`Dataset`): with an environment, a row is a task: `reset(seed=row.get("seed"), options=row)`;
            without one, a row holds a prompt's `input_ids`, as in PPOTrainer.
        value_model (`nn.Module`, *optional*): `None` trains a head on the policy's backbone.
        environment_factory (`Callable[[], TextEnv]`, *optional*): makes an environment; called once per slot.
        hindsight ([`HindsightReward`] or `False`, *optional*): reward wrapper in place of the one that `args`
            describes; `False` switches hindsight off.

    Without an environment and with hindsight off it *is* PPOTrainer, bit for bit.
    """

    _tag_names = ["trl", "ppo", "mise"]
    _name = "MISE"
    _paper = {
        "title": "Mutual Information Self-Evaluation",
        "id": "2604.11611",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{mise2026,
                title        = {{Mutual Information Self-Evaluation}},
                year         = 2026,
                eprint       = {arXiv:2604.11611}
            }"""),
    }

    def __init__(
        self,
        args: PPOConfig,
        processing_class: Any,
        model: nn.Module,
        ref_model: nn.Module | None = None,
        reward_model: nn.Module | None = None,
        train_dataset: Dataset | None = None,
        value_model: nn.Module | None = None,
        data_collator: Any = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        *,
        environment_factory: EnvironmentFactory | None = None,
        hindsight: HindsightReward | bool | None = None,
    ) -> None:
        config = args if isinstance(args, MISEConfig) else MISEConfig.from_ppo_config(args)
        self.environment_factory = environment_factory
        self.uses_hindsight = hindsight is not False and (
            hindsight.coef > 0 if isinstance(hindsight, HindsightReward) else bool(config.hindsight_coef)
        )
        self.is_plain_ppo = environment_factory is None and not self.uses_hindsight
        _check_arguments(config, processing_class, train_dataset, environment_factory, reward_model, self.is_plain_ppo)
        if environment_factory is not None:
            data_collator = data_collator or _rows_as_they_are
        with _mixed_precision(config, enabled=not self.is_plain_ppo):
            super().__init__(
                config,
                processing_class,
                model,
                ref_model,
                reward_model if reward_model is not None else nn.Identity(),
                train_dataset,
                value_model if value_model is not None or self.is_plain_ppo else _value_head(model, config.seed),
                data_collator,
                eval_dataset,
                optimizers,
                callbacks,
                peft_config,
            )
        if self.is_plain_ppo:
            return
        self._check_batches()
        self.chat: PromptFormat = self._prompt_format()
        self.hindsight = self._hindsight_reward(hindsight)
        self._finish_setup()

    # Construction

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Called by PPOTrainer right after it wrapped policy and value model; our wrapper takes its place."""
        if not self.is_plain_ppo:
            self.model = ActorCritic(
                self.policy_model, self.value_model, value_backbone_grad=self.args.value_backbone_grad
            )
        super().create_optimizer_and_scheduler(num_training_steps)

    def _prompt_format(self) -> PromptFormat:
        if self.environment_factory is not None:
            return ChatFormat(self.processing_class, self.args.system_prompt)
        has_template = getattr(self.processing_class, "chat_template", None) is not None
        return ChatFormat(self.processing_class) if has_template else PlainFormat(self.processing_class)

    def _hindsight_reward(self, hindsight: HindsightReward | bool | None) -> HindsightReward | None:
        if not self.uses_hindsight:
            return None
        if isinstance(hindsight, HindsightReward):
            return hindsight
        args = self.args
        return HindsightReward(
            self.chat,
            prompt=args.hindsight_prompt or DEFAULT_PROMPT,
            verdicts=args.hindsight_verdicts,
            utilities=args.hindsight_utilities,
            verdict_mode=args.verdict_mode,
            view=args.evaluator_view,
            evaluator=args.evaluator_model,
            coef=args.hindsight_coef,
            placement=args.hindsight_placement,
            method=args.scoring_method,
            max_tokens=args.scoring_max_tokens,
            ema=args.hindsight_ema,
            seed=args.seed,
        )

    def _finish_setup(self) -> None:
        args = self.args
        self.reward_model = None if isinstance(self.reward_model, nn.Identity) else self.reward_model
        # Our loop accumulates gradients itself; accelerate would divide the losses and skip optimizer steps.
        self.accelerator.gradient_accumulation_steps = 1
        # transformers reads this while saving; PPOTrainer never sets it.
        self.is_distributed_loading_by_transformers = getattr(self, "is_distributed_loading_by_transformers", False)
        self._restore_lora_dropout()
        if args.gradient_checkpointing:
            self.actor_critic.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs or {"use_reentrant": False}
            )
        self.is_turn_level = (args.gae_level or ("turn" if self.environment_factory else "token")) == "turn"
        self.kl_is_loss = (args.kl_placement or ("loss" if self.environment_factory else "reward")) == "loss"
        self._envs: list[TextEnv] = []
        self._window: dict[str, list[float]] = defaultdict(list)
        self._rng = np.random.default_rng([args.seed, self.accelerator.process_index])
        self._log_file: TrajectoryLog | None = None
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(PhaseProgressCallback())
        has_calibration = any(isinstance(cb, CalibrationCallback) for cb in self.callback_handler.callbacks)
        if self.hindsight is not None and not has_calibration:
            self.add_callback(self._default_calibration())
        if self.environment_factory is not None and args.check_environment:
            check_env(self.environment_factory, task=dict(self.train_dataset[0]))

    def _default_calibration(self) -> CalibrationCallback:
        args = self.args
        return CalibrationCallback(
            target=args.calibration_target,
            learning_rate=args.calibration_learning_rate,
            batch_size=args.calibration_batch_size,
            every=args.calibration_every,
            buffer_size=args.calibration_buffer_size,
            anchor_coef=args.calibration_anchor_coef,
            posthoc=args.posthoc_calibrator,
            max_tokens=args.scoring_max_tokens,
            seed=args.seed,
        )

    def _restore_lora_dropout(self) -> None:
        """PPOTrainer sets every dropout to 0; the one that the user asked for in `peft_config` stays."""
        if not self.is_peft_model:
            return
        for name, module in self.policy_model.named_modules():
            if isinstance(module, nn.Dropout) and ".lora_dropout." in name:
                module.p = self.policy_model.peft_config[name.rsplit(".", 1)[1]].lora_dropout

    def _check_batches(self) -> None:
        if self.train_dataset_len < self.args.batch_size:
            raise ValueError(
                f"train_dataset has {self.train_dataset_len} rows, fewer than one batch of {self.args.batch_size} "
                "episodes (per_device_train_batch_size x gradient_accumulation_steps x processes); give more rows or "
                "a smaller batch"
            )

    # What the loop stands on

    @property
    def actor_critic(self) -> ActorCritic:
        return self.accelerator.unwrap_model(self.model)

    @property
    def policy(self) -> nn.Module:
        """The unwrapped policy."""
        return self.actor_critic.policy

    @contextmanager
    def null_ref_context(self) -> Iterator[None]:
        """Switches the policy's adapter off, or to the reference adapter."""
        if self.is_plain_ppo:
            with super().null_ref_context():
                yield
            return
        policy: Any = self.policy
        if not self.ref_adapter_name:
            with policy.disable_adapter():
                yield
            return
        policy.set_adapter(self.ref_adapter_name)
        try:
            yield
        finally:
            policy.set_adapter(self.model_adapter_name or "default")

    @contextmanager
    def reference_policy(self) -> Iterator[nn.Module]:
        """The reference policy: a model of its own, or the policy without its adapter."""
        if self.ref_model is not None:
            yield self.ref_model
        else:
            with self.null_ref_context():
                yield self.policy

    def _evaluator(self) -> AbstractContextManager[nn.Module]:
        if self.hindsight is not None and self.hindsight.evaluator == "reference":
            return self.reference_policy()
        return _as_context(self.policy)

    def _reduce_sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _phase(self, name: str, detail: str = "") -> None:
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "on_phase"):
                callback.on_phase(name, detail)

    def _fire(self, event: str, **kwargs: Any) -> None:
        self.control = self.callback_handler.call_event(event, self.args, self.state, self.control, **kwargs)

    # The loop

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput | None:  # type: ignore[override]
        """Trains for `total_episodes` episodes; see the module's sentence: rollout, scores, rewards, update.

        Raises:
            EnvironmentFailure: the environment broke its contract; names the episode.
            EvaluatorFailure: the evaluator gave no readable verdict; names the episode.
        """
        if resume_from_checkpoint:
            raise NotImplementedError(
                "resume_from_checkpoint is not supported yet; start a new run from the saved model"
            )
        if self.is_plain_ppo:
            return super().train()
        start = time.time()
        for tasks in self._begin_training():
            self._begin_update()
            trajectories = self.collect(tasks)
            layout = action_layout(trajectories, self.accelerator.device)
            micro_batches = make_micro_batches(trajectories, layout, self._micro_batch_size, self._rng)
            evaluation = self.evaluate_tokens(layout, micro_batches)
            scores = self.score(trajectories)
            targets, reward_metrics = self.compute_targets(trajectories, layout, evaluation, scores)
            self._phase("update")
            update_metrics = self._update(layout, micro_batches, evaluation, targets)
            metrics = {**episode_metrics(trajectories), **reward_metrics, **update_metrics}
            self._end_update(trajectories, scores, metrics)
            if self.control.should_training_stop:
                break
        return self._end_training(start)

    def _begin_training(self) -> Iterator[list[dict[str, Any]]]:
        """Initialises state, seeds and callbacks; then yields each update's tasks."""
        args, state = self.args, self.state
        torch.manual_seed(self.local_seed)
        self._rng = np.random.default_rng([args.seed, self.accelerator.process_index])
        state.global_step, state.episode, state.max_steps = 0, 0, args.num_total_batches
        state.num_train_epochs = args.total_episodes / self.train_dataset_len
        state.compute_steps(args, state.max_steps)
        self.control.should_training_stop = False
        if args.log_trajectories and args.should_save:
            self._log_file = TrajectoryLog(os.path.join(args.output_dir, "trajectories.jsonl"))
        sampler = TaskSampler(self.train_dataset_len, args.batch_size, seed=args.seed)
        self._fire("on_train_begin")
        return self._batches(sampler)

    def _batches(self, sampler: TaskSampler) -> Iterator[list[dict[str, Any]]]:
        """Each update's rows of this process; fires the epoch events at the dataset's boundaries."""
        per_epoch = max(1, self.train_dataset_len // self.args.batch_size)
        for update in range(self.args.num_total_batches):
            if update % per_epoch == 0:
                self._fire("on_epoch_begin")
            rows = sampler.next_batch()[self.accelerator.process_index :: self.accelerator.num_processes]
            yield [dict(self.train_dataset[int(row)]) for row in rows]
            if (update + 1) % per_epoch == 0:
                self._fire("on_epoch_end")

    def _begin_update(self) -> None:
        self.state.episode += self.args.batch_size
        self._fire("on_step_begin")

    def _sampling(self, *, greedy: bool = False) -> Sampling:
        args = self.args
        stop_ids = self.chat.stop_token_ids if self.environment_factory else self._single_turn_stops()
        return Sampling(
            temperature=0.0 if greedy else args.temperature + 1e-7,
            max_new_tokens=args.max_new_tokens if self.environment_factory else args.response_length,
            stop_token_ids=stop_ids,
            batch_size=args.local_rollout_forward_batch_size,
        )

    def _single_turn_stops(self) -> tuple[int, ...]:
        return () if self.stop_token_id is None else (self.stop_token_id,)

    def collect(self, tasks: Sequence[Mapping[str, Any]], *, greedy: bool = False) -> list[Trajectory]:
        """Plays one episode per task (or, without an environment, samples one response per prompt)."""
        sampling, pad = self._sampling(greedy=greedy), self.processing_class.pad_token_id
        self._phase("evaluation" if greedy else "rollout")
        with (
            unwrap_model_for_generation(
                self.model, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
            ) as unwrapped,
            _eval_mode(unwrapped),
            self.accelerator.autocast(),
        ):

            def generate(contexts: Sequence[Sequence[int]]) -> list[list[int]]:
                return sample(unwrapped.policy, contexts, sampling, pad)

            if self.environment_factory is None:
                cutter = StepCutter(self.processing_class, self.args.step_delimiter)
                trajectories = collect_responses(tasks, self.data_collator, generate, cutter)
            else:
                trajectories = collect_rollouts(
                    tasks,
                    self._environments(min(self.args.num_envs, len(tasks))),
                    generate,
                    self.chat,
                    self._limits(),
                    on_progress=lambda done, total: self._phase(
                        "evaluation" if greedy else "rollout", f" {done}/{total} episodes"
                    ),
                )
        if self.environment_factory is None:
            trajectories = score_responses(
                trajectories,
                self.reward_model,
                self.accelerator.device,
                eos_token_id=self.processing_class.eos_token_id,
                missing_eos_penalty=self.args.missing_eos_penalty,
            )
        return trajectories

    def _environments(self, count: int) -> list[TextEnv]:
        assert self.environment_factory is not None
        while len(self._envs) < count:
            self._envs.append(self.environment_factory())
        return self._envs[:count]

    def _limits(self) -> RolloutLimits:
        args = self.args
        longest = getattr(text_config(self.policy), "max_position_embeddings", None) or args.max_episode_tokens
        return RolloutLimits(args.max_turns, args.max_new_tokens, min(args.max_episode_tokens, longest))

    @property
    def _micro_batch_size(self) -> int:
        return min(self.args.per_device_train_batch_size, self.args.local_mini_batch_size)

    def evaluate_tokens(self, layout: ActionLayout, micro_batches: Any) -> Evaluation:
        """Old and reference log-probabilities and values of the rollout's action tokens."""
        self._phase("evaluate")
        with _eval_mode(self.model), self.accelerator.autocast():
            return evaluate_rollout(self.model, self.reference_policy, layout, micro_batches, self.args.temperature)

    def score(self, trajectories: Sequence[Trajectory]) -> HindsightScores | None:
        """Hindsight verdicts on every step; `None` where hindsight is off."""
        if self.hindsight is None:
            return None
        self._phase("scoring")
        with self._evaluator() as evaluator, _eval_mode(self.model), self.accelerator.autocast():
            return self.hindsight.score(evaluator, trajectories)

    def compute_targets(
        self,
        trajectories: Sequence[Trajectory],
        layout: ActionLayout,
        evaluation: Evaluation,
        scores: HindsightScores | None,
    ) -> tuple[UpdateTargets, dict[str, float]]:
        """Rewards where they belong, then advantages and returns."""
        args, hindsight, device = self.args, self.hindsight, self.accelerator.device
        turn_rewards = per_turn([[turn.reward for turn in t.turns] for t in trajectories], layout)
        turn_scores = torch.zeros_like(turn_rewards)
        if hindsight is not None and scores is not None:
            turn_scores = per_turn([list(s) for s in scores.split(hindsight.normalise(scores))], layout)
            if hindsight.placement == "return":
                turn_rewards = turn_rewards + hindsight.coef * turn_scores
        rewards = place_rewards(turn_rewards, layout)
        kl = kl_estimate(evaluation.log_probs, evaluation.ref_log_probs, args.kl_estimator) * layout.mask
        if not self.kl_is_loss:
            rewards = rewards - args.kl_coef * kl
        if args.whiten_rewards:
            rewards = whiten(rewards, layout.mask, self._reduce_sum, shift_mean=False)
        truncated = torch.tensor([t.stop_reason.truncated for t in trajectories], device=device)
        bootstrap = evaluation.final_values * truncated
        advantages, returns = self._advantages(rewards, layout, evaluation, bootstrap)
        if hindsight is not None and hindsight.placement == "advantage":
            advantages = shaped_advantages(advantages, turn_scores, hindsight.coef, layout, self._reduce_sum)
        advantages = whiten(advantages, layout.mask, self._reduce_sum)
        targets = build_targets(layout, advantages, returns, "turn" if self.is_turn_level else "token")
        num_episodes = max(len(trajectories), 1)
        metrics = {
            "objective/kl": float(kl.sum()) / num_episodes,
            "objective/entropy": float(-(evaluation.log_probs * layout.mask).sum()) / num_episodes,
            "objective/scores": float(np.mean([t.episode_return for t in trajectories])),
        }
        return targets, metrics

    def _advantages(
        self, rewards: Tensor, layout: ActionLayout, evaluation: Evaluation, bootstrap: Tensor
    ) -> tuple[Tensor, Tensor]:
        """GAE over turns (one value per turn, at its state) or over action tokens; both as `(B, A)`."""
        gamma, lam = self.args.gamma, self.args.lam
        if not self.is_turn_level:
            return gae(rewards, evaluation.values, layout.mask, bootstrap, gamma=gamma, lam=lam)
        turn_values = evaluation.values.gather(1, layout.turn_first) * layout.turn_mask
        by_turn = gae(sum_by_turn(rewards, layout), turn_values, layout.turn_mask, bootstrap, gamma=gamma, lam=lam)
        advantages, returns = (spread_over_tokens(values, layout) for values in by_turn)
        return advantages, returns

    def _update(
        self, layout: ActionLayout, micro_batches: Any, evaluation: Evaluation, targets: UpdateTargets
    ) -> dict[str, float]:
        args = self.args
        self.model.train()
        return ppo_update(
            self.model,
            self.optimizer,
            self.accelerator,
            layout,
            micro_batches,
            evaluation,
            targets,
            PPOCoefficients(
                args.cliprange, args.cliprange_value, args.vf_coef, args.kl_coef if self.kl_is_loss else 0.0
            ),
            UpdateSchedule(args.num_ppo_epochs, args.num_mini_batches, args.max_grad_norm),
            args.temperature,
            self._rng,
            self._reduce_sum,
            _Hooks(self._fire),
        )

    def _end_update(
        self, trajectories: list[Trajectory], scores: HindsightScores | None, metrics: dict[str, float]
    ) -> None:
        """Calibration and flow control (callbacks), then logging, evaluation and saving as they asked."""
        state = self.state
        metrics["lr"] = self.lr_scheduler.get_last_lr()[0]
        metrics["episode"] = state.episode
        self.lr_scheduler.step()
        state.global_step += 1
        state.epoch = state.episode / self.train_dataset_len
        record = UpdateRecord(
            trajectories, scores, self.hindsight, self.policy, self.reference_policy, self.accelerator, metrics
        )
        self._phase("calibrate" if self.hindsight is not None else "finish")
        with _eval_mode(self.model):
            self._fire("on_step_end", update=record)
        if self._log_file is not None:
            self._log_file.write(state.global_step, trajectories, scores)
        self._log_window(record.metrics)
        if self.control.should_evaluate and self.eval_dataset is not None:
            self.evaluate()
        if self.control.should_save:
            self._save_checkpoint(self.model, trial=None)
            self._fire("on_save")
            self.control.should_save = False

    def _log_window(self, metrics: Mapping[str, float]) -> None:
        """Logs the means over all updates since the last log, averaged over processes."""
        latest = ("episode", "lr")
        for name, value in metrics.items():
            if name in latest:
                self._window[name] = [float(value)]
            else:
                self._window[name].append(float(value))
        if not self.control.should_log:
            return
        means = {name: float(np.mean(values)) for name, values in self._window.items()}
        if self.accelerator.num_processes > 1:
            by_rank = gather_object([means])
            names = [name for name in means if all(name in other for other in by_rank)]
            means = {name: float(np.mean([other[name] for other in by_rank])) for name in names}
        self._window.clear()
        self.log(means)
        self.control.should_log = False

    def _end_training(self, start: float) -> TrainOutput:
        self._fire("on_train_end")
        if self._log_file is not None:
            self._log_file.close()
        for env in self._envs:
            env.close()
        self._envs.clear()
        losses = [entry["loss/policy_avg"] for entry in self.state.log_history if "loss/policy_avg" in entry]
        metrics = {"train_runtime": time.time() - start, "train_episodes": float(self.state.episode)}
        return TrainOutput(self.state.global_step, float(np.mean(losses)) if losses else 0.0, metrics)

    # Evaluation

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Greedy episodes on `eval_dataset`: success, return, length, invalid-action rate.

        Args:
            eval_dataset (`Dataset`, *optional*): defaults to the trainer's.
            metric_key_prefix (`str`): prefix of the metrics' names.

        Returns:
            `dict[str, float]`: `eval_success`, `eval_return`, `eval_episode_length`, `eval_invalid_action_rate`, ...
        """
        if self.is_plain_ppo:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("evaluate() needs an eval_dataset: pass one here or to the trainer")
        if isinstance(dataset, dict):
            results: dict[str, float] = {}
            for name, part in dataset.items():
                results.update(self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}"))
            return results
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        rows = [dict(dataset[i]) for i in range(rank, len(dataset), ranks)]
        trajectories = self.collect(rows, greedy=True) if rows else []
        if ranks > 1:
            trajectories = gather_object(trajectories)
        named = {name.removeprefix("env/"): value for name, value in episode_metrics(trajectories).items()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in named.items()}
        metrics[f"{metric_key_prefix}_episodes"] = float(len(trajectories))
        self.log(dict(metrics))
        self._fire("on_evaluate", metrics=metrics)
        self.control.should_evaluate = False
        return metrics

    def generate_completions(self, sampling: bool = False) -> None:
        """PPOTrainer's sample table; with an environment the episodes are in `trajectories.jsonl`."""
        if self.is_plain_ppo:
            super().generate_completions(sampling)

    # Saving

    @contextmanager
    def _policy_as_model(self) -> Iterator[None]:
        """Inherited code that saves or describes `self.model` must see the policy, unwrapped."""
        wrapped = self.model
        self.model = self.policy
        try:
            yield
        finally:
            self.model = wrapped

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the policy (or its adapter), the tokenizer, and the value model beside it."""
        if self.is_plain_ppo:
            super().save_model(output_dir, _internal_call)
            return
        value_model = self.actor_critic.value_model
        with self._policy_as_model():
            super().save_model(output_dir, _internal_call)
        directory = output_dir or self.args.output_dir
        if not self.args.should_save:
            return
        if isinstance(value_model, ValueHead):
            safetensors.torch.save_file(value_model.state_dict(), os.path.join(directory, VALUE_HEAD_NAME))
        else:
            value_model.save_pretrained(os.path.join(directory, VALUE_MODEL_DIR))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        if self.is_plain_ppo:
            super().create_model_card(*args, **kwargs)
            return
        with self._policy_as_model():
            super().create_model_card(*args, **kwargs)


class _Hooks(StepHooks):
    """Passes the update's optimizer steps on to the callbacks."""

    def __init__(self, fire: Callable[[str], None]) -> None:
        self._fire = fire

    def before_optimizer_step(self) -> None:
        self._fire("on_pre_optimizer_step")

    def after_optimizer_step(self) -> None:
        self._fire("on_optimizer_step")


def _rows_as_they_are(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows


@contextmanager
def _as_context(model: nn.Module) -> Iterator[nn.Module]:
    yield model


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _value_head(model: nn.Module, seed: int) -> ValueHead:
    return ValueHead(text_config(model).hidden_size, seed)


@contextmanager
def _mixed_precision(config: MISEConfig, *, enabled: bool) -> Iterator[None]:
    """PPOTrainer makes its `Accelerator` without looking at `bf16` and `fp16`; accelerate reads this variable."""
    precision = "bf16" if config.bf16 else "fp16" if config.fp16 else "no"
    if not enabled:
        yield
        return
    known = AcceleratorState._shared_state.get("_mixed_precision")
    if known is not None and known != precision:
        AcceleratorState._reset_state()
    name = "ACCELERATE_MIXED_PRECISION"
    saved = os.environ.get(name)
    os.environ[name] = precision
    try:
        yield
    finally:
        if saved is None:
            del os.environ[name]
        else:
            os.environ[name] = saved


def _check_arguments(
    config: MISEConfig,
    processing_class: Any,
    train_dataset: Dataset | None,
    environment_factory: EnvironmentFactory | None,
    reward_model: nn.Module | None,
    is_plain_ppo: bool,
) -> None:
    """What PPOTrainer would only stumble over later, or never."""
    if train_dataset is None:
        raise ValueError("train_dataset is required: one row per task (environment) or per prompt")
    if getattr(processing_class, "pad_token_id", None) is None:
        raise ValueError(
            "processing_class has no pad token; set one, e.g. `processing_class.pad_token = processing_class.eos_token`"
        )
    if environment_factory is not None and not callable(environment_factory):
        raise ValueError(
            f"environment_factory must be a callable without arguments that makes an environment, got "
            f"{type(environment_factory).__name__}; e.g. environment_factory=lambda: MyEnv()"
        )
    if environment_factory is None and reward_model is None:
        raise ValueError(
            "reward_model is required without an environment: its score is the sparse return; or pass "
            "environment_factory="
        )
    if config.temperature <= 0 and not is_plain_ppo:
        raise ValueError(f"temperature must be positive for training, got {config.temperature}")
