"""The base that takes PPOTrainer's place where TRL has none: it leaves what TRL's leaves, and trains alike."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from trainer_fakes import (
    largest_difference,
    make_classifier,
    make_policy,
    make_ppo_config,
    make_tokenizer,
    tasks,
    weights,
)

from trl_mise import MISETrainer
from trl_mise.own_ppo import PPOTrainer, work_out_batches
from trl_mise.own_ppo_config import PPOConfig
from trl_mise.ppo import TRL_HAS_PPO

LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
TRAIN = """
import hashlib, json, sys
import trl_mise._trl as adapter
if sys.argv[1] == "own":
    adapter.TRLPPOConfig = adapter.TRLPPOTrainer = None
from trl_mise.ppo import TRL_HAS_PPO
from trainer_fakes import make_classifier, make_trainer, make_tokenizer
assert TRL_HAS_PPO is (sys.argv[1] == "trl")
options = {"total_episodes": 64, "num_ppo_epochs": 2, "num_mini_batches": 2, "gradient_accumulation_steps": 2}
if sys.argv[3] == "lora":
    from peft import LoraConfig
    options["peft_config"] = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], lora_dropout=0.5)
elif sys.argv[3] == "value model":
    options["value_model"] = make_classifier(make_tokenizer(), seed=1)
trainer = make_trainer(sys.argv[2], save_strategy="steps", save_steps=2, **options)
trainer.train()
digest = hashlib.sha256()
for name, tensor in trainer.actor_critic.state_dict().items():
    digest.update(name.encode() + tensor.numpy().tobytes())
logs = [{k: v for k, v in entry.items() if "time" not in k} for entry in trainer.state.log_history]
print("RESULT", json.dumps([digest.hexdigest(), logs]))
"""


def make(
    folder: Path, model: nn.Module | None = None, *, peft_config: Any = None, ref: Any = None, **options: Any
) -> Any:
    tokenizer = make_tokenizer()
    args = PPOConfig(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "num_mini_batches": 2,
            "total_episodes": 17,
            **options,
        }
    )
    return PPOTrainer(
        args,
        tokenizer,
        make_policy(tokenizer, attention_dropout=0.1) if model is None else model,
        ref,
        nn.Dropout(0.5),
        tasks(),
        make_classifier(tokenizer, seed=1),
        peft_config=peft_config,
    )


def run(base: str, folder: Path, kind: str) -> list[Any]:
    here = Path(__file__).parent
    command = [sys.executable, "-W", "ignore", "-c", TRAIN, base, str(folder), kind]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this TRL has no PPOTrainer to compare with")
@pytest.mark.parametrize("kind", ["plain", "lora", "value model"])
def test_both_bases_train_alike(kind: str, tmp_path: Path) -> None:
    """Same weights to the last bit, same numbers in the log, same files."""
    theirs, ours = run("trl", tmp_path / "trl", kind), run("own", tmp_path / "own", kind)
    assert ours == theirs
    assert len(theirs[1]) >= 4

    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert files(tmp_path / "own") == files(tmp_path / "trl")
    assert any(name.endswith("README.md") for name in files(tmp_path / "own"))


@pytest.mark.skipif(TRL_HAS_PPO, reason="this TRL has a PPOTrainer, which then does it")
def test_without_environment_and_hindsight_our_loop_is_the_ppo(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    policy = make_policy(tokenizer)
    start = weights(policy)
    trainer = MISETrainer(
        make_ppo_config(tmp_path, total_episodes=32, per_device_train_batch_size=8, learning_rate=1e-3),
        tokenizer,
        policy,
        reward_model=make_classifier(tokenizer, seed=2),
        train_dataset=Dataset.from_list([{"input_ids": [7 + i % 5] * (1 + i % 3)} for i in range(16)]),
        value_model=make_classifier(tokenizer, seed=1),
        hindsight=False,
    )
    trainer.train()
    assert trainer.state.episode == 32
    assert largest_difference(start, weights(policy)) > 1e-4
    names = {name for entry in trainer.state.log_history for name in entry}
    assert "objective/scores" in names and not any(name.startswith(("hindsight/", "mise/")) for name in names)


def test_what_the_constructor_leaves(tmp_path: Path) -> None:
    trainer = make(tmp_path, stop_token="eos", seed=5)
    args, policy = trainer.args, trainer.policy_model
    assert (args.world_size, args.batch_size, args.local_batch_size, args.micro_batch_size) == (1, 8, 8, 2)
    assert (args.mini_batch_size, args.local_mini_batch_size, args.num_total_batches) == (4, 4, 3)
    assert trainer.stop_token_id == policy.generation_config.eos_token_id == trainer.processing_class.eos_token_id
    assert trainer.local_seed == 5 and trainer.state.episode == 0
    assert trainer.ref_model is not policy and not any(p.requires_grad for p in trainer.ref_model.parameters())
    assert trainer.reward_model.p == 0.0  # no dropout where log-probabilities are compared
    assert trainer.optimizer is not None and trainer.lr_scheduler is not None


def test_an_adapter_needs_no_reference_model(tmp_path: Path) -> None:
    trainer = make(tmp_path, peft_config=LORA)
    assert trainer.is_peft_model and trainer.ref_model is None
    trainable = [name for name, p in trainer.policy_model.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)


def test_a_reference_that_is_given_is_taken(tmp_path: Path) -> None:
    reference = make_policy(make_tokenizer(), seed=3)
    assert make(tmp_path, ref=reference).ref_model is reference


def test_bad_arguments(tmp_path: Path) -> None:
    model = make_policy(make_tokenizer())
    with pytest.raises(ValueError, match="ref_model is the very object"):
        make(tmp_path, model, ref=model)
    with pytest.raises(ValueError, match="kl_estimator='k2' is unknown"):
        make(tmp_path, kl_estimator="k2")
    with pytest.raises(ValueError, match="stop_token and stop_token_id"):
        make(tmp_path, stop_token="eos", stop_token_id=0)
    with pytest.raises(ValueError, match="stop_token='pad' is unknown"):
        make(tmp_path, stop_token="pad")
    with pytest.raises(TypeError, match="peft_config must be a PeftConfig .*got dict"):
        make(tmp_path, peft_config={"r": 2})
    with pytest.raises(ValueError, match="has an adapter already"):
        make(tmp_path, get_peft_model(make_policy(make_tokenizer()), LORA), peft_config=LORA)
    with pytest.raises(ValueError, match="8 episodes .* multiple of num_mini_batches=3"):
        make(tmp_path, num_mini_batches=3)
    with pytest.raises(ValueError, match="whiten_rewards needs minibatches of at least 8 .* got 4"):
        make(tmp_path, whiten_rewards=True)


@pytest.mark.parametrize(("processes", "updates"), [(1, 8), (2, 4), (3, 3)])
def test_batches_of_several_processes(processes: int, updates: int, tmp_path: Path) -> None:
    args = PPOConfig(str(tmp_path), per_device_train_batch_size=4, num_train_epochs=2, bf16=False, use_cpu=True)
    work_out_batches(args, 16, processes)
    assert (args.total_episodes, args.batch_size, args.local_batch_size) == (32, 4 * processes, 4)
    assert args.num_total_batches == updates


def test_a_checkpoint_is_whole(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.state.global_step = 3
    trainer._save_checkpoint(trainer.model, trial=None)
    names = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"} <= names
    assert (tmp_path / "README.md").exists()
    fresh = type(trainer.policy_model).from_pretrained(tmp_path / "checkpoint-3")
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(fresh.eval()(ids).logits, trainer.policy_model.eval()(ids).logits)
