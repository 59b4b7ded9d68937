"""MISEGRPOTrainer: GRPOTrainer's own loop, with per-token advantages and calibration between the batches."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from test_adapters_grpo import TinyKitchen
from test_adapters_grpo import byte_tokenizer as tool_tokenizer
from trainer_fakes import LETTERS, largest_difference, make_policy, make_tokenizer, weights
from transformers import LlamaForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_mise import CalibrationCallback, MISEGRPOConfig, MISEGRPOTrainer
from trl_mise.agreement import AgreementGate
from trl_mise.callback import UpdateRecord
from trl_mise.chat import ChatFormat
from trl_mise.completions import CompletionEpisodes
from trl_mise.envs.adapters import as_trl_environment, format_tool_call
from trl_mise.envs.kitchen import expert_action, make_tasks
from trl_mise.group_advantages import group_spread, silent_completions, token_advantages
from trl_mise.hindsight import HindsightReward
from trl_mise.types import StepCredit

TOKENIZER = make_tokenizer()
PROMPT = "judge step {{ step }} {{ action }}"


def letters(completions: Sequence[str], **kwargs: Any) -> list[float]:
    """1 for a completion with at least two letters."""
    return [float(sum(word in LETTERS for word in text.split()) >= 2) for text in completions]


def options(tmp_path: Path, **overrides: Any) -> dict[str, Any]:
    """Three batches of 8 completions, two optimizer steps on each."""
    return {
        "output_dir": str(tmp_path),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        **overrides,
    }


def config(tmp_path: Path, **overrides: Any) -> MISEGRPOConfig:
    return MISEGRPOConfig(
        **options(
            tmp_path, **{"hindsight_prompt": PROMPT, "step_delimiter": ".", "health_warnings": False, **overrides}
        )
    )


def make(cls: Any, args: Any, **kwargs: Any) -> Any:
    words = [f"say {digit}" for digit in range(6)]
    defaults = {
        "model": make_policy(TOKENIZER),
        "reward_funcs": letters,
        "train_dataset": Dataset.from_dict({"prompt": words * 4}),
        "processing_class": TOKENIZER,
    }
    return cls(**{**defaults, "args": args, **kwargs})


class Records(TrainerCallback):
    """What callbacks are given, and when."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, UpdateRecord]] = []
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, update: Any = None, **kwargs: Any) -> None:
        if update is None:
            self.steps += 1
        else:
            self.updates.append((state.global_step, update))


# The advantages


def episodes_of(step_of_token: list[list[int]], rows: list[int]) -> CompletionEpisodes:
    return CompletionEpisodes([], np.array(rows), torch.tensor(step_of_token))


def test_token_advantages_are_those_of_the_group_plus_praise() -> None:
    episodes = episodes_of([[0, 0, -1, 1], [-1, -1, -1, -1], [0, -1, -1, -1]], [0, 2])
    found = token_advantages(
        torch.tensor([1.0, -1.0, -0.5]),
        episodes,
        [np.array([2.0, -1.0]), np.array([1.0])],
        spread=np.array([1.0, 9.0, 0.5]),
        coef=0.1,
        gate=0.5,
    )
    expected = torch.tensor([[1.1, 1.1, 1.0, 0.95], [-1.0] * 4, [-0.475, -0.5, -0.5, -0.5]])
    assert torch.allclose(found.advantages, expected)
    assert found.agreement.tolist() == pytest.approx([0.5, -0.5])
    praise, environment = 0.1 + 0.1 + 0.05 + 0.025, 3 * 1.0 + 0.5
    assert found.shaping_share == pytest.approx(praise / (praise + environment))
    assert [s.tolist() for s in found.credit.shaping] == [pytest.approx([0.1, -0.05]), pytest.approx([0.025])]
    assert [a.tolist() for a in found.credit.advantages] == [pytest.approx([1.1, 0.95]), pytest.approx([-0.475])]


def test_a_closed_gate_leaves_the_group_advantages_alone() -> None:
    episodes = episodes_of([[0, 1]], [0])
    scores = [np.array([2.0, -1.0])]
    found = token_advantages(torch.tensor([1.0]), episodes, scores, spread=np.ones(1), coef=0.1, gate=0.0)
    assert found.advantages.tolist() == [[1.0, 1.0]] and found.shaping_share == 0.0


