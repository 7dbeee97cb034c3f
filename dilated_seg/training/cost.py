"""Throughput (images/s) and GPU memory of an evaluation."""

import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

WARM_UP = 1  # batches that are not timed


class Cost:
    """Measures the batches of an evaluation on one process: network, prediction, CRF if there is one, confusion matrix.

    Reading images and stratified counts are left out, and so is the first of several batches (warm-up). The result is the
    median of the batches' rates, and the quartiles, which show the influence of other work on the machine or of image sizes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.batch_start = device, 0.0
        self.batches: list[tuple[int, float]] = []  # images and seconds
        self.size: tuple[int, int] | None = None  # (height, width) of the first image
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def start(self) -> None:
        """Start the time of a batch, when the device has finished earlier work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.batch_start = time.perf_counter()

    def stop(self, batch: dict[str, Any]) -> None:
        """Record the time of a batch."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.batches.append((sum(bool(name) for name in batch["id"]), time.perf_counter() - self.batch_start))
        if self.size is None:
            height, width = batch["size"][0] if batch.get("size") else batch["mask"].shape[-2:]
            self.size = int(height), int(width)

    def summarize(self, processes: int) -> dict[str, Any]:
        """Return the rates of all processes, assumed equal, and the memory of one."""
        measured = [batch for batch in self.batches[WARM_UP:] if batch[0]] or self.batches  # batches of padding have no image
        rates = [processes * images / seconds for images, seconds in measured]
        low, median, high = np.quantile(rates, (0.25, 0.5, 0.75)).tolist()
        memory = torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else None
        return {
            "images_per_second": median,
            "quartiles": [low, high],
            "batches": len(measured),
            "warm_up": len(self.batches) - len(measured),
            "memory_gb": memory,
            "device": f"{processes} x {name_device(self.device)}" if processes > 1 else name_device(self.device),
            "batch_size": self.batches[0][0],
            "size": self.size,
        }


def name_device(device: torch.device) -> str:
    """Return the name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({name_processor()}), {torch.get_num_threads()} of {os.cpu_count()} threads"


def name_processor() -> str:
    """Return the kind of processor, such as "AMD EPYC"; the machine type if the system does not name it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
