"""`data.transforms`: any of torchvision's v2, or callables, after the joint augmentation; masks are never interpolated."""

import numpy as np
import pytest
import torch
import yaml
from torchvision import tv_tensors
from torchvision.transforms import v2

from dilated_seg.__main__ import main
from dilated_seg.cli.resolve import resolve_experiment
from dilated_seg.data import Folder, Shapes
from dilated_seg.data.chain import Chain
from dilated_seg.data.collate import Images
from dilated_seg.data.samplers import fix_seed
from dilated_seg.data.transforms import ScaleAndCrop
from dilated_seg.errors import UserError
from dilated_seg.runs import Run
from dilated_seg.training.feature_key import describe_images
from tests.data.test_folder import FIT, make

BILINEAR, NEAREST = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.NEAREST
MOVING = [
    v2.RandomAffine(40, (0.3, 0.3), (0.5, 1.5), 20, BILINEAR), v2.RandomPerspective(0.6, 1.0), v2.ElasticTransform(80.0),
    v2.RandomRotation(90, BILINEAR, expand=True), v2.Resize((13, 17), BILINEAR), v2.RandomResizedCrop((20, 20)),
    v2.Pad(7), v2.RandomZoomOut(p=1.0), v2.RandomCrop(50, pad_if_needed=True), v2.RandomShortestSize(11),
    v2.Compose([v2.RandomVerticalFlip(), v2.RandomAffine(45, interpolation=BILINEAR)]),
]  # fmt: skip
COLORING = [v2.ColorJitter(0.5, 0.5, 0.5, 0.2), v2.GaussianBlur(5), v2.RandomGrayscale(1.0)]


def draw(seed, values=(0, 3, 7, 254, 255)):
    """A random image and a mask of blocks with these values."""
    random = np.random.default_rng(seed)
    blocks = random.choice(np.array(values, np.uint8), (5, 4)).repeat(6, 0).repeat(9, 1)
    image = torch.from_numpy(random.integers(0, 256, (3, *blocks.shape), np.uint8))
    return tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(blocks))


@pytest.mark.parametrize("transform", MOVING + COLORING, ids=lambda transform: type(transform).__name__)
def test_masks_have_no_value_that_they_had_not_before(transform):
    for seed in range(8):
        with fix_seed(seed):
            image, mask = Chain(None, [transform])(*draw(seed))
        assert set(mask.unique().tolist()) <= {0, 3, 7, 254, 255} and image.shape[1:] == mask.shape


@pytest.mark.parametrize("transform", [v2.Pad(7), v2.RandomAffine((45, 45), interpolation=BILINEAR), v2.RandomZoomOut(p=1.0)])
def test_filled_pixels_are_ignored(transform):
    with fix_seed(0):
        _, mask = Chain(None, [transform])(*draw(0, values=(3, 7)))
    assert mask.unique().tolist() == [3, 7, 255] and mask[0, 0] == 255


def test_masks_move_with_their_images():
    image, mask = draw(0)
    image = tv_tensors.Image(mask.expand(3, -1, -1).clone())  # so that both must stay equal
    for transform in (
        v2.RandomHorizontalFlip(1.0),
        v2.RandomCrop(20),
        v2.RandomAffine(30, interpolation=NEAREST),
    ):
        with fix_seed(1):
            moved, labels = Chain(None, [transform])(image, mask)
        assert torch.equal(moved[0].as_subclass(torch.Tensor)[labels != 255], labels.as_subclass(torch.Tensor)[labels != 255])


def interpolate(image, mask):
    """A mistake: the mask is resized like an image."""
    resized = v2.functional.resize(tv_tensors.Image(mask[None]), [7, 7], BILINEAR)
    return v2.functional.resize(image, [7, 7]), tv_tensors.Mask(resized[0])


@pytest.mark.parametrize(
    ("transform", "sentence"),
    [
        (interpolate, "interpolate gives masks values that they did not have"),
        (v2.ToDtype(torch.float32), r"returns an image of torch\.float32 and a mask of .*: both must keep their type"),
        (lambda image, mask: image, "does not return an image and a mask"),
        (lambda image, mask: (image[:, 1:], mask), "both must have one height and width"),
        (v2.RandomRotation(9, fill=124), "fills masks with 124: leave fill at 0"),
        (v2.Compose([v2.Pad(1, fill=124)]), "fills masks with 124: leave fill at 0"),
    ],
)
def test_a_wrong_transform_is_one_sentence(transform, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        Chain(None, [transform])(*draw(0))
    assert "\n" not in str(caught.value)


def test_callables_get_class_ids():
    def require_ids(image, mask):
        assert set(mask.unique().tolist()) <= {3, 255}
        return image, mask

    Chain(None, [v2.Pad(2), require_ids])(*draw(0, values=(3,)))


def test_transforms_are_seeded_by_epoch_and_index():
    split = Shapes(images=(4, 1, 1)).split("train")
    chain = Chain(ScaleAndCrop((32, 64), (0.8, 1.2)), [v2.RandomAffine(30), v2.ColorJitter(0.5)])
    images, again = (Images(split, chain, seed=3) for _ in range(2))
    first = images[1, 2]
    torch.rand(7)
    images[0, 3]
    assert all(torch.equal(first[key], again[1, 2][key]) for key in ("image", "mask"))
    assert not torch.equal(first["image"], images[2, 2]["image"])


def test_the_key_of_cached_features_has_the_transforms(tmp_path):
    make(tmp_path, "{split}/images/{n}.png", "{split}/masks/{n}.png")
    keys = [
        describe_images(Folder(root=str(tmp_path), transforms=transforms))
        for transforms in (None, [v2.ColorJitter(0.5)], [v2.ColorJitter(0.4)], [v2.ColorJitter(0.5)])
    ]
    assert keys[1] == keys[3] and keys[0] != keys[1] != keys[2]
    assert "ColorJitter(brightness=(0.5, 1.5))" in keys[1]["augmentation"]
    with pytest.raises(UserError, match="give it a __repr__ of all its values"):
        describe_images(Folder(root=str(tmp_path), transforms=[type("Mine", (), {"__call__": lambda self, *both: both})()]))


def test_transforms_are_written_in_yaml_by_short_names(tmp_path, capsys):
    make(tmp_path / "data", "{split}/images/{n}.png", "{split}/masks/{n}.png")
    affine = {"class_path": "RandomAffine", "init_args": {"degrees": 20, "scale": [0.5, 1.5]}}
    content = {"data": {"init_args": {"transforms": ["RandomGrayscale(p=0.5)", affine, "RandomVerticalFlip()"]}}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(content))
    call = [*FIT, f"--data.root={tmp_path}/data", f"--config={tmp_path}/more.yaml"]
    listed = yaml.safe_load(resolve_experiment(call))["data"]["init_args"]["transforms"]
    assert [entry["class_path"].rpartition(".")[2] for entry in listed] == [
        "RandomGrayscale",
        "RandomAffine",
        "RandomVerticalFlip",
    ]
    assert main(["fit", *call, f"--run_dir={tmp_path}/run"]) == 0
    assert Run(tmp_path / "run").finished
    assert main(["fit", *call, "--data.transforms=[RandomGreyscale]", f"--run_dir={tmp_path}/other"]) == 2
    assert "RandomGreyscale" in capsys.readouterr().err
