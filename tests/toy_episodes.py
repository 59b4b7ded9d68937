"""Hand-made episodes of random tokens and what an update needs around them: no environment, no tokenizer, no TRL."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from trl_mise.types import StopReason, Trajectory, Turn

# These models are far too small for a second thread: where the cores are busy, waiting for it costs ten times more.
torch.set_num_threads(1)

VOCAB = 13
Result = TypeVar("Result")


def toy_episode(
    action_lengths: Sequence[int],
    rewards: Sequence[float] | None = None,
    *,
    stop: StopReason = StopReason.TERMINATED,
    prompt: int = 3,
    result: int = 2,
    seed: int = 0,
) -> Trajectory:
    """An episode with one turn per entry of `action_lengths`; `result` observation tokens follow every action.

    By default the whole reward, 1, comes with the last turn.
    """
    rng = np.random.default_rng(seed)
    if rewards is None:
        rewards = [0.0] * (len(action_lengths) - 1) + [1.0] if action_lengths else []
    turns, end = [], prompt
    for length, reward in zip(action_lengths, rewards, strict=True):
        span = (end, end + length)
        end = span[1] + result
        turns.append(Turn("", "", reward, span, result_end=end))
    ids = tuple(int(i) for i in rng.integers(VOCAB, size=end))
    return Trajectory(ids, tuple(turns), stop)


def tiny_config(**overrides: Any) -> LlamaConfig:
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": None,
    }
    return LlamaConfig(**{**settings, **overrides})


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config()).to(dtype).eval()


class FakeAccelerator:
    """What the update asks of an `Accelerator`, for one process, or as seen by one of several."""

    def __init__(self, num_processes: int = 1) -> None:
        self.num_processes = num_processes
        self.is_synchronising = True

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        self.is_synchronising = False
        yield
        self.is_synchronising = True

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        return tensor


def in_lockstep(num_processes: int, work: Callable[[int, Callable[[Tensor], Tensor]], Result]) -> list[Result]:
    """Runs `work(rank, reduce)` once per "process" (a thread); `reduce` waits for all and gives everyone the sum."""
    slots: list[Tensor] = [torch.zeros(())] * num_processes
    barrier = threading.Barrier(num_processes, timeout=60)

    def process(rank: int) -> Result:
        def reduce(tensor: Tensor) -> Tensor:
            slots[rank] = tensor.clone()
            barrier.wait()
            total = torch.stack(list(slots)).sum(0)
            barrier.wait()
            return total

        try:
            return work(rank, reduce)
        except BaseException:
            barrier.abort()  # the others would wait for this one
            raise

    with ThreadPoolExecutor(num_processes) as pool:
        return list(pool.map(process, range(num_processes)))
