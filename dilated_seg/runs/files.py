"""The names of the files and directories in a run."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from dilated_seg.storage import write_text

CHECKPOINTS = "checkpoints"


class RunFiles:
    """The files of a run, whether they are there or not.

    Args:
        path: The run directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def config_file(self) -> Path:
        """The resolved experiment: YAML that ``fit --config`` takes."""
        return self.path / "config.yaml"

    @property
    def checkpoint_dir(self) -> Path:
        """The directory of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def evaluation_dir(self) -> Path:
        """The directory of evaluations."""
        return self.path / "evaluations"

    @property
    def receptive_field_dir(self) -> Path:
        """The directory of measured receptive fields."""
        return self.path / "receptive_fields"

    @property
    def crf_file(self) -> Path:
        """The CRF parameters that ``tune`` found: an overlay for ``--config``."""
        return self.path / "crf.yaml"

    @property
    def finished_file(self) -> Path:
        """The file that marks a finished training."""
        return self.path / "finished"

    @property
    def metrics_file(self) -> Path:
        """The metrics that the latest session logged."""
        return self.path / "metrics.csv"

    def gallery_dir(self, evaluation: str) -> Path:
        """Return the directory of images that an evaluation keeps."""
        return self.path / "gallery" / evaluation

    def prediction_dirs(self, names: Sequence[str] = ()) -> tuple[Path, Path]:
        """Return the directories of predictions and of a test server's files; the names are parts of theirs."""
        predictions, submission = ("-".join([name, *names]) for name in ("predictions", "submission"))
        return self.path / predictions, self.path / submission

    @property
    def is_run(self) -> bool:
        """Whether ``fit`` has begun a run here."""
        return self.config_file.is_file()

    @property
    def finished(self) -> bool:
        """Whether the training has taken its last step."""
        return self.finished_file.is_file()

    def mark_finished(self, step: int) -> None:
        """Note that the training has ended after this step."""
        write_text(self.finished_file, f"after step {step}\n")

    def keep_history(self) -> None:
        """Rename an earlier session's metrics.csv to metrics-N.csv: Lightning's logger would delete it."""
        if self.metrics_file.exists():
            number = len(list(self.path.glob("metrics-*.csv"))) + 1
            shutil.move(self.metrics_file, self.path / f"metrics-{number}.csv")
