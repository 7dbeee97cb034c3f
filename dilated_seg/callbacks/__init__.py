"""What happens around training and evaluation; an experiment's YAML names these as dilated_seg.callbacks.NAME."""

from dilated_seg.callbacks.evaluation import EvaluationRecord
from dilated_seg.callbacks.freeze import Freeze
from dilated_seg.callbacks.labels import NothingToLearnError, RequireLabels
from dilated_seg.callbacks.pictures import Gallery, PredictionWriter
from dilated_seg.callbacks.progress import Progress, Throughput, ValidationLines
from dilated_seg.callbacks.recipe import Recipe
from dilated_seg.callbacks.resume import KeepGradients, ProcessTimeout, SaveOnError, SeedEveryStep, StopOnSignal
from dilated_seg.callbacks.scores import CachedFrontEnd

__all__ = [
    "CachedFrontEnd",
    "EvaluationRecord",
    "Freeze",
    "Gallery",
    "KeepGradients",
    "NothingToLearnError",
    "PredictionWriter",
    "ProcessTimeout",
    "Progress",
    "Recipe",
    "RequireLabels",
    "SaveOnError",
    "SeedEveryStep",
    "StopOnSignal",
    "Throughput",
    "ValidationLines",
]
