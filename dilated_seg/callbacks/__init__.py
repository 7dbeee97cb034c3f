"""What happens around training and evaluation; an experiment's YAML names these as dilated_seg.callbacks.NAME."""

from dilated_seg.callbacks.evaluation import EvaluationRecord
from dilated_seg.callbacks.freeze import Freeze
from dilated_seg.callbacks.pictures import Gallery, PredictionWriter
from dilated_seg.callbacks.progress import Progress
from dilated_seg.callbacks.resume import KeepGradients, SeedEveryStep, StopOnSignal

__all__ = [
    "EvaluationRecord",
    "Freeze",
    "Gallery",
    "KeepGradients",
    "PredictionWriter",
    "Progress",
    "SeedEveryStep",
    "StopOnSignal",
]
