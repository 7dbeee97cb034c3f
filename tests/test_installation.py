"""The installed package outside of a checkout: its wheel, its experiments by name, its optional extras."""

import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from dilated_seg.runs.experiments import EXPERIMENTS, find_experiment
from tests.support.commands import ROOT, fails_in_one_sentence, run_command, run_process

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def read_names(text: str) -> set[str]:
    """Return the names of the packages that lines of requirements state."""
    return {re.split(r"[\[<>=!~ ]", line, maxsplit=1)[0] for line in text.splitlines() if line and line[0] not in "#"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A directory with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-c", "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])", folder]
    source = folder / "source"
    source.mkdir()
    for name in ("dilated_seg", "experiments", "setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", ".git"):
        (source / name).symlink_to(ROOT / name)  # the build writes into the directory that it runs in
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run_installed(installed: Path, cwd: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """Run the command of the wheel in a process that does not know the checkout."""
    code = "import sys; from dilated_seg.__main__ import main; sys.exit(main(sys.argv[1:]))"
    return run_process(*args, code=f"import sys; sys.path.insert(0, {str(installed)!r}); {code}", cwd=cwd)


def test_the_wheel_has_every_experiment_and_no_benchmark(installed):
    there = {file.relative_to(installed / "dilated_seg/experiments") for file in installed.rglob("experiments/**/*.*")}
    kept = set(EXPERIMENTS.rglob("*.yaml")) - set(EXPERIMENTS.glob("results/**/*"))
    assert there == {file.relative_to(EXPERIMENTS) for file in kept}
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        commit = (installed / "dilated_seg/COMMIT").read_text().partition("-")[0]
        assert commit and head.startswith(commit)
    assert (installed / "dilated_seg/py.typed").is_file() and (installed / "dilated_seg/report/page.css").is_file()


def test_the_wheel_names_and_expands_its_ablations_from_an_empty_directory(installed, tmp_path):
    done = run_installed(installed, tmp_path, "ablate", "quickstart.yaml", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert f"--config {installed}/dilated_seg/experiments/shapes/" in done.stdout
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_the_wheel_trains_and_segments_from_an_empty_directory(installed, tmp_path):
    small = ["--data.init_args.images=[4,2,2]", "--data.init_args.size=[32,64]", "--data.init_args.batch_size=2"]
    done = run_installed(
        installed, tmp_path, "fit", "--config", "shapes/frontend.yaml", "--trainer.max_steps", 2, "--run_dir", "run", *small
    )
    assert done.returncode == 0, done.stderr
    (image,) = [*(ROOT / "docs").rglob("quickstart.png")]
    done = run_installed(installed, tmp_path, "segment", image, "--checkpoint", "run", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert [*(tmp_path / "out").rglob("quickstart*.png")]
    assert run_installed(installed, tmp_path, "describe", "FrontEnd(21)").returncode == 0


def test_an_experiment_is_found_by_name_and_a_local_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = str(EXPERIMENTS / "shapes/frontend.yaml")
    assert find_experiment("shapes/frontend.yaml") == find_experiment("experiments/shapes/frontend.yaml") == packaged
    Path("shapes").mkdir()
    Path("shapes/frontend.yaml").write_text("data: 1\n")
    assert find_experiment("shapes/frontend.yaml") == "shapes/frontend.yaml"
    for name in ("shapes/nothing.yaml", "", "../setup.cfg", "https://x.y/shapes/fcn8s.yaml", "{model: {}}" * 99, "shapes"):
        assert find_experiment(name) == name


@pytest.mark.parametrize(
    ("module", "package", "command"),
    [
        ("submitit", "submitit", ["ablate", "experiments/quickstart.yaml", "--launcher", "slurm"]),
        ("wandb_workspaces", "wandb-workspaces", ["ablate", "experiments/quickstart.yaml", "--dashboard"]),
    ],
    ids=["slurm", "dashboard"],
)
def test_a_missing_extra_is_named_with_what_installs_it(module, package, command, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert fails_in_one_sentence(run_command(*command), command[-1], f"needs {package}", f"pip install {package}")


def test_commands_work_without_any_extra(tmp_path):
    hide = "import sys; sys.modules |= dict.fromkeys(('submitit', 'wandb_workspaces', 'onnx', 'onnxscript', 'onnxruntime'))"
    code = f"{hide}; from dilated_seg.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = run_process("ablate", "quickstart.yaml", "--status", code=code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_dependency_is_pinned_for_the_tests():
    stated = read_names(SETUP["options"]["install_requires"])
    extras = {name: read_names(text) for name, text in SETUP["options.extras_require"].items()}
    assert {"torch", "torchvision", "lightning", "torchmetrics", "wandb", "datasets"} <= stated
    pins = read_names((ROOT / "requirements.txt").read_text())
    assert pins == stated.union(*(names for extra, names in extras.items() if extra != "docs"))
    assert read_names((ROOT / "docs/requirements.txt").read_text()) == extras["docs"]
