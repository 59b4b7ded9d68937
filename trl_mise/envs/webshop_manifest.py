"""The split manifest: which data and which goals a split was made of, written once and checked ever after."""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..notices import warn_once
from .webshop_files import sha256
from .webshop_goals import SHUFFLE_SEED, GoalList
from .webshop_official import OfficialData

MAX_LISTED_GOALS = 200_000
"""Above this number, goals are not listed but only their checksum is."""


@functools.lru_cache(maxsize=2)  # checksums of large files, and many environments of one catalogue
def make_manifest(data: OfficialData) -> dict[str, Any]:
    """Files with their checksums, the settings, and the goals of each split."""
    spec = data.spec
    listed = sum(map(len, data.goals.values())) <= MAX_LISTED_GOALS
    return {
        "format": 1,
        "files": {path.name: sha256(path) for path in spec.files.present},
        "human_goals": spec.human_goals,
        "num_products": spec.num_products,
        "catalogue_seed": spec.seed,
        "shuffle_seed": SHUFFLE_SEED,
        "splits": {split: _describe(goals, listed) for split, goals in data.goals.items()},
    }


def check_manifest(data: OfficialData, path: str | None = None) -> Path:
    """Writes the manifest of `data`, or compares it with the one that is there.

    Args:
        data ([`OfficialData`]): the loaded catalogue.
        path (`str`, *optional*): of the manifest. Default: a file of the user's cache, for each folder and setting.

    Returns:
        `Path`: of the manifest.

    Raises:
        ValueError: the manifest there is of other data or settings; says what differs.
    """
    file = default_path(data) if path is None else Path(path).expanduser()
    manifest = make_manifest(data)
    if file.exists():
        _compare(_read(file), manifest, file)
        return file
    try:
        _write(file, manifest)
    except OSError as error:
        if path is not None:
            raise
        warn_once(f"WebShop: the split manifest could not be written ({error}); pass split_manifest= with a path")
    return file


def default_path(data: OfficialData) -> Path:
    """Where the manifest of a folder and its settings is kept."""
    spec = data.spec
    key = (str(spec.files.items.resolve()), spec.human_goals, spec.num_products, spec.seed)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "trl-mise" / "webshop" / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.json"


def _describe(goals: GoalList, listed: bool) -> dict[str, Any]:
    names = goals.names()
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return {"num_goals": len(names), "sha256": digest, **({"goals": names} if listed else {})}


def _read(file: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is no split manifest ({error}); delete it, or choose another split_manifest="
        ) from error
    return manifest if isinstance(manifest, dict) else {}


def _compare(known: Mapping[str, Any], manifest: Mapping[str, Any], file: Path) -> None:
    differences = [
        f"{key} was {_short(known.get(key))} and is {_short(value)}"
        for key, value in manifest.items()
        if known.get(key) != value
    ]
    if differences:
        raise ValueError(
            f"the split manifest {file} does not fit: {'; '.join(differences)}. Goals of one split could now be in "
            "another. Use the data and settings that it was written with, or delete it if nothing depends on it"
        )


def _short(value: Any) -> str:
    """A value as far as it fits into a message, goal lists without their goals."""
    if isinstance(value, dict):
        parts = (f"{key}: {_short(entry)}" for key, entry in value.items() if key != "goals")
        return "{" + ", ".join(parts) + "}"
    return value[:12] if isinstance(value, str) else repr(value)


def _write(file: Path, manifest: Mapping[str, Any]) -> None:
    """In one piece, whoever else writes the same file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=1)
    os.replace(part, file)
