"""Experiment files: where the package has them, and how the command line finds one by name."""

from pathlib import Path
from typing import Any

import dilated_seg

PACKAGE = Path(dilated_seg.__file__).parent
# The built wheel holds them inside the package (setup.py), a checkout next to it.
EXPERIMENTS = next((path for path in (PACKAGE / "experiments", PACKAGE.parent / "experiments") if path.is_dir()), PACKAGE)


def find_experiment(name: str) -> str:
    """Return the path of an experiment or ablation: a local file, or else the package's own of that name.

    Args:
        name: A path, or the name of one of the package's files with or without ``experiments/``: ``shapes/frontend.yaml``.

    Returns:
        The path, or ``name`` unchanged if there is no such file.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or "://" in name or path.exists():
        return name
    packaged = EXPERIMENTS.joinpath(*path.parts[path.parts[0] == "experiments" :])
    return str(packaged) if packaged.is_file() and EXPERIMENTS in packaged.parents else name


def experiment_name(config: Any) -> Path:  # noqa: ANN401
    """Return a run's path below runs/: that of its experiment below experiments/, or the dataset's name."""
    for path in config.get("config") or []:
        file = Path(str(path)).resolve()
        if file.is_file():
            inside = EXPERIMENTS.resolve() in file.parents
            return file.relative_to(EXPERIMENTS.resolve()).with_suffix("") if inside else Path(file.stem)
    return Path(config["data"]["class_path"].rpartition(".")[2].lower())
