"""Generation backends: what samples the policy's actions, from transformers itself to an engine of one's own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from torch import nn

from .generation import Sampling, neutral_generation_config, sample, until_stop, without_own_generation_config
from .kept_generation import KeptGeneration
from .notices import warn_once
from .rollout import Generate
from .scoring import method_obstacle


class GenerationBackend(Protocol):
    """What samples actions. A session is one rollout: the policy's weights do not change in it.

    An engine with weights of its own fetches the policy's when a session begins. The contexts of a session grow: a
    conversation comes back with its action and the environment's answer appended, so what was computed may be kept.
    """

    def session(self, policy: nn.Module, sampling: Sampling) -> AbstractContextManager[Generate]:
        """Sampling from the tempered softmax of the policy and from nothing else: no top-p, no penalties.

        Args:
            policy (`nn.Module`): the unwrapped causal language model, in evaluation mode.
            sampling ([`Sampling`]): how.

        Returns:
            a context manager that gives the function from contexts to sampled ids, see [`Generate`].
        """
        ...


class TransformersBackend:
    """The policy itself generates.

    Args:
        keep_cache (`bool`): a conversation that comes back is read on from where it stood. Models that cannot do that
            read it from its beginning, and that is said once.
    """

    def __init__(self, *, keep_cache: bool = True) -> None:
        self.keep_cache = keep_cache

    @contextmanager
    def session(self, policy: nn.Module, sampling: Sampling) -> Iterator[Generate]:
        # The same is asked of a model as for scoring against a cache: masks of our own, made from positions.
        obstacle = method_obstacle(policy, "cached_packed") if self.keep_cache else None
        if obstacle is not None:
            warn_once(f"rollouts read every episode from its beginning at every turn (slow): {obstacle}")
        if self.keep_cache and obstacle is None:
            yield KeptGeneration(policy, sampling)
        else:
            yield lambda contexts: sample(policy, contexts, sampling)


class ContinuousBatchingBackend:
    """transformers' continuous batching: a paged cache, rows join and leave at every token. For GPUs.

    Args:
        **options: of `generate_batch`, e.g. `continuous_batching_config=ContinuousBatchingConfig(...)`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    @contextmanager
    def session(self, policy: nn.Module, sampling: Sampling) -> Iterator[Generate]:
        if not hasattr(policy, "generate_batch"):
            raise ValueError(
                f"generation_backend='continuous_batching': {type(policy).__name__} has no generate_batch; use a "
                "transformers model, or generation_backend='transformers'"
            )
        with without_own_generation_config(policy):
            yield lambda contexts: self._generate(policy, contexts, sampling)

    def _generate(self, policy: Any, contexts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        config = neutral_generation_config(sampling, pad_token_id=0)
        inputs = [list(context) for context in contexts]
        outputs = policy.generate_batch(inputs, generation_config=config, **self.options).values()
        errors = [output.error for output in outputs if output.error is not None]
        if errors or len(outputs) != len(contexts):
            raise RuntimeError(
                f"continuous batching answered {len(outputs) - len(errors)} of {len(contexts)} contexts"
                f"{f' ({errors[0]})' if errors else ''}; transformers' log says why. "
                "generation_backend='transformers' does without it"
            )
        return [until_stop(output.generated_tokens, sampling) for output in outputs]


BACKENDS: dict[str, Callable[[], GenerationBackend]] = {
    "transformers": TransformersBackend,
    "continuous_batching": ContinuousBatchingBackend,
}
"""By the name that `MISEConfig.generation_backend` takes."""
