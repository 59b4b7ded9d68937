"""Each option of the trainer does what its name says."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from trainer_fakes import (
    copy_of,
    largest_difference,
    make_classifier,
    make_config,
    make_policy,
    make_tokenizer,
    make_trainer,
    tasks,
    weights,
)

from trl_mise import CalibrationCallback, HindsightReward, MISETrainer, Trajectory
from trl_mise.actor_critic import ValueHead
from trl_mise.chat import ChatFormat


@pytest.fixture
def fresh_accelerator_state() -> Iterator[None]:
    """The mixed precision of the last `Accelerator` stays in accelerate's global state."""
    yield
    AcceleratorState._reset_state()


def train(folder: Path, **options: Any) -> MISETrainer:
    trainer = make_trainer(folder, **options)
    trainer.train()
    return trainer


def changed(trainer: MISETrainer, other: MISETrainer) -> float:
    return largest_difference(weights(trainer.policy), weights(other.policy))


def last_log(trainer: MISETrainer) -> dict[str, float]:
    return trainer.state.log_history[-1]


# Hindsight


def test_without_hindsight_it_is_sparse_ppo(tmp_path: Path) -> None:
    off, zero = train(tmp_path, hindsight=False), train(tmp_path, hindsight_coef=0)
    assert changed(off, zero) == 0.0
    for trainer in (off, zero):
        assert trainer.hindsight is None
        assert not [name for name in last_log(trainer) if name.startswith(("hindsight/", "mise/", "calibration/"))]
        assert not [c for c in trainer.callback_handler.callbacks if isinstance(c, CalibrationCallback)]
    assert changed(off, train(tmp_path)) > 1e-4