def test_where_all_returns_are_equal_there_is_praise_but_no_evidence_for_it() -> None:
    episodes = episodes_of([[0, 1], [0, 1]], [0, 1])
    scores = [np.array([1.0, -1.0]), np.array([0.5, 0.5])]
    spread = group_spread(np.zeros(2), 2)
    found = token_advantages(torch.zeros(2), episodes, scores, spread=spread, coef=0.1, gate=1.0)
    assert torch.allclose(found.advantages, torch.tensor([[0.1, -0.1], [0.05, 0.05]]))
    assert found.agreement.tolist() == [0.0, 0.0] and found.shaping_share == 1.0
    gate = AgreementGate()
    gate.update(np.array([-1.0, -1.1]))
    before = gate.z
    gate.update(found.agreement)
    assert gate.z == before


def test_what_the_gate_hears_does_not_depend_on_who_has_which_groups() -> None:
    """Two groups of two, one of which fails: in one process, and in two."""
    advantages, scores = torch.tensor([0.7, -0.7, 0.0, 0.0]), [np.array([n]) for n in (1.0, -1.0, 2.0, 0.5)]

    def heard(rows: list[int]) -> list[float]:
        episodes = episodes_of([[0]] * len(rows), list(range(len(rows))))
        own = [scores[row] for row in rows]
        found = token_advantages(advantages[rows], episodes, own, spread=np.ones(len(rows)), coef=0.1, gate=1.0)
        return found.agreement.tolist()

    assert heard([0, 1]) + heard([2, 3]) == heard([0, 1, 2, 3]) == pytest.approx([0.7, 0.7, 0.0, 0.0])


@pytest.mark.parametrize("size", [3, 6, 8, 12, 16])
@pytest.mark.parametrize("scale", [0.01, 1.0, 73.3])
def test_a_group_that_differs_by_rounding_only_is_silent(size: int, scale: float) -> None:
    values = torch.arange(1, 100) * (scale / 100)
    rewards = values.repeat_interleave(size).view(-1, size)  # float32, as TRL has them
    off_by_one = torch.nextafter(rewards, rewards + 1)
    rewards[::2, 0] = off_by_one[::2, 0]
    advantages = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-4)
    assert bool((advantages != 0).any())  # what TRL makes of it
    rewards[-1, 0] += 1e-3 * scale  # small, but no rounding
    silent = silent_completions(rewards.double().numpy().reshape(-1, 1), np.ones(1), size)
    assert silent.tolist() == [True] * (98 * size) + [False] * size


def test_silence_with_several_rewards_is_that_of_their_sum_or_of_each() -> None:
    nan = np.nan
    rewards = np.array(
        [[1.0, 0.0], [0.0, 1.0], [2.0, 3.0], [2.0, nan], [nan, nan], [1.0, 1.0], [nan, nan], [nan, nan]], dtype=float
    )
    by_sum = silent_completions(rewards, np.array([1.0, 1.0]), 2)
    assert by_sum.tolist() == [True, True, False, False, True, True, True, True]
    each = silent_completions(rewards, np.array([1.0, 1.0]), 2, by_reward=True)
    assert each.tolist() == [False, False, True, True, True, True, True, True]
    assert silent_completions(rewards, np.array([1.0, 0.0]), 2).tolist() == [False, False] + [True] * 6


def test_a_unit_of_praise_is_worth_the_spread_of_its_group() -> None:
    """None where the group is silent, unless all are; completions that are no episodes do not count."""
    found = group_spread(np.array([1.5, -0.5, -0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.2, -0.2, np.nan, np.nan]), 4)
    assert found.tolist() == pytest.approx([1.0] * 4 + [0.0] * 4 + [0.2 * 2**0.5] * 4)
    assert group_spread(np.array([1.0, np.nan, np.nan, np.nan]), 2).tolist() == [0.0] * 4
    assert group_spread(np.array([0.0, 0.0, np.nan, np.nan]), 2).tolist() == [1.0] * 4


# The trainer


