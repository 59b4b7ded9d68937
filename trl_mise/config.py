"""`MISEConfig`: TRL's `PPOConfig` plus environment, hindsight and calibration."""

from dataclasses import dataclass, field, fields
from typing import Literal

import torch

from .own_ppo_config import option
from .ppo import PPOConfig
from .token_log_probs import DEFAULT_HEAD_BYTES

DEFAULT_COEF = {"advantage": 0.1, "return": 0.03}


@dataclass
class MISEConfig(PPOConfig):
    r"""
    Configuration of [`MISETrainer`]: everything in TRL's `PPOConfig`, with the same defaults, plus the options below.

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
        generation_backend (`"transformers"` or `"continuous_batching"`, *optional*, defaults to `"transformers"`):
            What samples the actions; `"continuous_batching"` is transformers' paged engine for GPUs. An engine of your
            own is passed to the trainer, see [`GenerationBackend`].
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
        hindsight_coef (`float`, *optional*):
            Weight alpha of the hindsight scores. Defaults to 0.1 for placement `"advantage"`, 0.03 for `"return"`;
            0 switches hindsight off.
        hindsight_placement (`"advantage"` or `"return"`, *optional*, defaults to `"advantage"`):
            Add the normalised score to the step's advantage, or to its reward.
        hindsight_gate (`"agreement"` or `"none"`, *optional*, defaults to `"agreement"`):
            Multiply alpha by how far praise and the environment's advantages agree, see [`AgreementGate`]: a judge
            whose praise lowers the return is not listened to.
        hindsight_prompt (`str`, *optional*):
            Jinja template of the evaluator's question; see [`HindsightReward`].
        hindsight_verdicts (`list[str]`, *optional*, defaults to `["good", "bad"]`):
            Verdict words; each must start with a different token.
        hindsight_utilities (`list[float]`, *optional*, defaults to `[1.0, 0.0]`):
            Utility in [0, 1] of each verdict.
        verdict_mode (`"expected"`, `"sampled"` or `"generate"`, *optional*, defaults to `"expected"`):
            Score = expected utility; utility of one sampled verdict; or utility of the verdict that ends an evaluation
            which the model writes, with its reason first. Then `calibration_target` says how what it wrote is
            rewarded, see [`calibration_rewards`].
        hindsight_reason_tokens (`int`, *optional*, defaults to `64`):
            Most tokens of a written evaluation.
        evaluator_view (`"full"`, `"masked"` or `"prefix"`, *optional*, defaults to `"full"`):
            What the evaluator sees: the whole trajectory, all but the final outcome, or nothing after the step's own
            result.
        evaluator_model (`"policy"` or `"reference"`, *optional*, defaults to `"policy"`):
            Who judges.
        hindsight_context_tokens (`int`, *optional*):
            Most tokens of an episode and one question about it. Of longer episodes the evaluator sees all actions, and
            observations shortened to what is left. Defaults to `max_episode_tokens` with `history_window`; otherwise
            nothing is shortened.
        hindsight_ema (`float`, *optional*, defaults to `0.9`):
            Momentum of the score's running mean and standard deviation.
        scoring_method (`str`, *optional*, defaults to `"auto"`):
            `"cached_packed"`, `"packed"`, `"kv_repeat"` or `"naive"`, see [`score_steps`]. `"auto"` takes the cheapest
            that is right for the model, and lets the questions ride on the pass that PPO makes anyway.
        scoring_max_tokens (`int`, *optional*, defaults to `16384`):
            Most padded tokens of one scoring pass.
        calibration_target (`"sum"`, `"step"` or `"none"`, *optional*, defaults to `"sum"`):
            Regress the sum of the verdict log-odds, or every step's score, toward the sparse return.
        calibration_learning_rate (`float`, *optional*):
            Defaults to a third of `learning_rate`.
        calibration_batch_size (`int`, *optional*):
            Episodes per calibration step, half of them successes. Defaults to a quarter of the batch, between 4 and
            32: with the default four PPO epochs, a step then costs a sixteenth of the update, and its questions.
        calibration_every (`int`, *optional*, defaults to `1`):
            Calibrate after every n-th update.
        calibration_buffer_size (`int`, *optional*, defaults to `512`):
            Episodes kept for calibration.
        calibration_anchor_coef (`float`, *optional*, defaults to `1.0`):
            Weight of the anchor to the reference model's own verdicts.
        posthoc_calibrator (`"identity"`, `"affine"`, `"platt"` or `"isotonic"`, *optional*, defaults to `"identity"`):
            Map applied to the scores, refitted on the calibration buffer after every update.
        health_warnings (`bool`, *optional*, defaults to `True`):
            Give a [`HindsightHealthWarning`] where the judge seems to fail.
        log_trajectories (`bool`, *optional*, defaults to `True`):
            Write every training episode to `<output_dir>/trajectories.jsonl`.
    """

    max_turns: int = option(16, "Most actions of an episode.")
    max_new_tokens: int | None = option(None, "Most sampled tokens of one action; defaults to response_length.")
    max_episode_tokens: int = option(2048, "Most tokens of an episode.")
    num_envs: int | None = option(None, "Environments side by side; defaults to local_rollout_forward_batch_size.")
    rollout_keep_cache: bool = option(True, "Keep keys and values between the turns of an episode.")
    rollout_refill: bool = option(False, "An environment whose episode ended takes the next task at once.")
    generation_backend: Literal["transformers", "continuous_batching"] = option(
        "transformers", "What samples the actions."
    )
    history_window: int | None = option(None, "Turns that the policy sees before the present one; default all.")
    env_isolation: Literal["auto", "process", "none"] = option("auto", "Environments in processes of their own.")
    env_timeout: float = option(60.0, "Seconds that an isolated environment has for a step.")
    env_reset_timeout: float | None = option(None, "Seconds that it has for a reset; defaults to 120.")
    envs_per_worker: int = option(1, "Isolated environments that share a process.")
    max_env_error_rate: float = option(0.25, "Share of failed episodes in a batch above which the run stops.")
    system_prompt: str | None = option(None, "System message of every episode.")
    check_environment: bool = option(True, "Check the environment's contract before training.")
    max_skipped_steps: int = option(10, "Steps in a row without a finite gradient before the run stops.")
    step_delimiter: str | None = option(None, "Where a response is cut into steps; defaults to newlines.")
    gae_level: Literal["turn", "token"] | None = option(None, "One advantage per turn or per action token.")
    kl_placement: Literal["loss", "reward"] | None = option(None, "KL as a loss term or in the reward.")
    value_backbone_grad: bool = option(False, "Let the value head's loss reach the policy's backbone.")
    head_max_bytes: int = option(DEFAULT_HEAD_BYTES, "Most bytes of next-token logits in memory at a time.")
    hindsight_coef: float | None = option(None, "Weight alpha of the hindsight scores; 0 switches them off.")
    hindsight_placement: Literal["advantage", "return"] = option("advantage", "Where the scores are added.")
    hindsight_gate: Literal["agreement", "none"] = option("agreement", "Trust the judge as far as it agrees.")
    hindsight_prompt: str | None = option(None, "Jinja template of the evaluator's question.")
    hindsight_verdicts: list[str] = field(
        default_factory=lambda: ["good", "bad"], metadata={"help": "Verdict words, best first."}
    )
    hindsight_utilities: list[float] = field(
        default_factory=lambda: [1.0, 0.0], metadata={"help": "Utility in [0, 1] of each verdict."}
    )
    verdict_mode: Literal["expected", "sampled", "generate"] = option(
        "expected", "Expected, sampled or written verdicts."
    )
    hindsight_reason_tokens: int = option(64, "Most tokens of a written evaluation.")
    evaluator_view: Literal["full", "masked", "prefix"] = option("full", "What the evaluator sees.")
    evaluator_model: Literal["policy", "reference"] = option("policy", "Who judges.")
    hindsight_context_tokens: int | None = option(
        None, "Most tokens of an episode and a question; observations of longer ones are shortened."
    )
    hindsight_ema: float = option(0.9, "Momentum of the score's running mean and standard deviation.")
    scoring_method: Literal["auto", "cached_packed", "packed", "kv_repeat", "naive"] = option(
        "auto", "How the questions are asked; the cheapest right way by default."
    )
    scoring_max_tokens: int | None = option(16384, "Most padded tokens of one scoring pass.")
    calibration_target: Literal["sum", "step", "none"] = option("sum", "What is regressed toward the return.")
    calibration_learning_rate: float | None = option(None, "Defaults to a third of learning_rate.")
    calibration_batch_size: int | None = option(
        None, "Episodes per calibration step; defaults to a quarter of the batch."
    )
    calibration_every: int = option(1, "Calibrate after every n-th update.")
    calibration_buffer_size: int = option(512, "Episodes kept for calibration.")
    calibration_anchor_coef: float = option(1.0, "Weight of the anchor to the reference model's verdicts.")
    posthoc_calibrator: Literal["identity", "affine", "platt", "isotonic"] = option(
        "identity", "Map applied to the scores, refitted on the calibration buffer."
    )
    health_warnings: bool = option(True, "Warn where the judge seems to fail.")
    log_trajectories: bool = option(True, "Write every training episode to trajectories.jsonl.")

    def __post_init__(self) -> None:
        precision: bool | None = self.__dict__["bf16"]
        if precision is None:
            # TRL's default is True, which PPOTrainer ignores; here it takes effect, so it must be worth having.
            self.bf16 = bool(not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported())
        super().__post_init__()
        if self.max_new_tokens is None:
            self.max_new_tokens = self.response_length
        if self.num_envs is None:
            self.num_envs = self.local_rollout_forward_batch_size
        self._check_choices()
        if self.verdict_mode == "generate" and self.posthoc_calibrator != "identity":
            raise ValueError(
                f"posthoc_calibrator={self.posthoc_calibrator!r} maps expected verdicts; with verdict_mode='generate' "
                "calibration rewards the evaluations themselves, so leave it at 'identity'"
            )
        if self.hindsight_coef is None:
            self.hindsight_coef = DEFAULT_COEF[self.hindsight_placement]
        self._check_ranges()

    def _check_choices(self) -> None:
        choices = {
            "generation_backend": ("transformers", "continuous_batching"),
            "env_isolation": ("auto", "process", "none"),
            "gae_level": (None, "turn", "token"),
            "kl_placement": (None, "loss", "reward"),
            "hindsight_placement": ("advantage", "return"),
            "hindsight_gate": ("agreement", "none"),
            "verdict_mode": ("expected", "sampled", "generate"),
            "evaluator_view": ("full", "masked", "prefix"),
            "evaluator_model": ("policy", "reference"),
            "scoring_method": ("auto", "cached_packed", "packed", "kv_repeat", "naive"),
            "calibration_target": ("sum", "step", "none"),
            "posthoc_calibrator": ("identity", "affine", "platt", "isotonic"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {allowed}")

    def _check_ranges(self) -> None:
        at_least = {
            "max_turns": 1,
            "max_new_tokens": 1,
            "max_episode_tokens": 1,
            "num_envs": 1,
            "history_window": 0,
            "envs_per_worker": 1,
            "max_env_error_rate": 0,
            "max_skipped_steps": 0,
            "hindsight_context_tokens": 1,
            "hindsight_reason_tokens": 1,
            "head_max_bytes": 1,
            "hindsight_coef": 0,
            "calibration_batch_size": 2,
            "calibration_every": 1,
            "calibration_buffer_size": 2,
            "calibration_anchor_coef": 0,
        }
        for name, minimum in at_least.items():
            value = getattr(self, name)
            if value is None and name in ("calibration_batch_size", "history_window", "hindsight_context_tokens"):
                continue
            if not (minimum <= value < float("inf")):
                raise ValueError(f"{name} must be a finite number of at least {minimum}, got {value}")
        for name in ("env_timeout", "env_reset_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be a positive, finite number of seconds, got {seconds}")
        if self.max_env_error_rate > 1:
            raise ValueError(f"max_env_error_rate must be a share in [0, 1], got {self.max_env_error_rate}")
        if not 0 <= self.hindsight_ema < 1:
            raise ValueError(f"hindsight_ema must be in [0, 1), got {self.hindsight_ema}")

    @classmethod
    def from_ppo_config(cls, config: PPOConfig) -> "MISEConfig":
        """Upgrades a `PPOConfig`: same values, MISE's own options at their defaults.

        `bf16=True`, TRL's default that PPOTrainer ignores, is dropped where no device supports it.
        """
        values = {f.name: getattr(config, f.name) for f in fields(config) if f.init}
        if values.get("bf16") and not torch.cuda.is_available():
            values["bf16"] = None
        return cls(**values)
