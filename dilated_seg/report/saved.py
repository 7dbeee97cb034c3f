"""A comparison as a directory: COMPARISON names the rows and claims, and the runs of the rows are below it."""

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dilated_seg.errors import UserError
from dilated_seg.report.claims import Claim, read_claims
from dilated_seg.report.results import Result, find_results
from dilated_seg.runs import Run
from dilated_seg.runs.saved import save_results
from dilated_seg.storage import write_text

COMPARISON = "comparison.json"
COPIED = ("selection.json",)  # of an ablation that selects


@dataclass(frozen=True)
class SavedComparison:
    """The contents of a comparison, without values that are computed from them.

    Args:
        title: The title of the page.
        command: The command that trained and evaluated all; empty if unknown.
        results: One evaluation for each row and seed.
        claims: Statements to test.
        missing: Names of runs that are not finished.
    """

    title: str
    command: str
    results: Sequence[Result]
    claims: Sequence[Claim] = ()
    missing: Sequence[str] = ()

    @classmethod
    def find(cls, directories: Sequence[str | Path], evaluation: str | None = None) -> "SavedComparison":
        """Read the comparison of a directory that `ablate` or `save` wrote, or find the runs in directories.

        Raises:
            UserError: A directory holds no evaluated run, or the runs have no evaluation in common.
        """
        if len(directories) == 1 and evaluation is None and (Path(directories[0]) / COMPARISON).is_file():
            return cls.read(Path(directories[0]))
        return cls("Comparison", "", find_results(directories, evaluation))

    @classmethod
    def read(cls, directory: Path) -> "SavedComparison":
        """Read the comparison of a directory.

        Raises:
            UserError: Its file is damaged, or an evaluation is missing.
        """
        file = directory / COMPARISON
        try:
            content = json.loads(file.read_text("utf-8"))
            rows = [(row["network"], Run(directory / row["run"]), row["evaluation"]) for row in content["rows"]]
            title, command, claims, missing = (content[key] for key in ("title", "command", "claims", "missing"))
            claimed = {claim[role] for claim in claims for role in ("better", "worse")}  # also of runs that failed
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} cannot be read as a comparison: run the ablation again, which writes it") from error
        results = [Result(name, run, run.evaluation(evaluation)) for name, run, evaluation in rows]
        return cls(title, command, results, read_claims(file, claims, claimed), missing)

    def write(self, directory: Path) -> None:
        """Write COMPARISON into the directory that the runs are below."""
        rows = [
            {"network": result.name, "run": os.path.relpath(result.run, directory), "evaluation": result.evaluation.name}
            for result in self.results
        ]  # fmt: skip
        claims = [{key: value for key, value in asdict(claim).items() if value is not None} for claim in self.claims]
        content = {"title": self.title, "command": self.command, "rows": rows, "claims": claims, "missing": self.missing}
        write_text(directory / COMPARISON, json.dumps(content, indent=1) + "\n")

    def save(self, directory: Path) -> "SavedComparison":
        """Copy the comparison into a directory, without weights, images and paths of this machine, and return the copy.

        Raises:
            UserError: The directory exists and is not such a copy.
        """
        if directory.exists() and not (directory / COMPARISON).is_file() and any(directory.iterdir()):
            raise UserError(f"--save {directory} has other files: name a new directory")
        runs = {result.run.path: result.run for result in self.results}
        common = Path(os.path.commonpath([run.path.resolve().parent for run in runs.values()]))
        above = next((path for path in (common, *common.parents) if (path / COMPARISON).is_file()), common)
        if directory.resolve() in (above, *above.parents):
            raise UserError(f"--save {directory} holds these runs: name another directory")
        shutil.rmtree(directory, ignore_errors=True)
        copies = {}
        for path, run in runs.items():
            names = {result.evaluation.name for result in self.results if result.run.path == path}
            copies[path] = save_results(run, names, directory / path.resolve().relative_to(above), (above, directory))
        for file in (above / name for name in COPIED):
            if file.is_file():
                shutil.copyfile(file, directory / file.name)
        results = [Result(result.name, copies[result.run.path], result.evaluation) for result in self.results]
        saved = replace(self, command=drop_option(self.command, "--out"), results=results)
        saved.write(directory)
        return self.read(directory)


def drop_option(command: str, option: str) -> str:
    """Return a command without an option and its value."""
    words = shlex.split(command)
    drop = [k for k, word in enumerate(words) if word == option or words[k - 1 : k] == [option]]
    return shlex.join(word for k, word in enumerate(words) if k not in drop and not word.startswith(f"{option}="))
