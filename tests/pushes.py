"""Run by tests/test_push_to_hub.py in a process that takes a local stand-in for the hub: one push after another.

What came of each is printed as one JSON line; what arrived, the server knows.
"""

import json
import os
import sys
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download
from peft import LoraConfig
from test_grpo import config as grpo_config
from test_grpo import make as make_grpo
from trainer_fakes import LetterEnv, largest_difference, make_trainer, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from trl_mise import MISEGRPOTrainer
from trl_mise.checkpoints import STAGING, all_checkpoints, faults
from trl_mise.model_agent import ModelAgent
from trl_mise.publishing import PushError

SAVE = {"save_strategy": "steps", "save_steps": 1}
LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])


def control(**told: str) -> None:
    request = urllib.request.Request(
        f"{constants.ENDPOINT}/control",
        json.dumps(told).encode(),
        {"Authorization": f"Bearer {os.environ['HF_TOKEN']}"},
    )
    urllib.request.urlopen(request).close()


class EveryPushArrives(TrainerCallback):
    """Waits for the upload after every checkpoint; transformers would leave out those that come too soon."""

    trainer: Any

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._finish_current_push()


class LetsGoAtTheEnd(TrainerCallback):
    """Holds the first upload until the training is over."""

    trainer: Any

    def __init__(self, repository: str) -> None:
        self.repository = repository

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        control(hold=self.repository)

    def on_train_end(self, args: Any, *others: Any, **kwargs: Any) -> None:
        self.was_uploading = not self.trainer.push_in_progress.is_done()
        self.log_bytes = (Path(args.output_dir) / "trajectories.jsonl").stat().st_size
        control(release=self.repository)


def pushing(folder: Path, name: str, **options: Any) -> Any:
    waits = EveryPushArrives()  # unless other callbacks are given
    given = {"push_to_hub": True, "hub_model_id": name, "callbacks": [waits], **SAVE, **options}
    trainer = make_trainer(folder / name, **given)
    waits.trainer = trainer
    return trainer


