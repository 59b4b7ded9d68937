"""What we inherit from TRL: if a release changes any of this, here is where it shows."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from trainer_fakes import make_trainer
from trl import GRPOTrainer

from trl_mise import MISEConfig, MISEGRPOTrainer, MISETrainer
from trl_mise._trl import TRLPPOConfig, TRLPPOTrainer, unwrap_model_for_generation
from trl_mise.own_ppo import PPOTrainer as OwnPPOTrainer
from trl_mise.own_ppo_config import PPOConfig as OwnPPOConfig
from trl_mise.ppo import TRL_HAS_PPO, PPOConfig, PPOTrainer

CONSTRUCTOR = [
    *("args", "processing_class", "model", "ref_model", "reward_model", "train_dataset", "value_model"),
    *("data_collator", "eval_dataset", "optimizers", "callbacks", "peft_config"),
]


def parameters(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]  # type: ignore[arg-type]


def test_ppo_trainers_constructor() -> None:
    assert parameters(PPOTrainer.__init__) == CONSTRUCTOR


def test_ours_is_the_same_and_three_keywords() -> None:
    ours = inspect.signature(MISETrainer.__init__).parameters
    assert list(ours)[1:] == [*CONSTRUCTOR, "environment_factory", "hindsight", "generation_backend"]
    for name in ("environment_factory", "hindsight", "generation_backend"):
        assert ours[name].kind is inspect.Parameter.KEYWORD_ONLY and ours[name].default is None
    theirs = inspect.signature(PPOTrainer.__init__).parameters
    for name in CONSTRUCTOR:
        assert ours[name].kind is theirs[name].kind
        # Where PPOTrainer has a default, ours is the same; what it requires may be optional here.
        if theirs[name].default is not inspect.Parameter.empty:
            assert ours[name].default == theirs[name].default


def test_every_override_accepts_what_its_original_accepts() -> None:
    for name in ("evaluate", "save_model", "create_optimizer_and_scheduler", "generate_completions"):
        if name == "generate_completions" and not TRL_HAS_PPO:
            continue  # an extra of TRL's PPOTrainer; ours says where the episodes are
        assert parameters(getattr(MISETrainer, name)) == parameters(getattr(PPOTrainer, name)), name
    for name in ("create_model_card", "train", "_save_checkpoint", "log"):
        assert callable(getattr(PPOTrainer, name)), name
    assert parameters(MISETrainer._save_checkpoint) == parameters(PPOTrainer._save_checkpoint)
    cards = [parameters(trainer.create_model_card) for trainer in (MISETrainer, MISEGRPOTrainer)]
    assert cards == [[*parameters(GRPOTrainer.create_model_card), "license"]] * 2
    assert parameters(MISEGRPOTrainer.save_model) == parameters(GRPOTrainer.save_model)
    for name in (
        "_get_output_dir",
        "_push_from_checkpoint",
        "_finish_current_push",
        "_load_optimizer_and_scheduler",
        "_load_rng_state",
    ):
        assert callable(getattr(PPOTrainer, name)), name
    assert MISETrainer.log is PPOTrainer.log
    assert parameters(PPOTrainer._save_checkpoint) == ["model", "trial"]


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this TRL has no PPOTrainer")
def test_it_is_trls_where_trl_has_one() -> None:
    assert issubclass(MISETrainer, TRLPPOTrainer) and issubclass(MISEConfig, TRLPPOConfig)


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this TRL has no PPOTrainer")
def test_our_own_base_has_the_same_constructor_and_options() -> None:
    """The one that newer TRL gets: a script must not notice."""
    assert parameters(OwnPPOTrainer.__init__) == parameters(TRLPPOTrainer.__init__)
    theirs = {field.name: field for field in fields(TRLPPOConfig)}
    ours = {field.name: field for field in fields(OwnPPOConfig)}
    assert ours.keys() == theirs.keys()
    for name, field in theirs.items():
        assert ours[name].default == field.default, name
    # Not `field.type`, which HfArgumentParser rewrites.
    types = [get_type_hints(config) for config in (OwnPPOConfig, TRLPPOConfig)]
    for name in TRLPPOConfig.__annotations__:
        assert types[0][name] == types[1][name], name
    assert OwnPPOTrainer._save_checkpoint is not TRLPPOTrainer._save_checkpoint
    assert parameters(OwnPPOTrainer._save_checkpoint) == parameters(TRLPPOTrainer._save_checkpoint)


@pytest.mark.skipif(not TRL_HAS_PPO, reason="this TRL has no PPOTrainer")
def test_where_our_wrapper_takes_the_place_of_theirs() -> None:
    """`create_optimizer_and_scheduler` must come after the wrapping and before `accelerator.prepare`."""
    source = inspect.getsource(PPOTrainer.__init__)
    wrap = source.index("self.model = PolicyAndValueWrapper(")
    create = source.index("self.create_optimizer_and_scheduler(")
    prepare = source.index("accelerator.prepare(self.model, self.optimizer")
    assert wrap < create < prepare


def test_the_config_is_theirs_and_more() -> None:
    theirs = {field.name: field for field in fields(PPOConfig)}
    ours = {field.name: field for field in fields(MISEConfig)}
    assert theirs.keys() <= ours.keys()
    for name, field in theirs.items():
        assert ours[name].default == field.default, name
        assert ours[name].default_factory == field.default_factory, name
    assert all("help" in ours[name].metadata for name in ours.keys() - theirs.keys())


USED_OPTIONS = (
    *("total_episodes", "num_mini_batches", "num_ppo_epochs", "response_length", "temperature", "stop_token"),
    *("stop_token_id", "missing_eos_penalty", "local_rollout_forward_batch_size", "ds3_gather_for_generation"),
    *("gamma", "lam", "kl_coef", "kl_estimator", "cliprange", "cliprange_value", "vf_coef", "whiten_rewards"),
    *("model_adapter_name", "ref_adapter_name", "max_grad_norm", "gradient_checkpointing", "bf16", "fp16"),
)


def test_options_that_the_loop_reads() -> None:
    assert set(USED_OPTIONS) <= {field.name for field in fields(PPOConfig)}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> MISETrainer:
    return make_trainer(
        tmp_path_factory.mktemp("contract"), per_device_train_batch_size=2, gradient_accumulation_steps=4,
        num_mini_batches=2, seed=7,
    )  # fmt: skip


def test_attributes_that_the_constructor_leaves(trainer: MISETrainer) -> None:
    assert trainer.policy_model is trainer.policy
    assert trainer.value_model is trainer.actor_critic.value_model
    assert trainer.ref_model is not None and trainer.ref_model is not trainer.policy
    assert trainer.is_peft_model is False
    assert trainer.stop_token_id is None
    assert trainer.model_adapter_name is None and trainer.ref_adapter_name is None
    assert trainer.local_seed == 7
    assert trainer.train_dataset_len == 16
    assert trainer.eval_dataset is None
    assert trainer.data_collator([{"seed": 1}]) == [{"seed": 1}]
    for name in ("optimizer", "lr_scheduler", "accelerator", "callback_handler", "control", "state"):
        assert getattr(trainer, name) is not None, name


def test_batch_sizes_that_the_constructor_works_out(trainer: MISETrainer) -> None:
    args = trainer.args
    sizes = {
        "world_size": 1,
        "local_batch_size": 8,
        "batch_size": 8,
        "local_mini_batch_size": 4,
        "num_total_batches": 2,
        "total_episodes": 16,
    }
    assert {name: getattr(args, name) for name in sizes} == sizes


def test_state_that_the_loop_writes(trainer: MISETrainer) -> None:
    for name in ("episode", "global_step", "max_steps", "num_train_epochs", "epoch", "log_history"):
        assert hasattr(trainer.state, name), name
    assert parameters(trainer.state.compute_steps) == ["args", "max_steps"]


def test_what_the_constructor_leaves_behind_is_repaired(trainer: MISETrainer) -> None:
    assert trainer.accelerator.gradient_accumulation_steps == 1
    assert trainer.is_distributed_loading_by_transformers is False
    assert trainer.reward_model is None  # nn.Identity stood in for it


def test_the_reference_is_frozen(trainer: MISETrainer) -> None:
    with trainer.reference_policy() as reference:
        assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_the_optimizer_has_every_parameter_of_our_wrapper(trainer: MISETrainer) -> None:
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in trainer.actor_critic.parameters() if p.requires_grad}


def test_helpers_that_we_import() -> None:
    assert parameters(unwrap_model_for_generation)[:2] == ["model", "accelerator"]
    assert "gather_deepspeed3_params" in parameters(unwrap_model_for_generation)


def test_unwrapping_for_generation_gives_our_module(trainer: MISETrainer, tmp_path: Path) -> None:
    with unwrap_model_for_generation(trainer.model, trainer.accelerator) as unwrapped:
        assert unwrapped is trainer.actor_critic
    assert isinstance(trainer.actor_critic.value_model, torch.nn.Module)
