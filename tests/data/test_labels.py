"""Labels that teach nothing, or not all, and classes of other names: what is an error, and what is a warning."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
import wandb
from lightning import Trainer
from PIL import Image

from dilated_seg.__main__ import main
from dilated_seg.data import CamVid, Folder, SegmentationDataModule, manifest
from dilated_seg.data.checks import check_labels, count_labels, spread_indices
from dilated_seg.data.classes import describe_absent, find_first_difference
from dilated_seg.data.split import Split
from dilated_seg.errors import UserError
from dilated_seg.models import DilatedNet
from dilated_seg.report.results import read_results, require_same_split
from dilated_seg.report.terminal import list_label_notes
from dilated_seg.runs import Run
from dilated_seg.runs.samples import require_same_classes
from dilated_seg.task import SegmentationTask
from dilated_seg.training.labels import NothingToLearnError
from tests.support.commands import run_process
from tests.support.fake_datasets import camvid32


def write_folder(root, masks, classes="[background, object]", splits=("train", "val")):
    """A dataset of the user's own: each split has these masks, or those of its name."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
        for number, mask in enumerate(masks[split] if isinstance(masks, dict) else masks):
            image = rng.integers(0, 256, (16, 24, 3), np.uint8)
            Image.fromarray(image).save(root / split / f"images/{split}{number}.png")
            Image.fromarray(np.asarray(mask, np.uint8)).save(root / split / f"masks/{split}{number}.png")
    (root / "classes.yaml").write_text(f"classes: {classes}\n")
    return root


def mask_of(value, background=0):
    """A mask of 16 x 24, a quarter of which is an object of this value."""
    mask = np.full((16, 24), background, np.uint8)
    mask[:8, :12] = value
    return mask


VOID = np.full((16, 24), 255, np.uint8)


# A network of a few parameters, on the CPU.
TINY = [
    "--model.net=DilatedNet", "--model.net.init_args.width=0.02", "--model.net.init_args.context=null",
    "--model.optimizer=SGD", "--model.optimizer.init_args.lr=0.01", "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
]  # fmt: skip


def call(verb, root, run, *args, data="Folder"):
    """The exit status of a verb, as a user starts it: with a worker."""
    data = [f"--data={data}", "--data.init_args.batch_size=2", "--data.init_args.num_workers=1"]
    data += [f"--data.init_args.root={root}"] if root else []
    steps = ["--trainer.max_steps=3", "--trainer.val_check_interval=3"] if verb == "fit" else []
    try:
        return main([verb, *data, *TINY, *steps, f"--run_dir={run}", *args])
    finally:
        wandb.finish()  # as the end of the process would


pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of Lightning, where a run directory is another


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """W&B as a user has it who was asked for no key."""
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on masks of two classes, with W&B offline, and its data."""
    place = tmp_path_factory.mktemp("binary")
    root = write_folder(place / "data", [mask_of(1)] * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        assert call("fit", root, place / "run") == 0
    return place


# Training on nothing


def test_a_training_split_without_masks_is_refused(tmp_path, capsys):
    root = write_folder(tmp_path / "data", [mask_of(1)] * 4)
    (root / "train/masks").rename(root / "train/outlines")
    assert call("fit", root, tmp_path / "run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    for words in ("dilated-seg: Folder", "the split train", str(root), "4 images and 0 masks"):
        assert words in error
    assert not (tmp_path / "run").exists()


def test_a_split_whose_masks_are_not_published_cannot_be_trained_on(tmp_path, camvid):
    class Unlabelled(CamVid):
        def split(self, name):
            split = super().split(name)
            split.pairs, split.labelled = [(name, image, None) for name, image, _ in split.pairs], False
            return split

    with pytest.raises(UserError, match=r"the split train in .* has 6 images and 0 masks"):
        Unlabelled(root=str(camvid)).train_dataloader()


def test_a_prepared_split_without_masks_is_refused(tmp_path):
    root = write_folder(tmp_path / "data", [mask_of(1)] * 4)
    shutil.rmtree(root / "train/masks")
    assert main(["prepare", "folder", "--root", str(root), "--out", str(tmp_path / "shards")]) == 0
    with pytest.raises(UserError, match="4 images and 0 masks"):
        check_labels(Folder(root=str(tmp_path / "shards")))


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_that_are_ignored_everywhere_are_refused_before_the_first_step(split, tmp_path, capsys):
    root = write_folder(tmp_path / "data", {"train": [mask_of(1)] * 4, "val": [mask_of(1)] * 3} | {split: [VOID] * 3})
    assert call("fit", root, tmp_path / "run") == 2
    output = capsys.readouterr()
    assert f"none of the 3 masks of {split} has a pixel of any class: all 1,152 pixels are ignored (255)" in output.err
    assert "images a step" not in output.out  # what is said when training begins
    assert not (tmp_path / "run").exists()


def test_colors_that_all_mean_void_are_refused(tmp_path):
    root = camvid32(tmp_path / "camvid")
    for label in (root / "LabeledApproved_full").iterdir():
        with Image.open(label) as image:
            size = image.size
        Image.new("RGB", size).save(label)  # black is Void, which belongs to none of the 11 classes
    with pytest.raises(UserError, match="CamVid: none of the 2 masks of train has a pixel of any class"):
        check_labels(CamVid(root=str(root)))


def test_prepared_masks_that_are_ignored_everywhere_are_refused_when_streamed(tmp_path, capsys):
    root = write_folder(tmp_path / "data", [VOID] * 3)
    assert main(["prepare", "folder", "--root", str(root), "--out", str(tmp_path / "shards")]) == 0
    assert "warning: none of the 3 masks of train has a pixel of any class" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of the 3 masks of train has a pixel of any class"):
        check_labels(Folder(root=str(tmp_path / "shards"), streaming=True))


@pytest.mark.slow
def test_one_process_of_two_may_have_no_valid_pixel(tmp_path):
    root = write_folder(tmp_path / "data", [mask_of(1), VOID])
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=2", "--trainer.limit_val_batches=0"]
    data = ["--data=Folder", f"--data.init_args.root={root}", "--data.init_args.batch_size=1"]
    result = run_process("fit", *data, *TINY, *two, f"--run_dir={tmp_path}/run")
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr


class DrawnSplit(Split):
    """Images whose masks have one value each, in turn."""

    def __init__(self, values, images, name):
        self.values, self.images, self.name = values, images, name

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        return {
            "image": torch.full((3, 16, 16), 9, dtype=torch.uint8),
            "mask": torch.full((16, 16), self.values[index % len(self.values)], dtype=torch.uint8),
            "id": f"{self.name}{index}",
        }


class Drawn(SegmentationDataModule):
    """A user's own dataset, which nobody looks through before the first step."""

    classes = ("background", "road", "car")
    palette = ((0, 0, 0), (1, 1, 1), (2, 2, 2))

    def __init__(self, values=(255,), images=4, **options):
        super().__init__(**options)
        self.drawn, self.images = list(values), images

    def split(self, name):
        return DrawnSplit(self.drawn, self.images, name)


def train(data, folder, steps=-1, **options):
    """Train a narrow network on the CPU with a trainer built in Python."""
    torch.manual_seed(0)
    net = DilatedNet(3, context=None, width=0.02)
    task = SegmentationTask(net, 3, classes=data.classes, optimizer=lambda p: torch.optim.SGD(p, 0.01))
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, log_every_n_steps=1,
        use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    return trainer


def test_an_epoch_without_a_valid_pixel_ends_the_run(tmp_path):
    with pytest.raises(NothingToLearnError, match="none of the 4 training crops has a pixel of any class"):
        train(Drawn(batch_size=2), tmp_path, max_epochs=2)


def test_a_run_that_ends_within_its_first_epoch_has_not_trained_on_nothing(tmp_path):
    with pytest.raises(NothingToLearnError, match="none of the 2 training crops"):
        train(Drawn(batch_size=2), tmp_path, steps=1)


def test_a_long_epoch_without_a_valid_pixel_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("dilated_seg.training.labels.CROPS", 6)
    with pytest.raises(NothingToLearnError, match="none of the first 6 training crops"):
        train(Drawn(images=100, batch_size=2), tmp_path, max_epochs=2)


def test_one_valid_pixel_is_enough(tmp_path):
    trainer = train(Drawn(values=(255, 255, 255, 2), batch_size=1), tmp_path, max_epochs=2)
    assert trainer.global_step == 8


def test_the_command_line_leaves_nothing_of_a_run_that_trained_on_nothing(tmp_path, capsys):
    steps = ["--trainer.max_steps=20", "--trainer.val_check_interval=1", "--trainer.limit_val_batches=0"]
    assert call("fit", None, tmp_path / "run", *steps, data="tests.data.test_labels.Drawn") == 2
    assert "so nothing was learned" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("values", "named"), [((0, 1), "2 'car'"), ((0, 255), "1 'road', 2 'car'"), ((0, 1, 2), None)])
