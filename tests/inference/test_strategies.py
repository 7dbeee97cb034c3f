"""Protocols of inference: what is the same however an image is looked at, and what DilatedNet's authors did."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dilated_seg.errors import UserError
from dilated_seg.inference.reflected_tiles import ReflectedTiles
from dilated_seg.inference.strategies import FullImage, MultiScale, Tiles, predict, predict_logits
from dilated_seg.models import FCN, DilatedNet, SegNetBasic, UNet
from dilated_seg.task import SegmentationTask
from tests.support.tolerance import SINGLE, assert_equal_but_for_rounding

SHARES = 4 * SINGLE  # the networks are in float64, shares of up to four tiles in float32
SAME_TILES = {"atol": 8 * SINGLE, "rtol": 1e-5}  # probabilities: tiles of one size differ in softmax and enlarging only
RESIZED = {"atol": 1e-5, "rtol": 1e-4}  # MultiScale resizes in float32, whose rounding every layer may double


def task(net, classes=5):
    """A task whose network says something everywhere: fresh weights of a few classes would all but agree."""
    for name, parameter in net.named_parameters():
        if parameter.ndim == 4 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
        if name.endswith(("final.weight", "score.weight")):
            torch.nn.init.normal_(parameter, std=1.0)
    return SegmentationTask(net, classes).model.double().eval().requires_grad_(False)


def picture(height, width, count=1):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


# Half of 380 and 8 pixels more for the front end, of 404 and twice 32 for FCN-8s, of 188 for U-Net, of 202 for SegNet-Basic.
@pytest.mark.parametrize(
    ("net", "size", "margin", "image"),
    [
        (DilatedNet(5, context=None, width=1 / 16), (448, 480), 198, (40, 640)),
        (UNet(5, width=1 / 16), (256, 288), 96, (300, 340)),
        (FCN(5, stride=8, width=1 / 16), (576, 576), 266, (640, 40)),
        (SegNetBasic(5, width=1 / 16), (256, 256), 104, (40, 340)),
    ],
    ids=["front end", "U-Net", "FCN-8s", "SegNet-Basic"],
)
def test_tiles_with_margins_of_the_receptive_field_equal_the_full_image(net, size, margin, image):
    model, image = task(net), picture(*image)
    inference = Tiles(size, 2 * margin, margin)
    expected, found = model(image).softmax(1), predict_logits(inference, model, image).softmax(1)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, atol=SHARES, rtol=0)
    narrow = predict_logits(Tiles(size, 64, 0), model, image).softmax(1)
    assert (narrow - expected).abs().max() > 1e-4  # the margin is what makes them equal


def test_an_image_that_fits_into_one_tile_is_segmented_as_a_full_image():
    model, image = task(UNet(5, width=1 / 16)), picture(45, 70)
    torch.testing.assert_close(predict_logits(Tiles(), model, image), model(image).log_softmax(1), atol=SHARES, rtol=0)


@given(st.integers(1, 900), st.integers(0, 100), st.integers(0, 50), st.integers(32, 120))
def test_the_shares_of_all_tiles_add_up_to_one_and_tiles_begin_on_the_grid(length, overlap, margin, more):
    overlap = max(overlap, 2 * margin)
    inference = Tiles((overlap + more, overlap + more), overlap, margin)
    tiles = inference.place_tiles(length, overlap + more, torch.device("cpu"))
    total = torch.zeros(length)
    for start, share in tiles:
        assert start % 32 == 0
        assert len(share) <= overlap + more + 31
        total[start : start + len(share)] += share
    torch.testing.assert_close(total, torch.ones(length))
    for (first, share), (second, _) in pairwise(tiles):
        assert first + len(share) - second >= overlap


def test_blended_tiles_fade_from_one_to_the_next():
    """A model that says of every pixel how many pixels of its tile lie left of it shows each pixel's mixture."""

    def place(image):
        left = torch.arange(image.shape[-1]).float().expand(len(image), 1, *image.shape[-2:])
        return torch.cat([left, torch.zeros_like(left)], 1) / 100

    found = predict_logits(Tiles((64, 64), 32, 0), place, picture(8, 96)).softmax(1)[0, 0, 0]
    alone = (torch.arange(96) / 100).sigmoid()
    torch.testing.assert_close(found[:32], alone[:32])
    torch.testing.assert_close(found[64:], (torch.arange(32, 64) / 100).sigmoid())
    share = (torch.arange(32) + 0.5) / 32
    torch.testing.assert_close(found[32:64], alone[32:64] * (1 - share) + alone[:32] * share)


def by_the_authors(net, image, size):
    """predict.py of the release, step by step in NumPy, around one network: scores of tiles, side by side, enlarged."""
    height, width = image.shape[-2:]
    padded = np.pad(image[0].numpy(), ((0, 0), (186, 186), (186, 186)), mode="reflect")
    step, rows = size - 372, []
    for top in range(0, height, step):
        row = []
        for left in range(0, width, step):
            tile = padded[:, top : top + size, left : left + size]
            tile = np.pad(tile, ((0, 0), (0, size - tile.shape[1]), (0, size - tile.shape[2])), mode="reflect")
            tile = torch.from_numpy(tile)[None].contiguous(memory_format=torch.channels_last)  # for the same kernels
            row.append(net.context(net.front_end(tile)).softmax(1))
        rows.append(torch.cat(row, 3))
    cells = F.pad(torch.cat(rows, 2), (0, 1, 0, 1), mode="replicate")
    size = [8 * (n - 1) + 1 for n in cells.shape[-2:]]
    return F.interpolate(cells, size, mode="bilinear", align_corners=True)[..., :height, :width]


