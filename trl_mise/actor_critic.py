"""Policy and value in one module, evaluated only where it matters: at the states of action tokens."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .heads import backbone_hidden
from .kv_cache import read
from .scorers import Questionnaire
from .token_batch import TokenBatch
from .token_log_probs import DEFAULT_HEAD_BYTES, token_log_probs


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


class TokenOutputs(NamedTuple):
    """What the update needs of tokens; a tuple, because that is what DistributedDataParallel and accelerate look into.

    Args:
        log_probs (`Tensor`): `(N,)` of the tokens under the tempered policy, at least float32.
        entropy (`Tensor`): `(N,)` of the distributions that they were drawn from; has no gradient.
        values (`Tensor`): `(M,)`, in the value model's precision.
        verdict_logits (`Tensor`, *optional*): `(S, K)` of the questions that rode on the pass, row by row.
    """

    log_probs: Tensor
    entropy: Tensor
    values: Tensor
    verdict_logits: Tensor | None = None


def hidden_and_verdicts(
    model: nn.Module, batch: TokenBatch, questions: Questionnaire | None
) -> tuple[Tensor, Tensor | None]:
    """One pass over the rows: hidden states `(B, L, H)`, and `(S, K)` verdicts of the questions that ride on it."""
    if questions is None:
        return backbone_hidden(model, batch.input_ids, batch.attention_mask, batch.position_ids), None
    hidden, cache = read(model, batch)
    return hidden, torch.cat(questions.ask(model, cache))


class ActorCritic(nn.Module):
    """The trained module: a causal LM as policy, and a value model of its own or a head on the policy's backbone.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): causal LM.
        value_model (`nn.Module`): a [`ValueHead`], or a sequence classification model with one label.
        value_backbone_grad (`bool`): let the head's loss reach the policy's backbone.
        head_max_bytes (`int`): most bytes of the logits that are in memory at a time; see [`token_log_probs`].
    """

    def __init__(
        self,
        policy: nn.Module,
        value_model: nn.Module,
        *,
        value_backbone_grad: bool = False,
        head_max_bytes: int = DEFAULT_HEAD_BYTES,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.value_backbone_grad = value_backbone_grad
        self.head_max_bytes = head_max_bytes
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
        self,
        batch: TokenBatch,
        states: tuple[Tensor, Tensor],
        token_ids: Tensor,
        temperature: float,
        value_index: tuple[Tensor, Tensor],
        questions: Questionnaire | None = None,
    ) -> TokenOutputs:
        """Log-probabilities and entropies of chosen tokens, and values at chosen positions.

        Args:
            batch ([`TokenBatch`]): `(B, L)` rows.
            states (`tuple[Tensor, Tensor]`): rows and columns, `(N,)` each, of the states before the tokens.
            token_ids (`Tensor`): `(N,)` the tokens that follow these states.
            temperature (`float`): of the sampling.
            value_index (`tuple[Tensor, Tensor]`): rows and columns, `(M,)` each, whose values are wanted.
            questions ([`Questionnaire`], *optional*): about these rows, answered by the policy.
        """
        hidden, verdict_logits = hidden_and_verdicts(self.policy, batch, questions)  # (B, L, H), (S, K)
        log_probs, entropy = token_log_probs(
            self.policy, hidden[states], token_ids, temperature, max_bytes=self.head_max_bytes
        )
        return TokenOutputs(log_probs, entropy, self._values(batch, hidden, value_index), verdict_logits)

    def _values(self, batch: TokenBatch, hidden: Tensor, index: tuple[Tensor, Tensor]) -> Tensor:
        """`(M,)` of the head on the policy's `hidden`, or of a value model that reads the rows itself."""
        if isinstance(self.value_model, ValueHead):
            features = hidden[index]
            return self.value_model(features if self.value_backbone_grad else features.detach())
        value_model: Any = self.value_model
        critic = getattr(value_model, value_model.base_model_prefix)
        value_hidden = critic(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        )[0]
        return value_model.score(value_hidden[index]).squeeze(-1)
