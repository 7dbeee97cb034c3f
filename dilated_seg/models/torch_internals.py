"""Every private name of torch that this package uses, each behind one name; see training/lightning_internals.py."""

from contextlib import AbstractContextManager
from datetime import timedelta

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TorchDispatchMode", "set_process_timeout", "trace_with_free_sizes"]


def set_process_timeout(time: timedelta) -> None:
    """Set how long processes of a group wait for one that hangs."""
    older = torch.distributed.distributed_c10d._set_pg_timeout  # before torch 2.15
    getattr(torch.distributed, "set_timeout", older)(time)


def trace_with_free_sizes() -> AbstractContextManager[None]:
    """Return a context in which torch.export assumes nothing of sizes that are dynamic, such as that they are not 1."""
    return torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
