"""`PPOTrainer` for TRL versions that have none (1.13 and later): constructor and inherited surface, without a loop.

Built on transformers' `Trainer`, whose initialisation, saving, callbacks, logging and hub methods are its own.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainerState
from transformers.utils import is_peft_available

from ._trl import prepare_deepspeed
from .own_ppo_config import PPOConfig


@dataclass
class OnlineTrainerState(TrainerState):
    """`TrainerState` that counts episodes.

    Args:
        episode (`int`): episodes played so far.
    """

    episode: int = 0


class PPOTrainer(Trainer):
    """What a subclass needs to train policy and value model with PPO: models, batch sizes, optimizer, state.

    Arguments, and the attributes that they become, are those of TRL 1.12's `PPOTrainer`. The subclass makes `model`,
    the module that holds policy and value model, in `create_optimizer_and_scheduler`, and brings `train`.

    Args:
        args ([`PPOConfig`]): its batch sizes are worked out here.
        processing_class (`PreTrainedTokenizerBase`): of the policy.
        model (`PreTrainedModel`): the policy.
        ref_model (`PreTrainedModel`, *optional*): the reference policy; a copy of `model`, or with an adapter `None`.
        reward_model (`nn.Module`): scores responses.
        train_dataset (`Dataset`): prompts or tasks.
        value_model (`nn.Module`): values states.
        data_collator (`Callable`, *optional*): pads prompts by default.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*): for `evaluate`.
        optimizers (`tuple`, *optional*): optimizer and scheduler in place of those that `args` describes.
        callbacks (`list[TrainerCallback]`, *optional*): beside the default ones.
        peft_config (`PeftConfig`, *optional*): the adapter to train in place of the policy.

    Raises:
        ValueError: an argument is missing, or does not go with another; names both.
        TypeError: `peft_config` is none.
    """

    _tag_names = ["ppo"]
    _name = "PPO"
    _paper: Mapping[str, str] = {}
    model: Any
    optimizer: Any
    state: Any

    def __init__(
        self,
        args: PPOConfig,
        processing_class: Any,
        model: Any,
        ref_model: Any,
        reward_model: Any,
        train_dataset: Any,
        value_model: Any,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
    ) -> None:
        if train_dataset is None:
            raise ValueError("train_dataset is required: prompts, or tasks of an environment")
        if ref_model is model:
            raise ValueError("ref_model is the very object that is trained; pass a copy, or None to have one made")
        if args.kl_estimator not in ("k1", "k3"):
            raise ValueError(f"kl_estimator={args.kl_estimator!r} is unknown; choose one of ('k1', 'k3')")
        self.stop_token_id = _stop_token_id(args, processing_class)
        model.generation_config.eos_token_id = self.stop_token_id
        self.policy_model: Any = model if peft_config is None else _with_adapter(model, peft_config)
        self.is_peft_model = _is_peft_model(self.policy_model)
        self.model_adapter_name, self.ref_adapter_name = args.model_adapter_name, args.ref_adapter_name
        self.value_model = value_model
        self.train_dataset_len = len(train_dataset)
        state = PartialState()
        work_out_batches(args, self.train_dataset_len, state.num_processes)
        self.local_seed = args.seed + 100003 * state.process_index  # as TRL, whose samples it should give
        super().__init__(
            model=self.policy_model,
            args=args,
            data_collator=data_collator or DataCollatorWithPadding(processing_class),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.ref_model: Any = self._reference(ref_model)
        self.reward_model: Any = reward_model
        for module in (self.policy_model, self.ref_model, self.value_model, self.reward_model):
            if module is not None:
                _disable_dropout(module)
        self._set_up_training()

    def _reference(self, given: Any) -> Any:
        if given is not None:
            return given
        return None if self.is_peft_model else copy.deepcopy(self.policy_model).eval().requires_grad_(False)

    def _set_up_training(self) -> None:
        args, accelerator = self.args, self.accelerator
        self.create_optimizer_and_scheduler(num_training_steps=args.num_total_batches)
        # Parameters that preparing makes (shards, buffers) must be the same on every process; samples must not.
        torch.manual_seed(args.seed)
        self.model, self.optimizer = accelerator.prepare(self.model, self.optimizer)
        torch.manual_seed(self.local_seed)
        self.model_wrapped = self.model
        if hasattr(self.policy_model, "add_model_tags"):
            self.policy_model.add_model_tags(self._tag_names)
        known = self.state
        self.state = OnlineTrainerState(
            is_local_process_zero=known.is_local_process_zero,
            is_world_process_zero=known.is_world_process_zero,
            stateful_callbacks=known.stateful_callbacks,
        )
        for name in ("ref_model", "reward_model"):
            module = getattr(self, name)
            if module is not None:
                setattr(self, name, self._placed(module))

    def _placed(self, module: nn.Module) -> nn.Module:
        """A model that is never trained, where it is needed."""
        if self.is_deepspeed_enabled and next(module.parameters(), None) is not None:
            return prepare_deepspeed(module, self.accelerator)
        if getattr(module, "is_quantized", False):
            return module  # loaded where it has to be; cannot be moved
        return module.to(self.accelerator.device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """With a model card beside the weights."""
        name = self.args.hub_model_id or Path(self.args.output_dir).name
        self.create_model_card(model_name=name.split("/")[-1])
        super()._save_checkpoint(model, trial)


def work_out_batches(args: PPOConfig, num_rows: int, num_processes: int) -> None:
    """Fills in the batch sizes of `args`, and the number of updates.

    Args:
        args ([`PPOConfig`]): changed in place.
        num_rows (`int`): of the training set.
        num_processes (`int`): that train together.

    Raises:
        ValueError: the minibatches would not be of one size, or too small for whitening.
    """
    if args.total_episodes is None:
        args.total_episodes = int(args.num_train_epochs * num_rows)
    args.world_size = num_processes
    args.local_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    args.micro_batch_size = args.per_device_train_batch_size * num_processes
    args.batch_size = args.local_batch_size * num_processes
    if args.local_batch_size % args.num_mini_batches:
        raise ValueError(
            f"a process's batch of {args.local_batch_size} episodes (per_device_train_batch_size x "
            f"gradient_accumulation_steps) must be a multiple of num_mini_batches={args.num_mini_batches}"
        )
    args.mini_batch_size = args.batch_size // args.num_mini_batches
    args.local_mini_batch_size = args.local_batch_size // args.num_mini_batches
    if args.whiten_rewards and args.local_mini_batch_size < 8:
        raise ValueError(
            f"whiten_rewards needs minibatches of at least 8 episodes per process, got {args.local_mini_batch_size}: "
            "use larger batches, fewer num_mini_batches, or leave it off"
        )
    args.num_total_batches = math.ceil(args.total_episodes / args.batch_size)


def _stop_token_id(args: PPOConfig, processing_class: Any) -> int | None:
    if args.stop_token is None:
        return args.stop_token_id
    if args.stop_token_id is not None:
        raise ValueError("stop_token and stop_token_id say the same thing twice; set one of them")
    if args.stop_token != "eos":
        raise ValueError(f"stop_token={args.stop_token!r} is unknown; choose one of ('eos', None)")
    return processing_class.eos_token_id


def _with_adapter(model: nn.Module, peft_config: Any) -> nn.Module:
    if not is_peft_available():
        raise ImportError('peft_config needs the peft library; run: pip install "peft"')
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise TypeError(f"peft_config must be a PeftConfig (e.g. LoraConfig), got {type(peft_config).__name__}")
    if _is_peft_model(model):
        raise ValueError(
            "model has an adapter already: leave peft_config out, or merge it first (model.merge_and_unload())"
        )
    return get_peft_model(model, peft_config)


def _is_peft_model(model: nn.Module) -> bool:
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _disable_dropout(model: nn.Module) -> None:
    """Old and new log-probabilities of the same weights must be equal."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
