"""W&B's import hooks: removed where they cannot work."""

import os
import sys


def remove_import_hooks() -> None:
    """Remove W&B's import hooks from this process; imports work as without W&B, and W&B does not count them.

    While a run is active, wandb reports the first import of packages such as ``datasets``, ``huggingface_hub`` or
    ``transformers`` to its service. Where the service cannot be reached, the import itself then fails: in a forked process
    with ForkedError, in any process once the service has died.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__.partition(".")[0] != "wandb"]


if hasattr(os, "register_at_fork"):  # not on Windows, where processes are not forked
    os.register_at_fork(after_in_child=remove_import_hooks)
