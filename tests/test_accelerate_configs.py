"""examples/accelerate: accelerate understands every file, and what runs on a CPU is started with it."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "accelerate"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TINY = (
    *("--warm_start", "near_one_percent", "--total_episodes", "64", "--eval_episodes", "4", "--train_tasks", "64"),
    *("--per_device_train_batch_size", "8", "--use_cpu", "--bf16", "False"),
)


def test_all_of_them_are_here() -> None:
    assert NAMES == ["ddp", "fsdp2", "single_gpu", "zero2", "zero3"]


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_it(name: str) -> None:
    """No key is unknown, and the file says what was run of it."""
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    known = {field.name for field in fields(ClusterConfig)}
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert given.keys() <= known
    wanted = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "single_gpu": "NO"}.get(name, "DEEPSPEED")
    assert config.distributed_type == wanted
    assert "# NOT RUN" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "flags", "processes"),
    [("ddp", ("--ddp_backend", "gloo"), 2), ("single_gpu", (), 1)],
    ids=["ddp", "single_gpu"],
)
def test_it_starts_on_a_cpu(name: str, flags: tuple[str, ...], processes: int, tmp_path: Path) -> None:
    """The launcher starts as many processes as the file says; the script's own flags keep them off GPUs."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml")]
    done = subprocess.run(
        [*command, str(ROOT / "examples" / "kitchen.py"), "--output_dir", str(tmp_path), *TINY, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,  # where one waits for the other, it waits for ever
    )
    # Once in a while gloo's threads abort at the interpreter's end, when all is done; all must be there then.
    aborted_at_the_end = "terminate called without an active exception" in done.stderr
    assert done.returncode == 0 or aborted_at_the_end, done.stderr[-3000:]
    assert (tmp_path / "summary.json").exists()
    records = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text().splitlines()]
    assert len(records) == 64
    # The recipe accumulates two passes of eight episodes on every process.
    assert 64 / max(record["update"] for record in records) == 8 * 2 * processes
