"""The names of the files and directories in a run."""

from collections.abc import Sequence
from pathlib import Path

from dilated_seg.storage import write_text

CHECKPOINTS = "checkpoints"
PROTOCOL = "protocol.json"  # in directories of predictions


class RunPath:
    """A path in a run, as an attribute of `RunFiles`; it may not exist.

    Args:
        name: Relative to the run directory.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "RunFiles", owner: type | None = None) -> Path:
        return run.path / self.name


class RunFiles:
    """The paths of a run's files.

    Args:
        path: The run directory.
    """

    config_file = RunPath("config.yaml")  # the resolved experiment: YAML that `fit --config` takes
    checkpoint_dir = RunPath(CHECKPOINTS)
    evaluation_dir = RunPath("evaluations")
    receptive_field_dir = RunPath("receptive_fields")
    crf_file = RunPath("crf.yaml")  # the CRF parameters of `tune`: an overlay for --config
    finished_file = RunPath("finished")  # exists when training has ended
    metrics_file = RunPath("metrics.csv")  # of the latest session
    wandb_id_file = RunPath("wandb_id")

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    def gallery_dir(self, evaluation: str) -> Path:
        """Return the directory of the images that an evaluation keeps."""
        return self.path / "gallery" / evaluation

    def prediction_dirs(self, names: Sequence[str] = ()) -> tuple[Path, Path]:
        """Return the directories of predictions and of a test server's files, with ``names`` as parts of theirs."""
        predictions, submission = ("-".join([name, *names]) for name in ("predictions", "submission"))
        return self.path / predictions, self.path / submission

    @property
    def is_run(self) -> bool:
        """Whether this is the directory of a run."""
        return self.config_file.is_file()

    @property
    def finished(self) -> bool:
        """Whether the training has taken its last step."""
        return self.finished_file.is_file()

    def mark_finished(self, step: int) -> None:
        """Mark the training as finished after a step."""
        write_text(self.finished_file, f"after step {step}\n")

    def keep_history(self) -> None:
        """Rename an earlier session's metrics.csv to metrics-N.csv: Lightning's logger would delete it."""
        if self.metrics_file.exists():
            number = len(list(self.path.glob("metrics-*.csv"))) + 1
            self.metrics_file.rename(self.path / f"metrics-{number}.csv")
