"""A training step of `fit` against a bare loop over the same batches, and a continued run against a new one, by processor time.

The bare loop reads the same data module and takes the same loss, gradient and optimizer step; `fit` clips gradients, logs,
checkpoints and schedules in addition. Both take turns, so that a machine that is busy for a while is so for both. On one thread
without workers; CamVid if DILATED_SEG_CAMVID is set, else Shapes.

run:    python experiments/benchmarks/fit.py [--steps 40] [--rounds 3]
"""

import argparse
import os
import tempfile
import time
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from lightning import Callback

from dilated_seg.cli import CLI
from dilated_seg.runs import Run
from dilated_seg.runs.experiments import EXPERIMENTS

WARM_UP = 3  # steps that are not timed


class Clock(Callback):
    """The processor time at the end of every step."""

    ends: list[float]

    def on_train_start(self, trainer, pl_module):
        Clock.ends = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        Clock.ends.append(time.process_time())


class Build(CLI):
    """Builds the task and the data of ``fit``, and trains nothing."""

    def fit(self):
        pass


def list_arguments(experiment, steps, run):
    """Return the arguments of ``fit``."""
    return [
        "fit", "--config", str(EXPERIMENTS / f"{experiment}.yaml"), "--trainer.accelerator=cpu", f"--trainer.max_steps={steps}",
        "--trainer.callbacks+={class_path: __main__.Clock}", "--trainer.limit_val_batches=0",
        "--data.init_args.num_workers=0", "--trainer.precision=32-true", "--run_dir", str(run),
    ]  # fmt: skip


def time_fit(arguments):
    """Return the seconds of a step of ``fit``."""
    CLI(arguments)
    return (Clock.ends[-1] - Clock.ends[WARM_UP - 1]) / (len(Clock.ends) - WARM_UP)


def time_loop(arguments, steps):
    """Return the seconds of a step of a bare loop."""
    cli = Build(arguments)
    task, data = cli.model.train(), cli.datamodule
    optimizer = task.optimizer(task.parameters())
    for number, batch in enumerate(islice(data.train_dataloader(), steps)):
        if number == WARM_UP:
            start = time.process_time()
        total, valid = task.loss_sum(task(batch["image"]), batch["mask"])
        optimizer.zero_grad()
        (total / valid).backward()
        optimizer.step()
    return (time.process_time() - start) / (steps - WARM_UP)


def time_call(arguments):
    """Return the seconds of a call."""
    start = time.process_time()
    CLI(arguments)
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    torch.set_num_threads(1)
    experiment = "camvid/dilatednet_narrow" if os.environ.get("DILATED_SEG_CAMVID") else "shapes/frontend"
    found = {"fit": [], "loop": [], "new": [], "continued": []}
    with tempfile.TemporaryDirectory() as directory, open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        for number in range(options.rounds):
            run = Path(directory, str(number))
            found["fit"].append(time_fit(list_arguments(experiment, options.steps, run)))
            found["loop"].append(time_loop(list_arguments(experiment, options.steps, Path(directory, "bare")), options.steps))
            last = ["--ckpt_path", str(Run(run).last_checkpoint.path)]
            more = list_arguments(experiment, options.steps + 1, Path(directory, f"{number}-continued"))
            found["continued"].append(time_call([*more, *last]))
            found["new"].append(time_call(list_arguments(experiment, 1, Path(directory, f"{number}-new"))))
    step, bare, new, continued = (median(found[key]) for key in ("fit", "loop", "new", "continued"))
    print(
        f"{experiment}: a step of fit {1000 * step:.1f} ms, of a bare loop {1000 * bare:.1f} ms: {bare / step:.0%} of its rate"
    )
    print(f"a call of one step: new {new:.2f} s, continued {continued:.2f} s: {continued / new:.2f} times")


if __name__ == "__main__":
    main()
