"""Any dataset of Parquet files with images and masks: at the Hugging Face Hub, behind a URL, or in a directory."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from dilated_seg.data.class_file import make_colors
from dilated_seg.data.datamodule import SegmentationDataModule
from dilated_seg.data.hub_columns import Columns, find_columns, read_cell
from dilated_seg.data.hub_files import ALIASES, open_files, pin_revision
from dilated_seg.data.hub_index import ParquetFile
from dilated_seg.data.hub_masks import MaskCoding, find_coding
from dilated_seg.data.hub_split import HubSplit, explain_reading, open_rows
from dilated_seg.data.masks import MaskReader, Palette
from dilated_seg.data.split import Split
from dilated_seg.data.voc import VOC
from dilated_seg.data.workers import print_once
from dilated_seg.errors import UserError

SAMPLE = 16  # masks from which the coding is inferred


class Hub(SegmentationDataModule):
    """Images and masks in Parquet files, streamed: a dataset at the Hugging Face Hub, behind a URL, or in a directory.

    Columns, splits and the coding of the masks (class ids, other values or colors) are inferred and printed; set the options
    where that fails. Row groups are read on demand; those of URLs are cached on disk (environment variables DILATED_SEG_CACHE,
    DILATED_SEG_CACHE_GB). A run records the revision.

    Args:
        repo: OWNER/NAME at the Hub, a URL (https://, s3://, hf://) or directory of Parquet files, or one such file.
        like: A dataset class with the same classes and colors, such as VOC or Cityscapes.
        classes: Class names, if they are not those of ``like``.
        palette: Red, green and blue of each class, for masks stored as colors.
        values: The mask value of each class; or one value v: class k has the value v + k. By default class ids, or the label
            ids of ``like``.
        ignore: Mask values that are ignored.
        image_column: The column of images; by default recognized by its name.
        mask_column: The column of masks; by default recognized by its name.
        id_column: The column of image names; by default recognized by its name, otherwise the file names.
        subset: The configuration (Hub: "subset"), if the dataset has several.
        revision: A commit, branch or tag at the Hub; by default the newest commit when the run starts.
        train_split: The split to train on.
        streaming: Read row groups on demand; if false, map the files of a directory into memory.
        options: See SegmentationDataModule.
    """

    def __init__(
        self,
        repo: str,
        like: type[SegmentationDataModule] = VOC,
        classes: list[str] | None = None,
        palette: list[tuple[int, int, int]] | None = None,
        values: list[int] | int | None = None,
        ignore: list[int] = [255],  # noqa: B006 - jsonargparse shows it
        image_column: str | None = None,
        mask_column: str | None = None,
        id_column: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        train_split: str = "train",
        streaming: bool = True,
        **options: Any,  # noqa: ANN401 - jsonargparse reads the base's types
    ) -> None:
        super().__init__(streaming=streaming, **options)
        if classes is not None and not 2 <= len(set(classes)) == len(classes) <= 250:
            raise UserError("data.classes: give 2 to 250 different names")
        if palette is not None and len(palette) != len(classes or like.classes):
            raise UserError(f"data.palette has {len(palette)} colors for {len(classes or like.classes)} classes")
        self.repo, self.like, self.values, self.ignore = repo, None if classes else like, values, list(ignore)
        self.image_column, self.mask_column, self.id_column = image_column, mask_column, id_column
        self.subset, self.revision, self.train_split = subset, revision, train_split
        self.classes = tuple(classes or like.classes)
        self.stated_palette: Palette = palette or (() if classes else tuple(like.palette))
        self.palette = self.stated_palette or [(red, green, blue) for red, green, blue in make_colors(len(self.classes))]
        self.submitted = None if classes else like.submitted

    @cached_property
    def files(self) -> dict[str, list[ParquetFile]]:
        """The Parquet files of each split, at the pinned revision."""
        self.revision = pin_revision(self.repo, self.revision)
        return open_files(self.repo, self.revision, self.subset)

    @property
    def checksum(self) -> str:
        """The SHA-256 of names, sizes and footers of all files."""
        states = sorted((split, file.checksum) for split, files in self.files.items() for file in files)
        return hashlib.sha256(repr(states).encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Return what identifies the data, for checkpoints."""
        return {"revision": self.revision, "checksum": self.checksum}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed run reads the files of its checkpoint.

        Raises:
            UserError: The files have changed.
        """
        if self.trainer and self.trainer.state.fn == TrainerFn.FITTING and state_dict["checksum"] != self.checksum:
            raise UserError(
                f"the Parquet files of {self.repo} are not those that the run began with (revision {state_dict['revision']}): "
                "restore them, set data.revision, or start a new run"
            )

    @property
    def names_source(self) -> str:
        """The repository, directory or URL."""
        return self.repo

    @property
    def dataset_name(self) -> str:
        """The repository and its revision, or the last part of a path or URL, for evaluation protocols."""
        name = self.repo.rstrip("/").rpartition("/")[2] if Path(self.repo).is_absolute() or "://" in self.repo else self.repo
        return f"Hub {name}" + (f" at {self.revision[:12]}" if self.revision else "")

    def find_split(self, name: str) -> str:
        """Return the dataset's own name of a split; raise UserError if there is none."""
        names = [name, *ALIASES.get(name, ())]
        if name.startswith("train"):  # such as trainaug
            names += ALIASES["train"]
        stored = next((alias for alias in names if alias in self.files), None)
        if stored is None:
            raise UserError(f"{self.repo} has no split '{name}', only {', '.join(self.files)}: choose one of them")
        return stored

    def split(self, name: str) -> Split:
        """Return the images of a split.

        Raises:
            UserError: The split, or the column of images or masks, is missing.
        """
        stored = self.find_split(name)
        files, columns = self.files[stored], self.columns
        for file in files:
            if missing := set(columns.all) - set(file.footer.schema.to_arrow_schema().names):
                raise UserError(f"{file.path} has no column '{min(missing)}', as other files of {self.repo} have")
        coding = self.coding
        split = HubSplit(stored, files, columns, coding, self.streaming, self.repo)
        print_once(f"{self.repo} {name}".encode(), self.describe(name, stored, len(split)))
        return split

    def describe(self, name: str, stored: str, images: int) -> str:
        """Describe the images, columns and masks of a split in a sentence."""
        masks = f"masks of {self.coding.description} in column {self.columns.mask}" if self.coding else "no masks"
        revision = f" at revision {self.revision[:12]}" if self.revision else ""
        counts = self.like.published if self.like else {}
        equal = next((split for split, count in counts.items() if count == images), None)
        expected = counts.get(name, images)
        like = self.like.__name__ if self.like else ""
        note = f" (as {like}'s {equal})" if equal else f" ({like}'s {name} has {expected:,})" if expected != images else ""
        content = f"{images:,} images{note} in column {self.columns.image}, {masks}"
        return f"{self.repo}{revision}: {name} is its split {stored} with {content}"

    @cached_property
    def columns(self) -> Columns:
        """The columns of images, masks and names."""
        first = self.files[self.find_reference()][0]
        schema = first.footer.schema.to_arrow_schema()
        return find_columns(schema, self.repo, self.image_column, self.mask_column, self.id_column)

    def find_reference(self) -> str:
        """Return the split from which columns and coding are inferred: the training split, or else the first."""
        return next((split for split in ALIASES["train"] if split in self.files), next(iter(self.files)))

    @cached_property
    def coding(self) -> MaskCoding | None:
        """The coding of the masks, inferred from the first `SAMPLE` of them; None without masks."""
        column = self.columns.mask
        if column is None:
            return None
        file = self.files[self.find_reference()][0]
        with explain_reading(file.path):
            cells = open_rows([file], [column]).read(0, 0)[column][:SAMPLE].to_pylist()
        cells = [read_cell(cell, file.path, f"mask {i}") for i, cell in enumerate(cells)]
        masks = [cell for cell in cells if cell]
        if not masks:
            return None
        return find_coding(masks, self.classes, self.stated_palette, self.values, self.submitted, self.ignore)

    @property
    def mask_reader(self) -> MaskReader:
        """Read masks as class ids."""
        if self.coding is None:
            raise UserError(f"{self.repo} has no masks")
        return self.coding
