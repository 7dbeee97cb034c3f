"""A trained network on pictures of every kind, as real files: one bad picture stops nothing, and nothing is lost."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dilated_seg.__main__ import main
from dilated_seg.crf import DenseCRF
from dilated_seg.data import VOC, Cityscapes
from dilated_seg.errors import UserError
from dilated_seg.inference import load
from dilated_seg.inference.find import VOC_SUBMISSION
from dilated_seg.inference.image import segment_image
from dilated_seg.inference.strategies import MultiScale, Tiles
from dilated_seg.models import UNet
from dilated_seg.task import SegmentationTask
from tests.support.commands import ROOT, THREADS

COLOURS = [(0, 0, 0), (200, 0, 0), (0, 200, 0)]


def checkpoint(path, classes=("nothing", "left", "right"), palette=COLOURS, submitted=None, name="Mine"):
    """A file as a run leaves it, of a small network with random weights."""
    torch.manual_seed(3)
    net = UNet(len(classes), width=1 / 32)
    for parameter in net.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter)
    task = SegmentationTask(net, len(classes))
    content = {
        "state_dict": task.state_dict(),
        "global_step": 7,
        "hyper_parameters": {
            "net": {"class_path": "dilated_seg.models.UNet", "init_args": {"num_classes": len(classes), "width": 1 / 32}},
            "num_classes": len(classes), "classes": list(classes), "ignore_index": 255,
        },
        "dataset": {
            "name": name, "classes": list(classes), "palette": [tuple(c) for c in palette], "ignore_index": 255,
            "submitted": submitted,
        },
    }  # fmt: skip
    torch.save(content, path)
    return path


@pytest.fixture
def trained(tmp_path):
    return checkpoint(tmp_path / "trained.ckpt")


def photo(height=20, width=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def opened(path):
    """A written picture, its file closed again."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run(pictures, checkpoint, out, *options):
    return main(["segment", *map(str, pictures), "--checkpoint", str(checkpoint), "--out", str(out), *options])


def test_a_picture_is_segmented_in_five_lines(trained, tmp_path):
    photo().save(tmp_path / "street.png")
    model = load(trained)
    result = segment_image(model, tmp_path / "street.png")
    assert result.ids.shape == (20, 30)
    with torch.no_grad():
        assert result.ids.equal(model(result.image[None])[0].max(0).indices.to(torch.uint8))
    assert sum(result.shares().values()) == pytest.approx(1)
    assert set(result.shares()) == {model.classes[k] for k in result.ids.unique()}
    assert result.protocol == "whole image"
    assert opened(io.BytesIO(result._repr_png_())).size == (30, 20)


def test_an_overlay_is_halfway_between_picture_and_colours(trained):
    result = segment_image(load(trained), photo())
    expected = (result.image.permute(1, 2, 0).numpy().astype(float) + np.array(COLOURS)[result.ids.numpy()]) / 2
    assert np.abs(np.asarray(result.overlay()) - expected).max() <= 1


def test_a_picture_may_be_a_file_an_image_or_a_tensor(trained, tmp_path):
    photo().save(tmp_path / "street.png")
    model = load(trained)
    ways = [
        tmp_path / "street.png",
        str(tmp_path / "street.png"),
        photo(),
        torch.from_numpy(np.array(photo())).permute(2, 0, 1),
    ]
    first, *others = (segment_image(model, way).ids for way in ways)
    assert all(first.equal(other) for other in others)
    for wrong in (torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(3, 0, 4, dtype=torch.uint8)):
        with pytest.raises(UserError, match="an image must be uint8 RGB"):
            segment_image(model, wrong)


def test_probabilities_and_crf_can_be_asked_for(trained):
    model = load(trained)
    plain = segment_image(model, photo(), probabilities=True)
    assert plain.probabilities.shape == (3, 20, 30)
    torch.testing.assert_close(plain.probabilities.sum(0), torch.ones(20, 30))
    assert plain.ids.equal(plain.probabilities.max(0).indices.to(torch.uint8))
    refined = segment_image(model, photo(), crf=DenseCRF(iterations=2))
    with torch.no_grad():
        expected = DenseCRF(iterations=2)(plain.probabilities[None], plain.image[None])
    assert refined.ids.equal(expected[0].max(0).indices.to(torch.uint8))
    assert "CRF" in refined.protocol


