"""The numbers: one confusion matrix a split, compared with plain NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.classification import MulticlassJaccardIndex

from dilated_seg.metrics import SegmentationMetrics
from dilated_seg.metrics.confusion import compute_metrics, confusion_matrices
from dilated_seg.tensors import predict


def plain(prediction, mask, num_classes, ignore_index):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for truth, predicted in zip(mask.ravel(), prediction.ravel(), strict=True):
        if truth != ignore_index:
            matrix[truth, predicted] += 1
    return matrix


@settings(deadline=None, max_examples=60)
@given(data=st.data(), num_classes=st.integers(1, 6), ignore_index=st.sampled_from([255, 0, 7]))
def test_matrices_equal_a_plain_count_with_ignored_and_absent_classes(data, num_classes, ignore_index):
    values = [*range(num_classes), ignore_index]
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
    mask = data.draw(arrays(np.uint8, shape, elements=st.sampled_from(values)))
    prediction = data.draw(arrays(np.int64, shape, elements=st.integers(0, num_classes - 1)))
    ours = confusion_matrices(torch.from_numpy(prediction), torch.from_numpy(mask), num_classes, ignore_index)
    for i in range(shape[0]):
        assert np.array_equal(ours[i].numpy(), plain(prediction[i], mask[i], num_classes, ignore_index))


def test_scores_agree_with_torchmetrics_on_random_masks():
    torch.manual_seed(0)
    mask, prediction = torch.randint(0, 5, (4, 20, 20)), torch.randint(0, 5, (4, 20, 20))
    mask[:, :3] = 255
    metrics = SegmentationMetrics(5)
    metrics.update(prediction, mask)
    expected = MulticlassJaccardIndex(5, ignore_index=255, average=None)(prediction, mask)
    torch.testing.assert_close(metrics.compute()["iou"].float(), expected)


def test_mean_iou_is_of_the_split_not_the_mean_of_images():
    mask = torch.zeros(2, 10, 10, dtype=torch.int64)
    mask[0, 0, 0] = 1
    prediction = torch.zeros_like(mask)
    prediction[1, 0, 0] = 1
    values = compute_metrics(confusion_matrices(prediction, mask, 2).sum(0))
    assert values["mean_iou"].item() == pytest.approx((198 / 200 + 0 / 2) / 2)


def test_an_absent_class_is_left_out_and_a_class_only_predicted_counts_zero():
    mask, prediction = torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 2]]])
    values = compute_metrics(confusion_matrices(prediction, mask, 4).sum(0))
    assert values["iou"].isnan().tolist() == [False, True, False, True]
    assert values["iou"][[0, 2]].tolist() == [0.75, 0.0]
    assert values["mean_iou"].item() == 0.375
    assert values["mean_accuracy"].item() == 0.75


def test_all_scores_of_a_matrix_worked_out_by_hand():
    values = compute_metrics(torch.tensor([[6, 2], [1, 11]]))
    assert values["pixel_accuracy"].item() == pytest.approx(17 / 20)
    assert values["mean_accuracy"].item() == pytest.approx((6 / 8 + 11 / 12) / 2)
    assert values["mean_iou"].item() == pytest.approx((6 / 9 + 11 / 14) / 2)
    assert values["frequency_weighted_iou"].item() == pytest.approx(8 / 20 * 6 / 9 + 12 / 20 * 11 / 14)


def test_batches_of_any_size_count_the_same_integers():
    mask, logits = torch.randint(0, 4, (7, 9, 11)), torch.randn(7, 4, 9, 11)
    matrices = []
    for size in (1, 3, 7):
        metrics = SegmentationMetrics(4)
        for start in range(0, 7, size):
            metrics.update(logits[start : start + size], mask[start : start + size])
        matrices.append(metrics.matrix)
    assert torch.equal(matrices[0], matrices[1])
    assert torch.equal(matrices[0], matrices[2])


def test_logits_and_their_highest_class_are_the_same_prediction():
    logits = torch.randn(2, 3, 4, 5)
    assert torch.equal(predict(logits), logits.argmax(1))


@pytest.mark.parametrize(("mask", "prediction"), [(4, 0), (254, 0), (0, 4), (0, -1)])
def test_values_that_are_no_class_are_refused(mask, prediction):
    with pytest.raises(ValueError, match="holds"):
        SegmentationMetrics(4).update(torch.full((1, 2, 2), prediction), torch.full((1, 2, 2), mask))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(1, 25), st.integers(1, 70), st.integers(1, 130), st.booleans(), st.integers(0, 2**31))
def test_the_predicted_class_is_the_first_of_the_highest_scores(count, classes, height, width, last, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (count, classes, height, width), generator=generator).float()  # with many ties
    if last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(predict(logits), logits.max(1).indices)
    logits[0, classes // 2, 0, 0] = torch.nan
    assert predict(logits)[0, 0, 0] == classes // 2
