"""What a user is told once in a process, however often it happens."""

import functools
import warnings


@functools.cache
def warn_once(message: str) -> None:
    """Warns unless this message was given before."""
    warnings.warn(message, UserWarning, stacklevel=2)
