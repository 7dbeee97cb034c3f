"""Runs, their checkpoints and their evaluations: the only code that knows the names of files in a run."""

from dilated_seg.runs.checkpoint import Checkpoint
from dilated_seg.runs.evaluation import EvaluatedImage, Evaluation
from dilated_seg.runs.protocol import EvaluationProtocol
from dilated_seg.runs.run import Run

__all__ = ["Checkpoint", "EvaluatedImage", "Evaluation", "EvaluationProtocol", "Run"]