def caught(call: Callable[[], Any]) -> tuple[list[str], BaseException | None]:
    """Warnings, and what was raised."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            return [str(warning.message) for warning in given], error
    return [str(warning.message) for warning in given], None


def whole(folder: Path) -> Any:
    """A model at the end of training, and back again."""
    trainer = pushing(folder, "whole", hub_strategy="end", hub_private_repo=True, hub_token=os.environ["HF_TOKEN"])
    trainer.train()
    trainer.save_model()
    model = AutoModelForCausalLM.from_pretrained("tester/whole")
    tokenizer = AutoTokenizer.from_pretrained("tester/whole")
    agent = ModelAgent.from_pretrained("tester/whole", max_new_tokens=3, max_episode_tokens=128, device="cpu")
    (episode,) = agent.play(LetterEnv, [{"seed": 0}], max_steps=4)
    return {
        "difference": largest_difference(weights(model), weights(trainer.policy)),
        "same template": tokenizer.chat_template == trainer.processing_class.chat_template,
        "steps": episode.steps,
        "url": trainer.push_to_hub("again").commit_url,
    }


def adapter(folder: Path) -> Any:
    """An adapter, every checkpoint; the last one comes back and goes on."""
    options = {"hub_strategy": "checkpoint", "total_episodes": 24, "peft_config": LORA}
    trainer = pushing(folder, "adapter", **options)
    trainer.train()
    fetched = Path(snapshot_download("tester/adapter", local_dir=folder / "fetched")) / "last-checkpoint"
    wrong, step = faults(fetched), json.loads((fetched / "trainer_state.json").read_text())["global_step"]
    longer = {**options, "total_episodes": 32}
    first = make_trainer(folder / "first", **SAVE, **{k: v for k, v in longer.items() if k != "hub_strategy"})
    first.train(resume_from_checkpoint=str(folder / "adapter" / "checkpoint-3"))
    second = make_trainer(folder / "second", **SAVE, **{k: v for k, v in longer.items() if k != "hub_strategy"})
    second.train(resume_from_checkpoint=str(fetched))
    difference = largest_difference(weights(first.policy), weights(second.policy))
    return {"faults": wrong, "step": step, "difference": difference, "trained": second.state.global_step}


def growing(folder: Path) -> Any:
    """An upload that takes longer than the rest of the training, whose log grows all the while."""

    lets = LetsGoAtTheEnd("tester/growing")
    trainer = pushing(folder, "growing", hub_strategy="every_save", callbacks=[lets], total_episodes=48)
    lets.trainer = trainer
    trainer.train()
    return {"was uploading": lets.was_uploading, "log": lets.log_bytes}


def limited(folder: Path) -> Any:
    """A checkpoint that is being uploaded is not deleted."""
    trainer = pushing(folder, "limited", hub_strategy="checkpoint", save_total_limit=1, callbacks=[])
    seen, finish = [], trainer._finish_current_push

    def look() -> None:
        seen.append([path.name for path in all_checkpoints(folder / "limited")])
        control(release="tester/limited")
        finish()

    trainer._finish_current_push = look
    control(hold="tester/limited")
    trainer.train()
    return {"seen": seen, "left": [path.name for path in all_checkpoints(folder / "limited")]}


def leftovers(folder: Path) -> Any:
    """What a process that died left behind, and a card that a person has written."""
    trainer = pushing(folder, "leftovers", hub_strategy="end")
    half = folder / "leftovers" / STAGING / "checkpoint-9"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    (folder / "leftovers" / "README.md").write_text("---\ntags: [mine]\n---\n# By hand\n", encoding="utf-8")
    trainer.push_to_hub()
    trainer.train()
    trainer.push_to_hub(commit_message="after", tags=["other"])
    return {}


def refused(folder: Path) -> Any:
    """Commits are refused: training goes on, nothing is lost, and it is said."""
    lets = LetsGoAtTheEnd("tester/refused")
    trainer = pushing(folder, "refused", hub_strategy="every_save", callbacks=[lets])
    lets.trainer = trainer
    told, error = caught(trainer.train)
    _, error_2 = caught(trainer.save_model)
    root = folder / "refused"
    return {
        "warnings": [text for text in told if "push" in text],
        "raised": repr(error),
        "updates": trainer.state.global_step,
        "faults": [faults(path) for path in all_checkpoints(root)],
        "error": [type(error_2).__name__, str(error_2), isinstance(error_2, PushError)],
        "saved": sorted(path.name for path in root.iterdir() if path.is_file()),
    }


def closed(folder: Path) -> Any:
    """The repository cannot be made: said before training, or after the model was saved."""
    _, error = caught(lambda: pushing(folder, "closed"))
    trainer = make_trainer(folder / "late", hub_model_id="closed")
    trainer.train()
    _, error_2 = caught(trainer.push_to_hub)
    saved = AutoModelForCausalLM.from_pretrained(folder / "late")
    difference = largest_difference(weights(saved), weights(trainer.policy))
    return {"first": str(error), "second": [type(error_2).__name__, str(error_2)], "difference": difference}


def grpo(folder: Path) -> Any:
    """GRPO's trainer: its checkpoint is pushed when the judge's state is in it."""
    options = {"push_to_hub": True, "hub_strategy": "checkpoint", "save_strategy": "steps", "save_steps": 2}
    trainer = make_grpo(MISEGRPOTrainer, grpo_config(folder / "grpo", hub_model_id="grpo", **options))
    waits = EveryPushArrives()
    waits.trainer = trainer
    trainer.add_callback(waits)
    trainer.train()
    trainer.push_to_hub(dataset_name="tester/words")
    model = AutoModelForCausalLM.from_pretrained("tester/grpo")
    refused_ = make_grpo(MISEGRPOTrainer, grpo_config(folder / "no", hub_model_id="refused-grpo", **options))
    waits.trainer = refused_
    refused_.add_callback(waits)
    told, error = caught(refused_.train)
    return {
        "difference": largest_difference(weights(model), weights(trainer.policy)),
        "warnings": [text for text in told if "push" in text],
        "raised": repr(error),
        "steps": refused_.state.global_step,
    }


def main() -> None:
    torch.set_num_threads(1)
    for scenario in (whole, adapter, growing, limited, leftovers, refused, closed, grpo):
        print("RESULT", json.dumps([scenario.__name__, scenario(Path(sys.argv[1]))]), flush=True)


if __name__ == "__main__":
    main()
