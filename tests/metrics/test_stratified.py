"""Every valid pixel of an image lies in one stratum of each stratification: against definitions written out pixel by pixel."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion, label

from dilated_seg.errors import UserError
from dilated_seg.metrics.confusion import confusion_matrices
from dilated_seg.metrics.stratified import (
    MAX_BOUNDARY_DISTANCE,
    SIZES,
    STRATA,
    count_strata,
    get_band_width,
    measure_boundary_distance,
)
from dilated_seg.report.results import measure_difficulty
from dilated_seg.runs.strata import count_batch, read_strata, write_strata
from tests.support.evaluations import make_protocol

CLASSES = 3
SQUARE = np.ones((3, 3), bool)
LABELS = st.tuples(st.integers(0, 12), st.integers(0, 12)).flatmap(
    lambda shape: st.tuples(
        arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255])), arrays(np.int64, shape, elements=st.integers(0, 2))
    )
)


def sizes(values):
    """The pixels of the region that each pixel lies in."""
    found = np.zeros(values.shape, int)
    for value in np.unique(values):
        regions = label(values == value, SQUARE)[0]
        found[values == value] = np.bincount(regions.ravel())[regions[values == value]]
    return found


def to_another_value(values):
    """The chessboard distance of each pixel to the nearest one of another value; a thousand if there is none."""
    found = np.full(values.shape, 1000)
    for pixel in np.ndindex(values.shape):
        others = np.argwhere(values != values[pixel])
        found[pixel] = np.abs(others - pixel).max(1).min(initial=1000)
    return found


def slowly(prediction, mask):
    """What ``strata`` counts, by the words of its documentation."""
    prediction, valid, d = np.where(mask == 255, 255, prediction), mask != 255, get_band_width(*mask.shape)
    near_truth, near_prediction = to_another_value(mask) <= d, to_another_value(prediction) <= d
    found = {
        "size": np.digitize(sizes(mask), SIZES),
        "boundary": np.minimum(to_another_value(mask), MAX_BOUNDARY_DISTANCE + 1),
        "boundary_iou": near_truth + 2 * near_prediction,
    }
    counts = {name: np.zeros((number, CLASSES, CLASSES), int) for name, number in STRATA.items()}
    for name, stratum in found.items():
        np.add.at(counts[name], (stratum[valid], mask[valid], prediction[valid]), 1)
    return counts


def blobs(height, width, seed, void=True):
    """A prediction and a mask of regions of many sizes."""
    rng = np.random.default_rng(seed)
    side = 1 + seed % 5
    shape = (2, -(-height // side), -(-width // side))
    prediction, mask = rng.choice(CLASSES, shape, p=[0.8, 0.15, 0.05]).repeat(side, 1).repeat(side, 2)[:, :height, :width]
    mask = np.where(rng.random(mask.shape) < 0.02, 255, mask) if void else mask
    return prediction, mask.astype(np.uint8)


def one(prediction, mask):
    return {name: counts[0] for name, counts in count_strata(prediction[None], mask[None], CLASSES).items()}


def iou(counts):
    hits, truth, predicted = counts.sum(0)
    with np.errstate(invalid="ignore"):
        return hits / (truth + predicted - hits)


@pytest.fixture
def written(tmp_path):
    """Writes evaluations/val-last.* of some images as an evaluation does, and reads them; gives the file too."""

    def write(pairs):
        masks = torch.from_numpy(np.stack([mask for _, mask in pairs]))
        prediction = torch.from_numpy(np.stack([prediction for prediction, _ in pairs])).long()
        matrices = confusion_matrices(prediction, masks, CLASSES).numpy()
        ids = [f"image {i}" for i in range(len(pairs))]
        file = tmp_path / "val-last.strata.parquet"
        pq.write_table(pa.table({"id": ids, "matrix": [m.ravel() for m in matrices]}), tmp_path / "val-last.parquet")
        write_strata(
            file, ids, count_batch({"mask": masks}, prediction.numpy(), CLASSES, 255), make_protocol(), ["a", "b", "c"]
        )
        return file, matrices

    return write


@settings(max_examples=150, deadline=None)
@given(LABELS)
def test_each_stratification_counts_by_its_definition(labels):
    mask, prediction = labels
    found, expected = one(prediction, mask), slowly(prediction, mask)
    for name in STRATA:
        assert np.array_equal(found[name], expected[name]), name


@pytest.mark.parametrize(("height", "width", "seed"), [(50, 61, 0), (41, 30, 3), (1, 90, 4), (90, 1, 9), (60, 45, 14)])
def test_stratifications_count_by_definition_where_regions_are_large(height, width, seed):
    prediction, mask = blobs(height, width, seed)
    found, expected = one(prediction, mask), slowly(prediction, mask)
    for name in STRATA:
        assert np.array_equal(found[name], expected[name]), name


@pytest.mark.parametrize("limit", [1, 2, 7, 40, 46, 200])
@pytest.mark.parametrize("place", [(0, 0), (2, 101), (69, 55), (35, 60)])
def test_distances_from_one_pixel_are_exact_up_to_the_limit(limit, place):
    edges = np.zeros((70, 130), bool)
    edges[place] = True
    expected = 1 + np.abs(np.indices(edges.shape) - np.reshape(place, (2, 1, 1))).max(0)
    assert np.array_equal(measure_boundary_distance(edges, limit), np.minimum(expected, limit + 1))


@settings(max_examples=50, deadline=None)
@given(LABELS)
def test_the_strata_of_an_image_add_up_to_its_confusion_matrix(labels):
    mask, prediction = labels
    matrix = confusion_matrices(torch.from_numpy(prediction)[None], torch.from_numpy(mask)[None], CLASSES)[0].numpy()
    for name, counts in one(prediction, mask).items():
        assert np.array_equal(counts.sum(0), matrix), name


def test_a_square_that_is_seen_one_pixel_further_right_is_as_drawn_by_hand(written):
    mask, prediction = np.zeros((2, 9, 9), np.uint8)
    mask[3:6, 3:6] = prediction[3:6, 4:7] = 1
    file, _ = written([(prediction, mask)])
    found = read_strata(file)
    assert found.size(0, 0)[0, :, 1].tolist() == [6, 9, 9]  # 6 of 9 pixels are hit, 3 missed, 3 seen wrongly
    assert found.size(2, 2)[0].tolist() == [[69, 0, 0], [72, 0, 0], [72, 0, 0]]  # the background's 72 pixels
    assert found.trimap(1)[0, :, 1].tolist() == [5, 8, 8]  # all but the square's centre touch the boundary
    assert found.boundary_iou()[0, :, 1].tolist() == [4, 8, 8]  # d is 1: two rings of 8 pixels have 4 in common
    assert found.band(4, MAX_BOUNDARY_DISTANCE + 1).sum() == 0  # and no pixel is further than 3 from the square


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_boundary_iou_is_that_of_masks_minus_their_erosion(written, seed):
    pairs = [blobs(80, 95, seed, void=False)]
    file, _ = written(pairs)
    (prediction, mask), d = pairs[0], get_band_width(80, 95)
    assert d == 2
    for k, value in enumerate(iou(read_strata(file).boundary_iou())):
        truth, seen = (ids & ~binary_erosion(ids, SQUARE, iterations=d, border_value=1) for ids in (mask == k, prediction == k))
        assert value == (truth & seen).sum() / (truth | seen).sum()


def test_a_perfect_prediction_has_all_scores_1_where_a_class_occurs(written):
    pairs = [(np.where(mask == 255, 1, mask), mask) for _, mask in (blobs(60, 60, seed) for seed in range(6))]
    file, _ = written(pairs)
    found = read_strata(file)
    counts = [found.size(low, low) for low in range(len(SIZES) + 1)]
    counts += [found.trimap(width) for width in (1, 5, MAX_BOUNDARY_DISTANCE)] + [found.band(3, 9), found.boundary_iou()]
    for each in counts:
        values = iou(each)
        assert np.array_equal(np.isnan(values), each.sum((0, 1)) == 0)
        assert (values[~np.isnan(values)] == 1).all()


def test_what_is_read_adds_up_over_sizes_and_widths_to_the_plain_counts(written):
    file, matrices = written([blobs(48, 70, seed) for seed in range(5)])
    found = read_strata(file)
    plain = np.stack([matrices.diagonal(axis1=1, axis2=2), matrices.sum(2), matrices.sum(1)], 1)
    assert np.array_equal(found.matrices(), matrices)
    assert np.array_equal(found.size(0, len(SIZES)), plain)
    assert np.allclose(sum(found.size(low, low) for low in range(len(SIZES) + 1)), plain)
    beyond = MAX_BOUNDARY_DISTANCE + 1
    assert np.array_equal(found.trimap(MAX_BOUNDARY_DISTANCE) + found.band(beyond, beyond), plain)
    assert found.ids == [f"image {i}" for i in range(5)] and found.classes == ["a", "b", "c"] and found.sizes == SIZES


def test_images_of_unequal_size_are_counted_without_padding():
    pairs = [blobs(20, 33, 1), blobs(31, 14, 2), blobs(5, 40, 3)]
    masks, predictions = np.full((3, 31, 40), 255, np.uint8), np.zeros((3, 31, 40), np.int16)
    for i, (prediction, mask) in enumerate(pairs):
        predictions[i, : mask.shape[0], : mask.shape[1]], masks[i, : mask.shape[0], : mask.shape[1]] = prediction, mask
    batch = {"mask": torch.from_numpy(masks), "size": [mask.shape for _, mask in pairs]}
    for row, pair in zip(count_batch(batch, predictions, CLASSES, 255), pairs, strict=True):
        for name, expected in one(*pair).items():
            cells, counts = row[name]
            assert np.array_equal(cells, np.flatnonzero(expected)) and np.array_equal(counts, expected.ravel()[cells])


def test_images_that_are_counted_in_parts_count_as_at_once(monkeypatch):
    pairs = [blobs(20, 30, seed) for seed in range(5)]
    predictions, masks = (np.stack(images) for images in zip(*pairs, strict=True))
    found = []
    for pixels in (1, 1300, 1 << 18):
        monkeypatch.setattr("dilated_seg.runs.strata.PIXELS", pixels)
        rows = count_batch({"mask": torch.from_numpy(masks)}, predictions, CLASSES, 255)
        found.append([[part.tolist() for name in STRATA for part in row[name]] for row in rows])
    assert found[0] == found[1] == found[2] and len(found[0]) == 5


def test_many_classes_and_another_ignored_label_count_as_few():
    prediction, mask = blobs(40, 50, 4)
    other = np.where(mask == 255, -1, mask.astype(int) + 297)
    few, many = one(prediction, mask), count_strata(prediction[None] + 297, other[None], 300, -1)
    for name in STRATA:
        assert np.array_equal(many[name][0][:, 297:, 297:], few[name]) and many[name].sum() == few[name].sum()


@pytest.mark.parametrize("damage", ["cut", "foreign", "no lists", "other images", "other counts", "gone"])
def test_a_file_that_is_not_of_its_evaluation_is_refused_in_one_sentence(written, damage):
    file, matrices = written([blobs(20, 30, seed) for seed in range(2)])
    plain = file.with_name("val-last.parquet")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif damage == "foreign":
        file.write_bytes(plain.read_bytes())
    elif damage == "no lists":
        table = pq.read_table(file)
        numbers = pa.array([1, 2])
        pq.write_table(table.set_column(1, "truth_size_cells", numbers), file)
    elif damage == "gone":
        file.unlink()
    else:
        matrices[0, 0, 0] += damage == "other counts"
        ids = ["image 0", "image 1" if damage == "other counts" else "image 2"]
        pq.write_table(pa.table({"id": ids, "matrix": [m.ravel() for m in matrices]}), plain)
    with pytest.raises(UserError, match=r"val-last\.strata\.parquet .*(run|evaluate)"):
        read_strata(file)


def test_cells_of_no_class_are_refused(written):
    file, _ = written([blobs(20, 30, 1)])
    table = pq.read_table(file)
    facts = json.loads(table.schema.metadata[b"strata"])
    facts["classes"] = facts["classes"][:1]
    pq.write_table(table.replace_schema_metadata({"strata": json.dumps(facts)}), file)
    with pytest.raises(UserError, match="cannot be read"):
        read_strata(file)


def test_bins_and_distances_that_were_not_counted_are_refused(written):
    found = read_strata(written([blobs(20, 30, 1)])[0])
    for ask in (lambda: found.size(0, 7), lambda: found.size(3, 2), lambda: found.band(0, 4), lambda: found.trimap(42)):
        with pytest.raises(UserError, match=r"bins|distances"):
            ask()


def test_images_are_grouped_by_the_mean_error_of_runs_from_the_easiest_to_the_hardest():
    first = np.array([[[8, 2], [0, 0]], [[10, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 9], [0, 0]]])
    second = np.array([[[4, 6], [0, 0]], [[9, 1], [0, 0]], [[0, 0], [0, 0]], [[2, 8], [0, 0]]])
    assert measure_difficulty([first, second], groups=2).tolist() == [1, 0, 0, 1]
    assert measure_difficulty([first, second], groups=4).tolist() == [2, 1, 0, 3]
    assert np.bincount(measure_difficulty([np.eye(2, dtype=int)[None].repeat(11, 0)])).tolist() == [3, 2, 2, 2, 2]
