"""The summary that ``fit`` prints at its end: metrics, the best checkpoint, and the commands that come next."""

from pathlib import Path

from lightning import Trainer

from dilated_seg.errors import format_command
from dilated_seg.metrics.confusion import percent
from dilated_seg.report.terminal import show_evaluation
from dilated_seg.runs import Checkpoint, Evaluation, Run
from dilated_seg.storage import make_relative
from dilated_seg.training.evaluation import get_evaluations
from dilated_seg.training.loggers import SafeWandbLogger
from dilated_seg.training.progress import find_best


def show_training(trainer: Trainer, run_dir: Path) -> None:
    """Print how training ended: the last validation, the best checkpoint, and the commands that come next."""
    evaluations, best = get_evaluations(trainer), find_best(trainer)
    if evaluations:
        show_evaluation(*evaluations)
    run = Run(run_dir)
    if not run.is_run:  # fast_dev_run
        print(f"a rehearsal: {run} has no config.yaml, so it can be neither evaluated nor continued")
        return
    checkpoint = run.last_checkpoint.path
    if best and best.best_model_path and Path(best.best_model_path).is_file():
        checkpoint = make_relative(Path(best.best_model_path))
        step = Checkpoint(checkpoint).step
        score = "" if best.best_model_score is None else f", validation mean IoU {percent(best.best_model_score)} %"
        print(f"best checkpoint: {checkpoint}, step {step}{score}")
    else:
        print(f"no validation, so no checkpoint is the best; the last one: {checkpoint}, step {trainer.global_step}")
    print("next:")
    for command in list_commands(run, checkpoint, evaluations[0] if evaluations else None):
        print(f"  {command}")
    for logger in trainer.loggers:
        if isinstance(logger, SafeWandbLogger) and (logger.failed or logger.experiment.offline):
            print(f"  {format_command('wandb', 'sync', make_relative(Path(logger.experiment.settings.sync_dir)))}", flush=True)


def list_commands(run: Run, checkpoint: Path, evaluation: Evaluation | None) -> list[str]:
    """Return the commands that follow training: evaluate a checkpoint, segment an image with it, make a report."""
    commands = [format_command("dilated-seg", "validate", run.path)]
    images = sorted(run.gallery_dir(evaluation.name if evaluation else "val").glob("*.image.png"))
    if images:
        module = run.config.net.class_path.rpartition(".")[0]
        imports = () if module.startswith("dilated_seg.") else ("--import", module)
        out = ("--checkpoint", checkpoint, "--out", run.path / "segmented")
        commands.append(format_command("dilated-seg", "segment", images[0], *out, *imports))
    options = ("--evaluation", evaluation.name) if evaluation and evaluation.protocol.partial else ()
    if evaluation or run.evaluation_dir.is_dir():
        commands.append(format_command("dilated-seg", "report", run.path, "--out", run.path / "report", *options))
    return commands
