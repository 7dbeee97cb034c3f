"""Runs the benchmarks and writes docs/performance.md: ratios of one run, with the machine and its load.

run:    python experiments/benchmarks/all.py                    all sections (make bench; half an hour on two idle cores)
        python experiments/benchmarks/all.py metrics crf        some sections; the others keep what the page has
        python experiments/benchmarks/all.py --quick --out x.md      small settings, which show that the scripts run
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/performance.md"
# By section: its title, the script with its arguments, the arguments with --quick, and what is compared.
SECTIONS = {
    "networks": (
        "Networks", "training.py --others --size 192 256 --batch 1", "training.py FCN --size 32 48 --batch 1 --width 0.03",
        "A training step of every network at full width, and of torchvision and segmentation_models_pytorch where installed.",
    ),
    "data": (
        "Data", "data.py camvid", "data.py camvid --repeats 1 --images 8",
        "From files to training crops, against Pillow images through torchvision's transforms.",
    ),
    "metrics": (
        "Metrics", "metrics.py", "metrics.py --rounds 1 --size 64 96",
        "From logits to a confusion matrix, against torchmetrics and NumPy.",
    ),
    "crf": ("Dense CRF", "crf.py", "crf.py --rounds 1 --size 30 40", "Against pydensecrf2, if installed."),
    "evaluation": (
        "Evaluation", "strata.py", "strata.py DilatedNet --rounds 1 --steps 2",
        "An evaluation with the counts by object size and boundary distance, against one without.",
    ),
    "fit": (
        "Training loop", "fit.py", "fit.py --steps 5 --rounds 1",
        "`fit` against a bare loop, and a continued run against a new one.",
    ),
}  # fmt: skip
INTRODUCTION = """# How fast is it?

```sh
make bench
```

runs the scripts of `experiments/benchmarks/` and writes this page. Compare ratios within a section: they are of one run. Times
of a section that was measured under load are longer, and its ratios less exact.
"""


def describe_machine():
    """Return the kind of machine, the load on it, versions and the commit, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(describe, cwd=HERE, capture_output=True, text=True).stdout.strip()
    return f"{processor}, {os.cpu_count()} cores, torch {torch.__version__}, commit {commit}"


def run(command):
    """Run a script on one thread; return what it printed, with the load on the machine before and after."""
    script, *arguments = command.split()
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(HERE.parents[1]), "PYTHONWARNINGS": "ignore"}
    before = os.getloadavg()[0]
    result = subprocess.run([sys.executable, HERE / script, *arguments], env=environment, stdout=subprocess.PIPE, text=True)
    load = f"Load of the machine: {before:.1f} before, {os.getloadavg()[0]:.1f} after, of {os.cpu_count()} cores"
    return result.returncode, result.stdout.strip(), load


def write_section(title, command, about, output, load):
    """Return a section of the page."""
    busy = "" if max(map(float, re.findall(r"[\d.]+(?= before| after)", load))) < os.cpu_count() else " (**busy**)"
    block = "\n".join(f"    {line}" for line in output.splitlines())
    measured = f"<sub>{describe_machine()}. {load}{busy}.</sub>"
    return f"## {title}\n\n{about} `python experiments/benchmarks/{command}`:\n\n{block}\n\n{measured}\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all if not given")
    parser.add_argument("--quick", action="store_true", help="small settings; needs --out, as they measure nothing")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.quick and options.out == PAGE:
        parser.error("--quick measures nothing that the page should have: give --out")
    if unknown := [name for name in options.sections if name not in SECTIONS]:
        parser.error(f"unknown section {unknown[0]}: choose from {', '.join(SECTIONS)}")
    text = options.out.read_text() if options.out.is_file() else ""
    kept = {part.partition("\n")[0]: f"## {part.strip()}\n" for part in text.split("\n## ")[1:]}
    failed = []
    for name in options.sections or SECTIONS:
        title, full, quick, about = SECTIONS[name]
        command = quick if options.quick else full
        status, output, load = run(command)
        print(f"{title}: {command}\n{output}\n{load}\n", flush=True)
        if status:
            failed.append(name)
            continue
        kept[title] = write_section(title, command, about, output, load)
        ordered = [kept[title] for title, *_ in SECTIONS.values() if title in kept]
        options.out.write_text("\n".join([INTRODUCTION, *ordered]))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
