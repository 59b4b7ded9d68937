"""The plain swap of one class: no environment, a reward model, hindsight on the steps of the response."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trainer_fakes import (
    DIGITS,
    WordValueModel,
    copy_of,
    largest_difference,
    make_classifier,
    make_config,
    make_policy,
    make_ppo_config,
    make_tokenizer,
    weights,
)

from trl_mise import MISEConfig, MISETrainer
from trl_mise.ppo import PPOConfig

# The response is cut at full stops: the tiny tokenizer knows no newlines.
CUT = {"step_delimiter": ".", "response_length": 8, "hindsight_prompt": "judge step {{ step }} {{ action }}"}


def prompts(tokenizer: Any, n: int = 16) -> Dataset:
    texts = [f"say {' '.join(DIGITS[: 1 + seed % 3])}" for seed in range(n)]
    return Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in texts])


def swap(args: PPOConfig, **overrides: Any) -> MISETrainer:
    """A PPO script with another class name, nothing else."""
    tokenizer = overrides.pop("tokenizer", None) or make_tokenizer()
    arguments = {
        "args": args,
        "processing_class": tokenizer,
        "model": make_policy(tokenizer),
        "ref_model": None,
        "reward_model": make_classifier(tokenizer, seed=2),
        "train_dataset": prompts(tokenizer),
        "value_model": make_classifier(tokenizer, seed=1),
        **overrides,
    }
    return MISETrainer(**arguments)


def eager_to_stop(model: Any, tokenizer: Any) -> Any:
    """Full stops and end tokens are likely, so that responses have steps and different lengths."""
    model.lm_head = torch.nn.Linear(model.config.hidden_size, len(tokenizer), bias=True)
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    torch.nn.init.zeros_(model.lm_head.bias)
    with torch.no_grad():
        model.lm_head.bias[tokenizer.convert_tokens_to_ids(".")] = 2.0
        model.lm_head.bias[tokenizer.eos_token_id] = 1.0
    return model


def steps_in(folder: Path) -> list[int]:
    lines = (folder / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    return [len(json.loads(line)["turns"]) for line in lines]


def test_a_ppo_config_is_accepted_and_upgraded(tmp_path: Path) -> None:
    trainer = swap(make_ppo_config(tmp_path))
    assert isinstance(trainer.args, MISEConfig)
    assert trainer.args.hindsight_coef == 0.1 and trainer.uses_hindsight
    start, start_values = weights(trainer.policy), weights(trainer.value_model)
    trainer.train()
    entry = trainer.state.log_history[-1]
    assert {"hindsight/score_mean", "mise/mutual_information", "objective/scores"} <= entry.keys()
    assert all(np.isfinite(value) for value in entry.values())
    assert largest_difference(start, weights(trainer.policy)) > 1e-3
    assert largest_difference(start_values, weights(trainer.value_model)) > 1e-3


def test_ppo_defaults_work(tmp_path: Path) -> None:
    """Nothing but what a short run needs: bf16, gradient checkpointing and the rest stay at TRL's defaults."""
    args = PPOConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, total_episodes=8, response_length=4, num_ppo_epochs=1
    )
    assert args.bf16 and args.gradient_checkpointing
    trainer = swap(args)
    assert trainer.args.bf16 is torch.cuda.is_available()
    trainer.train()
    assert trainer.state.global_step == 1


def test_the_response_is_cut_into_steps(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    trainer = swap(
        make_config(tmp_path, stop_token="eos", **CUT),
        tokenizer=tokenizer,
        model=eager_to_stop(make_policy(tokenizer), tokenizer),
    )
    trainer.train()
    steps = steps_in(tmp_path)
    assert len(steps) == 16
    assert min(steps) == 1 and max(steps) > 2
    lines = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text().splitlines()]
    for line in lines:
        assert [turn["reward"] for turn in line["turns"][:-1]] == [0.0] * (len(line["turns"]) - 1)
        assert line["turns"][-1]["reward"] == line["return"]
        assert line["instruction"].startswith("say ")


