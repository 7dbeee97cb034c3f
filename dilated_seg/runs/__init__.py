"""Runs, their checkpoints and their evaluations. Only this package contains the file names of a run."""

from dilated_seg.runs.checkpoint import Checkpoint
from dilated_seg.runs.evaluation import EvaluatedImage, Evaluation
from dilated_seg.runs.protocol import EvaluationProtocol
from dilated_seg.runs.run import Run

__all__ = ["Checkpoint", "EvaluatedImage", "Evaluation", "EvaluationProtocol", "Run"]
