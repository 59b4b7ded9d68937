"""Bad input: a clear error that names the argument, and nothing half-trained."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from trainer_fakes import (
    LetterEnv,
    largest_difference,
    make_config,
    make_policy,
    make_tokenizer,
    make_trainer,
    tasks,
    weights,
)

from trl_mise import HindsightReward, MISETrainer
from trl_mise._trl import check_trl_version
from trl_mise.chat import ChatFormat
from trl_mise.envs.base import EnvironmentFailure
from trl_mise.hindsight import EvaluatorFailure


def assert_refused(folder: Path, error: type[Exception], message: str, **options: Any) -> None:
    """The constructor refuses, and the weights are what they were."""
    model = make_policy(make_tokenizer())
    start = weights(model)
    with pytest.raises(error, match=message):
        make_trainer(folder, **{"model": model, **options})
    assert largest_difference(start, weights(model)) == 0.0


# Arguments


def test_no_pad_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    assert_refused(tmp_path, ValueError, r"no pad token.*pad_token = processing_class.eos_token", tokenizer=tokenizer)


def test_no_chat_template(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    assert_refused(tmp_path, ValueError, r"has no chat template.*processing_class.chat_template", tokenizer=tokenizer)


def test_hindsight_that_is_none(tmp_path: Path) -> None:
    assert_refused(tmp_path, TypeError, r"hindsight must be a HindsightReward, False or None, got s", hindsight="off")


def test_verdicts_of_which_one_begins_the_other(tmp_path: Path) -> None:
    """In a word-level vocabulary a word begins the verdict of several words that starts with it."""
    message = r"'good' and 'good goal': the tokens of one .*choose other words"
    assert_refused(tmp_path, ValueError, message, hindsight_verdicts=["good", "good goal"])


def test_unknown_verdicts(tmp_path: Path) -> None:
    assert_refused(tmp_path, ValueError, "'splendid' is not in the tokenizer", hindsight_verdicts=["splendid", "bad"])


@pytest.mark.parametrize("rows", [0, 7])
def test_dataset_smaller_than_a_batch(tmp_path: Path, rows: int) -> None:
    dataset = Dataset.from_list([{"seed": seed} for seed in range(rows)])
    message = f"train_dataset has {rows} rows, fewer than one batch of 8"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, train_dataset=dataset)


def test_no_dataset(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match="train_dataset is required"):
        MISETrainer(make_config(tmp_path), tokenizer, make_policy(tokenizer), environment_factory=LetterEnv)


def test_an_environment_in_place_of_a_factory(tmp_path: Path) -> None:
    assert_refused(
        tmp_path, ValueError, r"environment_factory must be a callable.*LetterEnv", environment_factory=LetterEnv()
    )


def test_neither_environment_nor_reward_model(tmp_path: Path) -> None:
    assert_refused(tmp_path, ValueError, "reward_model is required without an environment", environment_factory=None)


def test_model_as_its_own_reference(tmp_path: Path) -> None:
    model = make_policy(make_tokenizer())
    assert_refused(
        tmp_path, ValueError, "cannot be the same object|the very object that is trained", model=model, ref_model=model
    )


def test_greedy_training(tmp_path: Path) -> None:
    assert_refused(tmp_path, ValueError, "temperature must be positive", temperature=0.0)


def test_mini_batches_that_do_not_divide(tmp_path: Path) -> None:
    assert_refused(tmp_path, ValueError, "multiple of `?num_mini_batches", num_mini_batches=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hindsight_coef": -0.1}, r"hindsight_coef must be .*at least 0, got -0.1"),
        ({"hindsight_coef": float("nan")}, r"hindsight_coef must be .*got nan"),
        ({"hindsight_placement": "reward"}, r"hindsight_placement='reward' is unknown; choose one of"),
        ({"gae_level": "step"}, r"gae_level='step' is unknown"),
        ({"kl_placement": "both"}, r"kl_placement='both' is unknown"),
        ({"verdict_mode": "argmax"}, r"verdict_mode='argmax' is unknown"),
        ({"evaluator_view": "none"}, r"evaluator_view='none' is unknown"),
        ({"evaluator_model": "judge"}, r"evaluator_model='judge' is unknown"),
        ({"calibration_target": "outcome"}, r"calibration_target='outcome' is unknown"),
        ({"posthoc_calibrator": "beta"}, r"posthoc_calibrator='beta' is unknown"),
        ({"max_turns": 0}, r"max_turns must be .*at least 1, got 0"),
        ({"max_new_tokens": 0}, r"max_new_tokens must be .*at least 1, got 0"),
        ({"num_envs": 0}, r"num_envs must be .*at least 1, got 0"),
        ({"hindsight_ema": 1.0}, r"hindsight_ema must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **options)


def test_a_prompt_that_cannot_work(tmp_path: Path) -> None:
    assert_refused(tmp_path, ValueError, r"undefined variable\(s\) \['score'\]", hindsight_prompt="{{ score }}")


def test_utilities_that_do_not_fit(tmp_path: Path) -> None:
    assert_refused(tmp_path, ValueError, "utilities has 3 values for 2 verdicts", hindsight_utilities=[1.0, 0.5, 0.0])


# Environments


class ForgetfulEnv(LetterEnv):
    """Returns four values, as environments did once."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