@pytest.mark.parametrize("how", ["hindsight=False", "hindsight_coef=0"])
def test_without_hindsight_it_is_grpo_trainer(tmp_path: Path, how: str) -> None:
    theirs = make(GRPOTrainer, GRPOConfig(**options(tmp_path)))
    theirs.train()
    if how == "hindsight=False":
        ours = make(MISEGRPOTrainer, GRPOConfig(**options(tmp_path)), hindsight=False)
    else:
        ours = make(MISEGRPOTrainer, config(tmp_path, hindsight_coef=0.0))
    ours.train()
    assert largest_difference(weights(theirs.model), weights(ours.model)) == 0.0
    assert not (tmp_path / "trajectories.jsonl").exists()


def test_praise_without_calibration_changes_the_update_and_nothing_before_it(tmp_path: Path) -> None:
    """The first batch is GRPOTrainer's, token by token; with a closed gate so is the whole run."""
    theirs = make(GRPOTrainer, GRPOConfig(**options(tmp_path)))
    theirs.train()
    ours = make(MISEGRPOTrainer, config(tmp_path))
    ours.train()
    assert largest_difference(weights(theirs.model), weights(ours.model)) > 1e-4
    first = [trainer.state.log_history[0]["rewards/letters/mean"] for trainer in (theirs, ours)]
    assert first[0] == first[1]
    quiet = make(MISEGRPOTrainer, config(tmp_path, calibration_target="none", hindsight_coef=1e-12))
    quiet.train()
    assert largest_difference(weights(theirs.model), weights(quiet.model)) < 1e-6


def first_credit(tmp_path: Path, scale: float, **overrides: Any) -> StepCredit:
    """Of the first batch."""

    def scaled(completions: Sequence[str], **kwargs: Any) -> list[float]:
        return [scale * value for value in letters(completions)]

    records = Records()
    make(MISEGRPOTrainer, config(tmp_path, **overrides), reward_funcs=scaled, callbacks=[records]).train()
    credit = records.updates[0][1].credit
    assert credit is not None
    return credit


def test_alpha_is_in_units_of_the_advantages_whatever_those_of_the_rewards(tmp_path: Path) -> None:
    """As in PPO, which scales the environment's advantages to unit spread."""
    whole, less = (first_credit(tmp_path / str(s), s, scale_rewards="none") for s in (1.0, 0.01))
    assert max(np.abs(praise).max() for praise in whole.shaping) > 0
    for a, b in zip(whole.advantages, less.advantages, strict=True):
        assert b.tolist() == pytest.approx((0.01 * a).tolist(), rel=1e-4)


def test_a_group_that_is_silent_in_a_batch_that_speaks_is_left_to_the_others(tmp_path: Path) -> None:
    credit = first_credit(tmp_path, 1.0)
    environment = [float((a - s)[0]) for a, s in zip(credit.advantages, credit.shaping, strict=True)]
    is_silent = [all(value == 0.0 for value in environment[n : n + 4]) for n in (0, 4)]
    assert sorted(is_silent) == [False, True]  # this seed's first batch has one of each
    for number, praise in enumerate(credit.shaping):
        assert bool(praise.any()) is not is_silent[number // 4]


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_a_batch_ends_after_its_last_optimizer_step(tmp_path: Path, num_iterations: int) -> None:
    records = Records()
    args = config(tmp_path, num_iterations=num_iterations, max_steps=6 * num_iterations)
    trainer = make(MISEGRPOTrainer, args, callbacks=[records])
    trainer.train()
    steps = 2 * num_iterations
    assert [step for step, _ in records.updates] == [steps, 2 * steps, 3 * steps]
    assert [update.number for _, update in records.updates] == [1, 2, 3]
    assert records.steps == 6 * num_iterations
    for _, update in records.updates:
        assert len(update.trajectories) == 8 and update.scores is not None
        assert update.scores.num_steps == tuple(t.num_steps for t in update.trajectories)
        assert {t.episode_return for t in update.trajectories} <= {0.0, 1.0}
        assert all(t.won == (t.episode_return == 1.0) for t in update.trajectories)


def test_what_is_logged(tmp_path: Path) -> None:
    trainer = make(MISEGRPOTrainer, config(tmp_path))
    trainer.train()
    names = {name for entry in trainer.state.log_history for name in entry}
    assert {
        "env/success",
        "hindsight/shaping_share",
        "hindsight/score_mean",
        "hindsight/gate",
        "mise/mutual_information",
        "calibration/loss",
        "calibration/anchor",
    } <= names
    lines = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["update"] for line in lines] == [1] * 8 + [2] * 8 + [3] * 8
    assert all(len(line["turns"]) >= 1 for line in lines)


