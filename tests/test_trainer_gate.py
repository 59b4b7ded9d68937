"""The gate in the loop: moved after an update, felt in the next one; and the health warnings."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from trainer_fakes import (
    CoinEnv,
    largest_difference,
    make_config,
    make_policy,
    make_tokenizer,
    make_trainer,
    weights,
)

from trl_mise import HindsightHealthWarning, HindsightReward, Trajectory
from trl_mise.advantages import action_layout
from trl_mise.chat import ChatFormat
from trl_mise.micro_batches import make_micro_batches
from trl_mise.trainer import MISETrainer

TOKENIZER = make_tokenizer()


class Partisan(HindsightReward):
    """Says good of every step of the episodes that won (`side=1`), or of those that lost (`side=-1`)."""

    side = 1.0

    def verdict_probs(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> np.ndarray:
        praised = np.array([t.success == (self.side > 0) for t in trajectories for _ in t.turns])
        good = np.where(praised, 0.9, 0.1)
        return np.stack([good, 1 - good], axis=1)


class Opponent(Partisan):
    side = -1.0


class HopelessEnv(CoinEnv):
    always_lost = True


def trainer_with(tmp_path: Path, judge: type[Partisan], **overrides: Any) -> MISETrainer:
    options = {"environment_factory": CoinEnv, "total_episodes": 32, **overrides}
    config = make_config(tmp_path, **{k: v for k, v in options.items() if k != "environment_factory"})
    hindsight = judge.from_config(ChatFormat(TOKENIZER), config)
    return make_trainer(tmp_path, tokenizer=TOKENIZER, model=make_policy(TOKENIZER), hindsight=hindsight, **options)


def logged(trainer: MISETrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_a_judge_that_praises_losers_is_shut_out_from_the_second_update_on(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, Opponent)
    trainer.train()
    gate, z = logged(trainer, "hindsight/gate"), logged(trainer, "hindsight/agreement_z")
    # The first update knows nothing yet; what it measured acts on the second.
    assert gate[0] == 1.0 and z[0] < -2 and gate[1] < 0.05 and gate[-1] < 0.01
    share = logged(trainer, "hindsight/shaping_share")
    assert share[0] > 0.01 and share[-1] < 0.1 * share[0]


def test_one_that_praises_winners_is_heard(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, Partisan)
    trainer.train()
    assert set(logged(trainer, "hindsight/gate")) == {1.0} and min(logged(trainer, "hindsight/agreement_z")) > 2


def test_without_an_outcome_there_is_no_evidence(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, Opponent, environment_factory=HopelessEnv, hindsight_patience=0)
    trainer.train()
    assert set(logged(trainer, "hindsight/gate")) == {1.0} and set(logged(trainer, "hindsight/agreement_z")) == {0.0}


def test_a_closed_gate_is_no_hindsight_at_all(tmp_path: Path) -> None:
    """The targets are those of sparse PPO, up to the scale that an open gate would have given them."""
    trainer = trainer_with(tmp_path, Opponent)
    played = trainer.collect([{"seed": seed} for seed in range(8)])
    layout = action_layout(played)
    batches = make_micro_batches(played, layout, 8, np.random.default_rng(0))
    evaluation = trainer.evaluate_tokens(played, layout, batches)
    scores = trainer.score(played, evaluation)
    assert trainer.hindsight is not None and trainer.hindsight.gate is not None
    for _ in range(20):
        trainer.hindsight.gate.update(np.array([-1.0, -1.1, -0.9]))
    closed = trainer.targets(played, layout, evaluation, scores).update.advantages
    sparse = trainer.targets(played, layout, evaluation, None).update.advantages
    ratio = (closed / sparse)[layout.mask]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=1e-5)
    assert 0.8 < float(ratio[0]) < 1.25  # opposed praise would have made the whole a little smaller


def test_whitening_does_not_open_a_closed_gate(tmp_path: Path) -> None:
    """With all returns equal and no critic to err praise is all there is; a gate of .001 must still mean .001."""
    trainer = trainer_with(tmp_path, Partisan, environment_factory=HopelessEnv, hindsight_patience=0)
    played = trainer.collect([{"seed": seed} for seed in range(8)])
    layout = action_layout(played)
    evaluation = trainer.evaluate_tokens(
        played, layout, make_micro_batches(played, layout, 8, np.random.default_rng(0))
    )
    evaluation.values.zero_()
    scores = trainer.score(played, evaluation)
    hindsight = trainer.hindsight
    assert scores is not None and hindsight is not None and hindsight.gate is not None
    scores.scores[::2] = 0.9  # something to tell apart
    wide_open = trainer.targets(played, layout, evaluation, scores).update.advantages
    while hindsight.gate.value > 1e-3:
        hindsight.gate.update(np.array([-1.0, -1.4, -0.6]))
    nearly_closed = trainer.targets(played, layout, evaluation, scores).update.advantages
    assert float(wide_open.abs().max()) > 0.5
    assert float(nearly_closed.abs().max()) < 2e-3 * float(wide_open.abs().max())


@pytest.mark.parametrize("gate", ["agreement", "none"])
def test_the_gate_is_an_option(tmp_path: Path, gate: str) -> None:
    trainer = trainer_with(tmp_path, Opponent, hindsight_gate=gate)
    trainer.train()
    assert bool(logged(trainer, "hindsight/gate")) == (gate == "agreement")


def test_it_belongs_to_the_state_of_the_reward_wrapper() -> None:
    one, other = (HindsightReward(ChatFormat(TOKENIZER), gate=True, prompt="judge {{ action }}") for _ in range(2))
    assert one.gate is not None and other.gate is not None
    one.gate.update(np.array([-1.0, 0.2]))
    other.load_state_dict(one.state_dict())
    assert other.gate.z == one.gate.z != 0.0


def test_the_gate_in_the_return_placement(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, Opponent, hindsight_placement="return")
    trainer.train()
    assert logged(trainer, "hindsight/gate")[-1] < 0.05


def test_warnings_reach_the_user(tmp_path: Path) -> None:
    with pytest.warns(HindsightHealthWarning, match=r"update \d+: anti-correlated judge"):
        trainer_with(tmp_path, Opponent, total_episodes=64).train()


def test_warnings_change_nothing_and_can_be_switched_off(tmp_path: Path) -> None:
    after = {}
    for warn in (True, False):
        trainer = trainer_with(tmp_path, Opponent, total_episodes=64, health_warnings=warn)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
        assert any(issubclass(w.category, HindsightHealthWarning) for w in caught) == warn
        after[warn] = weights(trainer.policy)
    assert largest_difference(after[True], after[False]) == 0.0