def test_large_images_are_segmented_in_tiles_by_default(trained, monkeypatch):
    monkeypatch.setattr("dilated_seg.inference.image.LARGE", 1000)
    assert segment_image(load(trained), photo(25, 40)).protocol == "whole image"
    assert segment_image(load(trained), photo(25, 41)).protocol == str(Tiles())
    assert segment_image(load(trained), photo(80, 96), Tiles((64, 64), 32)).protocol == str(Tiles((64, 64), 32))


def test_labels_are_indices_with_the_datasets_colours_and_overlays_have_the_pictures_size(trained, tmp_path):
    photo().save(tmp_path / "street.png")
    assert run([tmp_path / "street.png"], trained, tmp_path / "out", "--probabilities") == 0
    assert files(tmp_path / "out") == ["labels/street.png", "overlays/street.jpg", "probabilities/street.npy", "protocol.json"]
    label = opened(tmp_path / "out/labels/street.png")
    assert (label.mode, label.size, label.getpalette()[:9]) == ("P", (30, 20), [0, 0, 0, 200, 0, 0, 0, 200, 0])
    result = segment_image(load(trained), photo(), probabilities=True)
    assert np.array_equal(np.asarray(label), result.ids.numpy())
    stored = np.load(tmp_path / "out/probabilities/street.npy")
    assert stored.dtype == np.float16
    assert np.array_equal(stored, result.probabilities.half().numpy())
    assert opened(tmp_path / "out/overlays/street.jpg").size == (30, 20)
    protocol = json.loads((tmp_path / "out/protocol.json").read_text())
    assert protocol["step"] == 7
    assert protocol["inference"].startswith("whole image")
    assert len(protocol["sha256"]) == 64


MODES = ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"]
SUFFIX = {"CMYK": "jpg", "YCbCr": "jpg"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_read_as_the_picture_it_shows(mode, trained, tmp_path):
    grey = np.linspace(0, 255, 20 * 30).reshape(20, 30)
    picture = Image.fromarray(grey.astype(np.uint8))
    picture = picture.convert("P") if mode == "P" else picture.convert("RGB").convert(mode)
    path = tmp_path / f"picture.{SUFFIX.get(mode, 'png')}"
    picture.save(path)
    result = segment_image(load(trained), path)
    assert result.ids.shape == (20, 30)
    shown = result.image.float().mean(0).numpy()
    if mode != "1":  # dithered
        assert np.abs(shown - grey).max() < 12
    assert run([path], trained, tmp_path / "out") == 0


def test_a_picture_that_exif_turns_is_segmented_upright(trained, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    photo().save(tmp_path / "turned.jpg", exif=exif, quality=100)
    assert run([tmp_path / "turned.jpg"], trained, tmp_path / "out") == 0
    assert opened(tmp_path / "out/labels/turned.png").size == (20, 30)
    assert opened(tmp_path / "out/overlays/turned.jpg").size == (20, 30)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1)])
def test_pictures_of_one_pixel_a_side_are_segmented(size, trained, tmp_path):
    photo(*size).save(tmp_path / "thin.png")
    assert run([tmp_path / "thin.png"], trained, tmp_path / "out") == 0
    assert opened(tmp_path / "out/labels/thin.png").size == size[::-1]


def test_a_bad_picture_stops_no_other_and_the_summary_says_how_many(trained, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    photo().save(folder / "good.png")
    photo(300, 300).save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:3000])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    (folder / "folder.png").mkdir()
    photo().save(folder / "folder.png/inside.png")
    assert run([folder, "nowhere.jpg"], trained, tmp_path / "out") == 1
    said = capsys.readouterr().out
    for name in ("truncated.jpg", "empty.png", "text.jpg"):
        assert f"{folder / name} cannot be read as an image" in said
    assert "there is no image nowhere.jpg" in said
    assert "3 of 7 images segmented" in said
    assert "4 failed" in said
    assert files(tmp_path / "out") == [
        "labels/folder.png/inside.png", "labels/good.png", "labels/whole.png",
        "overlays/folder.png/inside.jpg", "overlays/good.jpg", "overlays/whole.jpg", "protocol.json",
    ]  # fmt: skip


def test_subdirectories_of_a_source_are_kept_without_hidden_files_and_results(trained, tmp_path):
    (tmp_path / "in/a/.hidden").mkdir(parents=True)
    for name in ("in/1.png", "in/a/1.png", "in/a/.2.png", "in/a/.hidden/3.png"):
        photo().save(tmp_path / name)
    (tmp_path / "in/notes.txt").write_text("no picture, and no suffix of one")
    assert run([tmp_path / "in"], trained, tmp_path / "in/out") == 0
    assert files(tmp_path / "in/out/labels") == ["1.png", "a/1.png"]
    assert run([tmp_path / "in"], trained, tmp_path / "in/out", "--overwrite") == 0
    assert files(tmp_path / "in/out/labels") == ["1.png", "a/1.png"]