def test_calibration_happens_between_the_batches_and_changes_the_policy(tmp_path: Path) -> None:
    """Without praise, what is left is the regression toward the returns: it moves the weights, the gate stays open."""
    still = make(MISEGRPOTrainer, config(tmp_path, learning_rate=1e-30, calibration_learning_rate=1e-2))
    before = weights(still.model)
    still.train()
    assert largest_difference(before, weights(still.model)) > 1e-3
    still = make(MISEGRPOTrainer, config(tmp_path, learning_rate=1e-30, calibration_target="none"))
    before = weights(still.model)
    still.train()
    assert largest_difference(before, weights(still.model)) < 1e-8


def no_reward(completions: Sequence[str], **kwargs: Any) -> list[float]:
    return [0.0] * len(completions)


class TestPatience:
    """See `test_trainer_patience.py` for PPO."""

    def shares(self, trainer: Any) -> tuple[list[float], list[bool]]:
        """Of each batch of 8 completions: what was held back, and whether praise counted."""
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "hindsight/held" in entry]
        return [e["hindsight/held"] for e in entries], [e["hindsight/shaping_share"] > 0 for e in entries]

    def test_praise_waits_while_all_groups_fail(self, tmp_path: Path) -> None:
        trainer = make(MISEGRPOTrainer, config(tmp_path, hindsight_patience=16), reward_funcs=no_reward)
        assert self.shares(trainer) == ([1.0, 1.0, 0.0], [False, False, True])

    def test_but_not_where_the_environment_speaks(self, tmp_path: Path) -> None:
        trainer = make(MISEGRPOTrainer, config(tmp_path, hindsight_patience=16))
        assert self.shares(trainer) == ([0.0] * 3, [True] * 3)

    def test_returns_that_differ_by_rounding_only_do_not_speak(self, tmp_path: Path) -> None:
        def by_prompt(prompts: Sequence[str], **kwargs: Any) -> list[float]:
            return [0.3 + 0.1 * int(prompt.split()[1]) for prompt in prompts]

        args = config(tmp_path, num_generations=8, per_device_train_batch_size=24)  # six groups
        assert self.shares(make(MISEGRPOTrainer, args, reward_funcs=by_prompt)) == ([1.0] * 3, [False] * 3)

    def test_by_default_it_outlasts_a_few_batches(self, tmp_path: Path) -> None:
        trainer = make(MISEGRPOTrainer, config(tmp_path), reward_funcs=no_reward)
        assert self.shares(trainer) == ([1.0] * 3, [False] * 3)

    def test_without_it_praise_leads_at_once(self, tmp_path: Path) -> None:
        trainer = make(MISEGRPOTrainer, config(tmp_path, hindsight_patience=0), reward_funcs=no_reward)
        trainer.train()
        shares = [e["hindsight/shaping_share"] for e in trainer.state.log_history if "hindsight/shaping_share" in e]
        assert trainer.hindsight.patience is None and len(shares) == 3 and min(shares) > 0


