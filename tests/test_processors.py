"""Comparisons of two orders of summation also hold with the kernels of an older processor, which add in other orders."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

OLDER = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
DELICATE = [
    "tests/training/test_distributed.py::test_twenty_steps_with_accumulated_gradients_equal_those_with_the_whole_batch",
    "tests/inference/test_strategies.py::test_several_scales_are_the_mean_of_each_alone",
]
CODE = """
import sys, pytest, torch
assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_delicate_comparisons_hold_with_the_kernels_of_an_older_processor():
    command = [sys.executable, "-c", CODE, *DELICATE]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **OLDER}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert f"{len(DELICATE)} passed" in result.stdout
