"""The device of a command."""

import torch

from dilated_seg.errors import UserError

DEVICES = ("cpu", "cuda", "mps", "xpu")


def resolve_device(device: str | None) -> torch.device:
    """Return the device of a name; by default a GPU if there is one.

    Raises:
        UserError: There is no such device, or it cannot compute.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    try:
        resolved = torch.device(name)
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(f"--device {name} is not available ({reason}): choose another, such as cpu") from error
    if resolved.type not in DEVICES:
        raise UserError(f"--device {name} does not compute: choose one of {', '.join(DEVICES)}")
    return resolved
