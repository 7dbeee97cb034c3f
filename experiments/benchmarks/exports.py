"""Every network as .pt2 and as .onnx with open sizes, each compared with torch: the table of docs/export.md.

run:    python experiments/benchmarks/exports.py                  (untrained, 1/16 of the width; minutes on one thread)
        python experiments/benchmarks/exports.py --width 1 --networks "FCN(21, stride=8)"
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from dilated_seg.analysis.summary import list_family
from dilated_seg.commands.objects import parse_network
from dilated_seg.errors import UserError
from dilated_seg.export.program import Plain, write
from dilated_seg.models.segmenter import Segmenter

AUTHORS = (
    "FCNAlexNet(21, form='authors')", "FCN(21, stride=32, form='authors')", "FCN(21, stride=16, form='authors')",
    "FCN(21, stride=8, form='authors')", "DeconvNet(21, form='authors')", "UNet(21, form='authors')",
    "SegNetBasic(21, form='authors')", "SegNet(21, form='authors')", "DilatedNet(21, context=None, padding='reflect')",
    "DilatedNet(21, context='basic', padding='reflect')",
    "DilatedNet(21, context='basic', context_layers=10, padding='reflect')",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=float, default=1 / 16)
    parser.add_argument("--networks", nargs="+", default=(*list_family(), *AUTHORS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | pt2: CPU seconds, MB | ONNX: CPU seconds, MB | checked on |\n|---|---:|---:|---|")
    for call in options.networks:
        torch.manual_seed(0)
        width = max(options.width, 1 / 8) if call.startswith("FCDenseNet") else options.width  # or a layer adds a single map
        net = parse_network(f"{call[:-1]}, width={width})", "cpu")
        for parameter in net.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)  # scores that start from zero would all tie
        cells, sizes = [], ""
        for form in ("pt2", "onnx"):
            segmenter = Segmenter(net, list(map(str, range(21))), (124, 117, 104), (58, 57, 57))
            with tempfile.TemporaryDirectory() as directory:
                path, start = Path(directory) / f"network.{form}", time.process_time()
                try:
                    sizes = write(Plain(segmenter).eval(), {}, form, path)
                    cells.append(f"{time.process_time() - start:.0f}, {path.stat().st_size / 1e6:.1f}")
                except UserError as error:
                    cells.append(str(error))
        print(f"| `{call}` | {' | '.join(cells)} | {sizes.removeprefix('checked on ')} |", flush=True)


if __name__ == "__main__":
    main()
