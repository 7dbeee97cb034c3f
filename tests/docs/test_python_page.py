"""The code of docs/python.md, with fewer steps."""

import re
from pathlib import Path

import pytest

PAGE = Path("docs/python.md")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_training_and_the_learning_rate_finder_run_as_printed(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    first = next(number for number, block in enumerate(blocks) if "seed_everything" in block)
    shorter = [re.sub(r"max_steps=\d+", "max_steps=2", block).replace("num_training=100", "num_training=4") for block in blocks]
    shorter = [block.replace("num_classes=5)", "num_classes=5, images=(8, 2, 2), batch_size=4)") for block in shorter]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in shorter[first:]:
        exec(block, names)
    assert len(shorter[first:]) == 2
    assert len(list(tmp_path.glob("runs/*/evaluations/test-best.json"))) == 1
    assert (tmp_path / "rates.png").stat().st_size > 1000
    assert len(names["finder"].results["lr"]) == 4
