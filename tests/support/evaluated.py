"""Evaluates a checkpoint in several ways, each in as many processes as it says: see test_exact.py.

One process imports everything and forks the others, which find each other as those of torchrun do.
"""

import json
import os
import socket
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch

from dilated_seg.__main__ import main
from dilated_seg.cli import CLI  # noqa: F401 - imported before the forks, not in each of them
from tests.support.commands import THREADS


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(world, arguments, log):
    """Run the command in so many processes; gives whether all of them ended well."""
    port, children = free_port(), []
    for rank in range(world):
        child = os.fork()
        if not child:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            os.dup2(1, 2)
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
            os.environ.update({name: str(value) for name, value in place.items()} if world > 1 else {})
            flags = [
                f"--trainer.devices={world}",
                "--trainer.accelerator=cpu",
                *(["--trainer.strategy=ddp"] if world > 1 else []),
            ]
            status = 70
            try:
                status = main([*arguments, *flags])
            except BaseException as error:
                print(repr(error), flush=True)
            finally:
                os._exit(status)
        children.append(child)
    return all([os.waitpid(child, 0)[1] == 0 for child in children])  # every child is waited for


if __name__ == "__main__":
    torch.set_num_threads(int(THREADS))
    found = []
    for number, way in enumerate(json.loads(sys.argv[1])):
        run = Path(way["folder"]) / f"way{number}"
        log = Path(way["folder"]) / "log.txt"
        assert launch(way["world"], [*way["arguments"], "--run_dir", str(run)], log), log.read_text()[-3000:]
        for record in sorted(run.glob("evaluations/*.json")):  # one, or two if there is a CRF
            table = pq.read_table(record.with_suffix(".parquet"))
            facts = json.loads(record.read_text())
            strata = pq.read_table(record.with_suffix(".strata.parquet")).to_pylist()
            found.append(
                {
                    "ids": table["id"].to_pylist(),
                    "matrices": table["matrix"].to_pylist(),
                    "matrix": facts["matrix"],
                    "strata": strata,
                }
                | {key: facts["protocol"][key] for key in ("images", "pixels")}
            )
    print(json.dumps(found))
