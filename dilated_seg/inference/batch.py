"""A model on a padded batch: each image is segmented at its own size."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dilated_seg.crf import DenseCRF
from dilated_seg.inference.strategies import Inference, Model
from dilated_seg.tensors import Logits, predict

Place = tuple[slice, slice, slice]  # images, rows and columns of a batch


def segment_batch(
    model: Model,
    batch: dict[str, Any],
    inference: Inference,
    crf: DenseCRF | None,
    observe: Callable[[Logits, Place], None] = lambda logits, place: None,
) -> tuple[Tensor, Tensor | None]:
    """Return the class ids (B, H, W), int64, of a batch, and those after a CRF if there is one; padding has class 0.

    Args:
        model: Maps RGB (B, 3, H, W), 0 to 255, to logits.
        batch: The batch that `data.collate.pad` builds: padded images and masks, and their sizes.
        inference: The inference strategy.
        crf: Refines the model's probabilities.
        observe: Called with each band of logits and its place in the batch.
    """
    shape, device = batch["mask"].shape, batch["mask"].device
    prediction = torch.zeros(shape, dtype=torch.long, device=device)
    refined = torch.zeros_like(prediction) if crf else None
    for images, image in split_by_size(batch):
        bands = []
        for rows, logits in inference(model, image):
            place = images, rows, slice(image.shape[-1])
            observe(logits, place)
            prediction[place] = predict(logits)
            bands += [logits] if crf else []
        if crf and refined is not None:
            refined[images, : image.shape[-2], : image.shape[-1]] = predict(crf(torch.cat(bands, 2).softmax(1), image))
    return prediction, refined


def split_by_size(batch: dict[str, Any]) -> Iterator[tuple[slice, Tensor]]:
    """Yield images of a batch without padding, with their indices: all at once, or one by one if their sizes differ.

    So the padding of smaller images does not change their logits.
    """
    sizes = [tuple(size) for size in batch.get("size") or [batch["mask"].shape[-2:]]]
    parts = [slice(None)] if len(set(sizes)) == 1 else [slice(i, i + 1) for i in range(len(sizes))]
    for images, (height, width) in zip(parts, sizes, strict=False):
        yield images, batch["image"][images, :, :height, :width]
