"""A directory for the Hugging Face Hub: configuration, weights, and a model card with the run's evaluations."""

import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dilated_seg.errors import UserError, describe_error
from dilated_seg.inference.load import CARD, CONFIG, WEIGHTS
from dilated_seg.metrics.confusion import compute_metrics, percent
from dilated_seg.models.build import format_call
from dilated_seg.models.segmenter import Segmenter
from dilated_seg.runs import Run
from dilated_seg.runs.version import commit
from dilated_seg.storage import atomic_path, write_text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

USE = """\
```python
import torch
{imports}
from dilated_seg.inference import load

segmenter = load("{name}")  # this directory, or OWNER/NAME at the Hub
image = {image}[None]
with torch.no_grad():
    ids = segmenter(image).argmax(1)[0]  # class ids; segmenter.classes and segmenter.palette name and color them
```
"""


# How the example reads an image: of RGB, and of other channels.
READ_RGB = (
    "import numpy as np\nfrom PIL import Image",
    'torch.from_numpy(np.array(Image.open("image.jpg").convert("RGB"))).permute(2, 0, 1)',
)
READ_BANDS = ("from pathlib import Path\nfrom dilated_seg.data.bands import read_bands", 'read_bands(Path("image.tif"), {})')


def save(segmenter: Segmenter, directory: Path, licence: str | None = None) -> None:
    """Write configuration, weights and card into a directory, each atomically, the configuration last.

    Raises:
        UserError: The network was built in Python, the directory holds other files, or it cannot be written.
    """
    if segmenter.built is None:
        raise UserError("a network that was built in Python cannot be loaded again from a directory: use --format pt2 or onnx")
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        raise UserError(f"--licence {licence!a} is not a short name: write one such as cc-by-nc-4.0")
    name, arguments = segmenter.built
    mean, std = (values.flatten().tolist() for values in (segmenter.mean, segmenter.std))
    config = {
        "net": {"class": name, "arguments": arguments}, "mean": mean, "std": std,
        "classes": segmenter.classes, "palette": segmenter.palette, "ignore_index": segmenter.ignore_index,
        "submitted": segmenter.submitted, "dataset": segmenter.dataset, "facts": segmenter.facts,
    }  # fmt: skip
    state = dict(segmenter.net.state_dict())
    if segmenter.crf:
        config["crf"] = segmenter.crf.description
        state |= {f"crf.{key}": tensor for key, tensor in segmenter.crf.state_dict().items()}
    try:
        texts = {CARD: format_card(segmenter, directory.resolve().name, licence), CONFIG: json.dumps(config, indent=1) + "\n"}
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"this network's description cannot be written ({describe_error(error)}): export its run") from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
        check_directory(directory)
        with atomic_path(directory / WEIGHTS) as partial:
            save_file({key: tensor.detach().clone().contiguous() for key, tensor in state.items()}, partial)
            (directory / CONFIG).unlink(missing_ok=True)  # so that old configuration and new weights are never loaded together
        for file, text in texts.items():
            write_text(directory / file, text)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {directory}: {getattr(error, 'strerror', None) or error}") from error


def check_directory(directory: Path) -> None:
    """Raise UserError unless a directory is empty or written by `save`, so that no run or other file is overwritten."""
    config = directory / CONFIG
    try:
        saved = config.is_file() and "class" in json.loads(config.read_text("utf-8"))["net"]
    except (ValueError, KeyError, TypeError):
        saved = False
    if any(directory.iterdir()) and (not saved or Run(directory).is_run):
        raise UserError(f"{directory} holds other files: give a new directory for the export")