class TestReference:
    def test_without_beta_the_judge_keeps_a_copy_of_the_first_policy(self, tmp_path: Path) -> None:
        trainer = make(MISEGRPOTrainer, config(tmp_path))
        trainer.train()
        base, ids = make_policy(TOKENIZER), torch.tensor([TOKENIZER("say 1")["input_ids"]])
        with trainer.reference_policy() as reference, torch.no_grad():
            # What it says, too: TRL's models have a forward of their own, about the model that was copied.
            assert torch.equal(reference(ids).logits, base(ids).logits)
            assert largest_difference(weights(base), weights(reference)) == 0.0
            assert not any(p.requires_grad for p in reference.parameters())
        with torch.no_grad():
            assert not torch.allclose(trainer.policy(ids).logits, base(ids).logits)

    def test_with_beta_it_is_theirs(self, tmp_path: Path) -> None:
        make_policy(TOKENIZER).save_pretrained(tmp_path / "policy")  # TRL loads it anew, by its name
        model = LlamaForCausalLM.from_pretrained(tmp_path / "policy")
        trainer = make(MISEGRPOTrainer, config(tmp_path, beta=0.1), model=model)
        with trainer.reference_policy() as reference:
            assert reference is trainer.accelerator.unwrap_model(trainer.ref_model)

    def test_an_adapter_is_switched_off(self, tmp_path: Path) -> None:
        trainer = make(MISEGRPOTrainer, config(tmp_path), peft_config=LoraConfig(target_modules=["q_proj"], r=2))
        assert trainer._own_reference is None
        ids = torch.tensor([TOKENIZER("say 1")["input_ids"]])
        trainer.train()
        base = make_policy(TOKENIZER)
        with trainer.reference_policy() as reference, torch.no_grad():
            assert torch.allclose(reference(ids).logits, base(ids).logits, atol=1e-6)
        with torch.no_grad():
            assert not torch.allclose(trainer.policy(ids).logits, base(ids).logits, atol=1e-6)

    def test_no_copy_where_nobody_asks_for_it(self, tmp_path: Path) -> None:
        assert make(MISEGRPOTrainer, config(tmp_path, calibration_anchor_coef=0.0))._own_reference is None
        assert make(MISEGRPOTrainer, config(tmp_path, calibration_target="none"))._own_reference is None
        frozen = config(tmp_path, calibration_target="none", evaluator_model="reference")
        assert make(MISEGRPOTrainer, frozen)._own_reference is not None


