"""What we inherit from PPOTrainer, repaired: the parts of its surface that break with our module or under wrappers."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import safetensors.torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from .actor_critic import ActorCritic, ValueHead
from .callback import call_hooks
from .config import MISEConfig
from .envs.base import EnvironmentFactory
from .heads import keep_four_bit_layout
from .hindsight_config import HindsightConfig
from .ppo import PPOTrainer
from .processes import means_over_all, numbers_of_all
from .publishing import PublishingTrainer

VALUE_HEAD_NAME = "value_head.safetensors"
VALUE_MODEL_DIR = "value_model"


class RepairedPPOTrainer(PublishingTrainer, PPOTrainer):
    """PPOTrainer whose inherited methods work on the unwrapped [`ActorCritic`]; `train` is the subclass's business.

    With `is_plain_ppo` (set before `__init__`) every method is PPOTrainer's own.
    """

    is_plain_ppo: bool
    args: MISEConfig
    reward_model: Any
    control: Any
    environment_factory: EnvironmentFactory | None
    _card_options = (HindsightConfig, MISEConfig)

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Called by PPOTrainer right after it wrapped policy and value model; our wrapper takes its place."""
        if not self.is_plain_ppo:
            self.model: Any = ActorCritic(
                self.policy_model,
                self.value_model,
                value_backbone_grad=self.args.value_backbone_grad,
                head_max_bytes=self.args.head_max_bytes,
            )
        super().create_optimizer_and_scheduler(num_training_steps)

    def _repair(self) -> None:
        """Puts right what PPOTrainer's `__init__` leaves behind."""
        args = self.args
        keep_four_bit_layout(self.actor_critic)
        self.reward_model = None if isinstance(self.reward_model, nn.Identity) else self.reward_model
        # Our loop accumulates gradients itself; accelerate would divide the losses and skip optimizer steps.
        self.accelerator.gradient_accumulation_steps = 1
        # transformers reads these while saving and loading; TRL's PPOTrainer never sets them.
        for name in ("is_distributed_loading_by_transformers", "is_fsdp_xla_enabled", "is_fsdp_xla_v1_enabled"):
            setattr(self, name, getattr(self, name, False))
        self.model_wrapped = self.model
        self._window: dict[str, list[float]] = defaultdict(list)
        self._disable_functional_dropout()
        self._restore_lora_dropout()
        if args.gradient_checkpointing:
            self.actor_critic.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs or {"use_reentrant": False}
            )

    def _disable_functional_dropout(self) -> None:
        """PPOTrainer only finds dropout *modules*; attention layers keep their rate as a number."""
        for module in self.actor_critic.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, float) and name.endswith("dropout"):
                    setattr(module, name, 0.0)

    def _restore_lora_dropout(self) -> None:
        """PPOTrainer sets every dropout to 0; the one that the user asked for in `peft_config` stays."""
        if not self.is_peft_model:
            return
        for name, module in self.policy_model.named_modules():
            if isinstance(module, nn.Dropout) and ".lora_dropout." in name:
                module.p = self.policy_model.peft_config[name.rsplit(".", 1)[1]].lora_dropout

    # The models

    @property
    def actor_critic(self) -> ActorCritic:
        return self.accelerator.unwrap_model(self.model)

    @property
    def policy(self) -> nn.Module:
        """The unwrapped policy."""
        return self.actor_critic.policy

    @contextmanager
    def null_ref_context(self) -> Iterator[None]:
        """Switches the policy's adapter off, or to the reference adapter."""
        if self.is_plain_ppo:
            with super().null_ref_context():
                yield
            return
        policy: Any = self.policy
        if not self.ref_adapter_name:
            with policy.disable_adapter():
                yield
            return
        policy.set_adapter(self.ref_adapter_name)
        try:
            yield
        finally:
            policy.set_adapter(self.model_adapter_name or "default")

    @contextmanager
    def reference_policy(self) -> Iterator[nn.Module]:
        """The reference policy: a model of its own, or the policy without its adapter."""
        if self.ref_model is not None:
            yield self.ref_model
        else:
            with self.null_ref_context():
                yield self.policy

    # Callbacks and logs

    def _reduce_sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _gather_numbers(self, values: np.ndarray) -> np.ndarray:
        """`(S,)` numbers of this process -> those of all processes."""
        return numbers_of_all(self.accelerator, values)

    def _phase(self, name: str, detail: str = "") -> None:
        call_hooks(self.callback_handler.callbacks, "on_phase", name, detail)

    def _fire(self, event: str, **kwargs: Any) -> None:
        self.control = self.callback_handler.call_event(event, self.args, self.state, self.control, **kwargs)

    def _log_window(self, metrics: Mapping[str, float]) -> None:
        """Logs the means over all updates since the last log, averaged over processes."""
        for name, value in metrics.items():
            if name in ("episode", "lr"):
                self._window[name].clear()
            self._window[name].append(float(value))
        if not self.control.should_log or not self._window:
            return
        means = {name: float(np.mean(values)) for name, values in self._window.items()}
        means = means_over_all(self.accelerator, means)
        self._window.clear()
        self.log(means)
        self.control.should_log = False

    def generate_completions(self, sampling: bool = False) -> None:
        """PPOTrainer's sample table; with our loop the episodes are in `trajectories.jsonl`."""
        if self.is_plain_ppo:
            super().generate_completions(sampling)

    # Saving

    @contextmanager
    def _policy_as_model(self) -> Iterator[None]:
        """Inherited code that saves or describes `self.model` must see the policy, unwrapped."""
        wrapped = self.model
        self.model = self.policy
        try:
            yield
        finally:
            self.model = wrapped

    @property
    def describes_itself(self) -> bool:
        return not self.is_plain_ppo

    def _card_environment(self) -> Any:
        return self.environment_factory

    def _save_files(self, folder: str) -> None:
        """The policy (or its adapter), the tokenizer, and the value model beside it."""
        value_model: Any = self.actor_critic.value_model
        with self._policy_as_model():
            super()._save_files(folder)
        if not self.args.should_save:
            return
        if isinstance(value_model, ValueHead):
            safetensors.torch.save_file(value_model.state_dict(), os.path.join(folder, VALUE_HEAD_NAME))
        else:
            value_model.save_pretrained(os.path.join(folder, VALUE_MODEL_DIR))


@contextmanager
def mixed_precision(config: MISEConfig, *, enabled: bool) -> Iterator[None]:
    """PPOTrainer makes its `Accelerator` without looking at `bf16` and `fp16`; accelerate reads this variable."""
    if not enabled:
        yield
        return
    precision = "bf16" if config.bf16 else "fp16" if config.fp16 else "no"
    known = AcceleratorState._shared_state.get("_mixed_precision")
    if known is not None and known != precision:
        AcceleratorState._reset_state()
    name = "ACCELERATE_MIXED_PRECISION"
    saved = os.environ.get(name)
    os.environ[name] = precision
    try:
        yield
    finally:
        if saved is None:
            del os.environ[name]
        else:
            os.environ[name] = saved
