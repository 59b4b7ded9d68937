"""`MISEGRPOTrainer`: TRL's GRPOTrainer with calibrated hindsight self-evaluation, for those who want no critic."""

import copy
import inspect
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ._trl import grpo_classes
from .callback import (
    CalibrationCallback,
    HealthCallback,
    UpdateRecord,
    call_hooks,
    load_callbacks,
    stateful_callbacks,
    warnings_told,
)
from .card_texts import PAPER
from .chat import ChatFormat, PlainFormat, PromptFormat
from .completions import CompletionEpisodes, completion_episodes
from .group_advantages import TokenAdvantages, group_spread, silent_completions, token_advantages
from .grpo_config import MISEGRPOConfig
from .heads import eval_mode, keep_four_bit_layout
from .hindsight import HindsightReward, NonFiniteVerdicts, coef_of
from .hindsight_config import HindsightConfig
from .live import show_live
from .metrics import episode_metrics
from .processes import from_all, means_over_all, numbers_of_all
from .publishing import PublishingTrainer
from .run_record import RunFacts, RunRecorder
from .sharding import gathered
from .single_turn import StepCutter
from .trackers import track_episodes
from .trajectory_log import EPISODES_NAME, TrajectoryLog
from .types import HindsightScores

GRPOTrainer: Any = grpo_classes()[1]

HINDSIGHT_STATE_NAME = "hindsight_state.json"


