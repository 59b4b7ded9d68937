"""How an environment factory gets into a worker process, as pickle does it: by name."""

import base64
import functools
import os
import pickle
import runpy
import sys
import types
from collections.abc import Mapping
from typing import Any

from .base import EnvironmentFactory

_importing_main = False


def factory_name(factory: EnvironmentFactory) -> str:
    """What failures call the environment."""
    factory = unwrapped(factory)
    return getattr(factory, "__qualname__", type(factory).__qualname__)


def unwrapped(factory: EnvironmentFactory) -> EnvironmentFactory:
    """The class or function behind any number of `functools.partial`s."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory


def pack_factory(factory: EnvironmentFactory) -> dict[str, Any]:
    """What a worker needs to make an environment, as JSON can hold it.

    Raises:
        ValueError: the factory cannot be pickled, or not be found again in another process.
        RuntimeError: a worker is importing the script that started it, and the script starts workers.
    """
    name = factory_name(factory)
    if _importing_main:
        raise RuntimeError(
            f"environment_factory {name} is defined in the script itself, so a worker process imports the script, and "
            'must not train there: put what the script does under `if __name__ == "__main__":`'
        )
    try:
        pickled = pickle.dumps(factory)
    except Exception as error:
        raise ValueError(
            f"environment_factory {name} cannot be sent to a worker process ({error}); use a class or a function that "
            "a module defines, with functools.partial for its arguments, or env_isolation='none'"
        ) from error
    needs_main = b"__main__" in pickled
    return {"factory": base64.b64encode(pickled).decode("ascii"), "main": _main_module(name) if needs_main else None}


def unpack_factory(packed: Mapping[str, Any]) -> EnvironmentFactory:
    """The factory, in the worker; the trainer wrote it, so it may be unpickled."""
    if packed["main"] is not None:
        _import_main(packed["main"])
    factory: EnvironmentFactory = pickle.loads(base64.b64decode(packed["factory"]))
    return factory


def _main_module(name: str) -> dict[str, str]:
    """Where the script that the trainer runs in can be found again."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return {"kind": "module", "name": spec.name}
    path = getattr(main, "__file__", None)
    if path is None or not os.path.exists(path):
        raise ValueError(
            f"environment_factory {name} is defined in an interactive session, where a worker process cannot find it; "
            "put it into a module, or use env_isolation='none'"
        )
    return {"kind": "path", "name": os.path.abspath(path)}


def _import_main(main: Mapping[str, str]) -> None:
    """As multiprocessing does: what the script defines, without what it does under `if __name__ == "__main__"`."""
    global _importing_main
    run = runpy.run_path if main["kind"] == "path" else runpy.run_module
    module = types.ModuleType("__mp_main__")
    _importing_main = True
    try:
        module.__dict__.update(run(main["name"], run_name="__mp_main__"))
    finally:
        _importing_main = False
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
