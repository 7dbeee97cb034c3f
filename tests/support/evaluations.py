"""Evaluations of a test's own making."""

from pathlib import Path

import numpy as np

from dilated_seg.runs import Evaluation, EvaluationProtocol


def make_protocol(**values):
    """Return a protocol of which some values are given."""
    usual = {
        "dataset": "Made", "split": "test", "images": 1, "available": values.get("images", 1), "pixels": 1,
        "inference": "whole image", "model_crf": None, "precision": "32-true", "crf": None, "checkpoint": "last", "step": 9,
        "commit": "abc",
    }  # fmt: skip
    return EvaluationProtocol(**usual | values)


def make_evaluation(classes, matrix, directory="evaluations", name="test-last", **values):
    """Return an evaluation with this confusion matrix; the protocol is made of the other values."""
    matrix = np.asarray(matrix, np.int64)
    protocol = make_protocol(**{"pixels": int(matrix.sum())} | values)
    return Evaluation(Path(directory), name, protocol, list(classes), matrix, 1234, ignore_index=255, ignored_pixels=0)
