"""Add to what is built from the repository: the experiments, which are at its top, and the commit."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DESCRIBE = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]


class BuildWithExperiments(build_py):
    """Copy ``experiments/`` into the built package and note the commit; an editable install reads both where they are."""

    def run(self) -> None:
        """Build the package, then add to it."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib, "dilated_seg")
        shutil.rmtree(package / "experiments", ignore_errors=True)  # of an earlier build
        for file in set(Path("experiments").rglob("*.yaml")) - set(Path("experiments/results").rglob("*")):
            place = package / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        if Path(".git").exists() and shutil.which("git"):
            commit = subprocess.run(DESCRIBE, capture_output=True, text=True).stdout.strip()
            (package / "COMMIT").write_text(commit)


setup(cmdclass={"build_py": BuildWithExperiments})
