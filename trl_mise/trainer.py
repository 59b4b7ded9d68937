"""`MISETrainer`: TRL's PPOTrainer with multi-turn episodes and calibrated hindsight self-evaluation."""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from ._trl import unwrap_model_for_generation
from .actor_critic import ValueHead
from .advantages import ActionLayout, action_layout
from .backends import BACKENDS, GenerationBackend, TransformersBackend
from .callback import CalibrationCallback, HealthCallback, UpdateRecord, call_hooks, warnings_told
from .card_texts import PAPER
from .chat import ChatFormat, PlainFormat, PromptFormat
from .checks import check_arguments, check_batch
from .config import MISEConfig
from .drift import sampling_drift
from .envs.base import EnvironmentFactory, EnvironmentFailure
from .envs.check import check_env
from .envs.pool import EnvironmentPool
from .generation import Sampling
from .heads import context_limit, eval_mode, text_config
from .hindsight import HindsightReward, NonFiniteVerdicts, coef_of
from .live import show_live
from .losses import PPOCoefficients
from .metrics import episode_metrics
from .micro_batches import MicroBatch, idle_micro_batches, last_state_batches, make_micro_batches
from .ppo import TRL_HAS_PPO, PPOConfig
from .ppo_base import mixed_precision
from .processes import from_all
from .resume import ResumableTrainer
from .rollout import Generate, RolloutLimits, collect_rollouts
from .run_record import PhaseTimer, RunFacts, RunRecorder
from .scorers import Questionnaire
from .sharding import gathered
from .single_turn import StepCutter, collect_responses, score_responses
from .targets import TargetOptions, TargetResult, compute_targets
from .tasks import TaskSampler
from .trackers import track_episodes
from .trajectory_log import EPISODES_NAME, EVALUATIONS_NAME, TrajectoryLog
from .types import HindsightScores, StepCredit, Trajectory
from .update import (
    Evaluation,
    StepHooks,
    UpdateSchedule,
    UpdateTargets,
    evaluate_rollout,
    ppo_update,
)
from .vllm_backend import VLLMBackend


class NonFiniteUpdate(RuntimeError):
    """Loss, gradient or verdicts were not finite, too often in a row; names the episodes."""


