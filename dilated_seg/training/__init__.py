"""Callbacks, loggers and the recipe around training and evaluation; YAML names them by class name."""

from dilated_seg.training.cached_front_end import CachedFrontEnd
from dilated_seg.training.evaluation import EvaluationRecord
from dilated_seg.training.freeze import Freeze
from dilated_seg.training.gallery import Gallery, PredictionWriter
from dilated_seg.training.interruption import KeepGradients, SaveOnError, SeedEveryStep
from dilated_seg.training.labels import NothingToLearnError, RequireLabels
from dilated_seg.training.processes import ProcessTimeout
from dilated_seg.training.progress import Progress, Throughput, ValidationLines
from dilated_seg.training.recipe import Recipe
from dilated_seg.training.run_record import RunRecord
from dilated_seg.training.signals import StopOnSignal

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
    "RunRecord",
    "SaveOnError",
    "SeedEveryStep",
    "StopOnSignal",
    "Throughput",
    "ValidationLines",
]
