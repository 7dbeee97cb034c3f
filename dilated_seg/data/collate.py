"""From the images of a split to batches, in whichever process reads them."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from dilated_seg.data.pairs import Sample
from dilated_seg.data.samplers import Key, mix, seeded
from dilated_seg.data.workers import remove_import_hooks
from dilated_seg.errors import ResourceError, UserError


@runtime_checkable
class Split(Protocol):
    """The images of one split in a fixed order; indexing decodes one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class Images(Dataset[dict[str, Any]]):
    """A split as a DataLoader reads it: augmented by a seed of its own for every (epoch, index), or as it is.

    Args:
        split: The images.
        augment: Takes image and mask; None leaves them as they are.
        seed: Of the run.
        skip_bad: Take the next image instead of one that cannot be read.
        variants: After so many epochs the augmentations repeat; None if they never do.
    """

    def __init__(
        self,
        split: Split,
        augment: Callable[..., Any] | None = None,
        seed: int = 0,
        skip_bad: bool = False,
        variants: int | None = None,
    ) -> None:
        self.split, self.augment, self.seed, self.skip_bad, self.variants = split, augment, seed, skip_bad, variants

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        if key is None:  # a process that has run out of images keeps step with the others; void counts nowhere
            sample = self.split[0]
            return {**sample, "mask": torch.full_like(sample["mask"], 255), "id": ""}
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample, skipped = self.readable(index) if self.skip_bad else (self.split[index], [])
        if self.augment is None:
            return {**sample}
        with seeded(mix(self.seed, epoch % self.variants if self.variants else epoch, index)):
            image, mask = self.augment(tv_tensors.Image(sample["image"]), tv_tensors.Mask(sample["mask"]))
        return {
            "image": image.as_subclass(Tensor), "mask": mask.as_subclass(Tensor), "id": sample["id"], "skipped": skipped
        }  # fmt: skip

    def readable(self, index: int) -> tuple[Sample, list[str]]:
        """An image, or the next one that can be read; and what was said of those before it."""
        problems: list[str] = []
        for step in range(len(self)):
            try:
                return self.split[(index + step) % len(self)], problems
            except ResourceError:
                raise
            except UserError as problem:
                problems.append(str(problem))
        raise UserError(f"no image of the training split can be read: {problems[0]}")


def initialize_worker(worker: int) -> None:
    """Prepare a DataLoader's worker: remove W&B's import hooks, and ignore signals.

    A signal to all processes of a job, or Ctrl-C, must not end a worker before the training process has saved its checkpoint.
    """
    remove_import_hooks()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """Kill workers that are left when this process exits, as after an error.

    multiprocessing would send SIGTERM, which they ignore, and wait for them for ever.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def stack(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples of equal size as a batch.

    Raises:
        UserError: Their sizes differ.
    """
    sizes = {tuple(sample["mask"].shape) for sample in samples}
    if len(sizes) > 1:
        (h1, w1), (h2, w2) = sorted(sizes)[:2]
        raise UserError(
            f"images of {h1} x {w1} and {h2} x {w2} are in one training batch: set data.crop_size, or data.batch_size=1"
        )
    batch = pad(samples) if "image" in samples[0] else of_scores(samples)
    if skipped := [problem for sample in samples for problem in sample.get("skipped", ())]:
        batch["skipped"] = skipped
    return batch


def of_scores(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples of equal size, of which there are the front end's scores in the place of the image."""
    tensors = {name: torch.stack([sample[name] for sample in samples]) for name in ("scores", "mask")}
    return {**tensors, "id": [sample["id"] for sample in samples]}


def pad(samples: list[dict[str, Any]], ignore_index: int = 255) -> dict[str, Any]:
    """Samples as a batch of the largest one's size, the others with nothing at their right and bottom, ignored there."""
    sizes = [(int(sample["mask"].shape[0]), int(sample["mask"].shape[1])) for sample in samples]
    height, width = (max(side) for side in zip(*sizes, strict=True))

    def padded(tensor: Tensor, value: int) -> Tensor:
        border = (0, width - tensor.shape[-1], 0, height - tensor.shape[-2])
        return F.pad(tensor, border, value=value) if any(border) else tensor

    return {
        "image": torch.stack([padded(sample["image"], 0) for sample in samples]),
        "mask": torch.stack([padded(sample["mask"], ignore_index) for sample in samples]),
        "id": [sample["id"] for sample in samples],
        "size": sizes,
    }
