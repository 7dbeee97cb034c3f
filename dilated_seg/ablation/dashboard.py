"""An ablation at W&B: a workspace to explore its runs in, and a report to show, of the same panels."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces import expr
from wandb_workspaces.reports.v2 import interface as reports

from dilated_seg.ablation.file import Ablation, finished
from dilated_seg.errors import format_error
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.markdown import render_row
from dilated_seg.report.sections import table_rows
from dilated_seg.runs.results import Result, read, shared_protocol
from dilated_seg.storage import write_text
from dilated_seg.training.loggers import online

STEP = "trainer/global_step"
WIDTH = 24  # of a report, in its own units


def publish(ablation: Ablation) -> None:
    """Save workspace and report at W&B if it is online, and print where; and as files in the ablation's folder.

    The files hold what W&B's server is sent. Published again, the same workspace and report change.
    """
    compared = [run for run in ablation.runs if run.compared and finished(run, ablation)]
    if not compared:
        print("no dashboard: no run is finished", file=sys.stderr)
        return
    results = [read(run.folder, ablation.evaluation, run.name) for run in compared]
    folder = ablation.folder / "dashboard"
    os.environ.setdefault("WANDB_SILENT", "true")
    if online():
        try:
            entity = os.environ.get("WANDB_ENTITY") or str(wandb.Api(timeout=20).default_entity)
            save(*build(ablation, results, entity), folder)
            return
        except Exception as error:  # whatever W&B's client or server comes up with
            print(f"W&B has not taken the dashboard: {format_error(error)}", file=sys.stderr)
    workspace, shown = build(ablation, results, entity="")
    specs = {"workspace": workspace._to_model(), "report": shown._to_model()}  # type: ignore[no-untyped-call]
    for name, model in specs.items():
        write_text(folder / f"{name}.json", model.model_dump_json(by_alias=True, exclude_none=True) + "\n")
    print(
        f"dashboard: {folder}/workspace.json, report.json; to publish it: find {shlex.quote(str(ablation.folder))} "
        "-name 'offline-run-*' -exec wandb sync {} +, then this command again with a key"
    )


def save(workspace: workspaces.Workspace, shown: reports.Report, folder: Path) -> None:
    """Save both at W&B's server, in the place of those that were saved before."""
    known = folder / "published.json"
    ids = json.loads(known.read_text()) if known.is_file() else {"name": "", "id": "", "report": ""}
    workspace._internal_name, workspace._internal_id, shown.id = ids["name"], ids["id"], ids["report"]
    workspace.save()  # type: ignore[no-untyped-call]
    ids |= {"name": workspace._internal_name, "id": workspace._internal_id}
    write_text(known, json.dumps(ids) + "\n")
    shown.save()
    write_text(known, json.dumps(ids | {"report": shown.id}) + "\n")
    print(f"workspace: {workspace.url}\nreport: {shown.url}")


def build(ablation: Ablation, results: Sequence[Result], entity: str) -> tuple[workspaces.Workspace, reports.Report]:
    """Workspace and report of an ablation's runs, the seeds of a network as one; without an entity, no server is asked."""
    project = os.environ.get("WANDB_PROJECT", "dilated_seg")
    chosen = [expr.Metric("Group") == ablation.group, expr.Metric("JobType") == "fit"]
    sections = panels(ablation.split, results[0].record["classes"])
    workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=ablation.name,
        sections=[workspaces.Section(name=name, panels=made, is_open=True) for name, made in sections.items()],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=len(ablation.runs)),
        runset_settings=workspaces.RunsetSettings(
            filters=chosen,
            groupby=[expr.Metric("Name")],
            pinned_columns=["run:displayName", f"summary:{ablation.split}/mean_iou"],
        ),
    )
    header, rows = table_rows(Comparison(results))
    lines = [header, ["---"] * len(header), *rows]
    protocol = f"{shared_protocol(results)}; in percent."
    runs = reports.Runset(entity=entity, project=project, name=ablation.name, filters=chosen, groupby=["Name"])
    shown = reports.Report(
        entity=entity,
        project=project,
        title=ablation.name[:128],
        description=protocol,
        width="fluid",
        blocks=[
            reports.MarkdownBlock("\n".join(map(render_row, lines))),
            reports.P(protocol),
            *(
                block
                for name, made in sections.items()
                for block in (reports.H2(name), reports.PanelGrid(runsets=[runs], panels=made))
            ),
        ],
    )
    return workspace, shown


def panels(split: str, classes: Sequence[str]) -> dict[str, list[Any]]:
    """What is shown, by section: two panels side by side, or three bars; the table of images by itself."""
    by_name: dict[str, Any] = {"groupby": "Name", "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    curves: dict[str, Any] = {"x": STEP, **by_name}
    sections: dict[str, list[Any]] = {
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
    for made in sections.values():
        width = WIDTH // min(len(made), 2 if len(made) < len(classes) else 3)
        for k, panel in enumerate(made):
            x, y = k * width % WIDTH, k * width // WIDTH * 8
            panel.layout = reports.Layout(x=x, y=y, w=width, h=16 if len(made) == 1 else 8)
    return sections
