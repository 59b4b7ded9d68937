"""A model under the name of one on the hub, small enough for a test: a folder laid out as the hub's cache."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from trl_mise.chat import ChatFormat
from trl_mise.rollout import RolloutLimits
from trl_mise.tiny import build_policy, build_tokenizer
from trl_mise.warm_start import Act, imitation_loss, scripted_rollouts

REVISION = "0123456789abcdef0123456789abcdef01234567"
MARKS = re.compile(r"[A-Za-z]+\.?|\.")


def tokenizer_for(texts: Iterable[str]) -> Any:
    """Knows the words of the texts, with and without a period behind them, and the verdicts."""
    words = {word for text in texts for word in MARKS.findall(text)} | {"good", "bad"}
    return build_tokenizer(sorted(words | {word.rstrip(".") for word in words if word.rstrip(".")}))


def taught_policy(tokenizer: Any, env_factory: Any, act: Act, limits: RolloutLimits, *, steps: int = 40) -> Any:
    """A policy that has seen a few episodes of `act`: it says actions, and ends them."""
    tasks = [{"seed": 10_000 + i} for i in range(64)]
    episodes = scripted_rollouts(env_factory, tasks, act, ChatFormat(tokenizer), limits).trajectories
    model = build_policy(tokenizer, num_layers=1, max_positions=limits.max_episode_tokens)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        imitation_loss(model, episodes[step % 4 * 16 :][:16]).backward()
        optimizer.step()
    return model.eval()


def put_into_cache(hub_home: Path, name: str, model: Any, tokenizer: Any) -> None:
    """Saves the model as `owner/name` under `hub_home`, the value of `HF_HOME`."""
    folder = hub_home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION, encoding="utf-8")
    model.save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)


def offline(hub_home: Path, paths: Sequence[Path]) -> dict[str, str]:
    """Environment variables of a process that finds the stand-in, these modules, and no hub."""
    variables = {
        "HF_HOME": str(hub_home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    return {**kept, **variables}