class MISEGRPOTrainer(PublishingTrainer, GRPOTrainer):
    """GRPO whose advantages tell the steps of an episode apart.

    GRPO compares the returns of several completions of one prompt, and gives every token of a completion the same
    advantage; where all of them fail it has none. Here the policy also judges every step in hindsight, and the
    verdicts, calibrated against the returns, are added per token. A step is what the policy sampled in one go between
    two tool results (`tools`, `environment_factory` or the `env_mask` of a `rollout_func`); a completion without tools
    is cut into steps at newlines, or at `step_delimiter`. Takes GRPOTrainer's arguments, and:

    Args:
        model (`str` or `PreTrainedModel`): the policy.
        reward_funcs: as in GRPOTrainer; their weighted sum is the sparse return that calibration regresses to.
        args ([`MISEGRPOConfig`] or `GRPOConfig`, *optional*): a `GRPOConfig` is upgraded.
        hindsight ([`HindsightReward`] or `False`, *optional*): reward wrapper in place of the one that `args`
            describes; `False` switches hindsight off, and then this *is* GRPOTrainer.

    Callbacks whose `on_step_end` takes an `update` get the [`UpdateRecord`] after the last optimizer step on a batch
    of completions; at the end of every optimizer step they are called without, so let it default to `None`. A batch
    that training stops in the middle of is neither calibrated on nor logged.
    """

    _tag_names = ["trl", "grpo", "mise"]
    _name = "MISE-GRPO"
    _paper = PAPER
    _card_options = (HindsightConfig, MISEGRPOConfig)

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        *,
        hindsight: HindsightReward | bool | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = MISEGRPOConfig(f"{name.split('/')[-1]}-GRPO")
        config = args if isinstance(args, MISEGRPOConfig) else MISEGRPOConfig.from_grpo_config(args)
        self.uses_hindsight = coef_of(hindsight, config) > 0
        if self.uses_hindsight:
            _check_options(config, hindsight)
        self._trl_environment = kwargs.get("environment_factory")
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=config,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        self._pending: UpdateRecord | None = None
        self._num_batches = 0
        self._rewards = np.zeros((0, 0))  # (all, F)
        self._returns: list[float] = []
        self._log_file: TrajectoryLog | None = None
        self._log_bytes: int | None = None
        self._own_reference: nn.Module | None = None
        if self.uses_hindsight:
            self._set_up(hindsight)

    def _set_up(self, hindsight: HindsightReward | bool | None) -> None:
        args = self.args
        keep_four_bit_layout(self.model)
        if getattr(self, "_is_vlm", False):
            raise ValueError(
                "processing_class is a processor with images: hindsight reads text only; pass a tokenizer"
            )
        if not any(isinstance(callback, CalibrationCallback) for callback in self.callback_handler.callbacks):
            self.add_callback(CalibrationCallback.from_config(args))
        if args.health_warnings:
            self.add_callback(HealthCallback())  # after the calibration, whose metrics it looks at
        self.add_callback(_BatchEnd(self))
        track_episodes(self)
        show_live(self)
        self.add_callback(
            RunRecorder(RunFacts.of(self, self.policy, self._trl_environment, args.generation_batch_size))
        )
        self.chat: PromptFormat = self._prompt_format()
        self.cutter = StepCutter(self.processing_class, args.step_delimiter)
        self.hindsight: HindsightReward = (
            hindsight if isinstance(hindsight, HindsightReward) else HindsightReward.from_config(self.chat, args)
        )
        self._own_reference = self._copy_as_reference()

    def _prompt_format(self) -> PromptFormat:
        tokenizer = self.processing_class
        if getattr(tokenizer, "chat_template", None) is None:
            return PlainFormat(tokenizer)
        return ChatFormat(tokenizer, template_kwargs=self.args.chat_template_kwargs)

    def _copy_as_reference(self) -> nn.Module | None:
        """GRPO has a reference policy only where `beta` asks for one; the judge's anchor needs one anyway."""
        calibrations = [c for c in self.callback_handler.callbacks if isinstance(c, CalibrationCallback)]
        is_wanted = self.hindsight.evaluator == "reference" or any(c.is_anchored(self.hindsight) for c in calibrations)
        if not is_wanted or self.ref_model is not None or hasattr(self.model, "peft_config"):
            return None
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "beta=0 leaves no reference model for the judge, and a sharded policy is not copied. Set "
                "calibration_target='none', as calibration does not work on a sharded policy either (and "
                "evaluator_model='policy' or beta > 0), or train an adapter data parallel"
            )
        reference: nn.Module = copy.deepcopy(self.model)
        # TRL puts a forward on the model itself, a closure about the policy, which a copy would go on calling.
        # With cast_lm_head_to_fp32 the head has one too.
        for module in reference.modules():
            vars(module).pop("forward", None)
        return reference.requires_grad_(False).eval()

    # The models

    @property
    def describes_itself(self) -> bool:
        return self.uses_hindsight

    def _card_environment(self) -> Any:
        return self._trl_environment

    @property
    def policy(self) -> nn.Module:
        """The unwrapped policy."""
        policy: nn.Module = self.accelerator.unwrap_model(self.model)
        return policy

    @contextmanager
    def reference_policy(self) -> Iterator[nn.Module]:
        """The reference policy: a model of its own, or the policy without its adapter."""
        reference = self.ref_model or self._own_reference
        if reference is not None:
            yield self.accelerator.unwrap_model(reference).to(self.accelerator.device)
            return
        policy: Any = self.policy
        if "ref" not in policy.peft_config:
            with policy.disable_adapter():
                yield policy
            return
        active = policy.active_adapter
        policy.set_adapter("ref")
        try:
            yield policy
        finally:
            policy.set_adapter(active)

    # A batch of completions: trajectories, scores, advantages

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # (all, F)
        start = self.accelerator.process_index * len(prompts)
        self._rewards = rewards.double().cpu().numpy()
        own = rewards[start : start + len(prompts)]
        weighted = own * self.reward_weights.to(own.device)
        returns = torch.where(own.isnan().all(dim=1), torch.nan, weighted.nansum(dim=1))
        self._returns = returns.tolist()
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        is_training = self.model.training
        self._phase("rollout" if is_training else "evaluation")
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if is_training and self.uses_hindsight:
            batch = self._with_praise(batch, inputs)
        self._phase("update" if is_training else "evaluation")
        return batch

    def _with_praise(self, batch: dict[str, Any], inputs: list[dict[str, Any]]) -> dict[str, Any]:
        episodes = self.episodes(batch, inputs)
        self._phase("scoring")
        try:
            scores = self.score(episodes)
        except NonFiniteVerdicts as error:
            if self.accelerator.num_processes > 1:
                raise
            task = dict(episodes.trajectories[error.episode].task)
            message = (
                f"the verdicts on the episode of {task!r} are not finite, and hindsight is left out of this batch. "
                f"{error}"
            )
            call_hooks(self.callback_handler.callbacks, "on_event", "skipped", message, self._num_batches + 1)
            warnings.warn(f"update {self._num_batches + 1}: {message}", RuntimeWarning, stacklevel=2)
            return batch
        targets = self.advantages(batch["advantages"], episodes, scores)
        metrics = {**episode_metrics(episodes.trajectories), "hindsight/shaping_share": targets.shaping_share}
        self._pending = UpdateRecord(
            episodes.trajectories,
            scores,
            self.hindsight,
            self.policy,
            self.reference_policy,
            self.accelerator,
            self._num_batches + 1,
            metrics,
            agreement=targets.agreement,
            credit=targets.credit,
        )
        return {**batch, "advantages": targets.advantages}

    def episodes(self, batch: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> CompletionEpisodes:
        """The batch's completions as trajectories; see [`completion_episodes`]."""
        return completion_episodes(
            batch,
            self._returns,
            self.chat,
            self.cutter,
            tasks=[{name: value for name, value in row.items() if name != "prompt"} for row in inputs],
            success_return=self.args.success_return,
        )

    def score(self, episodes: CompletionEpisodes) -> HindsightScores:
        """Hindsight verdicts on every step."""
        judge = self.reference_policy() if self.hindsight.evaluator == "reference" else nullcontext(self.policy)
        with (
            judge as evaluator,
            gathered(self.model),
            gathered(evaluator),
            eval_mode(self.model),
            self.accelerator.autocast(),
        ):
            return self.hindsight.score(evaluator, episodes.trajectories)

    def advantages(
        self, group_advantages: Tensor, episodes: CompletionEpisodes, scores: HindsightScores
    ) -> TokenAdvantages:
        """Normalised scores beside GRPO's advantages; see [`token_advantages`]."""
        hindsight = self.hindsight
        step_scores = scores.split(hindsight.normalise(scores, partial(numbers_of_all, self.accelerator)))
        size = len(group_advantages)
        mine = slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)
        silent = silent_completions(
            self._rewards,
            self.reward_weights.double().cpu().numpy(),
            self.num_generations,
            by_reward=self.multi_objective_aggregation == "normalize_then_sum",
        )
        group_advantages = group_advantages.masked_fill(
            torch.as_tensor(silent[mine], device=group_advantages.device), 0
        )
        own = np.full(size, np.nan)
        own[episodes.rows] = group_advantages.double().cpu().numpy()[episodes.rows]
        of_all = numbers_of_all(self.accelerator, own)
        if hindsight.patience is not None:
            hindsight.patience.hear(of_all[~np.isnan(of_all)])
        spread = group_spread(of_all, self.num_generations)[mine]
        return token_advantages(
            group_advantages, episodes, step_scores, spread=spread, coef=hindsight.coef, gate=hindsight.let_through
        )

    # The end of a batch: calibration, log

    def _phase(self, name: str) -> None:
        call_hooks(self.callback_handler.callbacks, "on_phase", name, "")

    def _end_batch(self) -> None:
        """After an optimizer step; does something after the last one on a batch of completions."""
        record = self._pending
        if record is None or self._step % (self.args.steps_per_generation * self.num_iterations):
            return
        self._num_batches = record.number
        self._pending = None
        self._phase("calibrate")
        with eval_mode(self.model), warnings_told(self.callback_handler.callbacks, record):
            for callback in self.callback_handler.callbacks:
                if "update" in inspect.signature(callback.on_step_end).parameters:
                    callback.on_step_end(self.args, self.state, self.control, update=record)
        for name, value in means_over_all(self.accelerator, record.metrics).items():
            self._metrics["train"][name].append(value)
        if self.args.log_trajectories:
            self._log_episodes(record)

    def _log_episodes(self, record: UpdateRecord) -> None:
        """The episodes of all processes, process after process, into the main one's file."""
        of_processes = from_all(self.accelerator, (record.trajectories, record.scores, record.credit))
        if not self.args.should_save:
            return
        if self._log_file is None:
            path = os.path.join(self.args.output_dir, EPISODES_NAME)
            self._log_file = TrajectoryLog(path, keep_bytes=self._log_bytes)
        for trajectories, scores, credit in of_processes:
            self._log_file.write(record.number, trajectories, scores, credit)

    # Checkpoints

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As GRPOTrainer's; a resumed run also goes on with the judge's statistics, gate and calibration."""
        self._pending, self._num_batches, self._log_bytes = None, 0, None
        try:
            return super().train(*args, **kwargs)
        except BaseException as error:
            call_hooks(self.callback_handler.callbacks, "on_failure", error)
            raise
        finally:
            if self._log_file is not None:
                self._log_file.close()
                self._log_file = None
            call_hooks(self.callback_handler.callbacks, "on_close")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.uses_hindsight:
            super()._save_checkpoint(model, trial)
            return
        self._finish_push_before_deleting()
        with self._pushes_held():
            super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        self._save_judge(folder)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    def _save_judge(self, folder: Path) -> None:
        """What transformers does not know of: the judge's statistics, what callbacks keep, how long the log is."""
        if not self.args.should_save:
            return
        log_bytes = self._log_bytes if self._log_file is None else self._log_file.num_bytes
        state = {"hindsight": self.hindsight.state_dict(), "batches": self._num_batches, "log_bytes": log_bytes}
        (folder / HINDSIGHT_STATE_NAME).write_text(json.dumps(state), encoding="utf-8")
        for callback in stateful_callbacks(self.callback_handler.callbacks):
            callback.save_state(str(folder))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.uses_hindsight:
            return
        path = Path(checkpoint) / HINDSIGHT_STATE_NAME
        if not path.exists():
            raise FileNotFoundError(
                f"{checkpoint} has no {HINDSIGHT_STATE_NAME}: it was not saved by MISEGRPOTrainer with hindsight; "
                "resume from one that was, or pass hindsight=False"
            )
        state = json.loads(path.read_text(encoding="utf-8"))
        self.hindsight.load_state_dict(state["hindsight"])
        self._num_batches, self._log_bytes = state["batches"], state["log_bytes"]
        load_callbacks(self.callback_handler.callbacks, checkpoint, self.hindsight)


