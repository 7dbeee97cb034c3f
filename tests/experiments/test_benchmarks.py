"""The benchmarks run at small settings, and their page keeps the sections that are not measured again."""

import subprocess
import sys

import pytest

from tests.support.commands import ROOT, process_environment

SECTIONS = {
    "networks": "Networks",
    "metrics": "Metrics",
    "crf": "Dense CRF",
    "data": "Data",
    "evaluation": "Evaluation",
    "fit": "Training loop",
}


def bench(page, *words):
    command = [sys.executable, "experiments/benchmarks/all.py", *words, "--quick", "--out", str(page)]
    environment = process_environment(DILATED_SEG_CAMVID=None)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_written_and_the_others_are_kept(name, tmp_path):
    page, kept = tmp_path / "page.md", "## Training loop" if name != "fit" else "## Metrics"
    page.write_text(f"# How fast is it?\n\n{kept}\n\nmeasured before\n")
    result = bench(page, name)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    title, text = SECTIONS[name], page.read_text()
    assert text.count(f"## {title}\n") == 1 and f"{kept}\n\nmeasured before" in text
    assert f"\n{title}: " in f"\n{result.stdout}" and "Load of the machine: " in text


@pytest.mark.slow
def test_small_settings_are_kept_out_of_the_documentation(tmp_path):
    result = subprocess.run(
        [sys.executable, "experiments/benchmarks/all.py", "--quick"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2 and "give --out" in result.stderr
