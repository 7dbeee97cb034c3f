"""The context stage of DilatedNet through its frozen front end, against on the front end's stored scores, in one run.

Both run the real command, on one thread; a step is everything from one batch's end to the next's, reading included.

run:    python experiments/benchmarks/context_stage.py                                          (full width; minutes on a CPU)
        python experiments/benchmarks/context_stage.py --width 0.125 --padding zeros --batch 8
"""

import argparse
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from lightning import Callback

from dilated_seg.cli import CLI


class Clock(Callback):
    """The time of every step."""

    ends: list[float]

    def on_train_start(self, trainer, pl_module):
        Clock.ends = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        Clock.ends.append(time.perf_counter())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--padding", default="reflect")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    torch.set_num_threads(1)
    images = options.batch * options.steps
    frozen = "{class_path: dilated_seg.training.Freeze, init_args: {layers: [net.front_end]}}"
    times = {}
    with tempfile.TemporaryDirectory() as directory:
        stored = f"{{class_path: dilated_seg.training.CachedFrontEnd, init_args: {{folder: {directory}/scores, variants: 1}}}}"
        for name, callback, steps in (
            ("through the front end", frozen, options.steps),
            ("on stored scores", stored, 10 * options.steps),
        ):
            started = time.perf_counter()
            settings = {
                "data": "Shapes", "data.images": [images, 1, 1], "data.size": list(options.size),
                "data.batch_size": options.batch, "data.num_classes": 11,
                "model.net": "dilated_seg.models.DilatedNet",
                "model.net.width": options.width, "model.net.dropout": 0, "model.net.padding": options.padding,
                "model.optimizer": "SGD", "model.optimizer.lr": 1e-4, "trainer.max_steps": steps,
                "trainer.log_every_n_steps": 1, "trainer.limit_val_batches": 0, "trainer.enable_progress_bar": "false",
                "trainer.callbacks": f"[{callback}, {{class_path: __main__.Clock}}]", "run_dir": f"{directory}/{len(times)}",
            }  # fmt: skip
            CLI(["fit", *(f"--{option}={value}" for option, value in settings.items())])
            times[name] = median(b - a for a, b in pairwise(Clock.ends))
            whole = time.perf_counter() - started
            print(f"{name}: {times[name]:.3f} s a step of {options.batch} images; {whole:.0f} s in all for {steps} steps")
        size = sum(path.stat().st_size for path in Path(directory).rglob("*.safetensors"))
    one, other = times.values()
    print(f"ratio: {one / other:.1f}; stored: {size / images / 1e6:.2f} MB an image and variant")


if __name__ == "__main__":
    main()
