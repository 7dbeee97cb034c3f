"""Dashboards of an ablation at W&B: a workspace to explore its runs, and a report with the same panels."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
from wandb_workspaces import expr, workspaces
from wandb_workspaces.reports.v2 import interface as reports

from dilated_seg.ablation import read_rows
from dilated_seg.ablation.plan import Ablation
from dilated_seg.ablation.selection import describe_selection, read_choices
from dilated_seg.errors import format_error
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.markdown import render_row
from dilated_seg.report.results import Result, describe_shared_protocol
from dilated_seg.report.sections.result import tabulate_networks
from dilated_seg.storage import write_text
from dilated_seg.training.lightning_internals import dump_wandb_view, set_workspace_identity, workspace_identity
from dilated_seg.training.wandb_status import is_online

STEP = "trainer/global_step"
REPORT_COLUMNS = 24  # the width of a report, in units of its layout

Panels = dict[str, list[Any]]  # by title of the section


def publish(ablation: Ablation) -> None:
    """Save workspace and report at W&B and print their addresses; offline, write them into the ablation's directory.

    The files contain the requests to W&B's server. A second call updates the same workspace and report.
    """
    results = read_rows(ablation)
    if not results:
        print("no dashboard: no run is finished", file=sys.stderr)
        return
    directory = ablation.directory / "dashboard"
    os.environ.setdefault("WANDB_SILENT", "true")
    if is_online():
        try:
            entity = os.environ.get("WANDB_ENTITY") or str(wandb.Api(timeout=20).default_entity)
            save_online(build_workspace(ablation, results, entity), build_report(ablation, results, entity), directory)
            return
        except Exception as error:  # of W&B's client or server
            print(f"W&B rejected the dashboard: {format_error(error)}", file=sys.stderr)
    # without an entity, nothing is sent
    write_text(directory / "workspace.json", dump_wandb_view(build_workspace(ablation, results, "")) + "\n")
    write_text(directory / "report.json", dump_wandb_view(build_report(ablation, results, "")) + "\n")
    print(
        f"dashboard: {directory}/workspace.json, report.json; to publish it: find {shlex.quote(str(ablation.directory))} "
        "-name 'offline-run-*' -exec wandb sync {} +, then this command again with a key"
    )


def save_online(workspace: workspaces.Workspace, report: reports.Report, directory: Path) -> None:
    """Save workspace and report at W&B's server; replace those of an earlier call."""
    published = directory / "published.json"
    ids = json.loads(published.read_text()) if published.is_file() else {"name": "", "id": "", "report": ""}
    report.id = ids["report"]
    set_workspace_identity(workspace, ids["name"], ids["id"])
    workspace.save()  # type: ignore[no-untyped-call]
    ids |= workspace_identity(workspace)
    write_text(published, json.dumps(ids) + "\n")
    report.save()
    write_text(published, json.dumps(ids | {"report": report.id}) + "\n")
    print(f"workspace: {workspace.url}\nreport: {report.url}")


def get_project() -> str:
    """Return the W&B project that the runs are logged to."""
    return os.environ.get("WANDB_PROJECT", "dilated_seg")


def select_runs(ablation: Ablation) -> list[Any]:
    """Return W&B's filters for the runs of an ablation: trainings, and evaluations without a CRF."""
    command = "test" if ablation.split == "test" else "validate"
    return [expr.Metric("Group") == ablation.group, expr.Metric("JobType").isin(["fit", command])]


def build_workspace(ablation: Ablation, results: Sequence[Result], entity: str) -> workspaces.Workspace:
    """Build the workspace of an ablation's runs, grouped by network."""
    panels = list_panels(ablation.split, results[0].evaluation.classes)
    return workspaces.Workspace(
        entity=entity,
        project=get_project(),
        name=ablation.name,
        sections=[workspaces.Section(name=name, panels=section, is_open=True) for name, section in panels.items()],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=len(ablation.runs)),
        runset_settings=workspaces.RunsetSettings(
            filters=select_runs(ablation),
            groupby=[expr.Metric("Name")],
            pinned_columns=["run:displayName", f"summary:{ablation.split}/mean_iou"],
        ),
    )


