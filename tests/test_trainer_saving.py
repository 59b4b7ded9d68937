"""What is on disk afterwards: checkpoints, the value model, the calibration's state, the model card."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from trainer_fakes import (
    LetterEnv,
    copy_of,
    largest_difference,
    make_classifier,
    make_tokenizer,
    make_trainer,
    tasks,
    weights,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from trl_mise import CalibrationCallback
from trl_mise.chat import ChatFormat
from trl_mise.generation import Sampling, sample
from trl_mise.rollout import RolloutLimits, collect_rollouts

SAVE = {"save_strategy": "steps", "save_steps": 1}
ROWS = [dict(row) for row in tasks(8)]


def play_greedily(model: Any, tokenizer: Any) -> list[Any]:
    """Plays without a trainer, as a user of the saved model would."""
    chat = ChatFormat(tokenizer)
    sampling = Sampling(temperature=0.0, max_new_tokens=3, stop_token_ids=chat.stop_token_ids)
    return collect_rollouts(
        ROWS,
        [LetterEnv() for _ in ROWS],
        lambda contexts: sample(model.eval(), contexts, sampling, tokenizer.pad_token_id),
        chat,
        RolloutLimits(max_turns=4, max_new_tokens=3, max_episode_tokens=128),
    )


def test_the_saved_policy_loads_and_plays(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **SAVE)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert largest_difference(weights(model), weights(trainer.policy)) == 0.0
    assert tokenizer.chat_template == make_tokenizer().chat_template
    episodes = play_greedily(model, tokenizer)
    assert [t.token_ids for t in episodes] == [t.token_ids for t in trainer.collect(ROWS, greedy=True)]


def test_what_a_checkpoint_holds(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **SAVE)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    folder = tmp_path / "checkpoint-2"
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.json", "optimizer.pt"} <= names
    assert {"value_head.safetensors", "calibration.json", "scheduler.pt"} <= names
    assert "value_model" not in names
    saved = safetensors.torch.load_file(folder / "value_head.safetensors")
    assert largest_difference(saved, weights(trainer.actor_critic.value_model)) == 0.0
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 2 and len(state["log_history"]) == 2


def test_a_value_model_of_its_own_is_saved(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, value_model=make_classifier(tokenizer), **SAVE)
    start = weights(copy_of(trainer.actor_critic.value_model))
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    loaded = AutoModelForSequenceClassification.from_pretrained(folder / "value_model")
    assert largest_difference(weights(loaded), weights(trainer.actor_critic.value_model)) == 0.0
    assert largest_difference(weights(loaded), start) > 1e-3
    assert not (folder / "value_head.safetensors").exists()


def test_save_model_by_hand(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run")
    trainer.save_model(str(tmp_path / "mine"))
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert {"model.safetensors", "value_head.safetensors", "tokenizer.json"} <= names
    trainer.save_model()
    assert (tmp_path / "run" / "model.safetensors").exists()
    trainer.train()  # saving left the trainer as it was


def test_old_checkpoints_go(tmp_path: Path) -> None:
    make_trainer(tmp_path, total_episodes=24, save_total_limit=1, **SAVE).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert (tmp_path / "checkpoint-3" / "calibration.json").exists()


def test_the_last_update_is_saved_whatever_save_steps_says(tmp_path: Path) -> None:
    make_trainer(tmp_path, total_episodes=24, save_strategy="steps", save_steps=2).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_the_calibration_goes_on_where_it_was(tmp_path: Path) -> None:
    callback = CalibrationCallback(posthoc="affine")
    make_trainer(tmp_path, callbacks=[callback], **SAVE).train()
    restored = CalibrationCallback(posthoc="affine")
    restored.load_state(str(tmp_path / "checkpoint-2"))
    assert len(restored.buffer) == len(callback.buffer) == 16
    assert [e.trajectory for e in restored.buffer.examples] == [e.trajectory for e in callback.buffer.examples]
    assert restored.calibrator.state_dict() == callback.calibrator.state_dict()
    assert restored.rng.random() == callback.rng.random()
    assert callback.bias is not None and restored.bias is not None
    assert float(restored.bias) == float(callback.bias.detach()) != 0.0


def test_saving_does_not_touch_the_training(tmp_path: Path) -> None:
    results = []
    for name, options in (("plain", {}), ("saved", SAVE)):
        trainer = make_trainer(tmp_path / name, total_episodes=24, **options)
        trainer.train()
        results.append(weights(trainer.actor_critic))
    assert largest_difference(*results) == 0.0


def test_a_model_card_is_written(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **SAVE)
    trainer.train()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "MISE" in card and "2604.11611" in card
    assert "- mise" in card


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_saved_in_their_own_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    trainer = make_trainer(tmp_path)
    trainer.policy.to(dtype)
    trainer.save_model(str(tmp_path / "mine"))
    saved = safetensors.torch.load_file(tmp_path / "mine" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
