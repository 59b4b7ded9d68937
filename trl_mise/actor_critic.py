"""Policy and value in one module, evaluated only where it matters: at the states of action tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from .heads import backbone_hidden, lm_logits
from .token_batch import TokenBatch


class ValueHead(nn.Module):
    """Two-layer value head on the policy's hidden states; starts at V = 0.

    Args:
        hidden_size (`int`): width of the backbone.
        seed (`int`): of the first layer's weights, so that the global random state is left alone.
    """

    base_model_prefix = "score"  # TRL's own wrapper looks up a backbone by this name before we replace it

    def __init__(self, hidden_size: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            last = nn.Linear(hidden_size, 1)
            self.score = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.Tanh(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(N, H)` -> `(N,)`, in the head's own precision."""
        return self.score(hidden.to(next(self.score.parameters()).dtype)).squeeze(-1)


class ActorCritic(nn.Module):
    """The trained module: a causal LM as policy, and a value model of its own or a head on the policy's backbone.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): causal LM.
        value_model (`nn.Module`): a [`ValueHead`], or a sequence classification model with one label.
        value_backbone_grad (`bool`): let the head's loss reach the policy's backbone.
    """

    def __init__(self, policy: nn.Module, value_model: nn.Module, *, value_backbone_grad: bool = False) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.value_backbone_grad = value_backbone_grad
        self.config: Any = policy.config
        self.is_gradient_checkpointing = bool(getattr(policy, "is_gradient_checkpointing", False))

    @property
    def has_value_head(self) -> bool:
        return isinstance(self.value_model, ValueHead)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Enables gradient checkpointing in the policy, and in a value model of its own."""
        for module in (self.policy, *(() if self.has_value_head else (self.value_model,))):
            module.gradient_checkpointing_enable(**kwargs)
            # Frozen embeddings (LoRA) give the first checkpointed layer no input that requires a gradient.
            if hasattr(module, "enable_input_require_grads"):
                module.enable_input_require_grads()
        self.is_gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        for module in (self.policy, *(() if self.has_value_head else (self.value_model,))):
            module.gradient_checkpointing_disable()
        self.is_gradient_checkpointing = False

    def forward(
        self, batch: TokenBatch, logit_index: tuple[Tensor, Tensor], value_index: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits and values at chosen positions.

        Args:
            batch ([`TokenBatch`]): `(B, L)` rows.
            logit_index (`tuple[Tensor, Tensor]`): rows and columns, `(N,)` each, whose next-token logits are wanted.
            value_index (`tuple[Tensor, Tensor]`): rows and columns, `(M,)` each, whose values are wanted.

        Returns:
            `tuple[Tensor, Tensor]`: logits `(N, V)` and values `(M,)`.
        """
        hidden = backbone_hidden(self.policy, batch.input_ids, batch.attention_mask, batch.position_ids)  # (B, L, H)
        logits = lm_logits(self.policy, hidden[logit_index])
        if isinstance(self.value_model, ValueHead):
            features = hidden[value_index]
            return logits, self.value_model(features if self.value_backbone_grad else features.detach())
        value_model: Any = self.value_model
        critic = getattr(value_model, value_model.base_model_prefix)
        value_hidden = critic(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        )[0]
        return logits, value_model.score(value_hidden[value_index]).squeeze(-1)
