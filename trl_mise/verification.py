"""A scoring method against the naive one, once per model: the table of architectures may be wrong."""

from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .architectures import attention_implementation, attention_window
from .heads import embedding_weight, eval_mode, text_config, unwrap_causal_lm
from .packing import ScoringRow, Verdicts
from .scorers import SCORERS, score_naive

_PROBE_LENGTH = 24
_PROBE_WORDS = 16
_measured: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], float | str]] = WeakKeyDictionary()


def disagreement(model: nn.Module, method: Literal["cached_packed", "packed", "kv_repeat"]) -> float | str:
    """RMS difference from the naive scores over their standard deviation, or the error that the method raised.

    The trajectories are longer than the attention window, and the questions of one trajectory see different parts of
    it. Measured once per model, method, precision and attention implementation.
    """
    known = _measured.setdefault(unwrap_causal_lm(model), {})
    key = (method, _precision(model), attention_implementation(model))
    if key not in known:
        known[key] = _measure(model, method)
    return known[key]


def tolerance(model: nn.Module) -> float:
    """What rounding explains. A wrong mask or position is off by the order of the spread itself."""
    exact = _precision(model) in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
    return 1e-3 if exact else 0.15


def _measure(model: nn.Module, method: str) -> float | str:
    rows, verdicts = _probe(text_config(model))
    with torch.no_grad(), eval_mode(model):
        naive = torch.cat(score_naive(model, rows, verdicts)).double()
        try:
            scored = torch.cat(SCORERS[method](model, rows, verdicts, 10**9)).double()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever an unknown architecture does not support
            return f"{type(error).__name__}: {error}"
    difference = (scored - naive).square().mean().sqrt() / naive.std().clamp(min=1e-12)
    return float(difference) if torch.isfinite(difference) else float("inf")


def _probe(config: Any) -> tuple[list[ScoringRow], Verdicts]:
    """Two trajectories with three questions each, from a generator of their own."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(config.vocab_size, (count,), generator=generator).tolist()

    length = max(_PROBE_LENGTH, (attention_window(config) or 0) + 9)
    length = max(4, min(length, (getattr(config, "max_position_embeddings", None) or length + 4) - 4))
    rows = [
        ScoringRow(ids(length), [ids(3), ids(2), ids(4)], [length // 2, length, length]),
        ScoringRow(ids(length - 2), [ids(2), ids(4), ids(1)], [length - 2, 1, length - 3]),
    ]
    words = torch.randperm(config.vocab_size, generator=generator)[:_PROBE_WORDS].tolist()
    return rows, Verdicts.of(words)


def _precision(model: nn.Module) -> torch.dtype:
    weight = embedding_weight(model)
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
