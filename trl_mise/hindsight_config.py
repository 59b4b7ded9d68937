"""`HindsightConfig`: the options of the judge and of its calibration, whichever trainer they belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from .own_ppo_config import option
from .patience import DEFAULT_PATIENCE

DEFAULT_COEF = {"advantage": 0.1, "return": 0.03}


@dataclass
class HindsightConfig:
    r"""
    Options of the hindsight judge and of its calibration; part of [`MISEConfig`] and of [`MISEGRPOConfig`].

    Parameters:
        hindsight_coef (`float`, *optional*):
            Weight alpha of the hindsight scores. Defaults to 0.1 for placement `"advantage"`, 0.03 for `"return"`;
            0 switches hindsight off.
        hindsight_placement (`"advantage"` or `"return"`, *optional*, defaults to `"advantage"`):
            Add the normalised score to the step's advantage, or to its reward.
        hindsight_gate (`"agreement"` or `"none"`, *optional*, defaults to `"agreement"`):
            Multiply alpha by how far praise and the environment's advantages agree, see [`AgreementGate`]: a judge
            whose praise lowers the return is not listened to.
        hindsight_patience (`int`, *optional*, defaults to `256`):
            Episodes in a row that must have earned the same before praise may lead, see [`Patience`]: in a batch whose
            returns are all equal it is held back until then. 0 lets it lead in any such batch, for judges that are
            known to be right.
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
        log_sample_episodes (`int`, *optional*, defaults to `4`):
            Episodes of every tenth update that `report_to`'s trackers (`"tensorboard"`, `"wandb"`, `"trackio"`) show
            with the score of every step, half of them won where there are such; plots of the judge beside them. 0
            leaves them out.
    """

    hindsight_coef: float | None = option(None, "Weight alpha of the hindsight scores; 0 switches them off.")
    hindsight_placement: Literal["advantage", "return"] = option("advantage", "Where the scores are added.")
    hindsight_gate: Literal["agreement", "none"] = option("agreement", "Trust the judge as far as it agrees.")
    hindsight_patience: int = option(DEFAULT_PATIENCE, "Episodes in a row without a success before praise may lead.")
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
    log_sample_episodes: int = option(4, "Episodes that trackers show with the score of every step; 0 for none.")

    def choose_precision(self: Any) -> None:
        """bfloat16 where nothing was chosen and it is worth having."""
        if self.__dict__["bf16"] is None:
            self.bf16 = bool(not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported())

    @classmethod
    def values_of(cls, config: Any) -> dict[str, Any]:
        """What a configuration of TRL's says about the options that this one has too; a subclass may have others."""
        own = {f.name for f in fields(cls)}
        return {f.name: getattr(config, f.name) for f in fields(config) if f.init and f.name in own}

    def complete_hindsight(self) -> None:
        """Fills in the default weight and checks the options.

        Raises:
            ValueError: names the option and what it may be.
        """
        choices = {
            "hindsight_placement": ("advantage", "return"),
            "hindsight_gate": ("agreement", "none"),
            "verdict_mode": ("expected", "sampled", "generate"),
            "evaluator_view": ("full", "masked", "prefix"),
            "evaluator_model": ("policy", "reference"),
            "scoring_method": ("auto", "cached_packed", "packed", "kv_repeat", "naive"),
            "calibration_target": ("sum", "step", "none"),
            "posthoc_calibrator": ("identity", "affine", "platt", "isotonic"),
        }
        check_choices(self, choices)
        if self.verdict_mode == "generate" and self.posthoc_calibrator != "identity":
            raise ValueError(
                f"posthoc_calibrator={self.posthoc_calibrator!r} maps expected verdicts; with verdict_mode='generate' "
                "calibration rewards the evaluations themselves, so leave it at 'identity'"
            )
        if self.hindsight_coef is None:
            self.hindsight_coef = DEFAULT_COEF[self.hindsight_placement]
        minimums = {
            "hindsight_reason_tokens": 1,
            "hindsight_patience": 0,
            "hindsight_coef": 0,
            "calibration_every": 1,
            "calibration_buffer_size": 2,
            "calibration_anchor_coef": 0,
            "log_sample_episodes": 0,
        }
        check_minimums(self, minimums, {"hindsight_context_tokens": 1, "calibration_batch_size": 2})
        if not 0 <= self.hindsight_ema < 1:
            raise ValueError(f"hindsight_ema must be in [0, 1), got {self.hindsight_ema}")


def check_choices(config: Any, choices: Mapping[str, Sequence[Any]]) -> None:
    """Raises a `ValueError` that names the first option which is none of its choices."""
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name}={getattr(config, name)!r} is unknown; choose one of {allowed}")


def check_minimums(config: Any, minimums: Mapping[str, float], unless_none: Mapping[str, float]) -> None:
    """Raises a `ValueError` that names the first option below its minimum; those of `unless_none` may be `None`."""
    given = {name: minimum for name, minimum in unless_none.items() if getattr(config, name) is not None}
    for name, minimum in {**minimums, **given}.items():
        value = getattr(config, name)
        if value is None or not minimum <= value < float("inf"):
            raise ValueError(f"{name} must be a finite number of at least {minimum}, got {value}")
