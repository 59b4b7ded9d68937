"""`MISEConfig`: TRL's `PPOConfig` plus environment, hindsight and calibration."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from .hindsight_config import HindsightConfig, check_choices, check_minimums
from .own_ppo_config import option
from .ppo import PPOConfig
from .token_log_probs import DEFAULT_HEAD_BYTES


@dataclass
class MISEConfig(HindsightConfig, PPOConfig):
    r"""
    Configuration of [`MISETrainer`]: everything in TRL's `PPOConfig`, with the same defaults, the judge's options of
    [`HindsightConfig`], and those below.

    Parameters:
        max_turns (`int`, *optional*, defaults to `16`):
            Most actions of an episode.
        max_new_tokens (`int`, *optional*):
            Most sampled tokens of one action. Defaults to `response_length`.
        max_episode_tokens (`int`, *optional*, defaults to `2048`):
            Most tokens of an episode; it is truncated before a turn that might not fit.
        num_envs (`int`, *optional*):
            Environments played side by side on each process. Defaults to `local_rollout_forward_batch_size`.
        rollout_keep_cache (`bool`, *optional*, defaults to `True`):
            Keep keys and values between the turns of an episode: only what is new is read. Takes the memory of a cache
            of all running episodes; `False` reads every episode from its beginning at every turn.
        rollout_refill (`bool`, *optional*, defaults to `False`):
            An environment whose episode ended takes the next task at once. Otherwise the tasks are played in waves of
            `num_envs`.
        generation_backend (`str`, *optional*, defaults to `"transformers"`):
            What samples the actions: `"transformers"`; `"continuous_batching"`, transformers' paged engine for GPUs;
            `"vllm"`, a vLLM server that was started beside (`trl vllm-serve`), see [`VLLMBackend`]. An engine of your
            own is passed to the trainer, see [`GenerationBackend`].
        vllm_server_base_url (`str`, *optional*):
            Address of the vLLM server, in place of the next two.
        vllm_server_host (`str`, *optional*, defaults to `"0.0.0.0"`):
            Its host.
        vllm_server_port (`int`, *optional*, defaults to `8000`):
            Its port.
        vllm_server_timeout (`float`, *optional*, defaults to `240.0`):
            Seconds to wait for the server to come up.
        vllm_group_port (`int`, *optional*, defaults to `51216`):
            Port of the channel that the weights take.
        vllm_importance_sampling_correction (`bool`, *optional*, defaults to `True`):
            Weigh every token's loss by how much likelier it is to the trainer than it was to the engine that sampled
            it, see [`sampling_drift`]; the difference is logged either way.
        vllm_importance_sampling_cap (`float`, *optional*, defaults to `3.0`):
            Largest such weight.
        history_window (`int`, *optional*):
            The policy sees the instruction, the last `history_window` turns and the present observation, for episodes
            that its context cannot hold: one training row per step, advantages over the whole episode.
            `max_episode_tokens` then bounds what it sees at one step. By default it sees the whole episode.
        env_isolation (`"auto"`, `"process"` or `"none"`, *optional*, defaults to `"auto"`):
            `"process"`: environments live in processes of their own, with a deadline per call; a crash or a hang ends
            one episode. `"auto"`: those that ask for it (TextWorld, ScienceWorld), the others in this process.
        env_timeout (`float`, *optional*, defaults to `60.0`):
            Seconds that an isolated environment has for one `step`.
        env_reset_timeout (`float`, *optional*):
            Seconds that it has for `reset`, start of its process included. Defaults to 120, or to `env_timeout` if
            that is more.
        envs_per_worker (`int`, *optional*, defaults to `1`):
            Isolated environments that share a process, and its fate.
        max_env_error_rate (`float`, *optional*, defaults to `0.25`):
            Failed episodes are left out of the update; a batch in which more than this share failed stops the run.
        system_prompt (`str`, *optional*):
            System message of every episode.
        chat_template_kwargs (`dict`, *optional*):
            Passed to the chat template, as in GRPOConfig: `{"enable_thinking": False}` for models that think unasked.
        check_environment (`bool`, *optional*, defaults to `True`):
            Run [`check_env`] on the environment before training.
        max_skipped_steps (`int`, *optional*, defaults to `10`):
            Optimizer steps in a row that are not taken, because loss or gradient is not finite, before the run stops.
        step_delimiter (`str`, *optional*):
            Without an environment: where a response is cut into steps. Defaults to one or more newlines.
        gae_level (`"turn"` or `"token"`, *optional*):
            One value and advantage per turn, or per action token. Defaults to `"turn"` with an environment, `"token"`
            (as in TRL) without one.
        kl_placement (`"loss"` or `"reward"`, *optional*):
            KL to the reference as a k3 loss term, or in the reward. Defaults to `"loss"` with an environment,
            `"reward"` (as in TRL) without one.
        value_backbone_grad (`bool`, *optional*, defaults to `False`):
            Without a `value_model`: let the value head's loss reach the policy's backbone.
        head_max_bytes (`int`, *optional*, defaults to `67108864`):
            Most bytes of next-token logits (tokens x vocabulary) in memory at a time when action tokens are evaluated
            and trained on; a pass holds about three times that. More is faster where the head itself is trained.
    """

    # transformers reads these from JSON where they come from a command line.
    _VALID_DICT_FIELDS = [*PPOConfig._VALID_DICT_FIELDS, "chat_template_kwargs"]

    max_turns: int = option(16, "Most actions of an episode.")
    max_new_tokens: int | None = option(None, "Most sampled tokens of one action; defaults to response_length.")
    max_episode_tokens: int = option(2048, "Most tokens of an episode.")
    num_envs: int | None = option(None, "Environments side by side; defaults to local_rollout_forward_batch_size.")
    rollout_keep_cache: bool = option(True, "Keep keys and values between the turns of an episode.")
    rollout_refill: bool = option(False, "An environment whose episode ended takes the next task at once.")
    generation_backend: Literal["transformers", "continuous_batching", "vllm"] = option(
        "transformers", "What samples the actions."
    )
    vllm_server_base_url: str | None = option(None, "Address of the vLLM server, in place of host and port.")
    vllm_server_host: str = option("0.0.0.0", "Host of the vLLM server.")
    vllm_server_port: int = option(8000, "Port of the vLLM server.")
    vllm_server_timeout: float = option(240.0, "Seconds to wait for the vLLM server to come up.")
    vllm_group_port: int = option(51216, "Port of the channel that the weights take to the vLLM server.")
    vllm_importance_sampling_correction: bool = option(
        True, "Correct for what the sampling engine computes otherwise."
    )
    vllm_importance_sampling_cap: float = option(3.0, "Largest importance weight of a token.")
    history_window: int | None = option(None, "Turns that the policy sees before the present one; default all.")
    env_isolation: Literal["auto", "process", "none"] = option("auto", "Environments in processes of their own.")
    env_timeout: float = option(60.0, "Seconds that an isolated environment has for a step.")
    env_reset_timeout: float | None = option(None, "Seconds that it has for a reset; defaults to 120.")
    envs_per_worker: int = option(1, "Isolated environments that share a process.")
    max_env_error_rate: float = option(0.25, "Share of failed episodes in a batch above which the run stops.")
    system_prompt: str | None = option(None, "System message of every episode.")
    chat_template_kwargs: dict[str, Any] | str | None = option(None, "Passed to the chat template, a JSON object.")
    check_environment: bool = option(True, "Check the environment's contract before training.")
    max_skipped_steps: int = option(10, "Steps in a row without a finite gradient before the run stops.")
    step_delimiter: str | None = option(None, "Where a response is cut into steps; defaults to newlines.")
    gae_level: Literal["turn", "token"] | None = option(None, "One advantage per turn or per action token.")
    kl_placement: Literal["loss", "reward"] | None = option(None, "KL as a loss term or in the reward.")
    value_backbone_grad: bool = option(False, "Let the value head's loss reach the policy's backbone.")
    head_max_bytes: int = option(DEFAULT_HEAD_BYTES, "Most bytes of next-token logits in memory at a time.")

    def __post_init__(self) -> None:
        # TRL's default is True, which PPOTrainer ignores; here it takes effect.
        self.choose_precision()
        super().__post_init__()
        if self.max_new_tokens is None:
            self.max_new_tokens = self.response_length
        if self.num_envs is None:
            self.num_envs = self.local_rollout_forward_batch_size
        choices = {
            "generation_backend": ("transformers", "continuous_batching", "vllm"),
            "env_isolation": ("auto", "process", "none"),
            "gae_level": (None, "turn", "token"),
            "kl_placement": (None, "loss", "reward"),
        }
        check_choices(self, choices)
        if not isinstance(self.chat_template_kwargs, dict | None):
            raise ValueError(
                f"chat_template_kwargs must be a dict, or a JSON object as text, got {self.chat_template_kwargs!r}; "
                'e.g. {"enable_thinking": False}'
            )
        self.complete_hindsight()
        self._check_ranges()

    def _check_ranges(self) -> None:
        minimums = {
            "max_turns": 1,
            "max_new_tokens": 1,
            "max_episode_tokens": 1,
            "num_envs": 1,
            "envs_per_worker": 1,
            "max_env_error_rate": 0,
            "max_skipped_steps": 0,
            "head_max_bytes": 1,
            "vllm_importance_sampling_cap": 1,
            "vllm_server_timeout": 0,
        }
        check_minimums(self, minimums, {"history_window": 0})
        for name in ("env_timeout", "env_reset_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be a positive, finite number of seconds, got {seconds}")
        if self.max_env_error_rate > 1:
            raise ValueError(f"max_env_error_rate must be a share in [0, 1], got {self.max_env_error_rate}")

    @classmethod
    def from_ppo_config(cls, config: PPOConfig) -> "MISEConfig":
        """Upgrades a `PPOConfig`: same values, MISE's own options at their defaults.

        `bf16=True`, TRL's default that PPOTrainer ignores, is dropped where no device supports it.
        """
        values = cls.values_of(config)
        if values.get("bf16") and not torch.cuda.is_available():
            values["bf16"] = None
        return cls(**values)