def test_tools_and_environments_from_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`environment_factory`, real tool calls: a step is a call, the environment's answers are no part of any."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = tool_tokenizer()
    rows = [{"prompt": [{"role": "user", "content": "Serve."}], **row} for row in make_tasks("train", 1)]
    records = Records()
    args = MISEGRPOConfig(
        **options(
            tmp_path, max_steps=1, steps_per_generation=1, max_completion_length=512, hindsight_prompt="{{ action }}"
        )
    )
    trainer = MISEGRPOTrainer(
        model=make_policy(tokenizer, max_position_embeddings=2048),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=as_trl_environment(TinyKitchen),
        callbacks=[records],
    )

    def play(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        answers = []
        for index, environment in enumerate(trainer.environments):
            kitchen = environment._env
            answer = "Served."
            if not environment._over:
                action = expert_action(kitchen) if index < 2 else f"{kitchen.station} plain"
                answer = format_tool_call("step", {"action": action})
            answers.append(tokenizer(f"{answer}<|end|>")["input_ids"])
        return answers, None

    monkeypatch.setattr(trainer, "_generate_single_turn", play)
    trainer.train()
    ((_, update),) = records.updates
    assert [t.won for t in update.trajectories] == [True, True, False, False]
    for trajectory in update.trajectories:
        assert trajectory.num_steps == 3
        assert '"name": "step"' in trajectory.turns[0].action and trajectory.turns[2].action == "Served."
        assert "done . now" in trajectory.turns[1].observation and "served ." in trajectory.turns[2].observation
        assert "order :" in trajectory.instruction
        assert trajectory.task["seed"] == rows[0]["seed"]


def test_a_rollout_func_with_env_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    first, said = TOKENIZER("say 1")["input_ids"], TOKENIZER("a b more . c <|end|>")["input_ids"]

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        n = len(prompts)
        return {
            "prompt_ids": [first] * n,
            "completion_ids": [said] * n,
            "env_mask": [[1, 1, 0, 0, 1, 1]] * n,
            "logprobs": [[-1.0] * len(said)] * n,
        }

    records = Records()
    trainer = make(MISEGRPOTrainer, config(tmp_path), rollout_func=rollout, callbacks=[records])
    trainer.train()
    (trajectory, *_) = records.updates[0][1].trajectories
    assert [turn.action for turn in trajectory.turns] == ["a b", "c"]
    assert trajectory.turns[1].observation == "more ."


class TestResume:
    def test_goes_on_as_if_nothing_had_happened(self, tmp_path: Path) -> None:
        """Weights, judge's statistics, calibration and log of a run that was cut off between two batches."""
        whole = make(MISEGRPOTrainer, config(tmp_path / "whole", save_strategy="steps", save_steps=2))
        whole.train()
        args = config(tmp_path / "cut", save_strategy="steps", save_steps=2)
        make(MISEGRPOTrainer, args, callbacks=[StopAt(4)]).train()
        again = make(MISEGRPOTrainer, args)
        again.train(resume_from_checkpoint=True)
        assert largest_difference(weights(whole.model), weights(again.model)) == 0.0
        assert again.hindsight.state_dict() == whole.hindsight.state_dict()
        states = [buffer_of(trainer) for trainer in (whole, again)]
        assert states[0] == states[1]
        logs = [(tmp_path / name / "trajectories.jsonl").read_text(encoding="utf-8") for name in ("whole", "cut")]
        assert logs[0] == logs[1]

    def test_twice_resumed_its_log_is_whole(self, tmp_path: Path) -> None:
        """Also from checkpoints in the middle of a batch, before the resumed run has written anything."""
        args = config(tmp_path, save_strategy="steps", save_steps=1, num_iterations=2, max_steps=12)
        make(MISEGRPOTrainer, args, callbacks=[StopAt(4)]).train()
        make(MISEGRPOTrainer, args, callbacks=[StopAt(5)]).train(resume_from_checkpoint=True)
        before = (tmp_path / "trajectories.jsonl").read_bytes()
        assert before.count(b"\n") == 8
        make(MISEGRPOTrainer, args).train(resume_from_checkpoint=True)
        after = (tmp_path / "trajectories.jsonl").read_bytes()
        assert after.startswith(before) and after.count(b"\n") > 8

    def test_forgetting_the_calibration_would_show(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = make(MISEGRPOTrainer, config(tmp_path / "whole", save_strategy="steps", save_steps=2))
        whole.train()
        args = config(tmp_path / "cut", save_strategy="steps", save_steps=2)
        make(MISEGRPOTrainer, args, callbacks=[StopAt(4)]).train()
        again = make(MISEGRPOTrainer, args)
        monkeypatch.setattr("trl_mise.grpo.load_callbacks", lambda *args: None)
        again.train(resume_from_checkpoint=True)
        assert largest_difference(weights(whole.model), weights(again.model)) > 0.0

    def test_a_checkpoint_of_another_trainer_is_refused(self, tmp_path: Path) -> None:
        plain = GRPOConfig(**options(tmp_path, save_strategy="steps", save_steps=2))
        make(GRPOTrainer, plain, callbacks=[StopAt(4)]).train()
        trainer = make(MISEGRPOTrainer, config(tmp_path))
        with pytest.raises(FileNotFoundError, match=r"not saved by MISEGRPOTrainer with hindsight"):
            trainer.train(resume_from_checkpoint=True)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def buffer_of(trainer: Any) -> str:
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, CalibrationCallback))
    return json.dumps(callback.buffer.state_dict(), sort_keys=True)


