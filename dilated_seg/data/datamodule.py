"""What every dataset shares: splits, batches, and the hooks that Lightning calls for them."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal, NoReturn

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from dilated_seg import storage
from dilated_seg.data import manifest, transforms
from dilated_seg.data.classes import describe_absent, first_difference
from dilated_seg.data.collate import Images, Split, initialize_worker, pad, stack
from dilated_seg.data.decode import ReadLabel, say_once
from dilated_seg.data.feature_cache import StoredScores
from dilated_seg.data.labels import LabelCounts, count_labels
from dilated_seg.data.pairs import Pairs, find_mask_orientation
from dilated_seg.data.samplers import EvaluationOrder, Key, TrainingOrder, run_seed
from dilated_seg.data.shards import Shards
from dilated_seg.errors import UserError


class SegmentationDataModule(LightningDataModule):
    """A dataset: its facts as class attributes, its splits by ``split(name)``, its batches by Lightning's hooks.

    A batch is ``{"image": uint8 (B, 3, H, W), "mask": uint8 (B, H, W), "id": [str], "size": [(int, int)]}``. In evaluation,
    images smaller than the largest of their batch are padded at the right and bottom, their masks with ``ignore_index``;
    ``size`` says where they end, and the task looks at each up to there.

    A dataset that lies on a disk is read from the folders of its release, or from the shards that ``prepare`` made of them.

    Args:
        batch_size: Images a process takes at once in training, unless there is a global_batch_size.
        global_batch_size: Images of one training step, over all processes and trainer.accumulate_grad_batches; it then says how
            many a process takes at once, and an experiment takes the same steps on any number of devices.
        crop_size: (height, width) of training crops; None trains on whole images.
        scale: Training images are resized by a factor drawn from this range before cropping.
        flip: Mirror half of the training images left to right.
        jitter: Training images change brightness, contrast and saturation by up to this fraction.
        rotate: Training images are turned by up to this many degrees to either side; what comes in is ignored.
        eval_batch_size: Images evaluated at once; changes speed and memory, never a number.
        num_workers: Processes that read images beside the training one.
        predict_split: What ``predict`` predicts; it needs no labels.
        streaming: Read prepared shards a few images at a time, from the folder or a URL (hf://, s3://, https://), instead of
            mapping them into memory. Training then sees them in an order that reads each part of a shard once.
        mask_orientation: How masks lie whose images EXIF turns: "upright", as the image is seen, "as_stored", as its file, and
            are then turned with it; "auto" finds it out for the whole dataset, or takes "upright" and says so.
        variants: How many augmentations of each training image there are, one an epoch, before they repeat; a new one every
            epoch if None. CachedFrontEnd needs a number.
        on_bad_image: What training does with a file that cannot be read: end in an error, or skip it, say so, and take the
            next image instead. Evaluation always ends.
    """

    train_split = "train"
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    ignore_index = 255

    root: str | None = None  # the folder or URL; datasets that lie on a disk take it
    variable: ClassVar[str] = ""  # the environment variable that names it where root does not
    published: ClassVar[Mapping[str, int]] = {}  # how many images each split has
    submitted: Sequence[int] | None = None  # a test server's value for each class, if it is not the class id

    def __init__(
        self,
        batch_size: int | None = None,
        crop_size: tuple[int, int] | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
        flip: bool = True,
        jitter: float = 0.0,
        rotate: float = 0.0,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        predict_split: str = "val",
        streaming: bool = False,
        on_bad_image: Literal["error", "skip"] = "error",
        variants: int | None = None,
        global_batch_size: int | None = None,
        mask_orientation: Literal["auto", "upright", "as_stored"] = "auto",
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1), ("num_workers", num_workers, 0),
            ("variants", variants, 1), ("global_batch_size", global_batch_size, 1),
        ):  # fmt: skip
            if value is not None and value < least:
                raise UserError(f"data.{name} is {value}: it must be at least {least}")
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"data.scale is {list(scale)}: it must be two factors above 0, the smaller first")
        if crop_size is not None and min(crop_size) < 1:
            raise UserError(f"data.crop_size is {list(crop_size)}: height and width must be at least 1")
        self.batch_size, self.global_batch_size = batch_size or global_batch_size or 8, global_batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.streaming, self.on_bad_image = streaming, on_bad_image
        self.mask_orientation = mask_orientation
        self._opened: dict[str, Split] = {}
        self.skipped: Counter[str] = Counter()
        self.label_counts: dict[str, LabelCounts] = {}  # of the splits whose masks were counted before training
        self.predict_split = predict_split
        self.augment = transforms.training(crop_size, scale, flip, jitter, self.ignore_index, rotate)
        self.augmentation = {"crop_size": crop_size, "scale": scale, "flip": flip, "jitter": jitter, "rotate": rotate}
        self.variants = variants
        self.scores: StoredScores | None = None  # in the place of training images, once CachedFrontEnd has them

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401
        """Refuse what Lightning would do: execute a file that holds nothing of a dataset."""
        raise UserError(f"a checkpoint holds no dataset: build {cls.__name__} from its arguments")

    @property
    def num_classes(self) -> int:
        """C, not counting the ignored label."""
        return len(self.classes)

    def place(self) -> str:
        """The dataset's folder or URL.

        Raises:
            UserError: Nobody named it.
        """
        place = self.root or os.environ.get(self.variable)
        if not place:
            name = type(self).__name__
            raise UserError(f"{name}'s folder is not named: set the environment variable {self.variable}, or data.root")
        return place

    @property
    def names_source(self) -> str:
        """Where the class names are said, for messages: the file, or the dataset's class."""
        return type(self).__name__

    @property
    def read_label(self) -> ReadLabel:
        """Reads a label's file as class ids (H, W). Each dataset that lies on a disk writes this one."""
        raise NotImplementedError(f"{type(self).__name__} lies on no disk")

    @property
    def texts(self) -> tuple[str, ...]:
        """Small files of the folder that reading it needs, besides images and labels."""
        return ()

    @property
    def choices(self) -> dict[str, str]:
        """Options that decide what the shards hold."""
        return {}

    def available(self) -> list[str]:
        """The splits that ``prepare`` finds in the folder. Each dataset that lies on a disk writes this one."""
        raise NotImplementedError(f"{type(self).__name__} lies on no disk")

    def split(self, name: str) -> Split:
        """The images of a split, unaugmented, as the release has them. Each dataset writes this one."""
        raise NotImplementedError(f"{type(self).__name__} must define split()")

    def opened(self, name: str) -> Split:
        """The split from shards or folders, looked through once: every further call gives the same one.

        Raises:
            UserError: It is not there, or not as it should be.
        """
        if name not in self._opened:
            prepared = self._prepared(name)
            split = self.split(name) if prepared is None else prepared
            if isinstance(split, Pairs):
                split.as_stored = self.masks_as_stored({name: split})
                if not (self.on_bad_image == "skip" and name == self.train_split):
                    split.check()
            if len(split) != self.published.get(name, len(split)) and os.environ.get("LOCAL_RANK", "0") == "0":
                counts = f"{len(split):,} images here, as published {self.published[name]:,}"
                print(f"{type(self).__name__}: {name} has {counts}", file=sys.stderr)
            self._opened[name] = split
        return self._opened[name]

    def masks_as_stored(self, opened: Mapping[str, Pairs]) -> bool | None:
        """Return whether masks lie as the files of their images do: as the option says, or as the sizes of any split tell.

        Args:
            opened: Splits by name, one of which is asked for; the others of the dataset are looked at if EXIF turns images.

        Returns:
            None if EXIF turns none of their labelled images.

        Raises:
            UserError: Some masks lie in one way and some in the other.
        """
        if self.mask_orientation != "auto":
            return self.mask_orientation == "as_stored"
        turned = [path for split in opened.values() for path in split.turned_images().untold]
        if not any(split.turned_images() for split in opened.values()):
            return None
        splits = list(opened.values())
        with suppress(UserError, NotImplementedError):
            for name in self.available():
                if name not in opened and isinstance(other := self.split(name), Pairs):
                    splits.append(other)
        found = find_mask_orientation(splits)
        if found is None:
            name = type(self).__name__
            say_once(
                f"{name} {self.root} mask_orientation".encode(),
                f"{name}: EXIF turns {len(turned):,} images, such as {turned[0]}, and no mask's size tells whether masks are "
                "turned already: they are taken to be; if they lie as the files do, set data.mask_orientation to as_stored",
            )
        return bool(found)

    def _prepared(self, name: str) -> Shards | None:
        if not self.variable and self.root is None:
            return None  # drawn, not read
        place = self.place()
        facts = manifest.read(place)
        if facts is None:
            if self.streaming:
                raise UserError(
                    f"{place} holds no shards to stream: make them with dilated-seg prepare, or drop data.streaming"
                )
            return None
        if facts["dataset"] != type(self).__name__:
            raise UserError(f"{place} holds {facts['dataset']}, not {type(self).__name__}: name another folder or dataset")
        if facts.get("classes", list(self.classes)) != list(self.classes):
            difference = first_difference(
                facts["classes"], self.classes, f"when {place} was prepared", f"in {self.names_source}"
            )
            raise UserError(f"{difference}: put the names back as they were, or prepare it again")
        for option, value in self.choices.items():
            if facts["options"].get(option) != value and name == self.train_split:
                raise UserError(
                    f"{place} was prepared with {option} {facts['options'].get(option)}, not {value}: prepare it anew or set "
                    f"data.{option}"
                )
        prepared = facts.get("mask_orientation", self.mask_orientation)
        if self.mask_orientation not in ("auto", prepared):
            raise UserError(
                f"{place} was prepared with masks {prepared}, not {self.mask_orientation}: prepare it again with "
                f"--mask_orientation {self.mask_orientation}, or drop data.mask_orientation"
            )
        shards = Shards(place, facts, name, self.read_label, self.streaming)
        shards.as_stored = {"auto": None, "upright": False, "as_stored": True}[prepared]
        return shards

    def require_labels(self) -> None:
        """Refuse a training split without labels.

        Raises:
            UserError: It has none, or none that this dataset finds.
        """
        split = self.opened(self.train_split)
        labels = sum(label is not None for *_, label in split.pairs) if isinstance(split, Pairs) else 0
        if not getattr(split, "labelled", True) and not labels:
            where = f" in {self.place()}" if self.variable or self.root else ""
            expected = getattr(split, "expected", "") or "put a label for each image where this dataset reads them from"
            raise UserError(
                f"{type(self).__name__}: the split {self.train_split}{where} has {len(split):,} images and 0 labels, so there "
                f"is nothing to learn: {expected}"
            )

    def check_labels(self) -> None:
        """Say which classes no mask of the training or validation split holds, before anything is trained.

        Raises:
            UserError: The masks of a split hold none at all, or one of those looked at cannot be read.
        """
        self.require_labels()
        for name in (self.train_split, "val"):
            split = self.opened(name)
            skip = self.on_bad_image == "skip" and name == self.train_split
            counts = count_labels(split, len(self.classes), skip) if getattr(split, "labelled", True) and len(split) else None
            if counts is None:
                continue
            self.label_counts[name] = counts
            where = f"the {counts.masks:,} masks of {name}"
            where += "" if counts.complete else f" that were looked at (of {counts.images:,})"
            ignored = int(counts.pixels[self.ignore_index])
            problem = describe_absent(counts.pixels.tolist(), ignored, self.classes, where, self.ignore_index)
            if problem and counts.complete and not counts.pixels[: len(self.classes)].any():
                raise UserError(f"{type(self).__name__}: {problem}")
            if problem:
                print(f"warning: {type(self).__name__}: {problem}", file=sys.stderr)

    def say_what_is_shared(self) -> None:
        """A line if validation images are trained on: their scores then say nothing about new images."""
        train, val = (set(getattr(self.opened(name), "members", ())) for name in (self.train_split, "val"))
        if train & val:
            print(
                f"{type(self).__name__}: {self.train_split} has images of val: val's scores say nothing about new images",
                file=sys.stderr,
            )

    def train_dataloader(self) -> DataLoader[Any]:
        self.require_labels()
        images = self.scores or self.training_images()
        return self._loader(images, self.training_order(self._rank, self._batches_done), stack)

    def training_order(self, rank: int, done: Callable[[], int]) -> TrainingOrder:
        """Which images a process takes, batch by batch, from where ``done`` says that it is."""
        split = self.opened(self.train_split)
        permute = getattr(split, "order", None)
        return TrainingOrder(len(split), self.images_at_once(), run_seed(), rank, self._world, done, self.passes, permute)

    @property
    def passes(self) -> int:
        """Batches whose gradients make up one step of the optimiser."""
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def images_at_once(self) -> int:
        """Images a process takes at once in training.

        Raises:
            UserError: The global batch cannot be shared out equally.
        """
        if self.global_batch_size is None:
            return self.batch_size
        share, rest = divmod(self.global_batch_size, self._world * self.passes)
        if rest:
            among = f"{self._world} processes" + (f" and {self.passes} accumulated batches" if self.passes > 1 else "")
            raise UserError(f"data.global_batch_size is {self.global_batch_size}: {among} cannot share it equally")
        return share

    def training_images(self) -> Images:
        """The training split as it is trained on; indexed by (epoch, index)."""
        skip = self.on_bad_image == "skip"
        return Images(self.opened(self.train_split), self.augment, run_seed(), skip, self.variants)

    def identity(self) -> dict[str, Any]:
        """What decides the training images and their augmentations, for what is computed from them and kept.

        Raises:
            UserError: The split cannot say, as one of your own without ``fingerprint()``.
        """
        split = self.opened(self.train_split)
        if not hasattr(split, "fingerprint"):
            raise UserError(
                f"{type(self).__name__}: its split has no fingerprint(), by which a change of the data would be seen"
            )
        texts = {name: storage.read_text(self.place(), name) for name in self.texts}
        return {
            "dataset": type(self).__name__, "split": self.train_split, "classes": list(self.classes), "texts": texts,
            "choices": self.choices, "images": len(split), "files": split.fingerprint(), "augmentation": self.augmentation,
            "variants": self.variants, "seed": run_seed(), "on_bad_image": self.on_bad_image,
        }  # fmt: skip

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._evaluation(self.predict_split, labelled=False)

    def _evaluation(self, name: str, labelled: bool = True) -> DataLoader[Any]:
        split = self.opened(name)
        if not len(split):
            raise UserError(f"{type(self).__name__} has no images in its split '{name}': there is nothing to evaluate")
        if labelled and not getattr(split, "labelled", True):
            where = f" ({expected})" if (expected := getattr(split, "expected", "")) else ""
            raise UserError(
                f"{type(self).__name__} has no labels for its split '{name}'{where}, so it cannot be scored here: "
                f"predict it (predict --data.init_args.predict_split {name})"
            )
        return self._loader(Images(split), EvaluationOrder(len(split), self.eval_batch_size, self._rank, self._world), pad)

    def _loader(self, images: Dataset[Any], order: Sampler[list[Key]], collate: Callable[..., Any]) -> DataLoader[Any]:
        pin = torch.cuda.is_available()
        return DataLoader(
            images,
            batch_sampler=order,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=pin,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=initialize_worker,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Say once of each file that it was skipped, and count."""
        for problem in batch.pop("skipped", ()):
            if not self.skipped[problem]:
                print(f"skipped: {problem}", file=sys.stderr)
            self.skipped[problem] += 1
        return batch

    def teardown(self, stage: str) -> None:
        if self.skipped:
            print(f"skipped {len(self.skipped)} files, {self.skipped.total()} times in all", file=sys.stderr)
            self.skipped.clear()

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _batches_done(self) -> int:
        """Batches that this run has taken, over all epochs and earlier sessions; Lightning restores the count."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready if self.trainer else 0
