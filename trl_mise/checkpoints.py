"""Checkpoint folders that are whole or not there: written aside, summed up, renamed. No torch.

A process can be killed, and a disk can fill up, at any moment. So a checkpoint is written to a folder of another name,
gets a list of its files with their checksums, and is renamed in one step; what a dead process left behind under the
other name is nobody's checkpoint. What the disk has lost since is found by the checksums, and the checkpoint before it
is used.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path

STAGING = "_saving"
"""Beside the checkpoints; what is being written. Names with an underscore are not pushed to the hub."""
MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; says which, why, and what there is instead."""


def clear_staging(output_dir: str | os.PathLike[str]) -> None:
    """Removes what is not a checkpoint: of this process, or of one that died."""
    for left in Path(output_dir).glob(f"{STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)


def start_staging(output_dir: str | os.PathLike[str]) -> Path:
    """An empty folder to write a checkpoint into."""
    clear_staging(output_dir)
    folder = Path(output_dir) / STAGING
    folder.mkdir(parents=True)
    return folder


def publish(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Seals a finished folder and gives it its name, in place of an older one of that name.

    Args:
        folder (`str` or `Path`): everything that belongs to the checkpoint, written and closed.
        target (`str` or `Path`): its name from now on; on the same file system.
    """
    folder, target = Path(folder), Path(target)
    seal(folder)
    if target.exists():
        # Two renames, not one: whoever dies in between still has the checkpoint before this one.
        old = target.with_name(f"{STAGING}-old-{target.name}")
        shutil.rmtree(old, ignore_errors=True)
        target.replace(old)
        folder.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.replace(target)
    _sync(target.parent)


def seal(folder: str | os.PathLike[str]) -> None:
    """Writes the list of a folder's files, and makes sure that all of it is on the disk."""
    folder = Path(folder)
    names = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    files = {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in names}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    for path in (*names, folder / MANIFEST, folder):
        _sync(path)


def faults(folder: str | os.PathLike[str]) -> list[str]:
    """What is wrong with a checkpoint, in words; empty if it is whole."""
    folder = Path(folder)
    if not folder.is_dir():
        return ["there is no such folder"]
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return [f"it has no {MANIFEST}: not written by this trainer, or not to its end"]
    except (ValueError, KeyError, TypeError):
        return [f"its {MANIFEST} cannot be read"]
    found = []
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != known["size"]:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {known['size']}")
        elif _sha256(path) != known["sha256"]:
            found.append(f"{name} is not what was written")
    return found


def all_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders `checkpoint-<step>`, oldest first."""
    root = Path(output_dir)
    steps = {p: _NAME.fullmatch(p.name) for p in root.iterdir() if p.is_dir()} if root.is_dir() else {}
    return sorted((p for p, match in steps.items() if match), key=lambda p: int(p.name.rpartition("-")[2]))


def newest_checkpoint(output_dir: str | os.PathLike[str]) -> Path:
    """The newest checkpoint that is whole; a broken one is passed over with a warning.

    Raises:
        CheckpointError: there is none.
    """
    broken = []
    for folder in reversed(all_checkpoints(output_dir)):
        wrong = faults(folder)
        if not wrong:
            return folder
        broken.append(f"{folder.name}: {'; '.join(wrong)}")
        warnings.warn(f"{folder} is broken ({'; '.join(wrong)}); the checkpoint before it is used", stacklevel=2)
    found = f"only broken ones ({' | '.join(broken)})" if broken else "none"
    raise CheckpointError(
        f"resume_from_checkpoint=True: {output_dir} holds no whole checkpoint, {found}; leave resume_from_checkpoint "
        "out to start a new run, or name a checkpoint of another folder"
    )


def rotate(output_dir: str | os.PathLike[str], limit: int | None, keep: str | None = None) -> None:
    """Deletes the oldest checkpoints beyond `limit`.

    Args:
        output_dir (`str` or `Path`): where they are.
        limit (`int`, *optional*): checkpoints to leave, at least the newest one; `None` or 0 deletes nothing.
        keep (`str`, *optional*): one that stays in any case, such as the best; it counts.
    """
    if not limit or limit < 0:
        return
    folders = all_checkpoints(output_dir)
    protected = {folders[-1], Path(keep)} if keep and folders else set(folders[-1:])
    spare = [folder for folder in folders if folder not in protected]
    for folder in spare[: max(0, len(folders) - limit)]:
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """To the disk; folders too, where the system can (Windows cannot open them)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