class TestErrors:
    def test_the_return_needs_a_critic(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"hindsight_placement='return' needs a critic"):
            config(tmp_path, hindsight_placement="return")
        judge = HindsightReward(ChatFormat(TOKENIZER), prompt=PROMPT, placement="return")
        with pytest.raises(ValueError, match=r"hindsight.placement='return' needs a critic"):
            make(MISEGRPOTrainer, config(tmp_path), hindsight=judge)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"step_delimiter": ""}, "step_delimiter must not be empty"),
            ({"success_return": float("nan")}, "success_return must be a finite number"),
            ({"hindsight_gate": "open"}, "hindsight_gate='open' is unknown"),
            ({"hindsight_patience": -1}, "hindsight_patience must be a finite number of at least 0"),
            ({"hindsight_ema": 1.0}, r"hindsight_ema must be in \[0, 1\)"),
            ({"calibration_every": 0}, "calibration_every must be a finite number of at least 1"),
        ],
    )
    def test_options(self, tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            config(tmp_path, **wrong)

    def test_a_batch_that_ends_within_an_optimizer_step(self, tmp_path: Path) -> None:
        args = config(tmp_path, steps_per_generation=1, gradient_accumulation_steps=2)
        with pytest.raises(ValueError, match=r"must be a multiple of gradient_accumulation_steps=2"):
            make(MISEGRPOTrainer, args)

    def test_a_view_that_cannot_be_shortened(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"hindsight_context_tokens rebuilds an episode.*max_completion_length"):
            make(MISEGRPOTrainer, config(tmp_path, hindsight_context_tokens=100))

    def test_hindsight_of_another_kind(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="hindsight must be a HindsightReward, False or None, got str"):
            make(MISEGRPOTrainer, config(tmp_path), hindsight="yes")

    @pytest.mark.skipif(not hasattr(GRPOTrainer, "compute_liger_loss"), reason="this TRL has no loss of Liger's")
    def test_liger(self, tmp_path: Path) -> None:
        args = config(tmp_path)
        args.use_liger_kernel = True
        with pytest.raises(ValueError, match="use_liger_kernel=True: its GRPO loss takes one advantage"):
            make(MISEGRPOTrainer, args)


def test_rows_that_json_cannot_hold_do_not_end_a_run(tmp_path: Path) -> None:
    rows = {"prompt": ["say 1", "say 2"] * 12, "when": [datetime(2026, 1, 1)] * 24, "raw": [b"x"] * 24, "n": [1] * 24}
    args = config(tmp_path, save_strategy="steps", save_steps=2)
    make(MISEGRPOTrainer, args, train_dataset=Dataset.from_dict(rows)).train()
    first = json.loads((tmp_path / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["task"] == {"when": "2026-01-01 00:00:00", "raw": "b'x'", "n": 1}


def test_a_batch_without_an_episode_in_written_mode(tmp_path: Path) -> None:
    """No reward for any completion: nothing to judge, nothing to calibrate on."""
    args = config(tmp_path, verdict_mode="generate", hindsight_prompt="judge {{ action }}", hindsight_reason_tokens=2)

    def silent(completions: Sequence[str], **kwargs: Any) -> list[None]:
        return [None] * len(completions)

    trainer = make(MISEGRPOTrainer, args, reward_funcs=silent)
    before = weights(trainer.model)
    trainer.train()
    assert largest_difference(before, weights(trainer.model)) == 0.0


def test_a_frozen_judge_is_wholly_a_copy(tmp_path: Path) -> None:
    """TRL also gives the head a forward of its own, with cast_lm_head_to_fp32."""
    args = config(tmp_path, evaluator_model="reference", cast_lm_head_to_fp32=True)
    model = make_policy(TOKENIZER).bfloat16()
    trainer = make(MISEGRPOTrainer, args, model=model)
    ids = torch.tensor([TOKENIZER("say 1")["input_ids"]])
    with trainer.reference_policy() as reference, torch.no_grad():
        before = reference.lm_head(reference.model(ids).last_hidden_state.to(reference.lm_head.weight.dtype))
        trainer.model.lm_head.weight.mul_(2.0)
        after = reference.lm_head(reference.model(ids).last_hidden_state.to(reference.lm_head.weight.dtype))
    assert torch.equal(before, after)


def test_options_of_a_subclass_do_not_matter(tmp_path: Path) -> None:
    @dataclass
    class Mine(GRPOConfig):
        my_option: int = 3

    assert MISEGRPOConfig.from_grpo_config(Mine(**options(tmp_path, beta=0.5))).beta == 0.5


def test_an_upgraded_config_keeps_its_values(tmp_path: Path) -> None:
    given = GRPOConfig(**options(tmp_path, beta=0.25, num_generations=2, epsilon=0.3))
    upgraded = MISEGRPOConfig.from_grpo_config(given)
    assert (upgraded.beta, upgraded.num_generations, upgraded.epsilon) == (0.25, 2, 0.3)
    assert (upgraded.generation_batch_size, upgraded.steps_per_generation) == (8, 2)
    assert (upgraded.batch_size, upgraded.cliprange, upgraded.kl_coef) == (8, 0.3, 0.25)
    assert upgraded.hindsight_coef == 0.1


def test_evaluation_asks_no_judge(tmp_path: Path) -> None:
    trainer = make(
        MISEGRPOTrainer,
        config(tmp_path, per_device_eval_batch_size=4, eval_strategy="steps", eval_steps=2),
        eval_dataset=Dataset.from_dict({"prompt": ["say 1", "say 2"]}),
    )
    trainer.train()
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    lines = (tmp_path / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 24  # of the training batches only
