"""One call on a GPU: its tests, the throughput of every network, an evaluation, and CamVid in the minutes that remain.

Parts, each in processes of its own, so that one that fails ends no other; `--parts` chooses some:

- tests: tests/gpu (evaluation, CRF, compiled networks, probe, ONNX, bfloat16, FSDP; NCCL with several GPUs). It needs
  requirements.txt, ONNX if installed.
- throughput: benchmarks/training.py, every network in float32, with channels last, in bfloat16 and compiled: images/s, memory,
  share of the card's measured matrix rate. It needs torch and jaxtyping.
- evaluation: benchmarks/strata.py, reading, network, prediction and counts of every image. It needs requirements.txt.
- camvid: experiments/ablations/camvid_architectures.yaml, for as long as the budget lasts; the same call continues it, as does
  `dilated-seg ablate`. It needs requirements.txt, DILATED_SEG_CAMVID, and vgg16.safetensors (docs/weights.md) at the top of
  the repository.

Results are in experiments/results/gpu_NAME/: gpu.json (machine, versions, commit, exit status and seconds of each part), the
log of each part, throughput.csv, and in camvid/ the results of its finished runs, which are in runs/gpu_NAME.

run:    python experiments/gpu.py --budget 8                                                          (make gpu)
        python experiments/gpu.py --device cpu --width 0.03 --size 32 48 --batch 1 --budget 5        (a rehearsal)
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
DESCRIBE = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
PARTS = ("tests", "throughput", "evaluation", "camvid")
SHARES = {"tests": 0.3, "throughput": 0.6, "evaluation": 0.7, "camvid": 1.0}  # of the budget, at which a part ends
GRACE = 30.0  # seconds in which a part that is interrupted writes its state


def list_commands(options, out):
    """Return the command of each part."""
    device, budget, small = options.device, 60 * options.budget, options.width < 1
    size = [str(side) for side in options.size]
    python = [sys.executable]
    return {
        "tests": [*python, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "default", "tests/gpu"],
        "throughput": [
            *python, "experiments/benchmarks/training.py", "--width", str(options.width), "--size", *size, "--batch",
            str(options.batch), "--device", device, "--seconds", str(0.25 * budget), "--out", str(out / "throughput.csv"),
            *(["--compile"] if device == "cuda" else []),
        ],
        "evaluation": [
            *python, "experiments/benchmarks/strata.py", "VOC-sized", "Cityscapes-sized",
            "--accelerator", "gpu" if device == "cuda" else "cpu", *(["--rounds", "1", "--steps", "2"] if small else []),
        ],
        "camvid": [
            *python, "-m", "dilated_seg", "ablate", str(options.ablation), "--out", str(options.runs or f"runs/{out.name}"),
            *(["--max_steps", "2"] if small else []),
        ],
    }  # fmt: skip


def run_part(name, command, end, log, environment):
    """Run a part until a time at the latest, and return its exit status and seconds; a part that is interrupted has -2."""
    start = time.monotonic()
    if end <= start:
        return {"status": None, "seconds": 0.0, "reason": "no time was left"}
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            status = process.wait(end - start)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            status = -signal.SIGINT
    return {"status": status, "seconds": round(time.monotonic() - start, 1)}


def describe_machine(device):
    """Return the kind of machine and the versions, without its name."""
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})",
        "devices": torch.cuda.device_count() if cuda else 1,
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if cuda else None,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": subprocess.run(DESCRIBE, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
    }


def parse_args(arguments):
    """Return the options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=8.0, metavar="MINUTES", help="of all parts (default: %(default)g)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else None)
    parser.add_argument("--name", help="of the results; default: that of the device")
    parser.add_argument("--width", type=float, default=1.0, help="of the networks; below 1 all parts are a rehearsal")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 320))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--ablation", default="experiments/ablations/camvid_architectures.yaml")
    parser.add_argument("--out", type=Path, help="directory of the results; default: experiments/results/gpu_NAME")
    parser.add_argument("--runs", type=Path, help="directory of the runs of camvid; default: runs/gpu_NAME")
    options = parser.parse_args(arguments)
    if options.device is None:
        parser.error("there is no GPU: --device cpu --width 0.03 rehearses the call")
    return options


def main(arguments):
    """Run the parts and write their results; return 1 if one failed, else 0."""
    options = parse_args(arguments)
    start, machine = time.monotonic(), describe_machine(options.device)
    name = options.name or re.sub(r"\W+", "_", machine["device"]).strip("_").lower()
    out = (options.out or ROOT / f"experiments/results/gpu_{name}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"DILATED_SEG_TEST_DEVICE": options.device, "PYTHONPATH": str(ROOT)}
    environment.setdefault("WANDB_MODE", "offline")
    environment |= {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    found = {"machine": machine, "parts": {}}
    for part, command in list_commands(options, out).items():
        if part not in options.parts:
            continue
        end = start + 60 * options.budget * (SHARES[part] if len(options.parts) > 1 else 1)
        result = run_part(part, command, end, out / f"{part}.log", environment)
        found["parts"][part] = result
        (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{part}: {result}", flush=True)
        print((out / f"{part}.log").read_text()[-2000:] if (out / f"{part}.log").is_file() else "", flush=True)
    runs = ROOT / (options.runs or f"runs/{out.name}")
    if "camvid" in options.parts and any(runs.glob("*/seed*/evaluations/val-last.json")):
        words = ["--evaluation", "val-last", "--save", str(out / "camvid"), "--out", str(runs / "report")]
        command = [sys.executable, "-m", "dilated_seg", "report", str(runs), *words]
        found["parts"]["report"] = run_part("report", command, time.monotonic() + 300, out / "report.log", environment)
        (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"results: {out}")
    return int(any(part["status"] not in (0, None, -signal.SIGINT) for part in found["parts"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