@pytest.mark.parametrize("context", ["basic", "large"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (203, 227), (150, 313)])
def test_reflected_tiles_are_the_authors_protocol(context, height, width):
    net = DilatedNet(3, context, padding="reflect", width=1 / 16)
    model, image = task(net, 3).float(), picture(height, width)
    found = predict_logits(ReflectedTiles(372 + 96), model, image).softmax(1)
    torch.testing.assert_close(found, by_the_authors(net, model.normalize(image), 372 + 96), **SAME_TILES)


def test_one_reflected_tile_differs_from_the_whole_image_only_between_the_scores():
    model, image = task(DilatedNet(3, padding="reflect", width=1 / 16), 3).float(), picture(96, 96)
    found, expected = (
        predict_logits(inference, model, image).softmax(1) for inference in (ReflectedTiles(372 + 96), FullImage())
    )
    torch.testing.assert_close(found[..., ::8, ::8], expected[..., ::8, ::8], **SAME_TILES)
    assert (found - expected).abs().max() > 1e-5


def test_reflected_tiles_of_a_cityscapes_network_are_enlarged_one_by_one():
    net = DilatedNet(3, context_layers=10, padding="reflect", width=1 / 16)
    model, image = task(net, 3).float(), picture(64, 130)
    found = predict_logits(ReflectedTiles(372 + 64), model, image)
    one = predict_logits(ReflectedTiles(372 + 64), model, image[..., :64])
    assert found.shape == (1, 3, 64, 130)
    assert one.shape == (1, 3, 64, 64)
    torch.testing.assert_close(one, model(image[..., :64]), **RESIZED)  # one tile is the whole image


def test_reflected_tiles_refuse_networks_that_pad_by_themselves():
    for net in (DilatedNet(3, width=1 / 16), UNet(3, width=1 / 16)):
        with pytest.raises(UserError, match="padding: reflect"):
            predict_logits(ReflectedTiles(), task(net, 3), picture(9, 9))


def test_multi_scale_with_scale_1_without_flipping_equals_the_full_image():
    model, image = task(UNet(5, width=1 / 16)), picture(37, 50)
    found, expected = predict_logits(MultiScale([1.0], False), model, image), model(image).log_softmax(1)
    torch.testing.assert_close(found, expected, **RESIZED)


def test_with_flipping_predictions_of_an_image_and_its_mirror_image_agree():
    model, image = task(UNet(5, width=1 / 16)), picture(40, 64)
    found = predict_logits(MultiScale([0.5, 1.0]), model, image)
    torch.testing.assert_close(predict_logits(MultiScale([0.5, 1.0]), model, image.flip(3)).flip(3), found, **RESIZED)


def test_several_scales_are_the_mean_of_each_alone():
    model, image = task(UNet(5, width=1 / 16)), picture(33, 47)
    alone = [predict_logits(MultiScale([scale]), model, image).softmax(1) for scale in (0.5, 1.0, 1.75)]
    found = predict_logits(MultiScale([0.5, 1.0, 1.75]), model, image).softmax(1)
    assert_equal_but_for_rounding(found, torch.stack(alone).mean(0))


def test_scales_can_be_looked_at_in_tiles():
    model, image = task(UNet(5, width=1 / 16)), picture(150, 170)
    tiles = Tiles((96, 96), 32)
    found = predict_logits(MultiScale([1.0], False, tiles), model, image)
    torch.testing.assert_close(found, predict_logits(tiles, model, image.float()), **RESIZED)


@pytest.mark.parametrize("inference", [FullImage(), Tiles((64, 64), 16), MultiScale([0.25, 1.0]), ReflectedTiles(372 + 32)])
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (77, 3)])
def test_every_inference_strategy_accepts_any_size_and_predicts_the_argmax_of_its_logits(inference, size):
    model, image = task(DilatedNet(3, padding="reflect", width=1 / 16), 3).float(), picture(*size)
    found = predict(inference, model, image)
    assert found.dtype == torch.uint8
    assert found.equal(predict_logits(inference, model, image).max(1).indices.to(torch.uint8))


def test_bands_follow_each_other_from_top_to_bottom():
    for inference in (Tiles((64, 64), 32, 3), ReflectedTiles(372 + 32)):
        model = task(DilatedNet(3, padding="reflect", width=1 / 16), 3).float()
        rows = [rows for rows, _ in inference(model, picture(201, 40))]
        assert len(rows) > 2
        assert [row.start for row in rows] == [0, *(row.stop for row in rows[:-1])]
        assert rows[-1].stop == 201


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        (Tiles, {"size": (64, 64), "overlap": 40}),
        (Tiles, {"margin": 70}),
        (Tiles, {"margin": -1}),
        (ReflectedTiles, {"size": 901}),
        (ReflectedTiles, {"size": 372}),
        (MultiScale, {"scales": []}),
        (MultiScale, {"scales": [1.0, 0.0]}),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_sentence(protocol, options):
    with pytest.raises(ValueError, match=f"{protocol.__name__}: "):
        protocol(**options)


def test_a_protocol_has_a_name_for_files_and_words_for_people():
    assert (FullImage().name, str(FullImage())) == ("", "whole image")
    assert Tiles((513, 513), 64, 8).name == "tiles-513x513-64-8"
    assert MultiScale([0.5, 1.0], each=Tiles((512, 512), 64)).name == "scales-0.5-1-flip-tiles-512x512-64"
    assert "186" in str(ReflectedTiles())
    assert "mirrored" in str(MultiScale())