def test_the_reward_is_the_reward_models(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    values = torch.zeros(len(tokenizer))
    values[tokenizer.convert_tokens_to_ids(["1", "2", "a"])] = torch.tensor([1.0, 2.0, -1.5])
    trainer = swap(make_config(tmp_path, **CUT), tokenizer=tokenizer, reward_model=WordValueModel(values))
    for trajectory in trainer.collect([dict(row) for row in trainer.train_dataset]):
        assert trajectory.episode_return == pytest.approx(float(values[list(trajectory.token_ids)].sum()), abs=1e-5)


def test_a_missing_eos_is_fined(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = eager_to_stop(make_policy(tokenizer), tokenizer)
    trainer = swap(
        make_config(tmp_path, stop_token="eos", missing_eos_penalty=7.0, **{**CUT, "response_length": 3}),
        tokenizer=tokenizer,
        model=model,
        reward_model=WordValueModel(torch.zeros(len(tokenizer))),
    )
    played = trainer.collect([dict(row) for row in trainer.train_dataset])
    ended = [tokenizer.eos_token_id in t.token_ids[t.turns[0].action_span[0] :] for t in played]
    assert any(ended) and not all(ended)
    assert [t.episode_return for t in played] == [0.0 if end else -7.0 for end in ended]


@pytest.mark.parametrize("target", ["sum", "step"])
@pytest.mark.parametrize("posthoc", ["identity", "affine"])
def test_returns_outside_of_the_unit_interval(tmp_path: Path, target: str, posthoc: str) -> None:
    tokenizer = make_tokenizer()
    values = torch.linspace(-3, 3, len(tokenizer))
    trainer = swap(
        make_config(tmp_path, calibration_target=target, posthoc_calibrator=posthoc, **CUT),
        tokenizer=tokenizer,
        reward_model=WordValueModel(values),
    )
    trainer.train()
    returns = [t.episode_return for t in trainer.collect([dict(row) for row in trainer.train_dataset])]
    assert min(returns) < 0 and max(returns) > 1
    entry = trainer.state.log_history[-1]
    assert entry["calibration/loss"] > 0 and all(np.isfinite(value) for value in entry.values())


def test_a_value_head_where_there_is_no_value_model(tmp_path: Path) -> None:
    trainer = swap(make_config(tmp_path, save_strategy="steps", save_steps=2, **CUT), value_model=None)
    trainer.train()
    assert trainer.actor_critic.has_value_head
    assert (tmp_path / "checkpoint-2" / "value_head.safetensors").exists()


def test_a_reward_model_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reward_model is required without an environment"):
        swap(make_config(tmp_path), reward_model=None)


def test_no_chat_template_is_needed(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    trainer = swap(make_config(tmp_path, **CUT), tokenizer=tokenizer)
    trainer.train()
    assert "hindsight/score_mean" in trainer.state.log_history[-1]


def test_pad_may_be_eos(tmp_path: Path) -> None:
    policy = eager_to_stop(make_policy(make_tokenizer()), make_tokenizer())
    results = []
    for pad_is_eos in (False, True):
        tokenizer = make_tokenizer(pad_is_eos=pad_is_eos)
        trainer = swap(
            make_config(tmp_path, stop_token="eos", **CUT),
            tokenizer=tokenizer,
            model=copy_of(policy),
            # TRL's rule for them is `ids != pad`, so the models get the same configuration.
            value_model=make_classifier(make_tokenizer()),
            reward_model=make_classifier(make_tokenizer(), seed=2),
        )
        trainer.train()
        results.append(weights(trainer.actor_critic))
    assert largest_difference(*results) == 0.0


def test_ratios_are_exactly_one_without_learning(tmp_path: Path) -> None:
    trainer = swap(make_config(tmp_path, learning_rate=0.0, num_mini_batches=2, **CUT))
    trainer.train()
    assert [entry["val/ratio_max_deviation"] for entry in trainer.state.log_history] == [0.0, 0.0]


def test_evaluation_samples_greedily_and_scores(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    trainer = swap(make_config(tmp_path, **CUT), tokenizer=tokenizer, eval_dataset=prompts(tokenizer, 4))
    first = trainer.evaluate()
    assert first == trainer.evaluate()
    assert first["eval_episodes"] == 4 and np.isfinite(first["eval_return"])


def test_a_reward_that_is_not_finite_names_the_response(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    values = torch.zeros(len(tokenizer))
    values[tokenizer.convert_tokens_to_ids("2")] = float("nan")  # in every third prompt
    trainer = swap(make_config(tmp_path, **CUT), tokenizer=tokenizer, reward_model=WordValueModel(values))
    start = weights(trainer.actor_critic)
    with pytest.raises(ValueError, match=r"response \d+: reward_model returned the non-finite score nan"):
        trainer.train()
    assert largest_difference(start, weights(trainer.actor_critic)) == 0.0
