"""What each of two processes does with an FSDP2 policy; run by torchrun from `test_sharding.py`.

torchrun --standalone --nproc_per_node 2 two_processes_fsdp.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from test_callback import EPISODES, Run, calibration, make_policy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torchrun import save_and_leave

from trl_mise.backends import TransformersBackend
from trl_mise.generation import Sampling
from trl_mise.sharding import gathered


def sharded(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def rollout_and_scoring(rank: int) -> dict[str, Any]:
    """The first process generates and scores three times as often as the second one."""
    run, model = Run(calibration()), sharded(make_policy())
    sampling = Sampling(temperature=0.0, max_new_tokens=4, stop_token_ids=())
    with torch.no_grad(), gathered(model):
        for _ in range(3 if rank == 0 else 1):
            with TransformersBackend().session(model, sampling) as generate:
                sampled = generate([list(episode.token_ids[:4]) for episode in EPISODES])
            scores = run.hindsight.score(model, EPISODES).scores
        inside = [type(p) for p in model.parameters()]
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    return {
        "sampled": sampled,
        "scores": scores,
        "gathered": not any(issubclass(kind, DTensor) for kind in inside),
        "sharded again": all(isinstance(p, DTensor) for p in model.parameters()) and len(shards) > 1,
        # It is an FSDP module as before: a pass and its gradient are those of two processes.
        "gradients": all(isinstance(g, DTensor) for g in gradients(model)),
    }


def gradients(model: Any) -> list[torch.Tensor]:
    model(torch.tensor([EPISODES[0].token_ids])).logits.square().mean().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


class Wrapper(nn.Module):
    """As our actor-critic: the policy is a part of what is trained and sharded."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        self.head = nn.Linear(16, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.policy.model(ids).last_hidden_state)


def policy_before_the_root() -> bool:
    """The policy is used on its own before the whole has ever been: a rollout is the first thing that happens."""
    run, model = Run(calibration()), Wrapper(make_policy())
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.policy.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with torch.no_grad(), gathered(model):
        run.hindsight.score(model.policy, EPISODES)
    model(torch.tensor([EPISODES[0].token_ids])).sum().backward()
    return all(isinstance(p, DTensor) for p in model.policy.model.layers.parameters())


def refused() -> str:
    """What the calibration says to a sharded policy."""
    run = Run(calibration())
    run.policy = sharded(run.policy)
    with gathered(run.policy):
        record = run.record(EPISODES)
    try:
        run.callback.on_step_end(run.args, run.state, None, update=record)
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    Accelerator(cpu=True)  # opens the process group
    rank = dist.get_rank()
    left = {**rollout_and_scoring(rank), "refused": refused(), "wrapped": policy_before_the_root()}
    save_and_leave(left, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
