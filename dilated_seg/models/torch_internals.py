"""Every private name of torch that this package uses, each behind one name; see training/lightning_internals.py."""

from contextlib import AbstractContextManager
from datetime import timedelta

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TorchDispatchMode", "set_process_timeout", "trace_with_free_sizes"]


def set_process_timeout(time: timedelta) -> None:
    """Set the time after which collective operations of a process group fail."""
    older = torch.distributed.distributed_c10d._set_pg_timeout  # before torch 2.15
    getattr(torch.distributed, "set_timeout", older)(time)


def trace_with_free_sizes() -> AbstractContextManager[None]:
    """Return a context in which torch.export does not specialize dynamic sizes, for example by assuming that they are not 1."""
    return torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
