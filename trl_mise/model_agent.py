"""`ModelAgent`: a language model plays, by the very rollout that training uses."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .backends import TransformersBackend
from .chat import ChatFormat
from .envs.base import EnvironmentFactory
from .envs.pool import EnvironmentPool, Isolation
from .evaluation import EpisodeResult, Progress
from .generation import Sampling
from .heads import context_limit
from .hindsight import HindsightReward
from .rollout import RolloutLimits, collect_rollouts
from .types import HindsightScores, Trajectory


@dataclass
class ModelAgent:
    """A causal language model that answers every observation with an action.

    Args:
        model (`PreTrainedModel`): the policy.
        tokenizer (`PreTrainedTokenizerBase`): must have a chat template.
        system_prompt (`str`, *optional*): what the policy is told; the same as in its training.
        temperature (`float`): 0 means greedy.
        max_new_tokens (`int`): most sampled tokens of an action.
        max_episode_tokens (`int`): most tokens of an episode, or of what the policy sees with `history_window`; the
            model's own limit comes first.
        history_window (`int`, *optional*): turns that the policy sees before the present one; all by default.
        num_envs (`int`): environments side by side.
        env_isolation (`"auto"`, `"process"` or `"none"`): where they live, see [`EnvironmentPool`].
        seed (`int`): of the sampling.
    """

    model: Any
    tokenizer: Any
    system_prompt: str | None = None
    temperature: float = 0.0
    max_new_tokens: int = 64
    max_episode_tokens: int = 8192
    history_window: int | None = None
    num_envs: int = 8
    env_isolation: Isolation = "auto"
    seed: int = 0

    @classmethod
    def from_pretrained(
        cls, model_name_or_path: str, *, dtype: str = "auto", device: str | None = None, **options: Any
    ) -> "ModelAgent":
        """Loads a model, or a trained LoRA adapter, from a folder or the hub.

        Args:
            model_name_or_path (`str`): the folder that a trainer saved to, or a name.
            dtype (`str`): of the weights: `"auto"`, `"float32"`, `"bfloat16"`.
            device (`str`, *optional*): a GPU where there is one.
            options: further arguments of the agent.
        """
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)
        model = AutoModelForCausalLM.from_pretrained(model_name_or_path, dtype=dtype)
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer, **options)

    def play(
        self,
        factory: EnvironmentFactory,
        tasks: Sequence[Mapping[str, Any]],
        max_steps: int,
        on_progress: Progress | None = None,
    ) -> list[EpisodeResult]:
        """One episode per task, `num_envs` of them side by side."""
        return [EpisodeResult.of(trajectory) for trajectory in self.rollout(factory, tasks, max_steps, on_progress)]

    def rollout(
        self,
        factory: EnvironmentFactory,
        tasks: Sequence[Mapping[str, Any]],
        max_steps: int,
        on_progress: Progress | None = None,
    ) -> list[Trajectory]:
        """As [`play`], with all that happened: texts, tokens, spans."""
        chat = ChatFormat(self.tokenizer, self.system_prompt)
        longest = context_limit(self.model, self.max_episode_tokens)
        limits = RolloutLimits(max_steps, self.max_new_tokens, longest, self.history_window)
        sampling = Sampling(self.temperature, self.max_new_tokens, chat.stop_token_ids, batch_size=self.num_envs)
        if self.temperature > 0:
            torch.manual_seed(self.seed)
        self.model.eval()
        with (
            contextlib.closing(EnvironmentPool(factory, isolation=self.env_isolation)) as pool,
            torch.no_grad(),
            TransformersBackend().session(self.model, sampling) as generate,
        ):
            envs = pool.take(min(self.num_envs, len(tasks)))
            return collect_rollouts(tasks, envs, generate, chat, limits, on_progress, refill=True)

    def score(self, trajectories: Sequence[Trajectory], **judge: Any) -> HindsightScores:
        """What the model thinks of every step in hindsight.

        Args:
            trajectories (`Sequence[Trajectory]`): of [`rollout`].
            judge: arguments of [`HindsightReward`], e.g. the `prompt` that it was trained with.
        """
        reward = HindsightReward(ChatFormat(self.tokenizer, self.system_prompt), seed=self.seed, **judge)
        self.model.eval()
        with torch.no_grad():
            return reward.score(self.model, trajectories)