class _BatchEnd(TrainerCallback):
    """Ends a batch of completions after its last optimizer step: transformers' loop has no event for it."""

    def __init__(self, trainer: MISEGRPOTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._end_batch()


def _check_options(config: MISEGRPOConfig, hindsight: HindsightReward | bool | None) -> None:
    """Raises a `ValueError` where the per-token advantages would not arrive as they are meant."""
    if isinstance(hindsight, HindsightReward) and hindsight.placement != "advantage":
        raise ValueError(
            f"hindsight.placement={hindsight.placement!r} needs a critic, which GRPO does not have; use 'advantage'"
        )
    steps = config.steps_per_generation * config.num_iterations
    if steps % config.gradient_accumulation_steps:
        raise ValueError(
            f"steps_per_generation * num_iterations = {steps} must be a multiple of gradient_accumulation_steps="
            f"{config.gradient_accumulation_steps}: an optimizer step would mix two batches of completions, and "
            "calibration come between them"
        )
    cuts = config.hindsight_context_tokens is not None
    if cuts or (isinstance(hindsight, HindsightReward) and hindsight.context_tokens is not None):
        raise ValueError(
            "hindsight_context_tokens rebuilds an episode from its texts, which is only right for MISETrainer's "
            "environments (a completion's prompt has tools and a system text that it does not know); leave it at "
            "None, and bound the episode with max_completion_length"
        )
    if config.use_liger_kernel and hasattr(GRPOTrainer, "compute_liger_loss"):
        raise ValueError("use_liger_kernel=True: its GRPO loss takes one advantage per completion; set it to False")