def test_a_class_that_an_epoch_does_not_show_is_named(values, named, tmp_path, capsys):
    train(Drawn(values=values, images=6, batch_size=2), tmp_path, max_epochs=2)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert said == ([f"warning: none of the 6 training crops has a pixel of {named}, which cannot be learned"] if named else [])


def test_callbacks_that_inspect_labels_do_not_change_the_trained_weights(tmp_path, monkeypatch):
    first = train(Drawn(values=(0, 1, 2, 255), batch_size=2), tmp_path, steps=3).lightning_module.state_dict()
    monkeypatch.setattr(SegmentationTask, "configure_callbacks", lambda self: [])
    second = train(Drawn(values=(0, 1, 2, 255), batch_size=2), tmp_path, steps=3).lightning_module.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# Classes that no mask holds


def test_binary_masks_of_0_and_255_are_noticed_by_prepare_fit_and_validate(tmp_path, capsys):
    root = write_folder(tmp_path / "data", [mask_of(255)] * 4)
    sentence = (
        "none of the 4 masks of train has a pixel of 1 'object': they hold 0 'background' (75.0 %), 255, which is ignored"
    )
    remedy = "if 255 is your 'object', replace 255 by 1 in the masks"
    assert call("fit", root, tmp_path / "run") == 0
    (warning, *_) = [line for line in capsys.readouterr().err.splitlines() if "masks of train" in line]
    assert warning.startswith("warning: ")
    assert sentence in warning
    assert remedy in warning
    assert main(["prepare", "folder", "--root", str(root), "--out", str(tmp_path / "shards")]) == 0
    assert f"warning: {sentence}" in capsys.readouterr().err
    check_labels(Folder(root=str(tmp_path / "shards")))  # by the manifest
    assert sentence in capsys.readouterr().err
    last = f"--ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    assert call("validate", root, tmp_path / "run", last) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "only 0 'background' has pixels in the masks of val" in output
    assert "none of the masks of val has a pixel of 1 'object': they hold 0 'background' (75.0 %), 255" in output
    evaluation = Run(tmp_path / "run").evaluation("val-last")
    assert (evaluation.ignore_index, evaluation.ignored_pixels) == (255, 4 * 96)


def test_masks_that_hold_every_class_are_not_reported(run, capsys):
    check_labels(Folder(root=str(run / "data")))
    assert capsys.readouterr().err == ""
    assert list_label_notes(Run(run / "run").evaluation("val")) == []


def test_a_split_is_counted_until_every_class_has_occurred_or_the_time_is_over(tmp_path):
    root = write_folder(tmp_path / "data", [mask_of(1), mask_of(0), mask_of(0), mask_of(0), mask_of(0)])
    split = Folder(root=str(root)).split("train")
    assert count_labels(split, 2).masks == 1
    every = count_labels(split, 3)
    assert (every.masks, every.complete, every.pixels[:3].tolist()) == (5, True, [1824, 96, 0])
    some = count_labels(split, 3, seconds=0)
    assert (some.masks, some.complete) == (1, False)


