"""Check a Parquet dataset completely, and upload prepared shards to the Hugging Face Hub."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from dilated_seg.data import manifest
from dilated_seg.data.checks import count_pixels
from dilated_seg.data.classes import describe_absent, format_share
from dilated_seg.data.hub import Hub
from dilated_seg.errors import ResourceError, UserError, format_names


def check(dataset: Hub) -> None:
    """Read every image and mask of a dataset once, print the content of its splits, and compare their images by content.

    Raises:
        UserError: An image or a mask cannot be read, or two splits share images.
    """
    contents: dict[str, dict[str, str]] = {}
    unreadable = 0
    for name in dataset.files:
        contents[name], problems = check_split(dataset, name)
        unreadable += problems
    if unreadable:
        raise UserError(f"{unreadable} images of {dataset.repo} cannot be used, as printed above: choose another copy")
    names = list(contents)
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            if shared := sorted(contents[first].keys() & contents[second].keys()):
                both = format_names([f"{contents[first][image]} = {contents[second][image]}" for image in shared])
                raise UserError(
                    f"{len(shared)} images of {dataset.repo} are in {first} and in {second} ({both}): choose another copy"
                )
    print(f"{dataset.repo}: every image and mask can be read, and no two splits share an image")


def check_split(dataset: Hub, name: str) -> tuple[dict[str, str], int]:
    """Read a split; return the names of its images by the SHA-256 of their pixels, and the number of unusable ones."""
    split = dataset.open_split(name)
    pixels, problems = np.zeros(256, np.int64), 0
    images: dict[str, str] = {}
    for index in range(len(split)):
        try:
            sample = split[index]
        except ResourceError:
            raise
        except UserError as problem:
            print(problem, file=sys.stderr)
            problems += 1
            continue
        pixels += count_pixels(sample["mask"])
        images.setdefault(hashlib.sha256(sample["image"].contiguous().numpy().tobytes()).hexdigest(), sample["id"])
    ignored, classes = int(pixels[dataset.ignore_index]), pixels[: dataset.num_classes]
    twice = len(split) - problems - len(images)
    share = format_share(ignored, max(1, int(pixels.sum())))
    present = f"{int((classes > 0).sum())} of {dataset.num_classes} classes, {share} of pixels ignored"
    print(f"{name}: {len(split):,} images{f', {twice} of them twice' if twice else ''}, {present}")
    where = f"the {len(split):,} masks of {name}"
    if split.labelled and (absent := describe_absent(pixels.tolist(), ignored, dataset.classes, where, dataset.ignore_index)):
        print(f"warning: {absent}", file=sys.stderr)
    return images, problems


def push(out: Path, repo: str) -> None:
    """Upload a prepared directory to a dataset repository of the Hub, which is created as a private one.

    Raises:
        UserError: The directory is not prepared, or the upload fails.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if manifest.read(str(out)) is None:
        raise UserError(f"{out} is not a prepared dataset: it has no {manifest.NAME}")
    try:
        api = HfApi()
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=str(out))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{out} cannot be uploaded to {repo} ({' '.join(str(error).split())}): log in with `hf auth login`"
        ) from error
    print(f"{repo}: uploaded; use it as --data.root hf://datasets/{repo} --data.streaming true")