def push(segmenter: Segmenter, repository: str, licence: str | None = None, private: bool = True) -> str:
    """Upload the directory that `save` writes to OWNER/NAME at the Hub, created if necessary; return its URL.

    Raises:
        UserError: There is no token, or the Hub rejects the upload.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as parent:
        directory = Path(parent) / repository.rpartition("/")[2]
        save(segmenter, directory, licence)
        try:
            HfApi().create_repo(repository, private=private, exist_ok=True)
            return str(HfApi().upload_folder(repo_id=repository, folder_path=directory))
        except Exception as error:  # HTTP, authentication and file errors of several libraries
            raise UserError(
                f"the Hugging Face Hub rejected {repository} ({describe_error(error)}): log in with hf auth login"
            ) from error


def format_card(segmenter: Segmenter, name: str, licence: str | None = None) -> str:
    """Return the model card: the network, its dataset, and its recorded evaluations with their protocols."""
    from huggingface_hub import ModelCardData

    results = [result for record in segmenter.facts.get("evaluations", []) for result in list_results(record)]
    header = ModelCardData(
        license=licence, library_name="dilated_seg", pipeline_tag="image-segmentation", tags=["semantic-segmentation"],
        model_name=" ".join(name.split()), eval_results=results or None,
    )  # fmt: skip
    channels = len(segmenter.mean)
    imports, image = READ_RGB if channels == 3 else (READ_BANDS[0], READ_BANDS[1].format(channels))
    use = USE.format(name=name.replace("\\", "/").replace('"', "'"), imports=imports, image=image)
    return "\n".join(["---", header.to_yaml(), "---", "", f"# {escape(name)}", "", *format_body(segmenter, licence), "", use])


def list_results(record: dict[str, Any]) -> "Iterator[EvalResult]":
    """Yield the metrics of an evaluation for the card's header, which the Hub reads."""
    from huggingface_hub import EvalResult

    dataset = " ".join(str(record["protocol"]["dataset"]).split())
    values = compute_metrics(torch.tensor(record["matrix"]))
    for metric, title in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
        if not math.isnan(values[metric]):
            yield EvalResult(
                task_type="image-segmentation", dataset_type=dataset.lower(), dataset_name=dataset,
                dataset_split=record["evaluation"].partition("-")[0], metric_type=metric, metric_name=title,
                metric_value=round(float(values[metric]), 4),
            )  # fmt: skip


def escape(text: str) -> str:
    """Return a name as one line of literal Markdown."""
    return re.sub(r"([\\|`*_\[\]<>#])", r"\\\1", " ".join(text.split()))


def format_body(segmenter: Segmenter, licence: str | None) -> Iterator[str]:
    """Yield the card's lines between title and example."""
    dataset, facts = segmenter.dataset or "a dataset that its checkpoint does not name", segmenter.facts
    yield f"Semantic segmentation into {len(segmenter.classes)} classes, trained on {escape(dataset)} with dilated_seg:"
    yield f"`{format_call(segmenter.built[0], **segmenter.built[1])}`,"  # type: ignore[index]
    yield f"{sum(p.numel() for p in segmenter.net.parameters()):,} parameters."
    if segmenter.crf:
        learned = ", its weights and compatibility learned with the network (CRF-RNN)" if segmenter.crf.learnable else ""
        yield f"Its probabilities are refined by a {segmenter.crf}{learned}."
    channels = len(segmenter.mean)
    kind = "plain RGB (0 to 255)" if channels == 3 else f"images of {channels} channels (0 to 255; 16-bit values / 257)"
    yield f"It maps {kind}, of any size that the network accepts, to logits; normalization is part of it."
    yield ""
    if "checkpoint" in facts:
        yield f"From `{facts['checkpoint']}`, step {facts['step']}, SHA-256 `{facts['sha256']}`; written at commit {commit()}."
        yield ""
    if licence:
        yield f"Licence: {licence}"
    else:
        yield "Licence: not stated. Those of the dataset and of the initial weights may restrict the use of these weights."
    yield from ("", "## Evaluation", "")
    if not facts.get("evaluations"):
        yield "There is no evaluation of these weights in its run."
    for record in facts.get("evaluations", []):
        yield from format_evaluation(record)
    yield from ("## Classes", "", "| id | class | color |", "|---:|---|---|")
    for k, (label, color) in enumerate(zip(segmenter.classes, segmenter.palette, strict=True)):
        yield f"| {k} | {escape(label)} | #{bytes(color).hex()} |"
    yield from ("", "## Use")


def format_evaluation(record: dict[str, Any]) -> Iterator[str]:
    """Yield the metrics of an evaluation as a table, and its protocol."""
    values = compute_metrics(torch.tensor(record["matrix"]))
    row = [values["mean_iou"], values["pixel_accuracy"], *values["iou"]]
    yield f"| {' | '.join(['mean IoU', 'pixel acc.', *map(escape, record['classes'])])} |"
    yield f"|{'---:|' * len(row)}"
    yield f"| {' | '.join(map(percent, row))} |"
    yield ""
    yield f"<sub>{'; '.join(f'{key}: {escape(str(value))}' for key, value in record['protocol'].items())}; in percent.</sub>"
    yield ""