class MISETrainer(ResumableTrainer):
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
        generation_backend ([`GenerationBackend`], *optional*): an engine of your own that samples the actions, in
            place of the one that `args` names.

    Without an environment and with hindsight off it *is* PPOTrainer, bit for bit, where TRL has one (before 1.13).
    """

    _tag_names = ["trl", "ppo", "mise"]
    _name = "MISE"
    _paper = PAPER

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
        generation_backend: GenerationBackend | None = None,
    ) -> None:
        config = args if isinstance(args, MISEConfig) else MISEConfig.from_ppo_config(args)
        self.environment_factory = environment_factory
        self.uses_hindsight = coef_of(hindsight, config) > 0
        self.is_plain_ppo = TRL_HAS_PPO and environment_factory is None and not self.uses_hindsight
        if not self.is_plain_ppo:
            check_arguments(config, processing_class, train_dataset, environment_factory, reward_model)
            reward_model = nn.Identity() if reward_model is None else reward_model
            if value_model is None:
                value_model = ValueHead(text_config(model).hidden_size, config.seed)
        if environment_factory is not None and data_collator is None:
            data_collator = _rows_as_they_are
        with mixed_precision(config, enabled=not self.is_plain_ppo):
            super().__init__(
                config,
                processing_class,
                model,
                ref_model,
                reward_model,
                train_dataset,
                value_model,
                data_collator,
                eval_dataset,
                optimizers,
                callbacks,
                peft_config,
            )
        if not self.is_plain_ppo:
            self._set_up(hindsight, generation_backend)

    # Construction

    def _set_up(self, hindsight: HindsightReward | bool | None, generation_backend: GenerationBackend | None) -> None:
        args = self.args
        check_batch(self.train_dataset_len, args.batch_size)
        has_environment = self.environment_factory is not None
        self.chat: PromptFormat = self._prompt_format()
        self.hindsight: HindsightReward | None = self._hindsight_reward(hindsight)
        self.generation_backend = generation_backend or self._named_backend()
        self._repair()
        self._turn_level = (args.gae_level or ("turn" if has_environment else "token")) == "turn"
        self._kl_is_loss = (args.kl_placement or ("loss" if has_environment else "reward")) == "loss"
        self._environments: EnvironmentPool | None = self._environment_pool()
        self._logs: dict[str, TrajectoryLog] = {}
        self._evaluated_before: dict[str, list[Trajectory]] = {}
        self._in_session = self._has_trained = False
        self._skipped_steps = 0
        self._is_blocked = False
        calibrates = any(isinstance(callback, CalibrationCallback) for callback in self.callback_handler.callbacks)
        if self.hindsight is not None and not calibrates:
            self.add_callback(CalibrationCallback.from_config(args))
        if self.hindsight is not None and args.health_warnings:
            # After the calibration, whose metrics it looks at.
            self.add_callback(HealthCallback())
        track_episodes(self)
        show_live(self)
        # After all that takes time at the end of an update.
        self.add_callback(PhaseTimer())
        self.add_callback(RunRecorder(RunFacts.of(self, self.policy, self.environment_factory, args.batch_size)))
        if self._environments is not None and args.check_environment:
            try:
                check_env(self._environments.factory, task=dict(self.train_dataset[0]))
            finally:
                self._environments.close()

    def _environment_pool(self) -> EnvironmentPool | None:
        args = self.args
        if self.environment_factory is None:
            return None
        return EnvironmentPool(
            self.environment_factory,
            isolation=args.env_isolation,
            envs_per_worker=args.envs_per_worker,
            timeout=args.env_timeout,
            reset_timeout=args.env_reset_timeout,
        )

    def _prompt_format(self) -> PromptFormat:
        has_environment = self.environment_factory is not None
        if not has_environment and getattr(self.processing_class, "chat_template", None) is None:
            return PlainFormat(self.processing_class)
        template_kwargs: Any = self.args.chat_template_kwargs
        system_prompt = self.args.system_prompt if has_environment else None
        return ChatFormat(self.processing_class, system_prompt, template_kwargs)

    def _hindsight_reward(self, hindsight: HindsightReward | bool | None) -> HindsightReward | None:
        if not self.uses_hindsight:
            return None
        reward = (
            hindsight if isinstance(hindsight, HindsightReward) else HindsightReward.from_config(self.chat, self.args)
        )
        if self.args.history_window is not None and reward.context_tokens is None:
            # No context needs to hold the whole episode, and so the evaluator's may not either.
            reward.context_tokens = self._limits().max_episode_tokens
        return reward

    def _named_backend(self) -> GenerationBackend:
        name = self.args.generation_backend
        if name == "transformers":
            return TransformersBackend(keep_cache=self.args.rollout_keep_cache)
        if name == "vllm":
            return VLLMBackend(
                self.policy,
                self.accelerator,
                self.processing_class,
                base_url=self.args.vllm_server_base_url,
                host=self.args.vllm_server_host,
                port=self.args.vllm_server_port,
                timeout=self.args.vllm_server_timeout,
                group_port=self.args.vllm_group_port,
            )
        return BACKENDS[name]()

    # The loop

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput | None:
        """Trains for `total_episodes` episodes.

        SIGTERM lets the update end, saves a checkpoint and leaves with status 143.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): go on from this checkpoint folder, or (`True`) from
                the newest whole one in `output_dir`, as if the run had never been interrupted: the same weights, to
                the last bit on a CPU. Make the trainer as for the first run, with the model that *it* began with.

        Returns:
            `TrainOutput`: steps, mean policy loss, runtime (`None` where it is plain PPOTrainer, as there).

        Raises:
            CheckpointError: there is no whole checkpoint, or it is of another run; or one could not be written.
            EnvironmentFailure: more than `max_env_error_rate` of a batch's episodes failed; names the first one.
            EvaluatorFailure: the evaluator gave no readable verdict; names the episode.
        """
        if self.is_plain_ppo:
            if resume_from_checkpoint:
                raise NotImplementedError(
                    "resume_from_checkpoint: without an environment and hindsight TRL's own PPOTrainer does the "
                    "training, and it cannot resume; start a new run from a saved model"
                )
            return super().train()
        start = time.time()
        with self._finish_on_sigterm(), self._session(self._find_checkpoint(resume_from_checkpoint)) as batches:
            for tasks in batches:
                episodes = self.collect(tasks)
                trajectories = self.without_failures(episodes)
                self._played = trajectories
                layout = action_layout(trajectories, self.accelerator.device)
                micro_batches = self._micro_batches(trajectories, layout)
                evaluation = self.evaluate_tokens(trajectories, layout, micro_batches)
                scores = self.score(trajectories, evaluation)
                targets = self.targets(trajectories, layout, evaluation, scores)
                update_metrics = self.update(layout, micro_batches, evaluation, targets.update)
                metrics = {**episode_metrics(episodes), **targets.metrics, **update_metrics}
                failed = [t for t in episodes if t.failed]
                self._end_update(trajectories, scores, evaluation, targets, metrics, failed)
        self._finish_current_push()
        losses = [entry["loss/policy_avg"] for entry in self.state.log_history if "loss/policy_avg" in entry]
        runtime = {"train_runtime": time.time() - start, "train_episodes": float(self.state.episode)}
        return TrainOutput(self.state.global_step, float(np.mean(losses)) if losses else 0.0, runtime)

    @contextmanager
    def _session(self, checkpoint: Path | None) -> Iterator[Iterator[list[dict[str, Any]]]]:
        """Seeds, state and callbacks around a run; gives the batches of tasks, and closes what was opened."""
        args = self.args
        torch.manual_seed(self.local_seed)
        self._rng = np.random.default_rng([args.seed, self.accelerator.process_index])
        self._sampler = TaskSampler(self.train_dataset_len, args.batch_size, seed=args.seed)
        self.state.global_step, self.state.episode = 0, 0
        log_bytes: Mapping[str, int] = {}
        if checkpoint is not None:
            log_bytes = self._restore(checkpoint)
        state = self.state
        state.max_steps = args.num_total_batches
        state.num_train_epochs = args.total_episodes / self.train_dataset_len
        state.compute_steps(args, state.max_steps)
        self.control.should_training_stop = False
        self._open_logs(log_bytes)
        self._in_session = self._has_trained = True
        try:
            self._fire("on_train_begin")
            if checkpoint is not None:
                self._restore_random_states(checkpoint)
            yield self._batches()
            self._fire("on_train_end")
        except BaseException as error:
            call_hooks(self.callback_handler.callbacks, "on_failure", error)
            raise
        finally:
            self._close()

    def _open_logs(self, keep_bytes: Mapping[str, int]) -> None:
        """The episodes' files of a new run, or of one that goes on."""
        args = self.args
        if not (args.log_trajectories and args.should_save):
            return
        for name in (EPISODES_NAME, EVALUATIONS_NAME):
            self._logs[name] = TrajectoryLog(os.path.join(args.output_dir, name), keep_bytes.get(name))
        if EVALUATIONS_NAME not in keep_bytes:
            for prefix, trajectories in self._evaluated_before.items():
                self._logs[EVALUATIONS_NAME].write(0, trajectories, None, split=prefix)
        self._evaluated_before.clear()

    def _close(self) -> None:
        self._in_session = False
        while self._logs:
            self._logs.popitem()[1].close()
        try:
            call_hooks(self.callback_handler.callbacks, "on_close")
        finally:
            if self._environments is not None:
                self._environments.close()

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        """This process's rows of each update, until the end or until a callback stops the training."""
        per_epoch = max(1, self.train_dataset_len // self.args.batch_size)
        for update in range(self.state.global_step, self.args.num_total_batches):
            if update % per_epoch == 0:
                self._fire("on_epoch_begin")
            self.state.episode += self.args.batch_size
            self._fire("on_step_begin")
            rows = self._sampler.next_batch()[self.accelerator.process_index :: self.accelerator.num_processes]
            yield [dict(self.train_dataset[int(row)]) for row in rows]
            stops = self.control.should_training_stop or update + 1 == self.args.num_total_batches
            if stops or (update + 1) % per_epoch == 0:
                self._fire("on_epoch_end")
                self._follow_control({})
            if self.control.should_training_stop:
                return

    # The stages

    def collect(self, tasks: Sequence[Mapping[str, Any]], *, greedy: bool = False) -> list[Trajectory]:
        """Plays one episode per task; without an environment, samples one response per prompt and has it scored."""
        phase = "evaluation" if greedy else "rollout"
        self._phase(phase)
        with self._generator(greedy=greedy) as generate:
            if not tasks:
                return []  # but it was there when the processes put weights together, or sent them
            if self._environments is not None:
                return collect_rollouts(
                    tasks,
                    self._environments.take(min(self.args.num_envs or len(tasks), len(tasks))),
                    generate,
                    self.chat,
                    self._limits(),
                    on_progress=lambda done, total: self._phase(phase, f" {done}/{total} episodes"),
                    refill=self.args.rollout_refill,
                )
            cutter = StepCutter(self.processing_class, self.args.step_delimiter)
            responses = collect_responses(tasks, self.data_collator, generate, cutter)
        return score_responses(
            responses,
            self.reward_model,
            self.accelerator.device,
            eos_token_id=self.processing_class.eos_token_id,
            missing_eos_penalty=self.args.missing_eos_penalty,
        )

    def without_failures(self, episodes: Sequence[Trajectory]) -> list[Trajectory]:
        """The episodes that the environment did not break; the others teach nothing.

        Raises:
            EnvironmentFailure: more than `max_env_error_rate` of all processes' episodes failed, or none is left here.
        """
        errors = [trajectory.error for trajectory in episodes if trajectory.failed]
        counts = (len(errors), len(episodes))
        of_all = from_all(self.accelerator, counts)
        num_failed, total = (sum(numbers) for numbers in zip(*of_all, strict=True))
        none_left = any(failed and failed == played for failed, played in of_all)
        if num_failed and (none_left or num_failed > self.args.max_env_error_rate * total):
            raise EnvironmentFailure(
                f"{num_failed} of {total} episodes ended in an environment error (max_env_error_rate="
                f"{self.args.max_env_error_rate}); mend the environment, or raise max_env_error_rate. "
                f"First error here: {errors[0] if errors else 'none, they are on other processes'}"
            )
        return [trajectory for trajectory in episodes if not trajectory.failed]

    @contextmanager
    def _generator(self, *, greedy: bool) -> Iterator[Generate]:
        """Batched sampling from the unwrapped policy."""
        args = self.args
        single_turn_stops = () if self.stop_token_id is None else (self.stop_token_id,)
        has_environment = self.environment_factory is not None
        sampling = Sampling(
            temperature=0.0 if greedy else args.temperature + 1e-7,
            max_new_tokens=(args.max_new_tokens if has_environment else None) or args.response_length,
            stop_token_ids=self.chat.stop_token_ids if has_environment else single_turn_stops,
            batch_size=args.local_rollout_forward_batch_size,
        )
        of_deepspeed = unwrap_model_for_generation(
            self.model, self.accelerator, gather_deepspeed3_params=args.ds3_gather_for_generation
        )
        with (
            of_deepspeed as unwrapped,
            # What is sent to a server is gathered one parameter at a time.
            nullcontext() if isinstance(self.generation_backend, VLLMBackend) else gathered(self.model),
            eval_mode(unwrapped),
            self.accelerator.autocast(),
            self.generation_backend.session(unwrapped.policy, sampling) as generate,
        ):
            yield generate

    def _limits(self) -> RolloutLimits:
        args = self.args
        return RolloutLimits(
            args.max_turns,
            args.max_new_tokens or args.response_length,
            context_limit(self.policy, args.max_episode_tokens),
            args.history_window,
        )

    @property
    def _micro_batch_size(self) -> int:
        return min(self.args.per_device_train_batch_size, self.args.local_mini_batch_size)

    def _micro_batches(self, trajectories: Sequence[Trajectory], layout: ActionLayout) -> list[MicroBatch]:
        return self._as_many(
            make_micro_batches(trajectories, layout, self._micro_batch_size, self._rng), trajectories, layout
        )

    def _as_many(
        self, micro_batches: list[MicroBatch], trajectories: Sequence[Trajectory], layout: ActionLayout
    ) -> list[MicroBatch]:
        """As many as the process with the most has: episodes fail, and are shortened, on one of them only."""
        if self.accelerator.num_processes == 1:
            return micro_batches
        missing = max(gather_object([len(micro_batches)])) - len(micro_batches)
        return micro_batches + idle_micro_batches(trajectories, layout, missing)

    def evaluate_tokens(
        self, trajectories: Sequence[Trajectory], layout: ActionLayout, micro_batches: Sequence[MicroBatch]
    ) -> Evaluation:
        """Old and reference log-probabilities and values of the rollout's action tokens.

        The hindsight questions ride on these two passes wherever the model allows it.
        """
        self._phase("evaluate")
        last = last_state_batches(trajectories, layout, self._micro_batch_size)
        passes = [*micro_batches, *self._as_many(last, trajectories, layout)]

        def evaluate(questions: Questionnaire | None, ref_questions: Questionnaire | None) -> Evaluation:
            return evaluate_rollout(
                self.model,
                self.reference_policy,
                layout,
                passes,
                self.args.temperature,
                head_max_bytes=self.args.head_max_bytes,
                questions=questions,
                ref_questions=ref_questions,
            )

        with gathered(self.model), eval_mode(self.model), self.accelerator.autocast():
            questions = self._questions(trajectories)
            try:
                return evaluate(*questions)
            except torch.OutOfMemoryError:
                if self.hindsight is None or questions == (None, None) or self.accelerator.num_processes > 1:
                    raise  # with others beside it, they would wait for the passes that are made anew here
                self.hindsight.halve_passes()
            # Not in the handler: the error's traceback holds the tensors that did not fit.
            return evaluate(*self._questions(trajectories))

    def _questions(self, trajectories: Sequence[Trajectory]) -> tuple[Questionnaire | None, Questionnaire | None]:
        """What the policy and the reference are asked on their passes over the trajectories."""
        hindsight = self.hindsight
        # With a window the passes read rows of single turns, and the questions are about the whole episode.
        if hindsight is None or self.args.history_window is not None:
            return None, None
        calibrations = [cb for cb in self.callback_handler.callbacks if isinstance(cb, CalibrationCallback)]
        frozen = hindsight.evaluator == "reference"
        asks_policy = not frozen and hindsight.can_ride(self.policy)
        asks_reference = frozen or any(callback.is_anchored(hindsight) for callback in calibrations)
        with self.reference_policy() as reference:
            asks_reference = asks_reference and hindsight.can_ride(reference)
        if not (asks_policy or asks_reference):
            return None, None
        questions = hindsight.questionnaire(self.policy, trajectories)
        return (questions if asks_policy else None), (questions if asks_reference else None)

    def score(
        self, trajectories: Sequence[Trajectory], evaluation: Evaluation | None = None
    ) -> HindsightScores | None:
        """Hindsight verdicts on every step; `None` where hindsight is off.

        Also `None`, with the update that would follow skipped and counted, where a verdict is not finite.

        Args:
            trajectories (`Sequence[Trajectory]`): finished episodes.
            evaluation ([`Evaluation`], *optional*): of the same episodes; verdicts that rode on it are not asked for
                again.
        """
        hindsight = self.hindsight
        if hindsight is None:
            return None
        known: Mapping[int, Tensor] = {}
        if evaluation is not None:
            known = evaluation.ref_verdicts if hindsight.evaluator == "reference" else evaluation.verdicts
        self._phase("scoring")
        scores, told = None, ""
        try:
            with (
                self._evaluator() as evaluator,
                gathered(self.model),
                gathered(evaluator),  # a reference may be a model of its own
                eval_mode(self.model),
                self.accelerator.autocast(),
            ):
                scores = hindsight.score(evaluator, trajectories, known)
        except NonFiniteVerdicts as error:
            told = f"the task {dict(trajectories[error.episode].task)!r}: {error}"
        faults = [text for text in from_all(self.accelerator, told) if text]
        self._is_blocked = bool(faults)
        if faults:
            self._skipped("a verdict is not finite, the update is skipped", faults[0])
            return None
        return scores

    def _evaluator(self) -> AbstractContextManager[nn.Module]:
        if self.hindsight is not None and self.hindsight.evaluator == "reference":
            return self.reference_policy()
        return nullcontext(self.policy)

    def targets(
        self,
        trajectories: Sequence[Trajectory],
        layout: ActionLayout,
        evaluation: Evaluation,
        scores: HindsightScores | None,
    ) -> TargetResult:
        """Calibrated, normalised scores beside the environment's rewards; then advantages and returns."""
        args, hindsight = self.args, self.hindsight
        step_scores = None
        if hindsight is not None and scores is not None:
            step_scores = scores.split(hindsight.normalise(scores, self._gather_numbers))
            if hindsight.patience is not None:
                returns = np.array([trajectory.episode_return for trajectory in trajectories])
                hindsight.patience.hear(self._gather_numbers(returns))
        options = TargetOptions(
            gamma=args.gamma,
            lam=args.lam,
            turn_level=self._turn_level,
            kl_coef=0.0 if self._kl_is_loss else args.kl_coef,
            kl_estimator=args.kl_estimator,
            whiten_rewards=args.whiten_rewards,
            hindsight_coef=0.0 if hindsight is None else hindsight.coef,
            hindsight_placement="advantage" if hindsight is None else hindsight.placement,
            gate=1.0 if hindsight is None else hindsight.let_through,
        )
        result = compute_targets(trajectories, layout, evaluation, step_scores, options, self._reduce_sum)
        drift = sampling_drift(trajectories, layout, evaluation.log_probs, args.vllm_importance_sampling_cap)
        update = result.update
        if args.vllm_importance_sampling_correction:
            # The clipped loss is homogeneous in the advantage: a weight on the one is a weight on the other.
            update = replace(update, advantages=update.advantages * drift.weights)
        return replace(result, update=update, metrics={**result.metrics, **drift.metrics})

    def update(
        self,
        layout: ActionLayout,
        micro_batches: Sequence[MicroBatch],
        evaluation: Evaluation,
        targets: UpdateTargets,
    ) -> dict[str, float]:
        """PPO epochs over the rollout."""
        args = self.args
        self._phase("update")
        if self._is_blocked:
            return {
                "num_optimizer_steps": 0.0,
                "num_skipped_steps": float(args.num_ppo_epochs * args.num_mini_batches),
            }
        self.model.train()
        kl_coef = args.kl_coef if self._kl_is_loss else 0.0
        return ppo_update(
            self.model,
            self.optimizer,
            self.accelerator,
            layout,
            micro_batches,
            evaluation,
            targets,
            PPOCoefficients(args.cliprange, args.cliprange_value, args.vf_coef, kl_coef),
            UpdateSchedule(args.num_ppo_epochs, args.num_mini_batches, args.max_grad_norm),
            args.temperature,
            self._rng,
            self._reduce_sum,
            _Hooks(self._fire, self._step_taken, self._step_skipped),
        )

    def _step_taken(self) -> None:
        self._skipped_steps = 0

    def _step_skipped(self, episodes: Sequence[int]) -> None:
        """Names the episodes of an optimizer step that was not taken."""
        named = ", ".join(f"{dict(self._played[i].task)!r}" for i in episodes[:3])
        more = f" and {len(episodes) - 3} others" if len(episodes) > 3 else ""
        self._skipped("loss or gradient is not finite, the optimizer step is not taken", f"the tasks {named}{more}")

    def _skipped(self, what: str, tasks: str) -> None:
        """Counts and tells it; ends the run after too many in a row."""
        self._skipped_steps += 1
        update = self.state.global_step + 1
        message = (
            f"{what} ({self._skipped_steps} in a row; max_skipped_steps={self.args.max_skipped_steps}). It was about "
            f"the episodes of {tasks}"
        )
        call_hooks(self.callback_handler.callbacks, "on_event", "skipped", message, update)
        told = f"update {update}: {message}"
        if self._skipped_steps > self.args.max_skipped_steps:
            raise NonFiniteUpdate(
                f"{told}. Lower learning_rate, set max_grad_norm, or look at these episodes; a checkpoint of before "
                "can be resumed with another setting"
            )
        warnings.warn(told, RuntimeWarning, stacklevel=2)

    def _end_update(
        self,
        trajectories: list[Trajectory],
        scores: HindsightScores | None,
        evaluation: Evaluation,
        targets: TargetResult,
        metrics: dict[str, float],
        failed: Sequence[Trajectory],
    ) -> None:
        """Calibration and flow control (callbacks), then what they asked for."""
        state = self.state
        metrics.update(lr=self.lr_scheduler.get_last_lr()[0], episode=state.episode)
        self.lr_scheduler.step()
        state.global_step += 1
        state.epoch = state.episode / self.train_dataset_len
        record = UpdateRecord(
            trajectories,
            scores,
            self.hindsight,
            self.policy,
            self.reference_policy,
            self.accelerator,
            state.global_step,
            metrics,
            reference_verdicts=evaluation.ref_verdicts,
            agreement=targets.agreement,
            credit=targets.credit,
        )
        self._phase("calibrate" if self.hindsight is not None else "finish")
        with eval_mode(self.model), warnings_told(self.callback_handler.callbacks, record):
            self._fire("on_step_end", update=record)
        if self.args.log_trajectories:
            self._log_episodes(trajectories, scores, targets.credit, failed)
        self._heed_sigterm()
        self._follow_control(record.metrics)

    def _log_episodes(
        self,
        trajectories: list[Trajectory],
        scores: HindsightScores | None,
        credit: StepCredit,
        failed: Sequence[Trajectory],
    ) -> None:
        """The episodes of all processes, process after process, into the main one's file."""
        own = (trajectories, scores, credit, list(failed))
        of_processes = from_all(self.accelerator, own)
        if EPISODES_NAME not in self._logs:
            return
        log, update = self._logs[EPISODES_NAME], self.state.global_step
        for played, judged, credited, broken in of_processes:
            log.write(update, played, judged, credited)
            log.write(update, broken, None)

    def _log_evaluation(self, trajectories: list[Trajectory], prefix: str) -> None:
        """Greedy episodes into their file; those before training wait until a run begins."""
        args, done = self.args, self.state.global_step
        if not (args.log_trajectories and args.should_save):
            return
        if self._in_session:
            self._logs[EVALUATIONS_NAME].write(done, trajectories, None, split=prefix)
        elif not self._has_trained:
            # The last ones of each: who only ever evaluates shall not collect them.
            self._evaluated_before[prefix] = trajectories
        else:
            path = os.path.join(args.output_dir, EVALUATIONS_NAME)
            log = TrajectoryLog(path, keep_bytes=os.path.getsize(path) if os.path.exists(path) else 0)
            log.write(done, trajectories, None, split=prefix)
            log.close()

    def _follow_control(self, metrics: Mapping[str, float]) -> None:
        """Logs, evaluates and saves where the callbacks asked for it."""
        self._log_window(metrics)
        if self.control.should_evaluate and self.eval_dataset is not None:
            self.evaluate()
        if self.control.should_save:
            self._save_checkpoint(self.model, trial=None)
            self._fire("on_save")
            self.control.should_save = False

    # Evaluation

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Greedy episodes on `eval_dataset`: success, return, length, invalid-action rate.

        Args:
            eval_dataset (`Dataset`, *optional*): defaults to the trainer's.
            ignore_keys: unused, as in `Trainer.evaluate`'s signature.
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
            parts = (self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}") for name, part in dataset.items())
            return {name: value for part in parts for name, value in part.items()}
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        rows = [dict(dataset[i]) for i in range(rank, len(dataset), ranks)]
        try:
            if not self._in_session:
                call_hooks(self.callback_handler.callbacks, "on_open")
            trajectories = self.collect(rows, greedy=True)
            self.without_failures(trajectories)
        finally:
            if not self._in_session:
                self._close()
        if ranks > 1:
            trajectories = gather_object(trajectories)
        self._log_evaluation(trajectories, metric_key_prefix)
        measured = {name.removeprefix("env/"): value for name, value in episode_metrics(trajectories).items()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        metrics[f"{metric_key_prefix}_episodes"] = float(len(trajectories))
        self.log(dict(metrics))
        self._fire("on_evaluate", metrics=metrics)
        self.control.should_evaluate = False
        return metrics


class _Hooks(StepHooks):
    """Passes the update's optimizer steps on to the callbacks."""

    def __init__(
        self, fire: Callable[[str], None], taken: Callable[[], None], skipped: Callable[[Sequence[int]], None]
    ) -> None:
        self._fire, self._taken, self._skipped = fire, taken, skipped

    def before_optimizer_step(self) -> None:
        self._fire("on_pre_optimizer_step")

    def after_optimizer_step(self) -> None:
        self._taken()
        self._fire("on_optimizer_step")

    def skipped_step(self, episodes: Sequence[int]) -> None:
        self._skipped(episodes)


def _rows_as_they_are(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows
