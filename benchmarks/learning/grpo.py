"""What a user would pick instead: TRL's GRPOTrainer on the same environment, policy and number of episodes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from trl_mise.backends import TransformersBackend
from trl_mise.chat import ChatFormat
from trl_mise.generation import Sampling
from trl_mise.grpo import MISEGRPOTrainer
from trl_mise.grpo_config import MISEGRPOConfig
from trl_mise.heads import eval_mode
from trl_mise.hindsight_config import HindsightConfig
from trl_mise.metrics import episode_metrics
from trl_mise.rollout import RolloutLimits, collect_rollouts
from trl_mise.token_batch import pad_rows
from trl_mise.token_log_probs import token_log_probs
from trl_mise.types import Trajectory

GROUP = 8
"""Episodes of one task, compared with each other."""


class EpisodeRollout:
    """A `rollout_func` that plays our environments: several turns, environment tokens masked out of the loss.

    Args:
        environment_factory: makes an environment.
        limits ([`RolloutLimits`]): of an episode.
        temperature (`float`): of the sampling.
    """

    def __init__(self, environment_factory: Any, limits: RolloutLimits, temperature: float) -> None:
        self.environment_factory, self.limits, self.temperature = environment_factory, limits, temperature
        self.envs: list[Any] = []
        self.history: list[dict[str, float]] = []

    def __call__(self, prompts: Sequence[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        tasks = [json.loads(prompt) for prompt in prompts]
        while len(self.envs) < len(tasks):
            self.envs.append(self.environment_factory())
        model = trainer.accelerator.unwrap_model(trainer.model)
        chat = ChatFormat(trainer.processing_class)
        sampling = Sampling(
            temperature=self.temperature + 1e-7,
            max_new_tokens=self.limits.max_new_tokens,
            stop_token_ids=chat.stop_token_ids,
            batch_size=len(tasks),
        )
        with eval_mode(model), TransformersBackend().session(model, sampling) as generate:
            episodes = collect_rollouts(tasks, self.envs, generate, chat, self.limits)
        self.history.append(episode_metrics(episodes))
        starts = [t.turns[0].action_span[0] for t in episodes]
        ends = [t.turns[-1].result_end for t in episodes]  # what became of the last action, for the judge
        return {
            "prompt_ids": [list(t.token_ids[:start]) for t, start in zip(episodes, starts, strict=True)],
            "completion_ids": [
                list(t.token_ids[start:end]) for t, start, end in zip(episodes, starts, ends, strict=True)
            ],
            "env_mask": [
                [int(own) for own in t.action_mask[start:end]]
                for t, start, end in zip(episodes, starts, ends, strict=True)
            ],
            "logprobs": [
                self._log_probs(model, t, start, end) for t, start, end in zip(episodes, starts, ends, strict=True)
            ],
            "episode_return": [t.episode_return for t in episodes],
        }

    @torch.no_grad()
    def _log_probs(self, model: Any, trajectory: Trajectory, start: int, end: int) -> list[float]:
        batch = pad_rows([trajectory.token_ids[:end]])
        hidden = model.model(input_ids=batch.input_ids).last_hidden_state[0, start - 1 : end - 1]
        tokens = batch.input_ids[0, start:end]
        return token_log_probs(model, hidden, tokens, self.temperature)[0].tolist()


def episode_return(prompts: Any, completions: Any, episode_return: Sequence[float], **kwargs: Any) -> list[float]:
    """The sparse reward, as the rollout brought it along."""
    return list(episode_return)


def train_grpo(
    model: Any,
    tokenizer: Any,
    recipe: Any,
    rows: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
    output_dir: str,
    seed: int,
    judge: Callable[[MISEGRPOConfig], Any] | None = None,
) -> list[dict[str, float]]:
    """Trains with TRL's GRPOTrainer, or (with a judge) with MISEGRPOTrainer; returns `env/*` per batch.

    It gets the same number of episodes, as many in every batch as the other arms. Where PPO takes `num_ppo_epochs *
    num_mini_batches` optimizer steps a batch, so does GRPO. Learning rate and KL are PPO's unless `options` say
    otherwise.
    """
    batch = defaults["per_device_train_batch_size"] * defaults["gradient_accumulation_steps"]
    size = batch // defaults["num_mini_batches"]
    epochs = defaults["num_ppo_epochs"]
    arguments = {
        "learning_rate": defaults["learning_rate"],
        "beta": defaults["kl_coef"],
        "num_generations": GROUP,
        **options,
    }
    shared = {field.name for field in fields(HindsightConfig)}
    of_judge = {name: value for name, value in defaults.items() if name in shared} | {"log_trajectories": False}
    trainer_class, config_class = (GRPOTrainer, GRPOConfig) if judge is None else (MISEGRPOTrainer, MISEGRPOConfig)
    args = config_class(
        output_dir=output_dir,
        seed=seed,
        lr_scheduler_type=defaults["lr_scheduler_type"],
        per_device_train_batch_size=size,
        gradient_accumulation_steps=1,
        generation_batch_size=batch,
        num_iterations=epochs,
        max_steps=defaults["total_episodes"] // batch * epochs * (batch // size),
        max_completion_length=recipe.limits.max_episode_tokens,
        temperature=defaults["temperature"],
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        **{**({} if judge is None else of_judge), **arguments},  # what an arm says of the judge is in both
    )
    rollout = EpisodeRollout(recipe.environment_factory(), recipe.limits, args.temperature)
    trainer = trainer_class(
        model=model,
        reward_funcs=episode_return,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": json.dumps(dict(row))} for row in rows]),
        processing_class=tokenizer,
        rollout_func=rollout,
        **({} if judge is None else {"hindsight": judge(args)}),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return rollout.history
