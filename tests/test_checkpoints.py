"""Checkpoint folders: whole or not there, broken ones found, old ones deleted."""

import json
from pathlib import Path

import pytest

from trl_mise import checkpoints
from trl_mise.checkpoints import CheckpointError, faults, newest_checkpoint, publish, rotate, start_staging


def make(root: Path, step: int, text: str = "weights") -> Path:
    folder = start_staging(root) / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.bin").write_text(f"{text} {step}")
    (folder / "inner" / "state.json").write_text(json.dumps({"step": step}))
    publish(folder, root / f"checkpoint-{step}")
    return root / f"checkpoint-{step}"


def test_what_is_published_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = make(tmp_path, 3)
    assert faults(folder) == []
    assert {p.name for p in folder.iterdir()} == {"model.bin", "inner", "manifest.json"}
    assert newest_checkpoint(tmp_path) == folder


def test_the_newest_is_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100, 20):
        make(tmp_path, step)
    (tmp_path / "checkpoint-999-notes").mkdir()
    (tmp_path / "checkpoint-1000").write_text("a file")
    assert newest_checkpoint(tmp_path).name == "checkpoint-100"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "model.bin").write_text("weights 5"), "model.bin is not what was written"),
        (lambda f: (f / "model.bin").write_text("wei"), "model.bin has 3 bytes instead of 9"),
        (lambda f: (f / "inner" / "state.json").unlink(), "inner/state.json is missing"),
        (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
        (lambda f: (f / "manifest.json").write_text('{"files": '), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    ],
)
def test_a_broken_one_is_passed_over(tmp_path: Path, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    first, second = make(tmp_path, 2), make(tmp_path, 4)
    damage(second)
    assert said in faults(second)[0]
    with pytest.warns(UserWarning, match="checkpoint-4 is broken .*the checkpoint before it is used"):
        assert newest_checkpoint(tmp_path) == first


def test_no_checkpoint_and_only_broken_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no whole checkpoint, none; leave resume_from_checkpoint out"):
        newest_checkpoint(tmp_path / "not there")
    (make(tmp_path, 1) / "model.bin").unlink()
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="only broken ones .checkpoint-1: model.bin"):
        newest_checkpoint(tmp_path)


def test_one_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    make(tmp_path, 1, "old")
    folder = make(tmp_path, 1, "new")
    assert (folder / "model.bin").read_text() == "new 1" and faults(folder) == []
    checkpoints.clear_staging(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_who_dies_while_writing_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path, 1)

    def die(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "_sync", die)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == folder


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, None, [1, 2, 3, 4]),
        (0, None, [1, 2, 3, 4]),
        (1, None, [4]),
        (2, None, [3, 4]),
        (2, 1, [1, 4]),
        (1, 1, [1, 4]),
        (2, 4, [3, 4]),
        (9, None, [1, 2, 3, 4]),
    ],
)
def test_old_ones_go(tmp_path: Path, limit: int | None, keep: int | None, left: list[int]) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    rotate(tmp_path, limit, None if keep is None else str(tmp_path / f"checkpoint-{keep}"))
    assert [int(p.name.partition("-")[2]) for p in checkpoints.all_checkpoints(tmp_path)] == left