class OracleJudge(HindsightReward):
    """Knows that early letters are good."""

    def verdict_probs(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> np.ndarray:
        good = [0.9 if turn.action[:1] in "abcd" and turn.action else 0.1 for t in trajectories for turn in t.turns]
        return np.stack([good, 1 - np.array(good)], axis=1)


def test_a_judge_of_one_s_own(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    judge = OracleJudge(ChatFormat(tokenizer), coef=0.5)
    trainer = train(
        tmp_path, tokenizer=tokenizer, hindsight=judge, hindsight_coef=0, total_episodes=160, num_mini_batches=2,
        num_ppo_epochs=3,
    )  # fmt: skip
    assert trainer.hindsight is judge
    assert "calibration/loss" not in last_log(trainer)  # there is no model to calibrate
    assert last_log(trainer)["hindsight/score_mean"] > trainer.state.log_history[0]["hindsight/score_mean"]
    invalid = [entry["env/invalid_action_rate"] for entry in trainer.state.log_history]
    assert np.mean(invalid[-3:]) < 0.6 * invalid[0]


def test_a_judge_may_be_random(tmp_path: Path) -> None:
    class RandomJudge(HindsightReward):
        def verdict_probs(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> np.ndarray:
            good = np.random.default_rng(0).random(sum(t.num_steps for t in trajectories))
            return np.stack([good, 1 - good], axis=1)

    trainer = train(tmp_path, hindsight=RandomJudge(ChatFormat(make_tokenizer())))
    assert last_log(trainer)["hindsight/score_mean"] == pytest.approx(0.5, abs=0.15)


VARIANTS = {
    "return placement": {"hindsight_placement": "return"},
    "another alpha": {"hindsight_coef": 1.0},
    "sampled verdicts": {"verdict_mode": "sampled"},
    "full view": {"evaluator_view": "full", "hindsight_prompt": "judge step {{ step }} {{ outcome }}"},
    "masked view": {"evaluator_view": "masked"},
    "other words": {"hindsight_verdicts": ["done", "more", "new"], "hindsight_utilities": [1.0, 0.5, 0.0]},
    "step target": {"calibration_target": "step"},
    "no calibration": {"calibration_target": "none"},
    "no anchor": {"calibration_anchor_coef": 0.0},
    "own learning rate": {"calibration_learning_rate": 1e-4},
    "rarely calibrated": {"calibration_every": 2},
    "affine map": {"posthoc_calibrator": "affine"},
    "token level": {"gae_level": "token"},
    "KL as a reward": {"kl_placement": "reward"},
    "value gradient": {"value_backbone_grad": True},
    "system prompt": {"system_prompt": "task : a"},
    "shorter actions": {"max_new_tokens": 2},
}


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> MISETrainer:
    return train(tmp_path_factory.mktemp("default"), total_episodes=32)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_an_option_has_an_effect(tmp_path: Path, default_run: MISETrainer, options: dict[str, Any]) -> None:
    trainer = train(tmp_path, total_episodes=32, **options)
    assert changed(trainer, default_run) > 1e-6
    assert all(np.isfinite(value) for entry in trainer.state.log_history for value in entry.values())


@pytest.mark.parametrize("given", [{"mood": "task"}, '{"mood": "task"}'], ids=["dict", "as text"])
def test_the_chat_template_gets_its_arguments(tmp_path: Path, given: Any) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% if mood %}{{ mood }} {% endif %}" + tokenizer.chat_template
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, chat_template_kwargs=given)
    (episode,) = trainer.collect([dict(trainer.train_dataset[0])])
    assert episode.token_ids[0] == tokenizer.convert_tokens_to_ids("task") != tokenizer.unk_token_id


def test_arguments_of_the_chat_template_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chat_template_kwargs must be a dict, .* got 'enable_thinking=False'"):
        make_trainer(tmp_path, chat_template_kwargs="enable_thinking=False")


def test_naive_and_packed_scoring_train_the_same(tmp_path: Path, default_run: MISETrainer) -> None:
    assert changed(train(tmp_path, total_episodes=32, scoring_method="naive"), default_run) < 1e-4


def test_sampled_verdicts_are_utilities(tmp_path: Path) -> None:
    scores: list[float] = []
    trainer = make_trainer(tmp_path, verdict_mode="sampled")
    score = trainer.score

    def keep(trajectories: list[Trajectory], evaluation: Any) -> Any:
        result = score(trajectories, evaluation)
        scores.extend(result.scores if result is not None else [])
        return result

    trainer.score = keep  # type: ignore[method-assign]
    trainer.train()
    assert set(scores) == {0.0, 1.0}


def test_the_reference_may_judge(tmp_path: Path) -> None:
    """A frozen judge says the same at the end as in the beginning, and nothing is calibrated."""
    trainer = make_trainer(tmp_path, evaluator_model="reference")
    trajectories = trainer.collect([dict(row) for row in tasks(4)])
    before = trainer.score(trajectories)
    trainer.train()
    after = trainer.score(trajectories)
    assert before is not None and after is not None
    np.testing.assert_array_equal(before.scores, after.scores)
    assert "calibration/loss" not in last_log(trainer)
    by_policy = trainer.hindsight.score(trainer.policy, trajectories)  # type: ignore[union-attr]
    assert abs(by_policy.scores - after.scores).max() > 1e-4


# Calibration


def test_the_calibration_callback_can_be_replaced(tmp_path: Path) -> None:
    mine = CalibrationCallback(target="step", buffer_size=10)
    trainer = train(tmp_path, callbacks=[mine])
    assert [c for c in trainer.callback_handler.callbacks if isinstance(c, CalibrationCallback)] == [mine]
    assert len(mine.buffer) == 10
    assert "calibration/loss" in last_log(trainer)


def test_the_calibration_callback_can_be_removed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.remove_callback(CalibrationCallback)
    trainer.train()
    assert not [name for name in last_log(trainer) if name.startswith("calibration/")]
    assert trainer.hindsight is not None and trainer.hindsight.count == 2  # still scored


# PPO


def test_rewards_can_be_whitened(tmp_path: Path) -> None:
    plain, whitened = train(tmp_path), train(tmp_path, whiten_rewards=True)
    assert changed(plain, whitened) > 1e-6


@pytest.mark.parametrize("level", ["turn", "token"])
def test_a_value_model_of_its_own(tmp_path: Path, level: str) -> None:
    tokenizer = make_tokenizer()
    value_model = make_classifier(tokenizer)
    start = weights(value_model)
    trainer = train(tmp_path, tokenizer=tokenizer, value_model=value_model, gae_level=level)
    assert trainer.actor_critic.value_model is value_model
    assert largest_difference(start, weights(value_model)) > 1e-3


@pytest.mark.parametrize("reaches", [False, True])
def test_the_value_loss_reaches_the_backbone_only_if_asked(tmp_path: Path, reaches: bool) -> None:
    """With a policy loss of zero (no rewards, no KL, nothing to whiten) only the value loss could move the policy."""
    trainer = make_trainer(tmp_path, hindsight=False, kl_coef=0.0, value_backbone_grad=reaches, total_episodes=8)
    head = trainer.actor_critic.value_model
    assert isinstance(head, ValueHead)
    nn.init.normal_(head.score[-1].weight)
    compute = trainer.targets

    def only_values(*args: Any) -> Any:
        result = compute(*args)
        targets = result.update
        nothing = torch.zeros_like(targets.advantages)
        return replace(result, update=replace(targets, advantages=nothing, returns=targets.returns + 1))

    trainer.targets = only_values  # type: ignore[method-assign]
    before_policy, before_head = weights(trainer.policy), weights(head)
    trainer.train()
    assert (largest_difference(before_policy, weights(trainer.policy)) > 1e-4) is reaches
    assert largest_difference(before_head, weights(head)) > 1e-4


def test_a_ready_made_optimizer_is_used(tmp_path: Path) -> None:
    model = make_policy(make_tokenizer())
    optimizer = torch.optim.SGD(model.lm_head.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    start = weights(model)
    trainer = train(tmp_path, model=model, optimizers=(optimizer, scheduler), hindsight=False)
    moved = [name for name, tensor in weights(trainer.policy).items() if not torch.equal(tensor, start[name])]
    assert moved == ["lm_head.weight"]
    assert last_log(trainer)["lr"] == 0.1


# Rollout


@pytest.mark.parametrize(
    "options",
    [
        {"rollout_keep_cache": False},
        {"rollout_refill": True, "num_envs": 3},
        {"rollout_refill": True, "num_envs": 3, "local_rollout_forward_batch_size": 2},
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()),
)
def test_how_episodes_are_played_does_not_change_them(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = [{"seed": seed} for seed in range(8)]
    plain = make_trainer(tmp_path).collect(rows, greedy=True)
    assert len({t.token_ids for t in plain}) > 3
    assert make_trainer(tmp_path, **options).collect(rows, greedy=True) == plain


# Memory and precision


def test_head_max_bytes_bounds_every_pass_and_ratios_stay_one(tmp_path: Path) -> None:
    """The logits of at most six tokens, in the policy's passes and in its reference's."""
    tokenizer = make_tokenizer()
    trainer = make_trainer(
        tmp_path,
        tokenizer=tokenizer,
        head_max_bytes=6 * len(tokenizer) * 4,
        learning_rate=0.0,
        hindsight=False,
        rollout_keep_cache=False,
    )
    sizes: dict[str, list[int]] = {"policy": [], "reference": []}
    for name, model in (("policy", trainer.policy), ("reference", trainer.ref_model)):

        def record(_: nn.Module, inputs: tuple[torch.Tensor], sizes: list[int] = sizes[name]) -> None:
            if inputs[0].ndim == 2:  # gathered states `(n, H)`; sampling has rows
                sizes.append(len(inputs[0]))

        model.get_output_embeddings().register_forward_pre_hook(record)
    trainer.train()
    assert [max(seen) for seen in sizes.values()] == [6, 6]
    assert [entry["val/ratio_max_deviation"] for entry in trainer.state.log_history] == [0.0, 0.0]
    assert [entry["objective/kl"] for entry in trainer.state.log_history] == [0.0, 0.0]


def count_layer_calls(trainer: MISETrainer) -> list[int]:
    calls: list[int] = []
    attention = trainer.policy.model.layers[0].self_attn
    attention.register_forward_hook(lambda *args: calls.append(1) if torch.is_grad_enabled() else None)
    return calls


def test_gradient_checkpointing_changes_memory_only(tmp_path: Path) -> None:
    trainers, calls = [], []
    for checkpointing in (False, True):
        trainer = make_trainer(tmp_path, gradient_checkpointing=checkpointing, hindsight=False)
        calls.append(count_layer_calls(trainer))
        trainer.train()
        trainers.append(trainer)
    assert len(calls[1]) == 2 * len(calls[0])  # forward again in every backward
    assert changed(*trainers) < 1e-6
    assert not trainers[0].actor_critic.is_gradient_checkpointing


def test_gradient_checkpointing_with_hindsight_and_a_value_model(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    policy, value_model = make_policy(tokenizer), make_classifier(tokenizer)
    trainers = [
        train(
            tmp_path, tokenizer=tokenizer, model=copy_of(policy), value_model=copy_of(value_model),
            gradient_checkpointing=checkpointing,
        )
        for checkpointing in (False, True)
    ]  # fmt: skip
    assert changed(*trainers) < 1e-6
    values = [weights(trainer.actor_critic.value_model) for trainer in trainers]
    assert largest_difference(*values) < 1e-6


@pytest.mark.usefixtures("fresh_accelerator_state")
def test_bf16_is_really_mixed_precision(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bf16=True, total_episodes=32)
    assert trainer.accelerator.mixed_precision == "bf16"
    seen: set[tuple[str, torch.dtype]] = set()
    phase = ["other"]

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen.add((phase[0], output.dtype))

    trainer.policy.model.layers[0].self_attn.q_proj.register_forward_hook(note)
    phases = ("collect", "evaluate_tokens", "update", "_end_update")  # the verdicts ride, the last one is calibration
    for name in phases:
        method = getattr(trainer, name)

        def noted(*args: Any, method: Any = method, name: str = name, **kwargs: Any) -> Any:
            phase[0] = name
            return method(*args, **kwargs)

        setattr(trainer, name, noted)
    start = weights(trainer.policy)
    trainer.train()
    assert seen == {(name, torch.bfloat16) for name in phases}
    assert {parameter.dtype for parameter in trainer.actor_critic.parameters()} == {torch.float32}
    assert largest_difference(start, weights(trainer.policy)) > 1e-3
    assert all(np.isfinite(value) for entry in trainer.state.log_history for value in entry.values())


@pytest.mark.usefixtures("fresh_accelerator_state")
def test_the_next_trainer_has_its_own_precision(tmp_path: Path) -> None:
    assert make_trainer(tmp_path, bf16=True).accelerator.mixed_precision == "bf16"
    assert make_trainer(tmp_path).accelerator.mixed_precision == "no"


@pytest.mark.usefixtures("fresh_accelerator_state")
def test_ratios_are_one_in_bf16_too(tmp_path: Path) -> None:
    trainer = train(
        tmp_path, bf16=True, learning_rate=0.0, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert last_log(trainer)["val/ratio_max_deviation"] == 0.0


def test_a_policy_in_bf16_trains(tmp_path: Path) -> None:
    model = make_policy(make_tokenizer()).to(torch.bfloat16)
    trainer = train(tmp_path, model=model)
    assert {p.dtype for p in trainer.policy.parameters()} == {torch.bfloat16}
    assert all(np.isfinite(value) for entry in trainer.state.log_history for value in entry.values())


def test_precision_default_suits_the_machine(tmp_path: Path) -> None:
    assert make_config(tmp_path, bf16=None).bf16 == (torch.cuda.is_available() and torch.cuda.is_bf16_supported())


@pytest.mark.parametrize(
    ("batch", "given", "expected"), [(8, None, 4), (32, None, 8), (200, None, 32), (32, 2, 2), (8, 32, 32)]
)
def test_calibration_takes_a_share_of_the_batch(tmp_path: Path, batch: int, given: int | None, expected: int) -> None:
    options = {"per_device_train_batch_size": batch, "total_episodes": batch, "train_dataset": tasks(batch)}
    trainer = make_trainer(tmp_path, calibration_batch_size=given, **options)
    (callback,) = (cb for cb in trainer.callback_handler.callbacks if isinstance(cb, CalibrationCallback))
    assert callback.batch_size == expected
