"""Episodes with the cache kept between turns, against reading every context from its beginning at every turn.

    python -m benchmarks.rollout --json benchmarks/results/rollout.json

The first two rows: the same episodes, token for token (greedy, lengths fixed), by `model.generate` and by our loop.
The FLOPs say what the cache saves; a part of the seconds is that our loop has less to do besides. The last two rows:
episodes of very different lengths, three times as many tasks as places, in waves and with `rollout_refill=True`.
"""

import random
from typing import Any

import torch

from benchmarks._common import SHAPES, arguments, count_flops, finish, paired_seconds, peak_bytes, random_model
from benchmarks.update import FixedLengthEnv
from trl_mise.backends import TransformersBackend
from trl_mise.chat import ChatFormat
from trl_mise.generation import Sampling
from trl_mise.rollout import RolloutLimits, collect_rollouts
from trl_mise.tiny import build_tokenizer
from trl_mise.types import Trajectory


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small", choices=sorted(SHAPES))
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--action", type=int, default=12, help="tokens of an action")
    parser.add_argument("--observation", type=int, default=52, help="tokens of an observation")
    parser.set_defaults(repeats=3)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.shape, options.vocab, options.episodes, options.turns, options.repeats = "tiny", 1000, 3, 3, 1
    model = random_model(options.shape, options.vocab, options.device)
    tokenizer = build_tokenizer(["good", "bad", *(f"w{i}" for i in range(900))])
    # Without stop tokens every action has the same length, whatever the random model says.
    sampling = Sampling(0.0, options.action, (), batch_size=options.episodes)
    rng = random.Random(0)
    even, uneven = (
        [options.turns] * options.episodes,
        [rng.randint(1, options.turns) for _ in range(3 * options.episodes)],
    )

    def play(keep: bool, turns: list[int], refill: bool = False) -> list[Trajectory]:
        chat = ChatFormat(tokenizer)
        chat.stop_token_ids = ()
        envs = [_TaskLength(options.observation) for _ in range(options.episodes)]
        tasks = [{"seed": seed, "turns": count} for seed, count in enumerate(turns)]
        limits = RolloutLimits(
            options.turns, options.action, 4 * options.turns * (options.observation + options.action)
        )
        with torch.no_grad(), TransformersBackend(keep_cache=keep).session(model, sampling) as generate:
            return collect_rollouts(tasks, envs, generate, chat, limits, refill=refill)

    groups = [
        {"plain": lambda: play(False, even), "kept cache": lambda: play(True, even)},
        {
            "kept cache, uneven, in waves": lambda: play(True, uneven),
            "kept cache, uneven, refilled": lambda: play(True, uneven, refill=True),
        },
    ]
    rows = []
    for arms in groups:
        played = [[t.token_ids for t in arm()] for arm in arms.values()]
        seconds = paired_seconds(arms, options.repeats, options.device)
        first = next(iter(arms))
        for name, arm in arms.items():
            row = {"": name, "s": seconds[name], "speed / first": seconds[first] / seconds[name]}
            row["GFLOP"], row["peak MiB"] = count_flops(arm) / 1e9, peak_bytes(arm, options.device) / 2**20
            row["same tokens"] = str(played[0] == played[1]).lower()
            rows.append(row)
    tokens = sum(len(t.token_ids) for t in play(True, even)) / len(even)
    names = ("shape", "vocab", "episodes", "turns", "action", "observation", "repeats")
    settings = {**{name: getattr(options, name) for name in names}, "episode_tokens": tokens}
    return finish("rollout", options, rows, settings)


class _TaskLength(FixedLengthEnv):
    """Ends after as many turns as the task says."""

    def __init__(self, words: int) -> None:
        super().__init__(turns=1, words=words)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.turns = int(options["turns"])
        return super().reset(seed=seed)


if __name__ == "__main__":
    main()
