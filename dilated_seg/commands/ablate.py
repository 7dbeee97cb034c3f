"""The command ``dilated-seg ablate``."""

import argparse
import shlex

from dilated_seg.commands.parser import CommandParser
from dilated_seg.errors import UserError, require_extra


def main(args: list[str]) -> int:
    """Run ``dilated-seg ablate``."""
    options = build_parser().parse_args(args)
    if options.jobs is not None and options.launcher is None:
        options.launcher = "local"
    check_options(options)
    from dilated_seg import ablation

    study = ablation.read(options.file, options.out, options.max_steps, options.devices_per_run)
    if options.dry_run or options.status:
        (ablation.show_commands if options.dry_run else ablation.show_status)(study)
        return 0
    settings = {"launcher": options.launcher, "jobs": options.jobs, "slurm": options.slurm, "retries": options.retries}
    again = shlex.join(["dilated-seg", "ablate", *args])
    status = ablation.run(study, **settings, again=again)
    if options.dashboard and status != 143:
        from dilated_seg.ablation import dashboard

        dashboard.publish(study)
    return status


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("ablate", "experiments/quickstart.yaml --dry_run")
    parser.add_argument("file", help="the ablation, such as experiments/quickstart.yaml")
    parser.add_argument("--out", help="directory of its runs and its report (default: runs/NAME)")
    parser.add_argument(
        "--max_steps", type=int, metavar="N", help="a rehearsal: every run ends after N steps, in runs/NAME-rehearsal"
    )
    parser.add_argument(
        "--launcher",
        choices=("local", "slurm"),
        help="several runs at once here (by default without a GPU), or jobs of SLURM",
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once here; by default one for each GPU (or thread)")
    parser.add_argument(
        "--slurm", nargs="+", default=(), metavar="KEY=VALUE",
        help="slurm: submitit's parameters of a job, such as time=240 (minutes) partition=gpu gpus_per_node=1 mem_gb=32",
    )  # fmt: skip
    parser.add_argument(
        "--devices_per_run",
        type=int,
        metavar="N",
        help="GPUs (or CPU processes) of each run, started by torchrun; as in the file",
    )
    parser.add_argument("--retries", type=int, default=0, metavar="N", help="how often to try a failed run again")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--dry_run", action="store_true", help="only print the command of each run")
    group.add_argument("--status", action="store_true", help="only print the status of each run")
    parser.add_argument("--dashboard", action="store_true", help="then a workspace and a report at W&B; files if it is offline")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Require positive numbers, options that fit the launcher, and the packages of both.

    Raises:
        UserError: A number is not positive, an option does not fit the launcher, or a package is not installed.
    """
    if options.max_steps is not None and options.max_steps < 1:
        raise UserError(f"--max_steps {options.max_steps}: a rehearsal needs at least one step")
    for option, launcher in (("jobs", "local"), ("slurm", "slurm")):
        if getattr(options, option) and options.launcher != launcher:
            raise UserError(f"--{option} is for --launcher {launcher}")
    if options.launcher == "slurm":
        require_extra("--launcher slurm", "slurm", "submitit")
    if options.dashboard:
        require_extra("--dashboard", "dashboard", "wandb-workspaces")
    if options.retries < 0 or (options.jobs is not None and options.jobs < 1):
        raise UserError("--jobs must be at least 1, --retries at least 0")
    if options.devices_per_run is not None and options.devices_per_run < 1:
        raise UserError(f"--devices_per_run {options.devices_per_run}: a run needs at least one device")
