"""A folder for the Hugging Face Hub: configuration, weights, and a model card made of what the run measured."""

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dilated_seg import models
from dilated_seg.errors import UserError, describe_error
from dilated_seg.inference.load import CARD, CONFIG, WEIGHTS
from dilated_seg.models.build import format_call
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs import Run
from dilated_seg.runs.version import commit
from dilated_seg.storage import write_text

USE = """\
```python
import numpy as np, torch
from PIL import Image
from dilated_seg.inference import load

segmenter = load("{name}")  # this folder, or OWNER/NAME at the Hub
image = torch.from_numpy(np.array(Image.open("picture.jpg").convert("RGB"))).permute(2, 0, 1)[None]
with torch.no_grad():
    ids = segmenter(image).argmax(1)[0]  # class ids; segmenter.classes and segmenter.palette name and colour them
```
"""


def save(segmenter: Segmenter, folder: Path, licence: str | None = None) -> None:
    """Write configuration, weights and card into a folder; each appears whole or not at all, the configuration last.

    Raises:
        UserError: The network is none of `dilated_seg.models`, or the folder cannot be written.
    """
    if segmenter.built is None or segmenter.built[0] not in models.__all__:
        raise UserError("only networks of dilated_seg.models can be loaded again from a folder: export this one as pt2 or onnx")
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        raise UserError(f"--licence {licence!a}: write the licence's short name, such as cc-by-nc-4.0")
    name, arguments = segmenter.built
    mean, std = (numbers.flatten().tolist() for numbers in (segmenter.mean, segmenter.std))
    config = {
        "net": {"class": name, "arguments": arguments}, "mean": mean, "std": std,
        "classes": segmenter.classes, "palette": segmenter.palette, "ignore_index": segmenter.ignore_index,
        "submitted": segmenter.submitted, "dataset": segmenter.dataset, "facts": segmenter.facts,
    }  # fmt: skip
    state = dict(segmenter.net.state_dict())
    if segmenter.crf:
        config["crf"] = {"init_args": segmenter.crf.start | {"learnable": segmenter.crf.learnable}}
        state |= {f"crf.{key}": tensor for key, tensor in segmenter.crf.state_dict().items()}
    try:
        texts = {CARD: card(segmenter, folder.resolve().name, licence), CONFIG: json.dumps(config, indent=1) + "\n"}
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"what is known of this network cannot be written down ({describe_error(error)})") from error
    partial = folder / f"{WEIGHTS}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_others(folder)
        save_file({key: tensor.detach().clone().contiguous() for key, tensor in state.items()}, partial)
        (folder / CONFIG).unlink(missing_ok=True)  # while weights are exchanged, the folder is none
        partial.replace(folder / WEIGHTS)
        for file, text in texts.items():
            write_text(folder / file, text)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"cannot write {folder}: {error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def refuse_others(folder: Path) -> None:
    """Leave alone what no `save` made: a run, or a folder of whatever else.

    Raises:
        UserError: The folder holds something, and no configuration of ours.
    """
    config = folder / CONFIG
    try:
        ours = config.is_file() and "class" in json.loads(config.read_text("utf-8"))["net"]
    except (ValueError, KeyError, TypeError):
        ours = False
    if any(folder.iterdir()) and (not ours or Run(folder).is_run):
        raise UserError(f"{folder} holds other files: name a new folder for what goes to the Hub")


def push(segmenter: Segmenter, repository: str, licence: str | None = None, private: bool = True) -> str:
    """Upload what `save` writes to OWNER/NAME at the Hub, which is made if it is not there; gives its address.

    Raises:
        UserError: There is no token, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / repository.rpartition("/")[2]
        save(segmenter, folder, licence)
        try:
            HfApi().create_repo(repository, private=private, exist_ok=True)
            return str(HfApi().upload_folder(repo_id=repository, folder_path=folder))
        except Exception as error:  # every layer below has its own
            raise UserError(
                f"the Hugging Face Hub does not take {repository} ({describe_error(error)}): see hf auth login"
            ) from error


def card(segmenter: Segmenter, name: str, licence: str | None = None) -> str:
    """The model card: what it is, what it was trained on and how it was measured; nothing that nobody wrote down."""
    head = [f"license: {licence}"] if licence else []
    head += ["library_name: dilated_seg", "pipeline_tag: image-segmentation", "tags: [semantic-segmentation]"]
    call = format_call(segmenter.built[0], **segmenter.built[1])  # type: ignore[index]
    use = USE.format(name=name.replace("\\", "/").replace('"', "'"))
    return "\n".join(["---", *head, "---", "", f"# {plain(name)}", "", *body(segmenter, call, licence), "", use])


def plain(text: str) -> str:
    """A name in Markdown: on one line, its signs meaning nothing."""
    return re.sub(r"([\\|`*_\[\]<>#])", r"\\\1", " ".join(text.split()))


def body(segmenter: Segmenter, call: str, licence: str | None) -> Iterator[str]:
    """The lines of the card between title and example."""
    dataset, facts = segmenter.dataset or "a dataset that its checkpoint does not name", segmenter.facts
    yield f"Semantic segmentation into {len(segmenter.classes)} classes, trained on {plain(dataset)} with dilated_seg:"
    yield f"`{call}`,"
    yield f"{sum(p.numel() for p in segmenter.net.parameters()):,} parameters."
    if segmenter.crf:
        learnt = ", its weights and compatibility learnt with the network (CRF-RNN)" if segmenter.crf.learnable else ""
        yield f"Its scores go through a {segmenter.crf}{learnt}."
    yield "It takes plain RGB (0 to 255) of any size that the network takes, and gives logits; normalisation is inside."
    yield ""
    if "checkpoint" in facts:
        yield f"From `{facts['checkpoint']}`, step {facts['step']}, SHA-256 `{facts['sha256']}`; written at commit {commit()}."
        yield ""
    if licence:
        yield f"Licence: {licence}"
    else:
        yield "Licence: not stated. The dataset, and the weights it started from, may restrict what these may be used for."
    yield from ("", "## Numbers", "")
    if not facts.get("evaluations"):
        yield "Its run has no evaluation of these weights."
    for record in facts.get("evaluations", []):
        yield from numbers(record)
    yield from ("## Classes", "", "| id | class | colour |", "|---:|---|---|")
    for k, (label, colour) in enumerate(zip(segmenter.classes, segmenter.palette, strict=True)):
        yield f"| {k} | {plain(label)} | #{bytes(colour).hex()} |"
    yield from ("", "## Use")


def numbers(record: dict[str, Any]) -> Iterator[str]:
    """The scores of an evaluation, and the protocol that they were measured by."""
    from dilated_seg.metrics.confusion import compute_metrics

    values = compute_metrics(torch.tensor(record["matrix"]))
    row = [values["mean_iou"], values["pixel_accuracy"], *values["iou"]]
    yield f"| {' | '.join(['mean IoU', 'pixel acc.', *map(plain, record['classes'])])} |"
    yield f"|{'---:|' * len(row)}"
    yield f"| {' | '.join('-' if math.isnan(value) else f'{100 * value:.1f}' for value in map(float, row))} |"
    yield ""
    yield f"<sub>{'; '.join(f'{key}: {plain(str(value))}' for key, value in record['protocol'].items())}; in percent.</sub>"
    yield ""
