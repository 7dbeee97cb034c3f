"""The device that a command computes on."""

import torch

from dilated_seg.errors import UserError

DEVICES = ("cpu", "cuda", "mps", "xpu")


def resolve_device(device: str | None) -> torch.device:
    """Return the device of a name, or a GPU if there is one.

    Raises:
        UserError: There is no such device.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    try:
        resolved = torch.device(name)
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: there is none here ({str(error).splitlines()[0].partition('. ')[0]})") from error
    if resolved.type not in DEVICES:
        raise UserError(f"--device {name}: nothing is computed there, take one of {', '.join(DEVICES)}")
    return resolved
