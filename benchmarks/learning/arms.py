"""The arms: what is done with the same policy, the same episodes and the same PPO settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        name (`str`): as on the command line.
        title (`str`): one line for the report.
        options: of `MISEConfig` (of `GRPOConfig` or `MISEGRPOConfig` for those trainers), over the task's.
        judge (`str`): `"model"`, a control of `trl_mise.judges`, or a rival of `rivals.py`.
        shuffled_returns (`bool`): calibrate toward the returns of other episodes.
        trainer (`"mise"`, `"grpo"` or `"mise-grpo"`): whose loop.
        writes (`bool`): the judge writes its verdicts, which its warm start has to teach it.
    """

    name: str
    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    judge: str = "model"
    shuffled_returns: bool = False
    trainer: str = "mise"
    writes: bool = False


# The verdicts count as much as the environment's reward and add up over an episode: here they lead, and must be right.
_SUMMED = {"hindsight_placement": "return", "hindsight_coef": 1.0, "hindsight_gate": "none", "hindsight_patience": 0}
_IMPATIENT: tuple[str, Mapping[str, Any]] = ("… praise leads at once", {"hindsight_patience": 0})
_GATE_ALONE = {"hindsight_gate": "agreement", "calibration_target": "none"}

_ALL = (
    Arm("sparse", "PPO, sparse reward", {"hindsight_coef": 0.0}),
    Arm("mise", "**MISE, default**"),
    Arm("uncalibrated", "… without calibration", {"calibration_target": "none"}),
    Arm("step", "… calibrated by step", {"calibration_target": "step"}),
    Arm("sum", "… calibrated by sum", {"calibration_target": "sum"}),
    Arm("prefix", "… judge sees the past only", {"evaluator_view": "prefix"}),
    Arm("masked", "… judge sees all but the outcome", {"evaluator_view": "masked"}),
    Arm("full", "… judge sees everything", {"evaluator_view": "full"}),
    Arm("frozen", "… frozen judge", {"evaluator_model": "reference"}),
    Arm("return", "… in the return", {"hindsight_placement": "return"}),
    Arm("advantage", "… at the advantage", {"hindsight_placement": "advantage"}),
    Arm("affine", "… post-hoc affine map", {"posthoc_calibrator": "affine"}),
    Arm("platt", "… post-hoc Platt map", {"posthoc_calibrator": "platt"}),
    Arm("isotonic", "… post-hoc isotonic map", {"posthoc_calibrator": "isotonic"}),
    Arm("ungated", "… without the gate", {"hindsight_gate": "none"}),
    Arm("impatient", *_IMPATIENT),
    Arm("sampled", "… sampled verdicts", {"verdict_mode": "sampled"}),
    Arm("summed", "verdicts summed into the return at full weight", _SUMMED),
    Arm("summed-uncalibrated", "… without calibration", {**_SUMMED, "calibration_target": "none"}),
    Arm("summed-shuffled-returns", "… calibrated toward shuffled returns", _SUMMED, shuffled_returns=True),
    Arm("summed-gate", "… without calibration, with the gate", {**_SUMMED, **_GATE_ALONE}),
    Arm("written", "written verdicts, rewarded by sum", writes=True),
    Arm("written-step", "… rewarded by step", {"calibration_target": "step"}, writes=True),
    Arm("written-uncalibrated", "… not rewarded", {"calibration_target": "none"}, writes=True),
    Arm("oracle", "oracle verdicts", judge="oracle"),
    Arm("flipped", "flipped verdicts", judge="flipped"),
    Arm("random", "random verdicts", judge="random"),
    Arm("shuffled-steps", "scores shuffled within the episode", judge="shuffled_steps"),
    Arm("shuffled-returns", "calibrated toward shuffled returns", shuffled_returns=True),
    Arm(
        "potential",
        "potential-based shaping by self-evaluation",
        {"hindsight_placement": "return"},
        judge="potential",
    ),
    Arm("decomposition", "learned return decomposition", judge="decomposition"),
    Arm("grpo", "TRL's GRPOTrainer", trainer="grpo"),
    Arm("mise-grpo", "MISEGRPOTrainer", trainer="mise-grpo"),
    Arm("mise-grpo-impatient", *_IMPATIENT, trainer="mise-grpo"),
    Arm("mise-grpo-flipped", "… flipped verdicts", judge="flipped", trainer="mise-grpo"),
    Arm(
        "mise-grpo-shuffled-steps", "… scores shuffled within the episode", judge="shuffled_steps", trainer="mise-grpo"
    ),
)
ARMS: dict[str, Arm] = {arm.name: arm for arm in _ALL}
