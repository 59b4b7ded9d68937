"""What the benchmarks share: arguments, random models, paired timing, FLOP and memory counts, tables, JSON."""

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2},
    "qwen2.5-0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2},
    "qwen2.5-7b": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
}
INTERMEDIATE = {"qwen2.5-0.5b": 4864, "qwen2.5-7b": 18944}


def random_model(shape: str, vocab_size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A Qwen2 of the given shape with random weights, in evaluation mode."""
    sizes = SHAPES[shape]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab_size,
        intermediate_size=INTERMEDIATE.get(shape, 4 * sizes["hidden_size"]),
        max_position_embeddings=32768,
        tie_word_embeddings=shape != "qwen2.5-7b",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **sizes,
    )
    with torch.device(device):
        return Qwen2ForCausalLM._from_config(config, dtype=dtype).eval()


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each arm, interleaved")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="sizes for a smoke test; the numbers mean nothing")
    return parser


def paired_seconds(
    arms: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu", at_least: float = 0.25
) -> dict[str, float]:
    """Median seconds of each arm; the arms take turns, so that a slow minute of the machine hits all of them.

    A turn of a short arm runs it again and again for `at_least` seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    # The first run is the warm-up, the second says how often.
    single = {name: min(_seconds(arm, 1, device) for _ in range(2)) for name, arm in arms.items()}
    counts = {name: max(1, round(at_least / seconds)) for name, seconds in single.items()}
    for _ in range(repeats):
        for name, arm in arms.items():
            times[name].append(_seconds(arm, counts[name], device))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(arm: Callable[[], Any], count: int, device: str) -> float:
    """Of one run, on average over `count`."""
    gc.collect()
    synchronise(device)
    start = time.perf_counter()
    for _ in range(count):
        arm()
    synchronise(device)
    return (time.perf_counter() - start) / count


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# FLOPs


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    # Scores again, then the gradients of scores, values, queries and keys: five products where the forward has two.
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (3 * width + 2 * value[3])


# torch counts the attention kernels of GPUs, but not those of the CPU. Masked pairs count as computed, as on GPUs.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def count_flops(work: Callable[[], Any]) -> int:
    """Floating point operations of matrix products and attention (a multiply-add is two)."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        work()
    return counter.get_total_flops()


# Memory


def peak_bytes(work: Callable[[], Any], device: str = "cpu") -> int:
    """Most bytes of tensors that `work` had alive at a time, above what was there before it."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


# Results


def machine(device: str, threads: int) -> dict[str, str]:
    """What the numbers were measured on."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    else:
        name = next(
            (line.split(":", 1)[1].strip() for line in _cpu_info() if line.startswith("model name")),
            platform.processor() or platform.machine(),
        )
    versions = {name: version(name) for name in ("torch", "transformers", "trl")}
    return {"device": name, "threads": str(threads), "python": platform.python_version(), **versions}


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def finish(name: str, options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], settings: Any) -> dict[str, Any]:
    """Prints the table and writes the JSON file if one was asked for."""
    where = machine(options.device, options.threads)
    result = {"benchmark": name, "machine": where, "settings": settings, "rows": list(rows)}
    print(f"{name}: {json.dumps(settings)}")
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(markdown(rows))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with aligned columns; numbers to three digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def random_ids(count: int, vocab_size: int, generator: torch.Generator) -> list[int]:
    return torch.randint(vocab_size, (count,), generator=generator).tolist()


def token_tensor(rows: Sequence[Sequence[int]], device: str) -> Tensor:
    return torch.tensor(rows, dtype=torch.long, device=device)