def build_report(ablation: Ablation, results: Sequence[Result], entity: str) -> reports.Report:
    """Build the report of an ablation's runs: comparison table, evaluation protocol, selection and panels."""
    header, rows = tabulate_networks(Comparison(results))
    table = "\n".join(map(render_row, [header, ["---"] * len(header), *rows]))
    protocol = f"{describe_shared_protocol(results)}; in percent."
    filters = select_runs(ablation)
    runs = reports.Runset(entity=entity, project=get_project(), name=ablation.name, filters=filters, groupby=["Name"])
    selected = (
        [describe_selection(ablation.selection).replace("**", ""), *map(str, read_choices(ablation))]
        if ablation.selection
        else []
    )
    blocks: list[Any] = [reports.MarkdownBlock(table), reports.P(protocol), *map(reports.P, selected)]
    for name, section in list_panels(ablation.split, results[0].evaluation.classes).items():
        blocks += [reports.H2(name), reports.PanelGrid(runsets=[runs], panels=section)]
    return reports.Report(
        entity=entity, project=get_project(), title=ablation.name[:128], description=protocol, width="fluid", blocks=blocks
    )


def list_panels(split: str, classes: Sequence[str]) -> Panels:
    """Return the panels of each section, two or three in a row; the table of images has a row of its own."""
    by_name: dict[str, Any] = {"groupby": "Name", "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    curves: dict[str, Any] = {"x": STEP, **by_name}
    sections: Panels = {
        "Result": [
            reports.BarPlot(title=f"{split}: mean IoU", metrics=[f"{split}/mean_iou"], range_x=(0, 1), **by_name),
            reports.LinePlot(title="validation: mean IoU", y=["val/mean_iou"], range_y=(0, 1), **curves),
        ],
        "IoU of each class": [
            reports.BarPlot(title=name, metrics=[f"{split}/iou/{name}"], range_x=(0, 1), **by_name) for name in classes
        ],
        "Training": [
            reports.LinePlot(title="training loss", y=["train/loss"], log_y=True, **curves),
            reports.LinePlot(title="norm of the gradient", y=["train/gradient_norm"], log_y=True, **curves),
            reports.LinePlot(title="learning rate", metric_regex="^lr-[^/]+/pg1$", **curves),
            reports.LinePlot(title="images a second", y=["train/images_per_second"], **curves),
            reports.LinePlot(title="memory, GB", y=["train/memory_gb"], **curves),
        ],
        "Confusion": [
            reports.CustomChart(
                query={"summaryTable": {"tableKey": f"{split}/confusion_table"}},
                chart_name="wandb/confusion_matrix/v1",
                chart_fields={"Actual": "truth", "Predicted": "prediction", "nPredictions": "percent of truth"},
                chart_strings={"title": "percent of each class's pixels (rows: truth)"},
            ),
            reports.MediaBrowser(title="confusion", media_keys=[f"{split}/confusion_picture"], num_columns=3),
        ],
        "Images, truth and prediction": [reports.WeavePanelSummaryTable(table_name=f"{split}/images")],
    }
    for panels in sections.values():
        lay_out(panels, columns=min(len(panels), 2 if len(panels) < len(classes) else 3))
    return sections


def lay_out(panels: Sequence[Any], columns: int) -> None:
    """Set the layout of panels in rows of ``columns``; a single panel is twice as high."""
    width = REPORT_COLUMNS // columns
    for k, panel in enumerate(panels):
        x, y = k * width % REPORT_COLUMNS, k * width // REPORT_COLUMNS * 8
        panel.layout = reports.Layout(x=x, y=y, w=width, h=16 if len(panels) == 1 else 8)
