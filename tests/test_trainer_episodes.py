"""What the trainer makes of its episodes: their file, padding that is also the end of a turn, truncation."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer_fakes import (
    LetterEnv,
    copy_of,
    largest_difference,
    make_policy,
    make_tokenizer,
    make_trainer,
    tasks,
    weights,
)

from trl_mise import MISETrainer, StopReason, Trajectory
from trl_mise.advantages import action_layout
from trl_mise.micro_batches import make_micro_batches


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def keep_trajectories(trainer: MISETrainer) -> list[Trajectory]:
    """All episodes that the trainer collects from now on."""
    kept: list[Trajectory] = []
    collect = trainer.collect

    def collect_and_keep(*args: Any, **kwargs: Any) -> list[Trajectory]:
        played = collect(*args, **kwargs)
        kept.extend(played)
        return played

    trainer.collect = collect_and_keep  # type: ignore[method-assign]
    return kept


# trajectories.jsonl


def test_every_episode_is_written(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    played = keep_trajectories(trainer)
    trainer.train()
    lines = read_lines(tmp_path / "trajectories.jsonl")
    assert len(lines) == len(played) == 16
    assert [line["update"] for line in lines] == [1] * 8 + [2] * 8
    assert {line["seed"] for line in lines} == set(range(16))  # 16 rows, two batches of 8: each once
    for line, trajectory in zip(lines, played, strict=True):
        assert line["task"] == {"seed": line["seed"]} == trajectory.task
        assert line["instruction"].startswith("task ")
        assert line["turns"][0]["observation"].startswith("say ")
        assert [turn["action"] for turn in line["turns"]] == [turn.action for turn in trajectory.turns]
        assert line["return"] == pytest.approx(sum(turn["reward"] for turn in line["turns"]))
        assert line["success"] == (line["return"] >= 0.5)
        assert line["stop_reason"] == "terminated" and line["final_observation"] == "done ."
        for turn in line["turns"]:
            assert 0 <= turn["score"] <= 1
            assert turn["score"] == pytest.approx(turn["verdict_probs"][0], abs=2e-6)  # utilities (1, 0)
            assert sum(turn["verdict_probs"]) == pytest.approx(1, abs=2e-6)


def test_without_hindsight_there_are_no_scores(tmp_path: Path) -> None:
    make_trainer(tmp_path, hindsight=False).train()
    lines = read_lines(tmp_path / "trajectories.jsonl")
    assert len(lines) == 16
    assert all("score" not in turn for line in lines for turn in line["turns"])


def test_the_file_can_be_switched_off_and_evaluation_is_not_in_it(tmp_path: Path) -> None:
    make_trainer(tmp_path / "off", log_trajectories=False).train()
    assert not (tmp_path / "off" / "trajectories.jsonl").exists()
    trainer = make_trainer(tmp_path / "on", eval_dataset=tasks(4), eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert len(read_lines(tmp_path / "on" / "trajectories.jsonl")) == 16


# Environments


def test_environments_play_in_waves_and_are_closed(tmp_path: Path) -> None:
    made: list[LetterEnv] = []

    def factory() -> LetterEnv:
        made.append(LetterEnv())
        return made[-1]

    trainer = make_trainer(tmp_path, num_envs=3, environment_factory=factory, check_environment=False)
    trainer.train()
    assert len(made) == 3  # kept from update to update
    assert all(env.closed for env in made)
    trainer.evaluate(tasks(2))
    assert len(made) == 5 and all(env.closed for env in made)


# pad == eos


def test_pad_may_be_eos(tmp_path: Path) -> None:
    """The pad token's id has no influence at all: the same weights, to the last bit, as with a pad token apart."""
    policy = make_policy(make_tokenizer())
    results = []
    for pad_is_eos in (False, True):
        tokenizer = make_tokenizer(pad_is_eos=pad_is_eos)
        trainer = make_trainer(
            tmp_path, tokenizer=tokenizer, model=copy_of(policy), per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        assert (tokenizer.pad_token_id == tokenizer.eos_token_id) is pad_is_eos
        trainer.train()
        results.append(weights(trainer.actor_critic))
    assert largest_difference(*results) == 0.0
    assert largest_difference(weights(policy), weights(trainer.policy)) > 1e-3


def test_turn_ends_stay_visible_and_trainable_with_pad_as_eos(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(pad_is_eos=True)
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, learning_rate=0.0, rollout_keep_cache=False)
    end = tokenizer.eos_token_id
    seen_in_update: list[tuple[int, int]] = []
    seen_in_sampling: list[tuple[int, int]] = []

    def look_at_update(module: Any, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[0]
        is_end = tokens.input_ids == end
        seen_in_update.append((int(is_end.sum()), int((is_end & tokens.attention_mask.bool()).sum())))

    generate = trainer.policy.generate

    def look_at_sampling(*, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        first = attention_mask.argmax(1)  # left padding
        inside = torch.arange(input_ids.shape[1])[None] >= first[:, None]
        assert torch.equal(inside, attention_mask.bool())
        seen_in_sampling.append((int(((input_ids == end) & inside).sum()), input_ids.shape[1]))
        return generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    trainer.actor_critic.register_forward_pre_hook(look_at_update)
    trainer.policy.generate = look_at_sampling
    played = keep_trajectories(trainer)
    trainer.train()
    # Right padding is 0, so every end-of-turn token in the update is a real one, and all of them are attended to.
    assert all(total == visible for total, visible in seen_in_update)
    assert sum(total for total, _ in seen_in_update) > 0
    assert sum(total for total, _ in seen_in_sampling) > 0
    closed = [(t, turn) for t in played for turn in t.turns if turn.closed]
    assert closed
    for trajectory, turn in closed:
        last = turn.action_span[1] - 1
        assert trajectory.token_ids[last] == end and trajectory.action_mask[last]
        assert end not in trajectory.token_ids[turn.action_span[0] : last]
    assert [entry["val/ratio_max_deviation"] for entry in trainer.state.log_history] == [0.0, 0.0]


def test_the_end_of_a_turn_is_learned_with_pad_as_eos(tmp_path: Path) -> None:
    """The gradient of the output row of the end token: there would be none if these tokens were masked."""
    tokenizer = make_tokenizer(pad_is_eos=True)

    class Short(LetterEnv):
        """Pays for ending every turn at once."""

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            observation, _, terminated, truncated, info = super().step(action)
            return observation, float(action == ""), terminated, truncated, info

    options = {
        "total_episodes": 160,
        "per_device_train_batch_size": 16,
        "num_ppo_epochs": 4,
        "num_mini_batches": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "kl_coef": 0.0,
        "hindsight": False,
    }
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, environment_factory=Short, **options)
    trainer.train()
    tokens = [entry["env/action_tokens"] for entry in trainer.state.log_history]
    assert tokens[0] > 8  # three turns of at most three tokens
    assert tokens[-1] < 5


# Truncation


@pytest.mark.parametrize(("max_turns", "truncated"), [(2, True), (4, False)])
def test_only_truncated_episodes_bootstrap(tmp_path: Path, max_turns: int, truncated: bool) -> None:
    """The value of the last state matters where the episode was cut, and only there."""
    trainer = make_trainer(tmp_path, max_turns=max_turns, hindsight=False)
    trajectories = trainer.collect([dict(row) for row in tasks(8)])
    reason = StopReason.MAX_TURNS if truncated else StopReason.TERMINATED
    assert {t.stop_reason for t in trajectories} == {reason}
    layout = action_layout(trajectories)
    micro_batches = make_micro_batches(trajectories, layout, 8, np.random.default_rng(0))
    evaluation = trainer.evaluate_tokens(trajectories, layout, micro_batches)
    assert torch.all(evaluation.final_values == 0)  # a new value head says 0
    one_higher = evaluation.final_values.clone()
    one_higher[3] = 1.0
    changed = dataclasses.replace(evaluation, final_values=one_higher)
    before = trainer.targets(trajectories, layout, evaluation, None).update
    after = trainer.targets(trajectories, layout, changed, None).update
    difference = (after.returns - before.returns)[layout.mask]
    if truncated:
        # lambda-returns of turns 1 and 2 (gamma 1, lambda .95, all values 0): the bootstrap comes in undiscounted at
        # the last turn and times lambda at the one before.
        row = (after.returns - before.returns)[3]
        first, last = (row[layout.turn_first[3, turn]] for turn in (0, 1))
        assert float(last) == pytest.approx(1.0) and float(first) == pytest.approx(0.95)
        assert not torch.equal(after.advantages, before.advantages)
        others = [i for i in range(8) if i != 3]
        assert torch.equal(after.returns[others], before.returns[others])
    else:
        assert torch.all(difference == 0)
        assert torch.equal(after.advantages, before.advantages)


def test_the_token_budget_truncates(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_episode_tokens=16)
    played = keep_trajectories(trainer)
    trainer.train()
    assert max(len(t.token_ids) for t in played) <= 16
    assert {t.stop_reason for t in played} == {StopReason.TOKEN_BUDGET}
    assert trainer.state.log_history[0]["env/truncated_rate"] == 1.0


def test_positions_of_the_model_bound_an_episode(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_policy(tokenizer, max_position_embeddings=18)
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, model=model, max_episode_tokens=500, hindsight=False)
    assert max(len(t.token_ids) for t in trainer.collect([dict(row) for row in tasks(8)])) <= 18
