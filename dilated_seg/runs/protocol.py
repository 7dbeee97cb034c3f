"""The evaluation protocol, under which a result was measured."""

from dataclasses import asdict, dataclass, fields
from typing import Any

RESOLUTION = "the mask's own"
ABSENT = "a class absent from masks and predictions is left out of the mean"


@dataclass(frozen=True)
class EvaluationProtocol:
    """The conditions under which an evaluation was measured.

    Args:
        dataset: The class of the dataset.
        split: The name of the split, such as "val".
        images: Number of evaluated images.
        available: Number of images in the split.
        pixels: Number of labelled pixels in the evaluated images.
        inference: The inference strategy.
        model_crf: The CRF that is part of the model, if there is one.
        precision: The precision by Lightning's name, such as "32-true".
        crf: The dense CRF of ``--crf``, if there is one.
        checkpoint: The name of the weights, such as "best".
        step: The number of training steps of these weights.
        commit: The commit of the evaluating code.
    """

    dataset: str
    split: str
    images: int
    available: int
    pixels: int
    inference: str
    model_crf: str | None
    precision: str
    crf: str | None
    checkpoint: str
    step: int
    commit: str
    resolution: str = RESOLUTION
    absent_classes: str = ABSENT

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "EvaluationProtocol":
        """Return the protocol whose `to_json` is given.

        Raises:
            KeyError: A field is missing.
            TypeError: A field has another type.
        """
        protocol = cls(**{field.name: values[field.name] for field in fields(cls)})
        for name in ("images", "available", "pixels", "step"):
            if type(getattr(protocol, name)) is not int:
                raise TypeError(f"{name} is not a whole number")
        return protocol

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)

    @property
    def partial(self) -> str:
        """The clause "partial: 2 of 101 images" for an evaluation of a part of the split; else empty."""
        return f"partial: {self.images} of {self.available} images" if self.images != self.available else ""

    @property
    def is_whole_image(self) -> bool:
        """Whether full images were evaluated, without ``--crf``."""
        return self.inference == "whole image" and self.crf is None

    def describe(self) -> dict[str, str]:
        """Return the printed form: values by name."""
        model_crf = f", with its own {self.model_crf}" if self.model_crf else ""
        precision = "" if self.precision == "32-true" else f", {self.precision}"
        crf = f", then {self.crf}" if self.crf else ""
        chosen = " (chosen on this split)" if (self.checkpoint, self.split) == ("best", "val") else ""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "images": str(self.images) if not self.partial else f"{self.images} of {self.available}, partial",
            "pixels": str(self.pixels),
            "resolution": self.resolution,
            "inference": f"{self.inference}{model_crf}{precision}{crf}",
            "absent classes": self.absent_classes,
            "checkpoint": f"{self.checkpoint}, step {self.step}{chosen}",
            "commit": self.commit,
        }

    def __str__(self) -> str:
        return "; ".join(f"{name}: {value}" for name, value in self.describe().items())
