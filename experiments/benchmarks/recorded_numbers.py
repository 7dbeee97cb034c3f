"""Numbers that a change of structure must leave equal to the last digit: record them before it, compare after it.

On one machine, with one thread: the losses of 20 steps of every experiment on Shapes, the per-image evaluations of one trained
network on the same images in a directory, in shards and streamed, the output of ``describe``, and the tensors that ``port``
makes of small .caffemodel files. Only commands are called, so that the code behind them may move.

run:    python experiments/benchmarks/recorded_numbers.py record numbers.json
        python experiments/benchmarks/recorded_numbers.py compare numbers.json
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
STEPS = 20
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]


def call(*arguments):
    """Return the output of a command of ours, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dilated_seg", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def digest(content):
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def losses(run):
    """Return the training loss of each logged step, as it was printed."""
    with (run / "metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


def record_losses(place):
    """Return the losses of every experiment on Shapes."""
    found = {}
    for file in sorted((ROOT / "experiments/shapes").glob("*.yaml")):
        run = place / file.stem
        steps = [f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={STEPS}"]
        call("fit", "--config", file, *steps, "--data.init_args.images=[2000,2,2]", *QUIET, "--run_dir", run)
        found[file.stem] = losses(run)
    return found


def write_images(root):
    """Write 12 training and 5 validation images of unequal sizes, with masks of 3 classes and ignored pixels."""
    rng = np.random.default_rng(0)
    for split, images in (("train", 12), ("val", 5)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(images):
            mask = rng.choice([0, 1, 2, 255], (4 + number % 3, 6)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            image = mask[..., None] * np.array([50, 90, 20], np.uint8) + rng.integers(0, 20, (*mask.shape, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / split / f"images/{number}.png")
            Image.fromarray(mask).save(root / split / f"masks/{number}.png")
    (root / "classes.yaml").write_text("classes: [one, two, three]\n")


def record_evaluations(place):
    """Return the checksum of every image's confusion matrix, of images in a directory, in shards, and streamed."""
    write_images(place / "images")
    call("prepare", "folder", "--root", place / "images", "--out", place / "shards")
    run = place / "narrow"
    data = [
        "--data=Folder",
        f"--data.init_args.root={place / 'images'}",
        "--data.init_args.batch_size=4",
        "--data.init_args.augmentation={class_path: ScaleAndCrop, init_args: {crop_size: [32, 32]}}",
    ]
    network = ["--model.net=dilated_seg.models.FCN", "--model.net.init_args.stride=8", "--model.net.init_args.width=0.05"]
    optimizer = ["--model.optimizer=AdamW", "--model.optimizer.init_args.lr=3e-3"]
    steps = [f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={STEPS}"]
    call("fit", *data, *network, *optimizer, *steps, *QUIET, "--run_dir", run)
    found = {"losses": losses(run)}
    for name, where in (
        ("directory", []),
        ("shards", [f"--data.init_args.root={place / 'shards'}"]),
        ("streamed", [f"--data.init_args.root={place / 'shards'}", "--data.init_args.streaming=true"]),
    ):
        call("validate", "--config", run / "config.yaml", *where, "--ckpt_path", run / "checkpoints/last.ckpt", *QUIET[:2])
        (file,) = run.glob("evaluations/val-last.parquet")
        found[name] = digest(json.dumps(pq.read_table(file).to_pydict()).encode())
    return found


def record_ports(place):
    """Return the checksum of every tensor that ``port`` makes of the tests' .caffemodel files."""
    from tests.support.caffe_writer import caffemodel
    from tests.weights.test_weights import NARROW, parse_network, published_blobs

    found = {}
    for name in ("fcn32s_voc", "dilation8_voc_large", "dilation8_camvid_basic"):
        source, target = place / f"{name}.caffemodel", place / f"{name}.safetensors"
        source.write_bytes(caffemodel(published_blobs(name, parse_network(NARROW[name], "cpu"))[0]))
        call("port", source, "--net", NARROW[name], "--out", target)
        found[name] = {key: digest(value.tobytes()) for key, value in sorted(load_file(target).items())}
    return found


def record():
    """Return all numbers."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        described = json.loads(call("describe", "--json"))
        return {
            "losses": record_losses(place),
            "evaluations": record_evaluations(place),
            "describe": digest(json.dumps(described).encode()),
            "port": record_ports(place),
        }


def differences(before, after, name=""):
    """Yield the names of the numbers that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from differences(before.get(key), after.get(key), f"{name}/{key}")
    elif before != after:
        yield name


def main(action, file):
    """Record into a file, or compare with it; exit with 1 if anything differs."""
    numbers = record()
    if action == "record":
        Path(file).write_text(json.dumps(numbers, indent=1) + "\n")
        return
    different = list(differences(json.loads(Path(file).read_text()), numbers))
    print("\n".join(f"differs: {name}" for name in different) or "equal to the last digit")
    sys.exit(bool(different))


if __name__ == "__main__":
    main(*sys.argv[1:])
