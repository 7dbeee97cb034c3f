"""The base class of datasets: opens splits, and makes batches for Lightning's hooks."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NoReturn

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from dilated_seg.data.arguments import collect_arguments
from dilated_seg.data.chain import Chain
from dilated_seg.data.checks import LabelCounts, require_labels, warn_of_other_count
from dilated_seg.data.collate import Images, TimedLoader, pad, stack
from dilated_seg.data.masks import MaskReader
from dilated_seg.data.pairs import Pairs, find_masks_as_stored
from dilated_seg.data.prepared import open_prepared
from dilated_seg.data.samplers import EvaluationOrder, Key, TrainingOrder, get_run_seed
from dilated_seg.data.split import Split
from dilated_seg.data.transforms import mirror_half
from dilated_seg.data.workers import initialize_worker
from dilated_seg.errors import UserError


class SegmentationDataModule(LightningDataModule):
    """A dataset: classes and palette as class attributes, splits by ``split(name)``, batches by Lightning's hooks.

    A batch is ``{"image": uint8 (B, 3, H, W), "mask": uint8 (B, H, W), "id": [str], "size": [(int, int)]}``. In evaluation,
    images smaller than the largest of their batch are padded at the right and bottom, their masks with ``ignore_index``;
    ``size`` is the part that the task evaluates. Stored datasets are read from the directories of their release, or from the
    shards that ``prepare`` makes of them.

    Args:
        batch_size: Images per process and training batch; 8 by default, unless there is a global_batch_size.
        global_batch_size: Images of one training step, over all processes and trainer.accumulate_grad_batches. It determines
            the batch size, so that an experiment has the same steps on any number of devices.
        augmentation: Any callable that maps image and mask of a training sample (tv_tensors) to augmented ones, such as
            ScaleAndCrop. By default half of the images are mirrored; None for no augmentation.
        transforms: Callables on tv_tensors of image and mask, such as classes of torchvision.transforms.v2, that are applied to
            training samples after ``augmentation``, with the same seed. Masks keep their class ids; filled pixels are ignored.
        eval_batch_size: Images per evaluation batch; affects speed and memory, not the metrics.
        num_workers: Processes that load images in addition to the training one.
        predict_split: The split that ``predict`` predicts; it needs no masks.
        streaming: Read prepared shards a few images at a time, from a directory or URL (hf://, s3://, https://), instead of
            mapping them into memory; the order of training images then reads each part of a shard once.
        on_bad_image: If training cannot read a file, "error" raises an error; "skip" prints it and uses the next image.
            Evaluation always raises the error.
    """

    train_split = "train"
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    ignore_index = 255
    in_channels: int = 3  # of images: RGB

    root: str | None = None  # the directory or URL of a stored dataset
    variable: ClassVar[str] = ""  # the environment variable of the root, if ``root`` is None
    published: ClassVar[Mapping[str, int]] = {}  # the number of images of each split
    submitted: Sequence[int] | None = None  # a test server's value of each class, if it is not the class id
    mask_orientation: Literal["auto", "upright", "as_stored"] = "auto"  # of images that EXIF rotates; see Folder

    def __init__(
        self,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        augmentation: Callable[..., Any] | None = mirror_half,
        transforms: list[Callable[..., Any]] | None = None,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        predict_split: str = "val",
        streaming: bool = False,
        on_bad_image: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__()
        self.arguments = collect_arguments(self)
        for name, value, least in (
            ("batch_size", batch_size, 1), ("global_batch_size", global_batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1), ("num_workers", num_workers, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise UserError(f"data.{name} is {value}: give at least {least}")
        self.batch_size, self.global_batch_size = batch_size or global_batch_size or 8, global_batch_size
        self.augmentation = Chain(augmentation, transforms, self.ignore_index) if transforms else augmentation
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers
        self.predict_split, self.streaming, self.on_bad_image = predict_split, streaming, on_bad_image
        self.label_counts: dict[str, LabelCounts] = {}  # of splits counted before training
        self._splits: dict[str, Split] = {}
        self._skipped: Counter[str] = Counter()

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401
        """Raise UserError: Lightning's method would execute a file, and checkpoints hold no dataset."""
        raise UserError(f"a checkpoint holds no dataset: build {cls.__name__} from its arguments")

    @property
    def num_classes(self) -> int:
        """C, without the ignored value."""
        return len(self.classes)

    @property
    def stored(self) -> bool:
        """Whether the dataset is stored as files, and not generated."""
        return bool(self.variable or self.root is not None)

    def require_root(self) -> str:
        """Return the dataset's directory or URL; raise UserError if neither ``root`` nor the environment variable is set."""
        root = self.root or os.environ.get(self.variable)
        if not root:
            name = type(self).__name__
            raise UserError(f"{name}'s directory is unknown: set the environment variable {self.variable}, or data.root")
        return root

    @property
    def names_source(self) -> str:
        """The source of the class names in messages: a file, or the dataset's class."""
        return type(self).__name__

    @property
    def mask_reader(self) -> MaskReader:
        """The function that reads a mask's file as class ids (H, W), for stored datasets."""
        raise NotImplementedError(f"{type(self).__name__} must define mask_reader")

    @property
    def texts(self) -> tuple[str, ...]:
        """The small files that reading the dataset needs in addition to images and masks."""
        return ()

    @property
    def choices(self) -> dict[str, str]:
        """The options on which the content of shards depends."""
        return {}

    def list_splits(self) -> list[str]:
        """Return the splits that the directory has, for stored datasets."""
        raise NotImplementedError(f"{type(self).__name__} must define list_splits")

    def split(self, name: str) -> Split:
        """Return the images of a split, as released and without augmentation; each dataset defines it."""
        raise NotImplementedError(f"{type(self).__name__} must define split()")

    def open_split(self, name: str) -> Split:
        """Return a split from shards or directories, checked on the first call; later calls return the same object.

        Raises:
            UserError: The split, one of its files or a mask is missing or damaged.
        """
        if name not in self._splits:
            prepared = open_prepared(self, name) if self.stored else None
            split = self.split(name) if prepared is None else prepared
            if not isinstance(split, Split):
                raise UserError(f"{type(self).__name__}.split must return a dilated_seg.data.split.Split")
            if isinstance(split, Pairs):
                split.as_stored = find_masks_as_stored(self, {name: split})
                if not (self.on_bad_image == "skip" and name == self.train_split):
                    split.check()
            warn_of_other_count(self, name, len(split))
            self._splits[name] = split
        return self._splits[name]

    def train_dataloader(self) -> DataLoader[Any]:
        require_labels(self)
        return self.load_training(self.open_training_images(), stack)

    def open_training_images(self) -> Images:
        """Return the training split, augmented; indexed by (epoch, index)."""
        return Images(self.open_split(self.train_split), self.augmentation, get_run_seed(), self.on_bad_image == "skip")

    def load_training(self, images: Dataset[Any], collate: Callable[..., Any]) -> DataLoader[Any]:
        """Return the loader of training batches of images indexed by (epoch, index), after those already trained on."""
        rank = self.trainer.global_rank if self.trainer else 0
        return self._loader(images, self.make_training_order(rank, self._batches_done), collate)

    def make_training_order(self, rank: int, done: Callable[[], int]) -> TrainingOrder:
        """Return the sampler of a process's batches; the first ``done()`` batches are skipped."""
        split, seed, batch_size = self.open_split(self.train_split), get_run_seed(), self.get_batch_size()
        return TrainingOrder(len(split), batch_size, seed, rank, self._world, done, self.passes, split.order_images)

    @property
    def passes(self) -> int:
        """The number of batches whose gradients are accumulated for one step."""
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def get_batch_size(self) -> int:
        """Return the images per process and training batch; raise UserError if the global batch cannot be divided equally."""
        if self.global_batch_size is None:
            return self.batch_size
        share, rest = divmod(self.global_batch_size, self._world * self.passes)
        if rest:
            among = f"{self._world} processes" + (f" times {self.passes} accumulated batches" if self.passes > 1 else "")
            raise UserError(
                f"data.global_batch_size is {self.global_batch_size}: give a multiple of {self._world * self.passes} ({among})"
            )
        return share

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._evaluation(self.predict_split, labelled=False)

    def _evaluation(self, name: str, labelled: bool = True) -> DataLoader[Any]:
        split = self.open_split(name)
        if not len(split):
            raise UserError(f"{type(self).__name__} has no images in its split '{name}': choose another split")
        if labelled and not split.labelled:
            where = f" ({split.expected})" if split.expected else ""
            raise UserError(
                f"{type(self).__name__} has no masks for its split '{name}'{where}, so it cannot be scored: predict it with "
                f"predict --data.init_args.predict_split {name}"
            )
        rank = self.trainer.global_rank if self.trainer else 0
        return self._loader(Images(split), EvaluationOrder(len(split), self.eval_batch_size, rank, self._world), pad)

    def _loader(self, images: Dataset[Any], order: Sampler[list[Key]], collate: Callable[..., Any]) -> DataLoader[Any]:
        return TimedLoader(
            images,
            batch_sampler=order,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=initialize_worker,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Print each skipped file once, and count how often it was skipped."""
        for problem in batch.pop("skipped", ()):
            if not self._skipped[problem]:
                print(f"skipped: {problem}", file=sys.stderr)
            self._skipped[problem] += 1
        return batch

    def teardown(self, stage: str) -> None:
        if self._skipped:
            print(f"skipped {len(self._skipped)} files, {self._skipped.total()} times in all", file=sys.stderr)
            self._skipped.clear()

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _batches_done(self) -> int:
        """Return the number of training batches of this run, over all epochs and sessions; Lightning restores it."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready if self.trainer else 0
