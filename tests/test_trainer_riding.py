"""Hindsight questions ride on the passes that PPO makes anyway: same scores, no further pass over a trajectory."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import nn
from trainer_fakes import make_trainer

from trl_mise import CalibrationCallback, HindsightReward, MISETrainer
from trl_mise.advantages import action_layout
from trl_mise.micro_batches import make_micro_batches
from trl_mise.types import HindsightScores, Trajectory
from trl_mise.update import Evaluation


def evaluated(trainer: MISETrainer, size: int = 3) -> tuple[list[Trajectory], Evaluation]:
    trajectories = trainer.collect([{"seed": seed} for seed in range(8)])
    layout = action_layout(trajectories)
    micro_batches = make_micro_batches(trajectories, layout, size, np.random.default_rng(0))
    return trajectories, trainer.evaluate_tokens(trajectories, layout, micro_batches)


class Tokens:
    """Counts what a model reads: tokens that continue a cache, and tokens of passes from the beginning."""

    def __init__(self, model: Any) -> None:
        self.count: Counter[str] = Counter()
        model.model.layers[0].register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        continues = cache is not None and cache.get_seq_length() > 0
        self.count["continued" if continues else "read"] += kwargs["position_ids"].numel()


def equal(ridden: HindsightScores | None, asked: HindsightScores | None) -> None:
    assert ridden is not None and asked is not None and ridden.num_steps == asked.num_steps
    assert asked.scores.std() > 1e-4  # there is something to get wrong
    np.testing.assert_allclose(ridden.scores, asked.scores, atol=1e-6, rtol=0)


@pytest.mark.parametrize("view", ["full", "masked", "prefix"])
@pytest.mark.parametrize("evaluator", ["policy", "reference"])
def test_scores_that_ride_are_the_scores(tmp_path: Path, view: str, evaluator: str) -> None:
    trainer = make_trainer(tmp_path, evaluator_view=view, evaluator_model=evaluator)
    trainer.train()  # policy and reference differ
    trajectories, evaluation = evaluated(trainer)
    known = evaluation.verdicts if evaluator == "policy" else evaluation.ref_verdicts
    assert set(known) == set(range(8))
    equal(trainer.score(trajectories, evaluation), trainer.score(trajectories))


def test_no_trajectory_is_read_twice(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    policy, reference = Tokens(trainer.policy), Tokens(trainer.ref_model)
    trajectories, evaluation = evaluated(trainer, size=8)
    width = max(len(t.token_ids) for t in trajectories)
    policy.count.clear()
    reference.count.clear()
    layout = action_layout(trajectories)
    micro_batches = make_micro_batches(trajectories, layout, 8, np.random.default_rng(0))
    evaluation = trainer.evaluate_tokens(trajectories, layout, micro_batches)
    trainer.score(trajectories, evaluation)
    assert policy.count["read"] == 8 * width == reference.count["read"]
    assert 0 < policy.count["continued"] == reference.count["continued"]
    without = evaluation.__class__(
        *(getattr(evaluation, f) for f in ("log_probs", "ref_log_probs", "values", "final_values"))
    )
    trainer.score(trajectories, without)
    assert policy.count["read"] > 8 * width  # what would be read without riding


def test_riding_changes_nothing_else(tmp_path: Path) -> None:
    """The same pass, bit for bit: the ratios of the update are exactly 1 at lr = 0."""
    trainer = make_trainer(tmp_path)
    trajectories, evaluation = evaluated(trainer)
    trainer.hindsight = None
    layout = action_layout(trajectories)
    micro_batches = make_micro_batches(trajectories, layout, 3, np.random.default_rng(0))
    plain = trainer.evaluate_tokens(trajectories, layout, micro_batches)
    for name in ("log_probs", "ref_log_probs", "values", "final_values"):
        assert torch.equal(getattr(plain, name), getattr(evaluation, name))
    assert evaluation.verdicts and not plain.verdicts and not plain.ref_verdicts


def test_the_questions_are_split_by_tokens(tmp_path: Path) -> None:
    wide, narrow = make_trainer(tmp_path), make_trainer(tmp_path, scoring_max_tokens=1)
    trajectories, evaluation = evaluated(wide, size=8)
    layout = action_layout(trajectories)
    micro_batches = make_micro_batches(trajectories, layout, 8, np.random.default_rng(0))
    split = narrow.evaluate_tokens(trajectories, layout, micro_batches)
    for i, logits in evaluation.verdicts.items():
        torch.testing.assert_close(split.verdicts[i], logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["packed", "kv_repeat", "naive"])
def test_another_method_does_not_ride(tmp_path: Path, method: str) -> None:
    trajectories, evaluation = evaluated(make_trainer(tmp_path, scoring_method=method))
    assert not evaluation.verdicts and not evaluation.ref_verdicts


def test_another_judge_does_not_ride(tmp_path: Path) -> None:
    class Judge(HindsightReward):
        def verdict_probs(self, model: nn.Module, trajectories: Any) -> np.ndarray:
            return np.full((sum(t.num_steps for t in trajectories), 2), 0.5)

    trainer = make_trainer(tmp_path)
    assert trainer.hindsight is not None
    trainer.hindsight = Judge(trainer.hindsight.chat_format, prompt="{{ step }}")
    trajectories, evaluation = evaluated(trainer)
    assert not evaluation.verdicts and not evaluation.ref_verdicts
    scores = trainer.score(trajectories, evaluation)
    assert scores is not None and set(scores.scores) == {0.5}


def test_episodes_that_did_not_ride_are_asked(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trajectories, evaluation = evaluated(trainer)
    for i in (0, 5):
        del evaluation.verdicts[i]
    equal(trainer.score(trajectories, evaluation), trainer.score(trajectories))


@pytest.mark.parametrize(
    ("options", "rides"),
    [
        ({}, True),
        ({"calibration_anchor_coef": 0.0}, False),
        ({"calibration_target": "none"}, False),
        ({"evaluator_model": "reference"}, True),
    ],
)
def test_the_reference_is_asked_only_where_somebody_wants_to_know(tmp_path: Path, options: Any, rides: bool) -> None:
    _, evaluation = evaluated(make_trainer(tmp_path, **options))
    assert bool(evaluation.ref_verdicts) == rides


def test_calibration_keeps_the_reference_verdicts_that_rode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CalibrationCallback, "_with_reference_scores", lambda self, batch, update: batch)
    trainer = make_trainer(tmp_path)
    trainer.train()
    (callback,) = (cb for cb in trainer.callback_handler.callbacks if isinstance(cb, CalibrationCallback))
    examples = callback.buffer.examples
    assert examples and all(example.reference_scores is not None for example in examples)
    assert trainer.hindsight is not None
    with torch.no_grad(), trainer.reference_policy() as reference:
        probs = trainer.hindsight.verdict_probs(reference, [example.trajectory for example in examples])
    kept = np.concatenate([example.reference_scores for example in examples if example.reference_scores is not None])
    np.testing.assert_allclose(kept, probs @ trainer.hindsight.utilities, atol=1e-6)
    assert any("calibration/anchor" in entry for entry in trainer.state.log_history)


def test_with_an_adapter_the_reference_answers_without_it(tmp_path: Path) -> None:
    adapter = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = make_trainer(tmp_path, peft_config=adapter)
    trajectories, evaluation = evaluated(trainer)
    policy = torch.cat([evaluation.verdicts[i] for i in range(8)])
    reference = torch.cat([evaluation.ref_verdicts[i] for i in range(8)])
    assert (policy - reference).abs().max() > 1e-3
    equal(trainer.score(trajectories, evaluation), trainer.score(trajectories))