def test_an_incomplete_count_is_reported_as_such(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dilated_seg.data.checks.count_labels", lambda *args: count_labels(*args, seconds=0))
    check_labels(Folder(root=str(write_folder(tmp_path / "data", [VOID] * 3))))  # no error: the others may have labels
    assert "none of the 1 masks of train that were read (of 3) has a pixel of any class" in capsys.readouterr().err


@pytest.mark.parametrize("length", [1, 2, 7, 100, 367, 10582])
def test_any_first_indices_are_spread_over_the_split(length):
    order = spread_indices(length)
    assert sorted(order) == list(range(length))
    if length > 100:
        gaps = np.diff(sorted([*order[:50], length]))
        assert gaps.max() < 4 * length / 50


def test_prepare_counts_the_pixels_of_every_class(tmp_path, camvid):
    for store in ("files", "raw"):
        out = str(tmp_path / store)
        assert main(["prepare", "camvid", "--root", str(camvid), "--out", out, "--store", store, "--other_counts"]) == 0
        facts = manifest.read(out)
        for split in ("train", "val"):
            masks = torch.stack([sample["mask"] for sample in CamVid(root=str(camvid)).split(split)])
            assert manifest.sum_pixels(facts, split) == torch.bincount(masks.flatten(), minlength=256).tolist()


def test_shards_of_an_earlier_version_are_refused(tmp_path):
    root = write_folder(tmp_path / "data", [mask_of(1)] * 4)
    assert main(["prepare", "folder", "--root", str(root), "--out", str(tmp_path / "shards")]) == 0
    file = tmp_path / "shards/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}))
    with pytest.raises(UserError, match="was written by another version of dilated-seg: prepare the dataset again"):
        check_labels(Folder(root=str(tmp_path / "shards")))


def test_an_evaluation_of_nothing_is_refused(run, tmp_path, capsys):
    root = write_folder(tmp_path / "data", [VOID] * 3)
    assert call("validate", root, tmp_path / "run", f"--ckpt_path={run}/run/checkpoints/last.ckpt") == 2
    assert "have no pixel of any class, all 1,152 are ignored (255), so there is nothing to evaluate" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sentences_of_absent_classes():
    classes = [f"c{k}" for k in range(12)]
    assert describe_absent([1] * 12, 5, classes, "the masks") is None
    some = describe_absent([999_999, 0, 1] + [0] * 9, 0, classes, "the masks")
    assert some == (
        "none of the masks has a pixel of 1 'c1', 3 'c3', 4 'c4', 5 'c5' and 6 more classes: they hold 0 'c0' (over 99.9 %), "
        "2 'c2' (under 0.1 %)"
    )
    many = describe_absent([12 - k for k in range(11)] + [0], 0, classes, "the masks")
    assert many.endswith("5 'c5' (9.1 %), 5 more classes")


# Class names


def test_the_first_class_that_differs_is_named():
    assert find_first_difference(["a", "b"], ("a", "b"), "here", "there") is None
    assert find_first_difference(["a", "b", "c"], ["a", "c", "b"], "in x", "in y") == (
        "class 1 is 'b' in x and 'c' in y, where 'b' is class 2"
    )
    assert find_first_difference(["a", "b"], ["a", "B"], "in x", "in y") == "class 1 is 'b' in x and 'B' in y"
    assert find_first_difference(["a"], ["a", "b"], "in x", "in y") == "there are 1 classes in x and 2 in y"


SWAPPED, RENAMED, MORE = "[object, background]", "[background, Object]", "[background, object, third]"


def renamed(run, place, classes):
    """A copy of the run's data whose classes.yaml says something else."""
    shutil.copytree(run / "data", place)
    (place / "classes.yaml").write_text(f"classes: {classes}\n")
    return place


@pytest.mark.parametrize(
    ("verb", "classes", "words"),
    [
        ("validate", SWAPPED, "class 0 is 'background' in "),
        ("validate", RENAMED, "class 1 is 'object' in "),
        ("validate", MORE, "there are 2 classes in "),
        ("predict", SWAPPED, "class 0 is 'background' in "),
        ("fit", SWAPPED, "class 0 is 'background' in "),
    ],
)
def test_a_checkpoint_of_other_class_names_is_refused(verb, classes, words, run, tmp_path, capsys):
    root = renamed(run, tmp_path / "data", classes)
    checkpoint = f"{run}/run/checkpoints/last.ckpt"
    assert (
        call(verb, root, tmp_path / "run", f"--ckpt_path={checkpoint}", *(["--trainer.max_steps=9"] if verb == "fit" else []))
        == 2
    )
    error = capsys.readouterr().err.splitlines()[-1]
    assert words + checkpoint in error
    assert f"{root}/classes.yaml" in error
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_continued_after_its_classes_were_swapped(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "copy")
    root = renamed(run, tmp_path / "other", SWAPPED)
    (tmp_path / "copy/run/finished").unlink()
    config = tmp_path / "copy/run/config.yaml"
    config.write_text(config.read_text().replace(f"root: {run}/data", f"root: {root}"))
    assert main(["fit", "--config", str(config), "--run_dir", str(tmp_path / "copy/run")]) == 2
    assert "class 0 is 'background' in " in capsys.readouterr().err


def test_another_dataset_of_the_same_classes_is_evaluated(run, tmp_path):
    assert main(["prepare", "folder", "--root", str(run / "data"), "--out", str(tmp_path / "shards")]) == 0
    last = f"--ckpt_path={run}/run/checkpoints/last.ckpt"
    assert call("validate", tmp_path / "shards", tmp_path / "run", last) == 0


def test_weights_of_other_class_names_are_refused_unless_the_scores_are_left_out(run, tmp_path, capsys):
    root = renamed(run, tmp_path / "data", SWAPPED)
    weights = f"--model.weights={run}/run"
    assert call("fit", root, tmp_path / "run", weights) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "model.weights: class 0 is 'background' in " in error
    assert "model.weights_without" in error
    layer = error.split(": name ")[1].split()[0]
    assert call("fit", root, tmp_path / "run", weights, f"--model.weights_without=[{layer}]") == 0
    assert call("fit", run / "data", tmp_path / "same", weights) == 0


def test_exported_weights_of_other_class_names_are_refused(run, tmp_path, capsys):
    out = tmp_path / "exported"
    assert main(["export", f"{run}/run", "--format", "hub", "--out", str(out)]) == 0
    root = renamed(run, tmp_path / "data", SWAPPED)
    assert call("fit", root, tmp_path / "run", f"--model.weights={out}/model.safetensors") == 2
    assert "class 0 is 'background' in " in capsys.readouterr().err


def test_a_checkpoint_meets_the_data_of_a_run_by_the_names_of_classes(run):
    data = Folder(root=str(run / "data"))
    require_same_classes("runs/x", data, ["background", "object"])
    with pytest.raises(UserError, match=r"class 0 is 'object' in the checkpoint and 'background' in .*classes.yaml of runs/x"):
        require_same_classes("runs/x", data, ["object", "background"])


def test_runs_of_other_class_names_are_not_compared(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "other")
    file = tmp_path / "other/evaluations/val.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"classes": ["background", "Object"]}))
    with pytest.raises(UserError, match=r"class 1 is 'object' in .*/run and 'Object' in .*/other: only runs"):
        require_same_split(read_results([Run(run / "run"), Run(tmp_path / "other")], "val", "ab"))


def test_a_prepared_copy_whose_classes_were_swapped_is_refused(run, tmp_path):
    assert main(["prepare", "folder", "--root", str(run / "data"), "--out", str(tmp_path / "shards")]) == 0
    (tmp_path / "shards/classes.yaml").write_text(f"classes: {SWAPPED}\n")
    with pytest.raises(UserError, match=r"class 0 is 'background' when .* was prepared and 'object' in "):
        Folder(root=str(tmp_path / "shards")).open_split("train")


# Headers


def save_colors(path):
    """A mask in two colors."""
    Image.fromarray(np.stack([mask_of(9), mask_of(0), mask_of(0)], -1)).save(path)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: save_colors(path), "has mode RGB"),
        (lambda path: Image.fromarray(mask_of(1).astype(np.uint16)).save(path), "has mode I;16"),
        (lambda path: path.write_bytes(b""), "cannot be read as an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "cannot be read as an image"),
        (lambda path: Image.fromarray(mask_of(1)[1:]).save(path), "they must have one size"),
    ],
)
def test_the_header_of_every_mask_is_read_before_the_first_step(split, damage, words, tmp_path):
    root = write_folder(tmp_path / "data", [mask_of(1)] * 5)
    damage(root / split / f"masks/{split}3.png")
    with pytest.raises(UserError, match=words) as refused:
        Folder(root=str(root)).open_split(split)
    assert f"{split}3.png" in str(refused.value)


