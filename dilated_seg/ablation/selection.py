"""Selection of candidates: try each with few seeds, train the best with all seeds and evaluate it on another split."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dilated_seg.ablation.plan import Ablation, Chain, PlannedRun, Selection, group_chains, has_lost, is_finished
from dilated_seg.errors import UserError
from dilated_seg.runs import Run
from dilated_seg.storage import write_text

if TYPE_CHECKING:
    from dilated_seg.report.blocks import Section  # imports matplotlib

SELECT_KEYS = ("over", "by", "seeds", "then")
SPLITS = ("val", "test")


def read_selection(file: Path, content: Mapping[str, Any]) -> Selection | None:
    """Read the key ``select`` of an ablation file, without the settings of its candidates; None without the key.

    Raises:
        UserError: A value is missing or invalid, or contradicts another key.
    """
    select, seeds = content.get("select"), content.get("seeds", [0])
    if select is None:
        return None
    if not isinstance(select, dict) or not isinstance(select.get("over"), dict) or len(select["over"]) < 2:
        raise UserError(
            f"{file} selects over fewer than two candidates: write select: {{over: {{NAME: SETTINGS, NAME: SETTINGS}}}}"
        )
    if unknown := sorted(str(key) for key in select if key not in SELECT_KEYS):
        raise UserError(f"{file} has the unknown key 'select.{unknown[0]}': select has {', '.join(SELECT_KEYS)}")
    if "evaluate" in content:
        raise UserError(f"{file} has both evaluate and select: the split of the result is select.then, leave evaluate out")
    by, then, count = select.get("by", "val"), select.get("then", "test"), select.get("seeds", 1)
    for key, split in (("by", by), ("then", then)):
        if split not in SPLITS:
            raise UserError(f"{file} has select.{key} {split}: choose val or test")
    if type(count) is not int or not 1 <= count <= len(seeds):
        raise UserError(f"{file} has select.seeds {count}: give the number of seeds that try each candidate, 1 to {len(seeds)}")
    if not all(str(name) for name in select["over"]):
        raise UserError(f"{file} has a candidate without a name in select.over: name it, its directory gets this name")
    return Selection(by, then, tuple(map(str, select["over"])), tuple(seeds[:count]))


@dataclass(frozen=True)
class Choice:
    """The candidates of a network and the results that are known.

    With 2 seeds, ``scores`` {"lr 0.1": [0.52, 0.58], "lr 0.01": [0.56, 0.56], "lr 1": []} and ``lost`` {"lr 1"}, the candidate
    "lr 0.01" is selected: its mean is 0.56, that of "lr 0.1" 0.55. If it had one value only, none would be selected yet.

    Args:
        network: The network's name.
        scores: For each candidate, the mean IoU (0 to 1) of each seed that was trained and evaluated.
        lost: The candidates whose training diverged.
        seeds: The number of seeds that try each candidate.
    """

    network: str
    scores: Mapping[str, Sequence[float]]
    lost: Collection[str]
    seeds: int

    @property
    def selected(self) -> str | None:
        """The candidate with the highest mean, the first of equal ones; None until all were tried, or if all diverged."""
        remaining = [name for name in self.scores if name not in self.lost]
        if not remaining or any(len(self.scores[name]) < self.seeds for name in remaining):
            return None
        return max(remaining, key=lambda name: float(np.nan_to_num(np.mean(self.scores[name]), nan=-1)))

    def format_candidate(self, candidate: str) -> str:
        """Format a candidate's mean IoU in percent, or why it has none."""
        if candidate in self.lost:
            return "diverged"
        scores = self.scores[candidate]
        return f"{100 * np.mean(scores):.1f}" if len(scores) == self.seeds else "not tried yet"

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {self.format_candidate(name)}" for name in self.scores)
        return f"{self.network}: {f'{self.selected} of' if self.selected else 'none selected yet;'} {figures}"


