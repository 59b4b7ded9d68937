"""What it costs to judge every step: the four ways of `score_steps` against one plain forward of the trajectory.

    python -m benchmarks.scoring --json benchmarks/results/scoring.json
    python -m benchmarks.scoring --shape qwen2.5-0.5b --repeats 1 --json benchmarks/results/scoring_0.5b.json

The unit is one forward of the trajectory (backbone only, as PPO's own pass; with gradient, forward and backward).
"bound" is (1 + Tq/L): the tokens that have to be read at least.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks._common import arguments, count_flops, finish, paired_seconds, random_ids, random_model
from trl_mise.heads import backbone_hidden
from trl_mise.scoring import score_steps

VERDICTS = [11, 23]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--length", type=int, default=1024, help="L, tokens of the trajectory")
    parser.add_argument("--steps", type=int, default=15, help="T, questions")
    parser.add_argument("--question", type=int, default=12, help="q, tokens of a question")
    parser.add_argument("--shared", type=int, default=0, help="tokens that all questions begin with")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.length, options.steps, options.repeats = 48, 3, 1
    vocab = 151936 if options.shape.startswith("qwen") else 1000
    model = random_model(options.shape, vocab, options.device, getattr(torch, options.dtype))
    generator = torch.Generator().manual_seed(0)
    trajectory = random_ids(options.length, vocab, generator)
    common = random_ids(options.shared, vocab, generator)
    own = options.question - options.shared
    questions = [common + random_ids(own, vocab, generator) for _ in range(options.steps)]
    rows = measure(model, trajectory, questions, options)
    settings = {k: getattr(options, k) for k in ("shape", "length", "steps", "question", "shared", "dtype", "repeats")}
    return finish("scoring", options, rows, settings)


def measure(model: Any, trajectory: list[int], questions: list[list[int]], options: Any) -> list[dict[str, Any]]:
    ids = torch.tensor([trajectory], device=options.device)

    def score(method: str, **kwargs: Any) -> torch.Tensor:
        return score_steps(model, [trajectory], [questions], VERDICTS, method=method, verify="never", **kwargs).logits

    def forward() -> None:
        with torch.no_grad():
            backbone_hidden(model, ids, torch.ones_like(ids), torch.arange(ids.shape[1], device=ids.device)[None])

    def train() -> None:
        hidden = backbone_hidden(model, ids, torch.ones_like(ids), torch.arange(ids.shape[1], device=ids.device)[None])
        hidden[0, -1].float().sum().backward()

    def train_packed() -> None:
        score("packed", requires_grad=True).sum().backward()

    forwards: dict[str, Callable[[], Any]] = {
        "forward of the trajectory": forward,
        "cached_packed": lambda: score("cached_packed"),
        "packed": lambda: score("packed"),
        "kv_repeat": lambda: score("kv_repeat"),
        "naive": lambda: score("naive"),
    }
    backwards = {"forward + backward of the trajectory": train, "packed forward + backward": train_packed}
    seconds = paired_seconds(forwards, options.repeats, options.device)
    seconds |= paired_seconds(backwards, options.repeats, options.device)
    bound = 1 + sum(map(len, questions)) / len(trajectory)
    naive = score("naive").log_softmax(-1)
    table = []
    for group in (forwards, backwards):
        unit = next(iter(group))
        unit_flops = count_flops(group[unit])
        for name, arm in group.items():
            flops = count_flops(arm)
            row: dict[str, Any] = {"": name, "s": seconds[name], "/ unit": seconds[name] / seconds[unit]}
            row["/ unit / bound"] = None if name == unit else row["/ unit"] / bound
            row["naive /"] = (
                seconds["naive"] / seconds[name] if name in ("cached_packed", "packed", "kv_repeat") else None
            )
            row["GFLOP"], row["GFLOP / unit"] = flops / 1e9, flops / unit_flops
            if name in ("cached_packed", "packed", "kv_repeat"):
                row["max difference"] = float((score(name).log_softmax(-1) - naive).abs().max())
            table.append(row)
    return table


if __name__ == "__main__":
    main()
