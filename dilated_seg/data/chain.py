"""User transforms after the joint augmentation: transforms of torchvision's v2, or any callables on tv_tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dilated_seg.errors import UserError


class Chain:
    """Applies the joint augmentation, and then transforms, which may move the values of a mask but not add others.

    torchvision's transforms fill new pixels with 0, which should be ignored. They therefore get the mask minus
    ``ignore_index``, modulo 256: 0 is the ignored value, and class k is k + 1 if that is 255. Other callables get class ids.

    Args:
        augmentation: The joint augmentation, if any.
        transforms: Map image and mask to image and mask.
        ignore_index: The mask value that is ignored.

    Raises:
        UserError: A transform fills masks with a value other than 0.
    """

    def __init__(
        self, augmentation: Callable[..., Any] | None, transforms: Sequence[Callable[..., Any]], ignore_index: int = 255
    ) -> None:
        self.augmentation, self.transforms, self.ignore_index = augmentation, list(transforms), ignore_index
        for transform in self.transforms:
            check_fill(transform)

    def __call__(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """Return the transformed image and mask. Images of 16 bits are floats: the transforms get them as 0 to 1.

        Raises:
            UserError: A transform does not return an image and a mask of equal size, or interpolates the mask.
        """
        if self.augmentation is not None:
            image, mask = self.augmentation(image, mask)
        deep = image.is_floating_point()
        image = tv_tensors.Image(image / 255) if deep else image
        for transform in self.transforms:
            shift = self.ignore_index if isinstance(transform, v2.Transform) else 0
            before = mask - shift  # modulo 256, since masks are uint8
            image, moved = self.require_pair(transform, transform(image, tv_tensors.Mask(before)), image.dtype)
            mask = tv_tensors.Mask(moved + shift)
            self.require_same_values(transform, before, moved, 0 if shift else self.ignore_index)
        return image * 255 if deep else image, mask

    def require_pair(
        self, transform: Callable[..., Any], result: Any, dtype: torch.dtype  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return an image and a mask; raise UserError if a transform returned anything else."""
        if not (isinstance(result, tuple | list) and len(result) == 2 and all(isinstance(part, Tensor) for part in result)):
            raise UserError(f"data.transforms: {name_transform(transform)} does not return an image and a mask")
        image, mask = result
        if image.shape[-2:] != mask.shape[-2:] or mask.ndim != 2 or image.ndim != 3:
            shapes = f"an image of {tuple(image.shape)} and a mask of {tuple(mask.shape)}"
            raise UserError(
                f"data.transforms: {name_transform(transform)} returns {shapes}: both must have one height and width"
            )
        if image.dtype != dtype or mask.dtype != torch.uint8:
            raise UserError(
                f"data.transforms: {name_transform(transform)} returns an image of {image.dtype} and a mask of {mask.dtype}: "
                "both must keep their type, since the network normalizes images itself"
            )
        return image, mask

    def require_same_values(self, transform: Callable[..., Any], before: Tensor, after: Tensor, ignored: int) -> None:
        """Raise UserError if a transform added values to a mask."""
        present, occurs = (mask.flatten().as_subclass(Tensor).bincount(minlength=256) > 0 for mask in (before, after))
        present[ignored] = True
        if (occurs & ~present).any():
            raise UserError(
                f"data.transforms: {name_transform(transform)} gives masks values that they did not have, as interpolation "
                "does: use the nearest neighbor, which torchvision's v2 transforms do for tv_tensors.Mask"
            )

    @property
    def steps(self) -> list[Callable[..., Any]]:
        """The augmentation, if there is one, and the transforms."""
        return [step for step in (self.augmentation, *self.transforms) if step is not None]

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(name_transform, self.steps))}, ignore_index={self.ignore_index})"


def check_fill(transform: Any) -> None:  # noqa: ANN401
    """Raise UserError if a transform, or one inside it, fills masks with a value other than 0."""
    if (fill := getattr(transform, "fill", 0)) not in (0, None, [0], [0, 0, 0]):
        raise UserError(f"data.transforms: {name_transform(transform)} fills masks with {fill}: leave fill at 0")
    inner = getattr(transform, "transforms", ())
    for part in inner if isinstance(inner, list | tuple) else ():
        check_fill(part)


def name_transform(transform: Any) -> str:  # noqa: ANN401
    """Return a function's name, or the representation of an object."""
    return " ".join(str(getattr(transform, "__qualname__", None) or repr(transform)).split())