def read_choices(ablation: Ablation) -> list[Choice]:
    """Read the results of each network's candidates; empty without a selection.

    Raises:
        UserError: An evaluation cannot be read.
    """
    selection = ablation.selection
    if selection is None:
        return []
    scores: dict[str, dict[str, list[float]]] = {}
    lost: dict[str, set[str]] = {}
    for chain in map(as_trial, group_chains(ablation.planned)):
        if chain is None:
            continue
        last = chain[-1]
        values = scores.setdefault(last.network, {}).setdefault(last.candidate, [])
        if has_lost(chain):
            lost.setdefault(last.network, set()).add(last.candidate)
        elif is_finished(last):
            values.append(Run(last.directory).evaluation(last.evaluations[0].name).mean_iou)
    seeds = len(selection.seeds)
    return [Choice(network, candidates, lost.get(network, ()), seeds) for network, candidates in scores.items()]


def as_trial(chain: Chain) -> Chain | None:
    """Return a chain with only the evaluation that compares candidates; None if its seed tries no candidates."""
    last = chain[-1]
    return (*chain[:-1], replace(last, evaluations=(last.trial,))) if last.trial else None


def as_selected(chain: Chain) -> Chain:
    """Return a chain with its evaluations for the report and the one that compares candidates."""
    last = chain[-1]
    missing = last.trial and all(last.trial.name != evaluation.name for evaluation in last.evaluations)
    return (*chain[:-1], replace(last, evaluations=(last.trial, *last.evaluations))) if last.trial and missing else chain


def advance(ablation: Ablation) -> Ablation:
    """Return the ablation with the runs that are known to be needed.

    Without a selection these are all runs. With one, they are the trials, and all seeds of the selected candidates.
    """
    if ablation.selection is None:
        return replace(ablation, runs=ablation.planned)
    selected = {choice.network: choice.selected for choice in read_choices(ablation)}
    runs: list[PlannedRun] = []
    for chain in group_chains(ablation.planned):
        is_selected = selected[chain[-1].network] == chain[-1].candidate
        runs += as_selected(chain) if is_selected else as_trial(chain) or ()
    return replace(ablation, runs=tuple(runs))


def write_selection(ablation: Ablation, choices: Sequence[Choice]) -> None:
    """Write selection.json into the ablation's directory: the selected candidate of each network and all results."""
    selection = ablation.selection
    if selection is None:
        return
    networks = {
        choice.network: {"selected": choice.selected, "mean_iou": choice.scores, "diverged": sorted(choice.lost)}
        for choice in choices
    }
    content = {"by": selection.by, "then": selection.then, "checkpoint": ablation.checkpoint, "seeds": selection.seeds}
    write_text(ablation.directory / "selection.json", json.dumps(content | {"networks": networks}, indent=1) + "\n")


def read_section(directory: Path) -> "Section | None":
    """Build the report's section on the selection from selection.json in an ablation's directory; None without the file.

    Raises:
        UserError: The file is damaged.
    """
    file = directory / "selection.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text("utf-8"))
        choices = [
            Choice(network, {name: tuple(scores) for name, scores in entry["mean_iou"].items()}, entry["diverged"], count)
            for count in [len(content["seeds"])]
            for network, entry in content["networks"].items()
        ]
        selection = Selection(content["by"], content["then"], tuple(choices[0].scores), tuple(content["seeds"]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file} cannot be read: run the ablation again, which writes it") from error
    return build_section(selection, choices)


def build_section(selection: Selection | None, choices: Sequence[Choice]) -> "Section | None":
    """Build the report's section on the selection: all candidates and their results; None without a selection."""
    from dilated_seg.report.blocks import ReportTable, Section

    if selection is None:
        return None
    header = ["network", *(f"{candidate}: mean IoU on {selection.by}" for candidate in selection.candidates), "selected"]
    rows = [
        [choice.network, *map(choice.format_candidate, selection.candidates), choice.selected or "none yet"]
        for choice in choices
    ]  # fmt: skip
    return Section("Selection", [describe_selection(selection), ReportTable("selection", header, rows)])


def describe_selection(selection: Selection) -> str:
    """Describe in a sentence or two how networks were selected."""
    seeds = f"seed{'s' if len(selection.seeds) > 1 else ''} {', '.join(map(str, selection.seeds))}"
    sentence = (
        f"Of each network {len(selection.candidates)} candidates were trained with {seeds}; the one with the highest mean IoU "
        f"on {selection.by} was trained with all seeds and scored on {selection.then}."
    )
    if selection.by != selection.then:
        return sentence
    return f"{sentence} **As networks were selected on {selection.by}, their scores on it are optimistic.**"