def test_every_mask_of_an_unsupported_mode_is_counted(tmp_path):
    root = write_folder(tmp_path / "data", [mask_of(1)] * 5)
    for path in (root / "train/masks").iterdir():
        save_colors(path)
    with pytest.raises(UserError, match=r"mode RGB.*4 more such problems"):
        Folder(root=str(root)).open_split("train")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grayscale_masks_of_fewer_bits_keep_their_values(bits, tmp_path):
    root = write_folder(tmp_path / "data", [mask_of(1)] * 2)
    Image.fromarray(mask_of(1)).save(path := root / "train/masks/train0.png")
    content = mask_of(1)
    write_png(path, content, bits)
    with Image.open(path) as image:
        assert image.size == (24, 16)
    sample = Folder(root=str(root)).open_split("train")[0]
    assert torch.equal(sample["mask"], torch.from_numpy(content))


def write_png(path, values, bits):
    """A grayscale PNG of 1, 2 or 4 bits."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    rows = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        rows += b"\0" + int(digits.ljust(-(-width * bits // 8) * 8, "0"), 2).to_bytes(-(-width * bits // 8), "big")
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_masks_of_colors_that_the_dataset_reads_are_accepted(tmp_path):
    CamVid(root=str(camvid32(tmp_path / "camvid"))).split("train").check()