def test_a_list_of_values_and_a_protocol_within_another_can_be_written(trained, tmp_path):
    photo(70, 80).save(tmp_path / "1.png")
    protocol = "MultiScale([1/2, 1], flip=false, each=Tiles(size=(64, 64), overlap=32))"
    assert run([tmp_path / "1.png"], trained, tmp_path / "out", "--inference", protocol) == 0
    expected = MultiScale([0.5, 1], False, Tiles((64, 64), 32))
    assert json.loads((tmp_path / "out/protocol.json").read_text())["inference"] == str(expected)
    ids = segment_image(load(trained), tmp_path / "1.png", expected).ids.numpy()
    assert np.array_equal(np.asarray(opened(tmp_path / "out/labels/1.png")), ids)


def test_images_of_the_same_name_keep_the_directories_below_their_source_and_never_share_a_result(trained, tmp_path, capsys):
    for name in ("d1/s/1.png", "d2/s/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        photo().save(tmp_path / name)
    assert run([tmp_path / "d*/s"], trained, tmp_path / "none") == 2  # a pattern names files
    assert run([tmp_path / "d*/s/*.png"], trained, tmp_path / "out") == 0
    assert files(tmp_path / "out/labels") == ["d1/s/1.png", "d2/s/1.png"]
    capsys.readouterr()
    assert run([tmp_path / "d1/s", tmp_path / "d2/s"], trained, tmp_path / "out2") == 1
    assert files(tmp_path / "out2/labels") == ["1.png"]
    assert f"{tmp_path}/d2/s/1.png would overwrite the results of {tmp_path}/d1/s/1.png: rename" in capsys.readouterr().out


def test_no_image_name_escapes_the_output_directory(trained, tmp_path, monkeypatch):
    (tmp_path / "w/sub").mkdir(parents=True)
    (tmp_path / "pics").mkdir()
    for name in ("pics/1.png", "w/2.png"):
        photo().save(tmp_path / name)
    monkeypatch.chdir(tmp_path / "w")
    assert run(["sub*/../../pics/1.png", "2.png", "../pics"], trained, "out") == 0
    assert files(tmp_path / "w/out/labels") == ["1.png", "2.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"w", "pics", trained.name}
    shutil.rmtree(tmp_path / "w/out")
    assert run(["."], trained, ".") == 0  # beside the pictures, and its own results are none of them
    assert run(["."], trained, ".") == 0
    assert files(tmp_path / "w/labels") == ["2.png"]


def test_links_are_followed_once(trained, tmp_path):
    (tmp_path / "in/a").mkdir(parents=True)
    photo().save(tmp_path / "in/a/1.png")
    (tmp_path / "in/a/link.png").symlink_to("1.png")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/self.png").symlink_to("self.png")
    assert run([tmp_path / "in/**/*.png"], trained, tmp_path / "out") == 1
    assert files(tmp_path / "out/labels") == ["a/1.png", "a/link.png"]


def test_special_files_and_too_long_names_do_not_stop_other_images(trained, tmp_path, capsys):
    photo().save(tmp_path / "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert run([tmp_path / "pipe.png", "x" * 300, tmp_path / "1.png"], trained, tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert "pipe.png is not a file" in said
    assert "1 of 3 images segmented" in said
    assert run([tmp_path / "1.png", ""], trained, tmp_path / "out2") == 2
    assert "an IMAGE is an empty string" in capsys.readouterr().err


def test_a_picture_whose_results_cannot_be_written_stops_no_other(trained, tmp_path, capsys):
    """JPEG holds 65,500 pixels a side; a folder stands where a label belongs."""
    Image.new("RGB", (66000, 1)).save(tmp_path / "wide.png")
    for name in ("1.png", "2.png", "a [bold].png"):
        photo().save(tmp_path / name)
    pictures = [tmp_path / name for name in ("wide.png", "1.png", "2.png", "a [bold].png")]
    assert run(pictures, trained, tmp_path / "new") == 1
    assert "cannot have 1 x 66000 pixels" in capsys.readouterr().out
    assert files(tmp_path / "new/labels") == ["1.png", "2.png", "a [bold].png"]
    (tmp_path / "new/labels/1.png").unlink()
    (tmp_path / "new/labels/1.png").mkdir()
    assert run(pictures[1:], trained, tmp_path / "new", "--overwrite") == 1
    assert "2 of 3 images segmented" in capsys.readouterr().out
    assert not list((tmp_path / "new").rglob("*.partial"))


def test_a_submission_can_be_added_to_existing_results(tmp_path):
    data = VOC(root=str(tmp_path))
    voc = checkpoint(tmp_path / "v.ckpt", data.classes, data.palette, name="VOC")
    photo().save(tmp_path / "2008_000006.jpg")
    assert run([tmp_path / "2008_000006.jpg"], voc, tmp_path / "out") == 0
    before = (tmp_path / "out/labels/2008_000006.png").stat().st_mtime_ns
    assert run([tmp_path / "2008_000006.jpg"], voc, tmp_path / "out", "--submission", "voc") == 0
    assert (tmp_path / "out/labels/2008_000006.png").stat().st_mtime_ns == before
    assert (tmp_path / "out" / VOC_SUBMISSION / "2008_000006.png").is_file()


@pytest.mark.parametrize(
    ("mode", "kind", "largest"), [("I;16", np.uint16, 65535), ("I", np.int32, 65535), ("F", np.float32, 1)]
)
def test_an_image_of_more_than_8_bits_is_refused_with_the_remedy_and_stops_no_other(
    mode, kind, largest, trained, tmp_path, capsys
):
    """Its range is not in the file: 0 to 1, to a camera's 4,095, or to 65,535."""
    Image.fromarray(np.linspace(0, largest, 600).reshape(20, 30).astype(kind)).save(tmp_path / "deep.tif")
    photo().save(tmp_path / "photo.png")
    assert run([tmp_path / "deep.tif", tmp_path / "photo.png"], trained, tmp_path / "out") == 1
    assert f"deep.tif has mode {mode}, more than 8 bits a pixel: convert the image to 8 bits" in capsys.readouterr().out
    assert files(tmp_path / "out/labels") == ["photo.png"]


def test_weights_that_are_not_finite_are_an_error(trained, tmp_path, capsys):
    content = torch.load(trained, weights_only=True)
    next(tensor for name, tensor in content["state_dict"].items() if name.startswith("model.net."))[0] = torch.nan
    torch.save(content, trained)
    photo().save(tmp_path / "1.png")
    assert run([tmp_path / "1.png"], trained, tmp_path / "out") == 2
    assert "is not finite" in capsys.readouterr().err


def test_more_classes_than_a_mask_can_store_are_an_error(tmp_path):
    with pytest.raises(UserError, match="256 classes are too many"):
        load(checkpoint(tmp_path / "many.ckpt", [str(k) for k in range(256)], [(0, 0, 0)] * 256))


def test_a_pattern_is_taken_from_its_first_wildcard_on(trained, tmp_path, capsys):
    (tmp_path / "in/a/b").mkdir(parents=True)
    for name in ("in/a/1.png", "in/a/b/2.png", "in/3.png"):
        photo().save(tmp_path / name)
    assert run([tmp_path / "in/**/?.png"], trained, tmp_path / "out") == 0
    assert files(tmp_path / "out/labels") == ["3.png", "a/1.png", "a/b/2.png"]
    assert run([tmp_path / "in/[x]*.png"], trained, tmp_path / "out2") == 2
    assert "there is no image in" in capsys.readouterr().err


def test_two_pictures_never_share_a_result(trained, tmp_path, capsys):
    photo().save(tmp_path / "same.png")
    photo().save(tmp_path / "same.jpg")
    assert run([tmp_path / "same.png", tmp_path / "same.jpg", tmp_path / "same.png"], trained, tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert f"{tmp_path / 'same.jpg'} would overwrite the results of {tmp_path / 'same.png'}: rename" in said
    assert "1 of 2 images" in said
    assert run([tmp_path / "same.png", tmp_path / "same.jpg"], trained, tmp_path / "out") == 1  # nor when it was there before
    assert "0 of 2 images segmented" in capsys.readouterr().out


def test_results_are_replaced_only_when_that_is_asked_for(trained, tmp_path, capsys):
    photo().save(tmp_path / "1.png")
    photo().save(tmp_path / "2.png")
    assert run([tmp_path / "1.png"], trained, tmp_path / "out") == 0
    (tmp_path / "out/labels/1.png").write_bytes(b"mine")
    capsys.readouterr()
    assert run([tmp_path / "1.png", tmp_path / "2.png"], trained, tmp_path / "out") == 0
    assert (tmp_path / "out/labels/1.png").read_bytes() == b"mine"
    assert "1 existed (--overwrite replaces them)" in capsys.readouterr().out
    assert run([tmp_path / "1.png"], trained, tmp_path / "out", "--overwrite") == 0
    assert opened(tmp_path / "out/labels/1.png").size == (30, 20)


def test_results_of_two_protocols_are_not_mixed(trained, tmp_path, capsys):
    photo().save(tmp_path / "1.png")
    assert run([tmp_path / "1.png"], trained, tmp_path / "out") == 0
    photo().save(tmp_path / "2.png")
    assert run([tmp_path / "2.png"], trained, tmp_path / "out", "--crf") == 2
    assert "results of another protocol" in capsys.readouterr().err
    assert run([tmp_path / "2.png"], trained, tmp_path / "out", "--crf", "DenseCRF(w1=5)", "--overwrite") == 2
    assert files(tmp_path / "out/labels") == ["1.png"]
    for damaged in (b"\xff\xfe", b"[" * 100_000, b"{}"):
        (tmp_path / "out/protocol.json").write_bytes(damaged)
        assert run([tmp_path / "2.png"], trained, tmp_path / "out") == 2
    (tmp_path / "out/protocol.json").unlink()
    assert run([tmp_path / "2.png"], trained, tmp_path / "out") == 2


def test_an_output_directory_that_cannot_be_created_is_an_error_before_the_first_image(trained, tmp_path, capsys):
    photo().save(tmp_path / "1.png")
    (tmp_path / "file").touch()
    assert run([tmp_path / "1.png"], trained, tmp_path / "file/out") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_an_output_directory_without_write_permission_is_named(trained, tmp_path, capsys):
    photo().save(tmp_path / "1.png")
    (tmp_path / "out").mkdir(mode=0o500)
    assert run([tmp_path / "1.png"], trained, tmp_path / "out") == 2
    assert f"{tmp_path / 'out'} cannot be written" in capsys.readouterr().err


MOUNT = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=100k tmpfs "$0" && exec "$@"']


def can_mount(folder):
    return shutil.which("unshare") and subprocess.run([*MOUNT, folder, "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["small disk", "largest file"])
def test_a_full_disk_stops_and_leaves_only_complete_results(disk, trained, tmp_path):
    """On a disk of 100 KB; and by a limit on the size of files, which the system refuses in another way."""
    out = tmp_path / "out"
    out.mkdir()
    if disk == "small disk" and not can_mount(out):
        pytest.skip("nobody may mount a disk here")
    photo(8, 8).save(tmp_path / "1.png")
    photo(400, 400).save(tmp_path / "2.png")  # of which the label fits, and the overlay does not
    photo(8, 8).save(tmp_path / "3.png")
    pictures = [str(tmp_path / f"{n}.png") for n in (1, 2, 3)]
    code = f"""
import resource, signal, sys
from pathlib import Path
from dilated_seg.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if {disk == "largest file"}:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
status = main(["segment", *{pictures}, "--checkpoint", {str(trained)!r}, "--out", {str(out)!r}])
print(sorted(str(path.relative_to({str(out)!r})) for path in Path({str(out)!r}).rglob("*") if path.is_file()))
sys.exit(status)
"""
    command = [*([*MOUNT, str(out)] if disk == "small disk" else []), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert ("cannot be written" in done.stderr) == (disk == "small disk")
    assert "2.jpg cannot be written" in done.stdout
    whole = [1] if disk == "small disk" else [1, 3]  # a full disk ends the call, a file that is too large does not
    assert f"{len(whole)} of 3 images segmented" in done.stdout
    results = [f"{kind}/{n}.{suffix}" for kind, suffix in (("labels", "png"), ("overlays", "jpg")) for n in whole]
    assert done.stdout.splitlines()[-1] == str([*results, "protocol.json"])


def test_cityscapes_submissions_hold_label_ids_under_the_servers_names(tmp_path, capsys):
    data = Cityscapes(root=str(tmp_path))
    trained = checkpoint(tmp_path / "c.ckpt", data.classes, data.palette, list(data.submitted), "Cityscapes")
    photo(32, 64).save(tmp_path / "aachen_000000_000019_leftImg8bit.png")
    assert (
        run([tmp_path / "aachen_000000_000019_leftImg8bit.png"], trained, tmp_path / "out", "--submission", "cityscapes") == 0
    )
    written = opened(tmp_path / "out/submission/aachen_000000_000019.png")
    assert (written.mode, written.size) == ("L", (64, 32))
    ids = np.asarray(opened(tmp_path / "out/labels/aachen_000000_000019_leftImg8bit.png"))
    assert np.array_equal(np.asarray(written), np.array(data.submitted)[ids])
    photo().save(tmp_path / "mine.png")
    assert run([tmp_path / "mine.png"], trained, tmp_path / "out2", "--submission", "cityscapes") == 1
    assert "city, sequence and frame" in capsys.readouterr().out


def test_voc_submissions_lie_where_the_server_wants_them(trained, tmp_path, capsys):
    photo().save(tmp_path / "2008_000006.jpg")
    assert run([tmp_path / "2008_000006.jpg"], trained, tmp_path / "out", "--submission", "voc") == 2
    assert "21 classes" in capsys.readouterr().err
    data = VOC(root=str(tmp_path))
    voc = checkpoint(tmp_path / "v.ckpt", data.classes, data.palette, name="VOC")
    assert run([tmp_path / "2008_000006.jpg"], voc, tmp_path / "out", "--submission", "voc") == 0
    written = opened(tmp_path / "out/results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png")
    assert (written.mode, written.size) == ("P", (30, 20))
    assert written.getpalette()[3:6] == [128, 0, 0]
    assert run([tmp_path / "2008_000006.jpg"], voc, tmp_path / "out2", "--submission", "cityscapes") == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--inference", "Tiles(overlap=500)"], "do not fit"),
        (["--inference", "tiles"], "there is no inference strategy tiles"),
        (["--inference", "Tiles(overlap=64, sizes=3)"], "sizes"),
        (["--crf", "DenseCRF(w9=3)"], "w9"),
        (["--crf", "CRF"], "there is no CRF CRF"),
        (["--inference", ""], "cannot parse inference strategy"),
        (["--inference", "Tiles(size=512)"], "Tiles(size=512)"),
        (["--inference", "Tiles(size=(512,))"], "Tiles(size"),
        (["--inference", "Tiles(size=(512.5, 512.0))"], "Tiles(size"),
        (["--inference", "MultiScale(each=Tiles)"], "MultiScale(each"),
        (["--inference", "MultiScale(flip=2)"], "MultiScale(flip"),
        (["--inference", "MultiScale([1e400])"], "factors above 0"),
        (["--inference", "ReflectedTiles()"], "padding: reflect"),
        (["--crf", "DenseCRF(iterations=2.5)"], "DenseCRF(iterations"),
        (["--crf", "DenseCRF(w1=abc)"], "DenseCRF(w1"),
        (["--crf", "DenseCRF(w1=-1)"], "not below 0"),
        (["--crf", "DenseCRF(learnable=true)"], "learnable CRF as model.crf"),
        (["--crf", "DenseCRF(num_classes=9)"], "learnable CRF as model.crf"),
        (["--device", "meta"], "does not compute"),
        (["--device", ""], "--device"),
        (["--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_options_that_make_no_sense_are_said_in_one_sentence(options, sentence, trained, tmp_path, capsys):
    photo().save(tmp_path / "1.png")
    assert run([tmp_path / "1.png"], trained, tmp_path / "out", *options) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_segmenter_is_an_error_before_the_first_image(tmp_path, capsys):
    photo().save(tmp_path / "1.png")
    assert run([tmp_path / "1.png"], tmp_path / "nothing.ckpt", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_twenty_megapixels_pass_in_bounded_memory(trained, tmp_path):
    """Above what the process holds once it has segmented a small picture; the scores of the whole would take 1.7 GB alone."""
    net_of_21 = checkpoint(tmp_path / "v.ckpt", VOC(root=str(tmp_path)).classes, VOC(root=str(tmp_path)).palette)
    Image.new("RGB", (5472, 3648), (90, 120, 30)).save(tmp_path / "large.jpg")
    photo(600, 600).save(tmp_path / "small.png")
    code = f"""
import resource
from dilated_seg.inference.image import segment_image
from dilated_seg.inference.find import VOC_SUBMISSION
from dilated_seg.inference import load
model = load({str(net_of_21)!r})
segment_image(model, {str(tmp_path / "small.png")!r})
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert segment_image(model, {str(tmp_path / "large.jpg")!r}).ids.shape == (3648, 5472)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle)
"""
    environment = os.environ | {"OMP_NUM_THREADS": THREADS}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_500_000  # kilobytes
