"""The report at W&B: a run of its own, with the page, the table and all files of the folder."""

import os
import shlex
from pathlib import Path

import wandb

from dilated_seg.report.comparison import Comparison
from dilated_seg.report.sections import table_rows
from dilated_seg.training.loggers import DEFAULTS, Wandb, finish, online

KEPT = (".html", ".md", ".png", ".csv", ".parquet")


def publish(comparison: Comparison, folder: Path) -> None:
    """Log a report that was written into a folder; if W&B is offline it waits there for ``wandb sync``."""
    if os.environ.get("WANDB_MODE") == "disabled":
        print("the report is not logged: WANDB_MODE is disabled")
        return
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    project = os.environ.get("WANDB_PROJECT", "dilated_seg")
    name = f"report of {folder.resolve().name}"
    logger = Wandb(name=name, save_dir=folder, project=project, job_type="report", offline=not online())
    header, rows = table_rows(comparison)
    page = wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)
    logger.log_metrics({"report": page, "comparison": wandb.Table(columns=[*header], data=rows)}, 0)
    logger.log_files("report", "report", [path for path in sorted(folder.iterdir()) if path.suffix in KEPT])
    offline = logger.lost or logger.experiment.offline
    finish()
    print(f"W&B: {f'wandb sync {shlex.quote(str(folder))}/wandb/offline-run-*' if offline else name}")
