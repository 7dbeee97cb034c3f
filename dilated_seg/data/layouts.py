"""Layouts of a dataset's directory: the paths of images and masks of a split, and how their names are paired."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dilated_seg.data.directories import IMAGE_SUFFIXES, MASK_SUFFIXES, index_names, list_visible, select, show_names
from dilated_seg.data.names import divide_directory, list_files, pair_names, require_readable
from dilated_seg.errors import UserError

# Accepted names of directories and splits, in capitals or not.
SYNONYMS = {
    "images": ("images", "image", "imgs", "img"),
    "masks": ("masks", "mask", "labels", "label", "annotations", "gt"),
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


NO_VAL = "; or draw it from the other images with --data.val_fraction 0.2, or train without it: --trainer.limit_val_batches 0"


@dataclass(frozen=True)
class Layout:
    """The paths of images and masks, relative to the root and without suffix.

    ``{split}`` is the split, or one of its `SYNONYMS`; without it, SPLIT.txt lists the images of each split. ``{name}`` is the
    part that the paths of an image and its mask share; it may include directories.

    Args:
        images: The path of an image, such as ``{split}/images/{name}``.
        masks: The path of a mask, such as ``{split}/masks/{name}``.
    """

    images: str
    masks: str

    @property
    def listed(self) -> bool:
        """Whether lists name the images of each split."""
        return "{split}" not in self.images

    @property
    def shared(self) -> bool:
        """Whether images and masks are in one directory."""
        return PurePosixPath(self.images).parent == PurePosixPath(self.masks).parent

    @property
    def nested(self) -> bool:
        """Whether the directory of the masks is in that of the images."""
        images, masks = (PurePosixPath(pattern).parent for pattern in (self.images, self.masks))
        return not self.shared and masks.is_relative_to(images)

    def describe(self, split: str) -> str:
        """Return the layout of a split as text."""
        paths = [path.format(split=split, name="NAME") for path in (self.images, self.masks)]
        return f"{paths[0]}.jpg with {paths[1]}.png{f' and the list {split}.txt' if self.listed else ''}"


# In order of precedence: the first layout in which a split has images is read.
LAYOUTS = (
    Layout("{split}/images/{name}", "{split}/masks/{name}"),
    Layout("images/{split}/{name}", "masks/{split}/{name}"),
    Layout("{split}/{name}", "{split}/masks/{name}"),
    Layout("{split}/{name}", "{split}/{name}_mask"),
    Layout("images/{name}", "masks/{name}"),
    Layout("{name}", "{name}_mask"),
)


@dataclass
class SplitFiles:
    """The files of a split in one layout.

    Args:
        layout: The layout.
        directory: The directory of the images.
        masks_directory: The directory of the masks, if there is one.
        images: The images by name.
        masks: The masks by the name of their image.
        unpaired: Masks without an image.
    """

    layout: Layout
    directory: Path
    masks_directory: Path | None
    images: dict[str, Path]
    masks: dict[str, Path]
    unpaired: list[Path]


def find_files(root: Path, split: str, layouts: Sequence[Layout] = LAYOUTS, drawn: bool = False) -> SplitFiles:
    """Return the files of the first layout in which a split has images.

    Args:
        root: The directory of the dataset.
        split: The name of the split.
        layouts: The layouts to try.
        drawn: Whether to read all images of layouts with lists, since splits are drawn from them.

    Raises:
        UserError: No layout has images of the split; see `explain_missing_split`.
    """
    for layout in layouts:
        if layout.listed and not drawn and find_list(root, split) is None:
            continue
        directory, masks = (find_directory(root, pattern, split) for pattern in (layout.images, layout.masks))
        if directory is None or (layout.nested and masks is None):
            continue
        files = index_layout(layout, directory, masks)
        if files.images:
            return files
    raise explain_missing_split(root, split, layouts)


def has_split(root: Path, split: str, layouts: Sequence[Layout] = LAYOUTS) -> bool:
    """Return whether a split has a directory or a list in one of the layouts."""
    return any(
        find_list(root, split) is not None if layout.listed else find_directory(root, layout.images, split) is not None
        for layout in layouts
    )


def index_layout(layout: Layout, directory: Path, masks: Path | None) -> SplitFiles:
    """Return the images and masks of two directories.

    Raises:
        UserError: Two files have the same name, or an image has an unsupported format.
    """
    image_name, mask_name = (PurePosixPath(pattern).name for pattern in (layout.images, layout.masks))
    complete = layout in LAYOUTS and not layout.listed  # all images in the directories belong to the split
    if layout.shared:
        paths = list(list_files(directory))
        images, masks_by_name = divide_directory(directory, paths, image_name, mask_name)
        if complete:
            require_readable(directory, paths, {*images.values(), *masks_by_name.values()}, IMAGE_SUFFIXES)
        return SplitFiles(layout, directory, directory, images, masks_by_name, [])
    paths = list(list_files(directory, skip=masks))
    images = index_names(directory, select(paths, IMAGE_SUFFIXES), image_name)
    if complete:
        require_readable(directory, paths, set(images.values()), IMAGE_SUFFIXES)
    if masks is None:
        return SplitFiles(layout, directory, None, images, {}, [])
    paths = list(list_files(masks))
    index = index_names(masks, select(paths, MASK_SUFFIXES), mask_name)
    if complete:
        require_readable(masks, paths, set(index.values()), MASK_SUFFIXES)
    paired = pair_names(images, index)
    used = set(paired.values())
    return SplitFiles(layout, directory, masks, images, paired, [path for path in index.values() if path not in used])


def find_directory(root: Path, pattern: str, split: str) -> Path | None:
    """Return the directory of a pattern's files, whose parts may be replaced by `SYNONYMS`; None if it is missing.

    Raises:
        UserError: Two directories have names of the same split.
    """
    path = root
    for part in PurePosixPath(pattern).parent.parts:
        exact = part.format(split=split)
        names = {part.format(split=name) for name in SYNONYMS.get(split, (split,))} if "{" in part else SYNONYMS.get(part, ())
        children = list_visible(path) if path.is_dir() else []
        similar = [child for child in children if child.is_dir() and (child.name == exact or child.name.lower() in names)]
        if len(similar) > 1 and "{" in part:
            raise UserError(f"{path} holds {show_names(similar)}: join them, or rename one, since both are the split '{split}'")
        match = next((child for child in similar if child.name == exact), similar[0] if similar else None)
        if match is None:
            return None
        path = match
    return path if path.is_dir() else None


def find_list(root: Path, split: str) -> Path | None:
    """Return the file that lists a split's images, SPLIT.txt or a synonym; None if it is missing.

    Raises:
        UserError: Two files list the split.
    """
    names = {f"{name}.txt" for name in SYNONYMS.get(split, (split,))} | {f"{split}.txt"}
    files = [path for path in list_visible(root) if path.name.lower() in names and path.is_file()] if root.is_dir() else []
    if len(files) > 1:
        raise UserError(f"{root} holds {show_names(files)}: join them, or rename one, since both are the split '{split}'")
    return files[0] if files else None


def explain_missing_split(root: Path, split: str, layouts: Sequence[Layout] = LAYOUTS) -> UserError:
    """Return the error for a split without images: it names the directory's content and the two nearest layouts."""
    content = show_names(list_visible(root), 8) if root.is_dir() else ""
    nearest = sorted(layouts, key=lambda layout: -count_present(root, layout, split))[:2]
    return UserError(
        f"{root} has no images of a split '{split}'; it holds {content or 'nothing'}. Expected, for example, "
        f"{', or '.join(layout.describe(split) for layout in nearest)}: rename the directories, or write their paths into "
        "classes.yaml, such as images: '{split}/rgb/{name}' and masks: '{split}/truth/{name}_mask'"
        f"{NO_VAL if split == 'val' else ''}"
    )


def count_present(root: Path, layout: Layout, split: str) -> int:
    """Return how many of a layout's directories and lists exist."""
    patterns = {str(parent / "_") for path in (layout.images, layout.masks) for parent in PurePosixPath(path).parents}
    present = sum(find_directory(root, pattern, split) is not None for pattern in patterns if pattern != "_")
    return present + (layout.listed and find_list(root, split) is not None)
