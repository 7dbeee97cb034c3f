"""Compare the labels of an exported program with torch's."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dilated_seg.errors import UserError, describe_error

Size = tuple[int, int, int]  # images, height, width

CHECKED: tuple[Size, ...] = ((1, 33, 47), (1, 219, 195), (2, 204, 220), (1, 188, 252))  # images whose labels are compared

# Two programs round differently. Where the two highest logits differ by less than TIE (a fraction of the highest of all),
# either label is right. With pooling indices, rounding may also move maxima: for at most MOVED of the pixels.
TIE, MOVED = 1e-4, 1e-3


def compare(plain: nn.Module, run: Callable[[Tensor], Tensor], sizes: tuple[Size, ...]) -> str:
    """Compare the labels of another program with torch's on images of these sizes; return a sentence on the agreement.

    Raises:
        UserError: The program fails, or gives other labels.
    """
    allowed = MOVED if any(isinstance(layer, nn.MaxUnpool2d) for layer in plain.modules()) else 0.0
    checked, tied, moved, pixels = [], 0, 0, 0
    channels = next((len(buffer) for name, buffer in plain.named_buffers() if name == "mean"), 3)
    for size in sizes:
        image = create_images(*size, channels)
        try:
            with torch.no_grad():
                ours = plain(image)
        except Exception:  # the network needs larger images, or a fixed size
            continue
        theirs = run_program(run, image, ours.shape)
        best = ours.topk(min(2, ours.shape[1]), 1).values
        differs = ours.argmax(1) != theirs.argmax(1)
        close = best[:, 0] - best[:, -1] <= TIE * ours.abs().max()
        tied, moved = tied + int((differs & close).sum()), moved + int((differs & ~close).sum())
        pixels += differs.numel()
        checked.append(f"{size[1]} x {size[2]}")
    if not checked:
        raise UserError("the network accepts no size that the export is checked on: fix one with --size HEIGHT WIDTH")
    if moved > allowed * pixels:
        raise UserError(f"the exported program labels {moved:,} of {pixels:,} pixels differently from torch: it is not kept")
    others = [f"{tied} where two classes tie"] * bool(tied) + [f"{moved} where a pooling's maxima do"] * bool(moved)
    exception = f", but for {' and '.join(others)}" if others else ""
    return f"checked on {', '.join(dict.fromkeys(checked))}: the labels are torch's{exception}"


def run_program(run: Callable[[Tensor], Tensor], image: Tensor, shape: torch.Size) -> Tensor:
    """Return the logits of another program; raise UserError unless they have this shape and are finite."""
    try:
        with torch.no_grad():
            logits = run(image)
    except Exception as error:  # every runtime has its own
        problem = f"does not run on {image.shape[2]} x {image.shape[3]} ({describe_error(error)})"
        raise UserError(f"the exported program {problem}: it is not kept; try --size") from error
    if logits.shape != shape:
        problem = f"gives {tuple(logits.shape)} where torch gives {tuple(shape)}"
        raise UserError(f"the exported program {problem}: it is not kept")
    if not logits.isfinite().all():
        raise UserError("the exported program gives logits that are not finite: it is not kept")
    return logits


def create_images(batch: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Return images (B, C, H, W) with areas of color and noise, the same at every call: uint8 RGB, others in float32."""
    random = torch.Generator().manual_seed(0)
    areas = F.interpolate(torch.rand(batch, channels, 5, 7, generator=random), (height, width), mode="bilinear")
    images = 200 * areas + 55 * torch.rand(batch, channels, height, width, generator=random)
    return images.to(torch.uint8) if channels == 3 else images
