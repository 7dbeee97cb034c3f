"""What an evaluation costs: images a second, and a GPU's memory."""

import os
import platform
import time
from typing import Any

import numpy as np
import torch

WARM_UP = 1  # batches that are not timed


class Cost:
    """Watches the batches of an evaluation on one process: network, prediction, CRF if there is one, confusion matrix.

    Reading images and counting strata are left out, and so is the first of several batches, in which everything is new. Each
    other batch is a timing of its own: what is recorded is the median of their rates and the quartiles, which show how much
    other work on the machine, or images of several sizes, made them vary.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.began = device, 0.0
        self.batches: list[tuple[int, float]] = []  # images and seconds
        self.size: tuple[int, int] | None = None  # (height, width) of the first image
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def start(self) -> None:
        """A batch is on the device, and all that was asked of it before is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.began = time.perf_counter()

    def stop(self, batch: dict[str, Any]) -> None:
        """Its confusion matrices are counted."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.batches.append((sum(bool(name) for name in batch["id"]), time.perf_counter() - self.began))
        if self.size is None:
            height, width = batch["size"][0] if batch.get("size") else batch["mask"].shape[-2:]
            self.size = int(height), int(width)

    def found(self, processes: int) -> dict[str, Any]:
        """Return the cost on all processes, which are taken to be alike; memory is that of one."""
        measured = [batch for batch in self.batches[WARM_UP:] if batch[0]] or self.batches  # padding is no image
        rates = [processes * images / seconds for images, seconds in measured]
        low, median, high = np.quantile(rates, (0.25, 0.5, 0.75)).tolist()
        memory = torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None
        return {
            "images_per_second": median,
            "quartiles": [low, high],
            "batches": len(measured),
            "warm_up": len(self.batches) - len(measured),
            "memory_gb": memory,
            "device": f"{processes} x {called(self.device)}" if processes > 1 else called(self.device),
            "batch_size": self.batches[0][0],
            "size": self.size,
        }


def called(device: torch.device) -> str:
    """A device as people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} of {os.cpu_count()} threads"
