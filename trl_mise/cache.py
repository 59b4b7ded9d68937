"""Where things are kept that take long to make, and how they get there in one piece. No torch."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE_VARIABLE = "TRL_MISE_CACHE"


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """`cache_dir`, else the environment variable `TRL_MISE_CACHE`, else `~/.cache/trl-mise`."""
    return Path(cache_dir or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "trl-mise").expanduser()


@contextmanager
def staged(folder: Path, is_whole: Callable[[], bool]) -> Iterator[Path]:
    """A folder beside `folder` to write into, renamed to it at the end: what dies on the way leaves no half a result.

    Args:
        folder (`Path`): where the result goes.
        is_whole (`Callable[[], bool]`): asked where `folder` is there already: whether to leave it, because another
            process was faster, or to put the new one in its place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield staging
        try:
            staging.rename(folder)
        except OSError:
            if not is_whole():
                shutil.rmtree(folder, ignore_errors=True)
                staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