def test_an_environment_that_fails_its_check(tmp_path: Path) -> None:
    assert_refused(tmp_path, EnvironmentFailure, "ForgetfulEnv: step.*must return", environment_factory=ForgetfulEnv)


def test_the_check_can_be_switched_off(tmp_path: Path) -> None:
    make_trainer(tmp_path, environment_factory=ForgetfulEnv, check_environment=False)


class NotFiniteEnv(LetterEnv):
    """Its reward is broken in one task; `check_env` plays another one."""

    bad_seed = 11

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self._bad = seed == self.bad_seed
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float("inf") if self._bad and terminated else reward, terminated, truncated, info


def test_a_reward_that_is_not_finite_names_the_episode(tmp_path: Path) -> None:
    """The failure comes in the first or the second update, never half-way through one."""
    made: list[NotFiniteEnv] = []

    def factory() -> NotFiniteEnv:
        made.append(NotFiniteEnv())
        return made[-1]

    trainer = make_trainer(tmp_path, environment_factory=factory, train_dataset=tasks(16), max_env_error_rate=0.0)
    at_start_of_update: list[dict[str, torch.Tensor]] = []
    collect = trainer.collect

    def noted(*args: Any, **kwargs: Any) -> Any:
        at_start_of_update.append(weights(trainer.actor_critic))
        return collect(*args, **kwargs)

    trainer.collect = noted  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFailure, match=r"1 of 8 episodes.*'seed': 11.*step 3.*reward"):
        trainer.train()
    assert largest_difference(at_start_of_update[-1], weights(trainer.actor_critic)) == 0.0
    assert len(at_start_of_update) == trainer.state.global_step + 1
    assert all(env.closed for env in made)  # also after a failure


def test_a_prompt_longer_than_the_budget(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_episode_tokens=6)
    with pytest.raises(EnvironmentFailure, match="raise max_episode_tokens or shorten the first observation"):
        trainer.train()


# The evaluator


def test_verdicts_that_cannot_be_read_name_the_episode(tmp_path: Path) -> None:
    class BrokenJudge(HindsightReward):
        def verdict_probs(self, model: nn.Module, trajectories: Any) -> Any:
            probs = super().verdict_probs(model, trajectories)
            probs[4] = 0.7  # episodes have three steps
            return probs

    trainer = make_trainer(tmp_path, hindsight=BrokenJudge(ChatFormat(make_tokenizer())))
    start = weights(trainer.actor_critic)
    with pytest.raises(EvaluatorFailure, match="episode 1, step 2 of 3"):
        trainer.train()
    assert largest_difference(start, weights(trainer.actor_critic)) == 0.0


# What is not there


@pytest.mark.parametrize("installed", ["0.24.0", "0.29.1"])
def test_trl_that_is_too_old(installed: str) -> None:
    with pytest.raises(ImportError, match=rf'trl {installed} is installed.*pip install "trl>=1.0"'):
        check_trl_version(installed)


@pytest.mark.parametrize("installed", ["1.0.0", "1.12.7", "1.13.0.dev0", "1.16.0", "2.0.0"])
def test_trl_with_and_without_a_ppo_trainer(installed: str) -> None:
    check_trl_version(installed)


def test_importing_with_the_wrong_trl() -> None:
    """As a user meets it: the message, and not that some module of TRL is missing."""
    code = (
        "import importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "metadata.version = lambda name: '0.24.0' if name == 'trl' else real(name)\n"
        "from trl_mise import MISEConfig\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError: trl 0.24.0 is installed")
    assert 'pip install "trl>=1.0"' in last_line
