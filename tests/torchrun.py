"""Starts a script of this folder on two real processes, as `torchrun --standalone --nproc_per_node 2` does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, str(HERE / script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # where one waits for the other, it waits for ever
    )


def left_by_both(script: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What the two have saved in the folder, once both have ended well."""
    done = run(script, str(folder), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return saved(folder)


def save_and_leave(left: dict[str, Any], folder: Path) -> None:
    """The end of a process. It leaves at once: now and then gloo's threads abort in the interpreter's own end."""
    torch.distributed.barrier()
    torch.save(left, folder / f"rank-{os.environ['RANK']}.pt")
    sys.stderr.flush()
    os._exit(0)


def saved(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]
