"""Patience in the loop: who leads while the environment is silent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_trainer_gate import HopelessEnv, Partisan, logged, trainer_with
from trainer_fakes import largest_difference, make_config, make_tokenizer, weights

from trl_mise import HindsightReward
from trl_mise.advantages import ActionLayout, action_layout
from trl_mise.chat import ChatFormat
from trl_mise.micro_batches import make_micro_batches
from trl_mise.patience import DEFAULT_PATIENCE
from trl_mise.trainer import MISETrainer
from trl_mise.types import HindsightScores, Trajectory
from trl_mise.update import Evaluation


class OrderedJudge(Partisan):
    """Says better and better of the steps of a batch, won or lost."""

    def verdict_probs(self, model: Any, trajectories: Any) -> np.ndarray:
        good = np.linspace(0.1, 0.9, sum(t.num_steps for t in trajectories))
        return np.stack([good, 1 - good], axis=1)


Played = tuple[list[Trajectory], ActionLayout, Evaluation, HindsightScores]


def play(trainer: MISETrainer) -> Played:
    """A batch of 8 episodes, judged; with a critic that expects nothing."""
    played = trainer.collect([{"seed": seed} for seed in range(8)])
    layout = action_layout(played)
    batches = make_micro_batches(played, layout, 8, np.random.default_rng(0))
    evaluation = trainer.evaluate_tokens(played, layout, batches)
    evaluation.values.zero_()
    scores = trainer.score(played, evaluation)
    assert scores is not None
    return played, layout, evaluation, scores


@pytest.mark.parametrize("placement", ["advantage", "return"])
def test_praise_waits_while_the_environment_is_silent(tmp_path: Path, placement: str) -> None:
    options = {"environment_factory": HopelessEnv, "hindsight_placement": placement, "hindsight_patience": 16}
    trainer = trainer_with(tmp_path, OrderedJudge, **options)
    trainer.train()
    assert logged(trainer, "hindsight/held") == [1.0, 1.0, 0.0, 0.0]  # 8 episodes each
    assert logged(trainer, "hindsight/gate") == [0.0, 0.0, 1.0, 1.0]
    assert [share > 0 for share in logged(trainer, "hindsight/shaping_share")] == [False, False, True, True]


def test_held_steps_get_no_praise_and_nothing_takes_its_place(tmp_path: Path) -> None:
    options = {"environment_factory": HopelessEnv, "hindsight_patience": 16}
    trainer = trainer_with(tmp_path, OrderedJudge, **options)
    played, layout, evaluation, scores = play(trainer)
    held = trainer.targets(played, layout, evaluation, scores)
    assert not held.update.advantages.any() and not any(shaping.any() for shaping in held.credit.shaping)


def test_an_environment_that_speaks_is_not_waited_for(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, OrderedJudge, hindsight_patience=1000)
    trainer.train()
    assert set(logged(trainer, "hindsight/held")) == {0.0} and min(logged(trainer, "hindsight/shaping_share")) > 0


def test_a_batch_that_speaks_is_as_without_patience(tmp_path: Path) -> None:
    advantages = []
    for patience in (0, 1000):
        trainer = trainer_with(tmp_path, OrderedJudge, hindsight_patience=patience)
        advantages.append(trainer.targets(*play(trainer)).update.advantages)
    assert torch.equal(*advantages)


def test_it_waits_anew_after_a_batch_that_speaks(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, OrderedJudge, environment_factory=HopelessEnv, hindsight_patience=16)
    silent = play(trainer)
    assert trainer.hindsight is not None and trainer.hindsight.patience is not None
    found = []
    for speaks in (False, False, False, True, False):
        if speaks:
            trainer.hindsight.patience.hear(np.array([0.0, 1.0]))
        else:
            found.append(bool(trainer.targets(*silent).update.advantages.any()))
    assert found == [False, False, True, False]


def test_it_belongs_to_the_state_of_the_reward_wrapper() -> None:
    def wrapper(patience: int) -> HindsightReward:
        return HindsightReward(ChatFormat(make_tokenizer()), prompt="judge {{ action }}", patience=patience)

    one, other = wrapper(64), wrapper(64)
    assert one.patience is not None and other.patience is not None
    one.patience.hear(np.zeros(8))
    other.load_state_dict(one.state_dict())
    assert other.patience.holds
    wrapper(0).load_state_dict(one.state_dict())  # switched off since
    older = {name: value for name, value in one.state_dict().items() if name != "patience"}
    other.load_state_dict(older)


def test_without_it_praise_leads_at_once(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, OrderedJudge, environment_factory=HopelessEnv, hindsight_patience=0)
    trainer.train()
    assert logged(trainer, "hindsight/held") == [] and min(logged(trainer, "hindsight/shaping_share")) > 0


def test_a_run_that_is_resumed_waits_no_longer_than_one_that_was_not(tmp_path: Path) -> None:
    options = {
        "environment_factory": HopelessEnv,
        "hindsight_patience": 24,
        "total_episodes": 40,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = trainer_with(tmp_path / "whole", OrderedJudge, **options)
    whole.train()
    resumed = trainer_with(tmp_path / "resumed", OrderedJudge, **options)
    checkpoint = next((tmp_path / "whole").glob("checkpoint-2"))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert logged(resumed, "hindsight/held") == logged(whole, "hindsight/held") == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert largest_difference(weights(whole.policy), weights(resumed.policy)) == 0.0


def test_the_option(tmp_path: Path) -> None:
    for options, episodes in (
        ({}, DEFAULT_PATIENCE),
        ({"hindsight_patience": 24}, 24),
        ({"hindsight_patience": 0}, None),
    ):
        hindsight = trainer_with(tmp_path, Partisan, **options).hindsight
        assert hindsight is not None and getattr(hindsight.patience, "episodes", None) == episodes
    with pytest.raises(ValueError, match="hindsight_patience must be a finite number of at least 0"):
        make_config(tmp_path, hindsight_patience=-1)
    with pytest.raises(ValueError, match="hindsight_patience must be at least 1 episode"):
        HindsightReward(ChatFormat(make_tokenizer()), patience=-8)
