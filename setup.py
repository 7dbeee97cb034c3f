"""Add the experiments, which are at the top of the repository, to what is built from it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithExperiments(build_py):
    """Copy ``experiments/`` into the built package; an editable install reads it where it is."""

    def run(self) -> None:
        """Build the package, then copy."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "dilated_seg", "experiments")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for file in Path("experiments").rglob("*.yaml"):
            place = target / file.relative_to("experiments")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


setup(cmdclass={"build_py": BuildWithExperiments})
