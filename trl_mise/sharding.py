"""Parameters that are shared out between processes (FSDP2), put together for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

FSDPModule: Any = ()
DTensor: Any = ()
try:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
except ImportError:  # torch before 2.6, or without torch.distributed: there is nothing of this kind
    pass


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All parameters of an FSDP2 model on every process, so that a pass needs no other process.

    Rollouts and scoring make as many passes as a process has turns and questions; sharded, one with fewer of them
    would leave the others waiting. All processes must enter and leave together. Takes the memory of the whole model.
    Does nothing to a model that is not sharded.

    Args:
        model (`nn.Module`): the outermost module, as it is trained; parts of it may be used on their own inside.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if sharded:
        # A part whose forward comes before that of the whole would take itself for the root, for good.
        sharded[0]._get_fsdp_state()._lazy_init()
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for index, module in enumerate(sharded):
            module.reshard()
            # The root keeps its own parameters from the forward to the backward pass, as FSDP2 has it.
            module.set_reshard_after_forward(index > 0, recurse=False)


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of the model is shared out between processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
