"""Parquet datasets as people publish them: what is found in them, what is read of them, and what is said of misfits."""

import gc
import io
import json
import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import yaml
from datasets import Features, Value
from datasets import Image as ImageFeature
from datasets.features import List
from huggingface_hub import HfApi, HfFileSystem
from PIL import Image

from dilated_seg import storage
from dilated_seg.__main__ import main
from dilated_seg.cli.resolve import resolve_experiment
from dilated_seg.data import VOC, Cityscapes, Hub
from dilated_seg.data import row_groups as row_groups_module
from dilated_seg.data.checks import warn_of_shared_images
from dilated_seg.data.hub_files import find_split
from dilated_seg.data.hub_index import find_index
from dilated_seg.data.prepare.hub import check
from dilated_seg.data.row_groups import trim_cache
from dilated_seg.data.samplers import EvaluationOrder, TrainingOrder, order_by_row_groups
from dilated_seg.data.workers import PRINTED
from dilated_seg.errors import UserError
from dilated_seg.runs.config import build_dataset
from tests.support import parquet_datasets
from tests.support.parquet_datasets import draw, png, voc_row, write
from tests.support.range_server import COMMIT, REPO, DroppingHandler, HubHandler, serve

IMAGE = ImageFeature()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DILATED_SEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_groups_module, "PAUSES", ())
    PRINTED.clear()
    return tmp_path / "cache"


def expected(number):
    """The mask of an image of `parquet_datasets.voc`."""
    return torch.from_numpy(draw(number, parquet_datasets.VOC_SIZES[number % 3], [*range(21), 255])[1])


@pytest.mark.parametrize("kind", ["palette", "gray", "rgb"])
@pytest.mark.parametrize("streaming", [True, False])
def test_masks_of_values_and_of_colors_are_the_same_class_ids(tmp_path, kind, streaming):
    split = Hub(str(parquet_datasets.voc(tmp_path / "voc", kind=kind)), streaming=streaming).open_split("train")
    assert len(split) == 15
    for i in (0, 7, 14):
        assert torch.equal(split[i]["mask"], expected(i)) and split[i]["id"] == f"2007_{i:06d}"


@pytest.mark.parametrize(("label_ids", "said"), [(True, "label ids as published"), (False, "class ids")])
def test_train_ids_and_label_ids_of_cityscapes_are_told_apart(tmp_path, label_ids, said, capsys):
    data = Hub(str(parquet_datasets.cityscapes(tmp_path / "cs", label_ids)), like=Cityscapes)
    sample = data.open_split("val")[2]
    values = sample["mask"][0, :20]
    if label_ids:
        assert [int(v) for v in values] == [
            Cityscapes.submitted.index(k) if k in Cityscapes.submitted else 255 for k in range(20)
        ]
    else:
        assert values.tolist() == [*range(19), 255]
    assert sample["id"] == "validation-000002"
    line = capsys.readouterr().err
    assert f"val is its split validation with 3 images (Cityscapes's val has 500) in column image, masks of {said}" in line


def test_names_come_from_a_column_or_the_files_and_splits_may_share_images(tmp_path, capsys):
    data = Hub(str(parquet_datasets.voc(tmp_path / "voc", ids=True)))
    assert data.columns.name == "id" and data.open_split("val")[0]["id"] == "2007_000015"
    warn_of_shared_images(data)
    assert "has images of val" not in capsys.readouterr().err
    same = {"data/train-00000-of-00001.parquet": [1, 2], "data/validation-00000-of-00001.parquet": [2, 3]}
    for file, numbers in same.items():
        rows = [{name: voc_row(i)[name] for name in ("image", "mask")} for i in numbers]
        write(tmp_path / "shared" / file, rows, Features({"image": IMAGE, "mask": IMAGE}), 2)
    warn_of_shared_images(Hub(str(tmp_path / "shared")))
    assert "train has images of val" in capsys.readouterr().err


def one_file(path, masks, feature, column="mask", image_column="image"):
    """A file of three images with these masks."""
    rows = [{image_column: voc_row(i)["image"], column: mask} for i, mask in enumerate(masks)]
    write(path, rows, Features({image_column: IMAGE, column: feature}), 2)
    return str(path)


def test_label_maps_bytes_and_binary_masks_are_read(tmp_path):
    truth = [draw(i, parquet_datasets.VOC_SIZES[i], [0, 1, 2])[1] for i in range(3)]
    maps = one_file(tmp_path / "train.parquet", [mask.tolist() for mask in truth], List(List(Value("int64"))), "label", "img")
    plain = one_file(tmp_path / "b/train.parquet", [png(Image.fromarray(mask)) for mask in truth], Value("binary"))
    deep = [png(Image.fromarray(mask.astype(np.uint16))) for mask in truth]
    three = [png(Image.fromarray(np.stack([mask * 100] * 3, -1))) for mask in truth]
    for source, values in ((maps, None), (plain, None), (one_file(tmp_path / "d.parquet", deep, IMAGE), None)):
        split = Hub(source, classes=["a", "b", "c"], values=values).open_split("train")
        assert all(torch.equal(split[i]["mask"], torch.from_numpy(truth[i])) for i in range(3)), source
    scaled = Hub(one_file(tmp_path / "g.parquet", three, IMAGE), classes=["a", "b", "c"], values=[0, 100, 200])
    assert torch.equal(scaled.open_split("train")[1]["mask"], torch.from_numpy(truth[1]))
    shifted = Hub(plain, classes=["b", "c"], values=1).open_split("train")[1]["mask"]  # 0 is unlabelled, as in ADE20K
    assert torch.equal(shifted, torch.tensor([255, 0, 1], dtype=torch.uint8)[torch.from_numpy(truth[1]).long()])


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002-0f.parquet", "train"), ("default/validation/0000.parquet", "validation"),
        ("x/parquet-test-00001-of-00007.parquet", "test"), ("data/trainaug-00000-of-00001.parquet", "trainaug"),
        ("val.parquet", "val"), ("my_valid_1.parquet", "valid"), ("0000.parquet", "train"), ("retrained/a.parquet", "train"),
    ],
)  # fmt: skip
def test_the_split_of_a_file_is_in_its_name_or_its_directory(name, split):
    assert find_split(name) == split


def test_a_card_names_files_and_subsets(tmp_path):
    for name, numbers in (("one-a", [0, 1]), ("one-b", [2]), ("two", [3, 4, 5])):
        rows = [{key: voc_row(i)[key] for key in ("image", "mask")} for i in numbers]
        write(tmp_path / f"{name}.parquet", rows, Features({"image": IMAGE, "mask": IMAGE}), 2)
    first = [{"split": "train", "path": ["one-*.parquet"]}, {"split": "valid", "path": "one-b.parquet"}]
    configs = [{"config_name": "one", "data_files": first}, {"config_name": "two", "data_files": "two.parquet"}]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n# A dataset\n")
    data = Hub(str(tmp_path), subset="one")
    assert len(data.open_split("train")) == 3 and len(data.open_split("val")) == 1
    with pytest.raises(UserError, match=r"has the subsets one, two: choose one with data\.subset"):
        Hub(str(tmp_path)).open_split("train")


# Bytes and requests


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two files of 1.5 MB together with 24 row groups."""
    root = tmp_path_factory.mktemp("large")
    features = Features({"image": IMAGE, "mask": IMAGE})
    for part in range(2):
        rows = []
        for i in range(24):
            jpeg, mask = draw(100 * part + i, (150, 200), [0, 1, 2, 255])
            mask = np.repeat(np.repeat(mask[::10, ::10], 10, 0), 10, 1)
            cells = {"image": jpeg, "mask": png(Image.fromarray(mask))}
            rows.append({name: {"bytes": cell, "path": f"{part}_{i}.x"} for name, cell in cells.items()})
        write(root / f"data/train-{part:05d}-of-00002.parquet", rows, features, 2)
    return root


def read_epoch(url, workers, rank, world, epoch=0):
    """The names of the images of each batch of a process."""
    data = Hub(url, batch_size=3, num_workers=workers, augmentation=None, classes=["a", "b", "c"])
    split = data.open_split("train")
    order = TrainingOrder(
        len(split), 3, 0, rank, world, lambda: epoch * (len(split) // (3 * world)), permute=split.order_images
    )
    return [batch["id"] for batch in data._loader(data.open_training_images(), order, lambda x: {"id": [s["id"] for s in x]})]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "world"), [(0, 1), (1, 1), (3, 1), (1, 2), (3, 2)])
def test_an_epoch_reads_each_byte_of_the_files_about_once(large, workers, world):
    total = sum(path.stat().st_size for path in large.rglob("*.parquet"))
    with serve(large) as (url, sent):
        batches = [read_epoch(url, workers, rank, world) for rank in range(world)]
        assert 0.9 * total < sum(sent.values()) <= 1.1 * total
        names = [name for part in batches for batch in part for name in batch]
        assert len(set(names)) == len(names) == 48
        assert batches == [read_epoch(str(large), 0, rank, world) for rank in range(world)]  # the same order from a directory
        before = sum(sent.values())
        assert read_epoch(url, workers, 0, world, epoch=1) != batches[0]
        assert sum(sent.values()) == before  # the cache has all row groups and footers


@pytest.mark.slow
def test_processes_that_start_at_once_read_each_byte_once(large):
    total = sum(path.stat().st_size for path in large.rglob("*.parquet"))
    with serve(large) as (url, sent), multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.starmap(read_epoch, [(url, 0, rank, 2) for rank in range(2)])
        assert not {name for batch in first for name in batch} & {name for batch in second for name in batch}
        assert sum(sent.values()) <= 1.15 * total  # both may read footers


def test_an_evaluation_reads_every_image_once_from_a_url(large):
    with serve(large) as (url, _):
        split = Hub(url, classes=["a", "b", "c"]).open_split("train")
        order = [
            index for rank in range(3) for batch in EvaluationOrder(48, 5, rank, 3) for index in batch if index is not None
        ]
        assert sorted(split[index]["id"] for index in order) == sorted(f"{part}_{i}" for part in range(2) for i in range(24))


def test_a_damaged_index_or_row_group_in_the_cache_is_read_again(large, cache):
    with serve(large) as (url, sent):
        first = Hub(url, classes=["a", "b", "c"]).open_split("train")[5]
        for path in (find_index(url), *cache.glob("*.arrow")):
            path.write_bytes(path.read_bytes()[:-40])
        before = sum(sent.values())
        again = Hub(url, classes=["a", "b", "c"]).open_split("train")[5]
        assert sum(sent.values()) > before and torch.equal(again["image"], first["image"])


@pytest.mark.parametrize("dropped", ["/", "/data", ".parquet"])
def test_a_lost_connection_is_retried_and_never_makes_a_dataset_smaller(large, dropped, monkeypatch):
    monkeypatch.setattr(row_groups_module, "PAUSES", (0.0,) * 3)
    monkeypatch.setattr(DroppingHandler, "dropped", dropped)
    monkeypatch.setattr(DroppingHandler, "drops", 3)
    with serve(large, handler=DroppingHandler) as (url, _):
        assert len(Hub(url, classes=["a", "b", "c"]).open_split("train")) == 48
    monkeypatch.setattr(DroppingHandler, "drops", 10**6)
    with (
        serve(large, handler=DroppingHandler) as (url, _),
        pytest.raises(UserError, match=r"cannot read .*: check .* connection"),
    ):
        Hub(url, classes=["a", "b", "c"]).open_split("train")


def list_names(url):
    system, path = storage.find_system(url)
    names = system.ls(path, detail=False)
    del system
    gc.collect()  # as happens sooner or later in a worker
    return names


def test_a_forked_worker_leaves_the_connections_of_its_parent_alone(large):
    with serve(large) as (url, _):
        before = list_names(url)
        worker = multiprocessing.get_context("fork").Process(target=list_names, args=(url,))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        system, path = storage.find_system(url)
        answer = ThreadPoolExecutor(1).submit(system.ls, path, detail=False)
        assert answer.result(timeout=30) == before  # it would wait for fsspec's limit of 300 s


def test_a_directory_whose_listing_fails_is_an_error_beside_one_that_can_be_listed(tmp_path, large, monkeypatch):
    for name, source in zip(("one", "two"), sorted((large / "data").iterdir()), strict=True):
        (tmp_path / name).mkdir()
        shutil.copy(source, tmp_path / name)
    monkeypatch.setattr(DroppingHandler, "dropped", "/two")
    monkeypatch.setattr(DroppingHandler, "drops", 10**6)
    with serve(tmp_path, handler=DroppingHandler) as (url, _), pytest.raises(UserError, match="cannot read"):
        Hub(url, classes=["a", "b", "c"]).open_split("train")


def test_the_cache_keeps_to_its_size(tmp_path, monkeypatch):
    for i in range(5):
        (tmp_path / f"{i}.arrow").write_bytes(bytes(1000))
    monkeypatch.setenv("DILATED_SEG_CACHE_GB", "0.0000025")
    trim_cache(tmp_path, tmp_path / "0.arrow")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.arrow", "4.arrow"]


@pytest.mark.parametrize("limit", [2, 3, 5, 11])
def test_large_row_groups_give_an_order_that_needs_few_of_them_at_a_time(limit):
    sizes, batch_size = [50] * 40, 4
    order = order_by_row_groups(sizes, 1, 0, batch_size, 1, limit)
    assert sorted(order.tolist()) == list(range(2000)) and order.tolist() != list(range(2000))
    cache, reads = [], 0
    for group in order // 50:
        reads += group not in cache
        cache[:] = [*(g for g in cache if g != group), group][-limit:]
    assert reads < 1.2 * len(sizes)


def use_hub(monkeypatch, url):
    """Let `huggingface_hub` ask this server, as the environment variable HF_ENDPOINT does before it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    HfFileSystem.clear_instance_cache()


def test_a_dataset_at_the_hub_is_pinned_to_its_commit_and_then_read_from_the_cache(large, monkeypatch, capsys):
    total = sum(path.stat().st_size for path in large.rglob("*.parquet"))
    with serve(large, handler=HubHandler) as (url, sent):
        use_hub(monkeypatch, url)
        data = Hub(REPO, classes=["a", "b", "c"], revision="main")
        split, local = (each.open_split("train") for each in (data, Hub(str(large), classes=["a", "b", "c"])))
        for i in range(48):
            assert torch.equal(split[i]["image"], local[i]["image"]) and torch.equal(split[i]["mask"], local[i]["mask"])
        assert data.revision == COMMIT and f"{REPO} at revision {COMMIT[:12]}: train is" in capsys.readouterr().err
        assert sum(sent.values()) <= 1.1 * total
        with pytest.raises(UserError, match=r"not a directory on this machine, and at the Hub cannot read other/name \(.*404"):
            Hub("other/name").open_split("train")
    offline = Hub(REPO, classes=["a", "b", "c"], revision=COMMIT).open_split("train")  # the server has stopped
    assert torch.equal(offline[47]["image"], local[47]["image"])


# Misfits: each is one sentence with what was found


def content(*columns):
    """A row for columns of these names and features."""
    return Features(dict(columns))


def test_columns_that_are_not_recognized_are_listed(tmp_path):
    rows = [{"left": voc_row(0)["image"], "right": voc_row(0)["mask"], "caption": "a"}]
    write(tmp_path / "train.parquet", rows, content(("left", IMAGE), ("right", IMAGE), ("caption", Value("string"))), 2)
    listed = r"left \(files\), right \(files\), caption \(string\)"
    with pytest.raises(UserError, match=rf"no column of images .* set data\.image_column to one of {listed}"):
        Hub(str(tmp_path)).open_split("train")
    with pytest.raises(UserError, match=rf"no column 'mask': it has {listed}"):
        Hub(str(tmp_path), image_column="left", mask_column="mask").open_split("train")
    assert len(Hub(str(tmp_path), image_column="left").open_split("train")) == 1  # one other column of files
    write(tmp_path / "train.parquet", [rows[0] | {"third": rows[0]["left"]}], content(
        ("left", IMAGE), ("right", IMAGE), ("third", IMAGE)), 2)  # fmt: skip
    with pytest.raises(UserError, match=r"no column of masks .* right \(files\), third \(files\)"):
        Hub(str(tmp_path), image_column="left").open_split("train")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"like": Cityscapes},
            "hold the values 0, 1, 2, 3, 4, 5, 6, 7 and more, of which 19 is not one of the 19 classes road",
        ),
        ({"classes": ["a", "b"]}, r"of which 2 is not one of the 2 classes a, b, \.\.\.: set data\.classes"),
        ({"classes": [f"c{i}" for i in range(20)]}, "of which 20 is not one of .* or data.values to 1 if 0 is unlabelled"),
        ({"classes": ["a", "b"], "values": [1, 2, 3]}, r"data\.values has 3 values for 2 classes"),
    ],
)
def test_values_that_are_no_classes_are_shown(tmp_path, options, said):
    root = parquet_datasets.voc(tmp_path / "voc", kind="gray")
    if options.get("like") is Cityscapes:
        masks = [np.full((4, 5), 200, np.uint8)] * 3
        masks[0] = np.arange(20, dtype=np.uint8).reshape(4, 5)
        root = one_file(tmp_path / "train.parquet", [png(Image.fromarray(mask)) for mask in [masks[0] + 40] * 3], IMAGE)
        said = "hold the values 40, 41, 42, 43, 44, 45, 46, 47 and more, of which 40 is not one of the 19 classes road"
    with pytest.raises(UserError, match=said):
        Hub(str(root), **options).open_split("train")


def test_a_later_mask_with_a_value_of_no_class_names_value_place_and_file(tmp_path):
    masks = [np.zeros(parquet_datasets.VOC_SIZES[i % 3], np.uint8) for i in range(20)]
    masks[18][3, 2] = 77
    split = Hub(one_file(tmp_path / "train.parquet", [png(Image.fromarray(mask)) for mask in masks], IMAGE)).open_split("train")
    with pytest.raises(UserError, match=r"train\.parquet\) holds the value 77 at row 3, column 2"):
        split[18]


def test_missing_splits_files_servers_and_datasets_are_one_sentence(tmp_path, monkeypatch):
    root = parquet_datasets.voc(tmp_path / "voc")
    with pytest.raises(UserError, match="has no split 'test', only train, val: choose one of them"):
        Hub(str(root)).open_split("test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no Parquet files"):
        Hub(str(tmp_path / "empty")).open_split("train")
    with pytest.raises(UserError, match="is neither a directory, a Parquet file, a URL nor OWNER/NAME"):
        Hub(str(tmp_path / "missing")).open_split("train")
    with pytest.raises(UserError, match=r"is not at the Hub: remove data\.revision"):
        Hub(str(root), revision="main").open_split("train")
    with serve(root, ranges=False) as (url, _), pytest.raises(UserError, match="does not serve parts of files"):
        Hub(url).open_split("train")
    with serve(root) as (url, _):
        with pytest.raises(UserError, match=r"cannot read http.*missing\.parquet.*check the address"):
            Hub(f"{url}/missing.parquet").open_split("train")
        with pytest.raises(UserError, match=r"is a URL: remove data\.streaming=false"):
            Hub(url, streaming=False).open_split("train")
    nothing = "http://127.0.0.1:9"  # no server
    with pytest.raises(UserError, match=f"cannot read {nothing}/data"):
        Hub(f"{nothing}/data").open_split("train")
    use_hub(monkeypatch, nothing)
    with pytest.raises(UserError, match="owner/name is not a directory on this machine, and at the Hub cannot read owner/name"):
        Hub("owner/name").open_split("train")


def test_files_that_are_not_parquet_or_have_empty_cells_are_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no parquet" * 10)
    with pytest.raises(UserError, match=r"train\.parquet cannot be read as Parquet"):
        Hub(str(tmp_path)).open_split("train")
    whole = parquet_datasets.voc(tmp_path / "voc") / "data/train-00000-of-00002.parquet"
    content_of_file = bytearray(whole.read_bytes())
    content_of_file[4:400] = bytes(396)
    (tmp_path / "damaged.parquet").write_bytes(content_of_file)
    with pytest.raises(UserError, match=r"damaged\.parquet cannot be read as Parquet"):
        Hub(str(tmp_path / "damaged.parquet")).open_split("train")[0]
    rows = [voc_row(0), voc_row(1) | {"mask": None}]
    rows = [{name: row[name] for name in ("image", "mask")} for row in rows]
    write(tmp_path / "train.parquet", rows, content(("image", IMAGE), ("mask", IMAGE)), 2)
    split = Hub(str(tmp_path / "train.parquet")).open_split("train")
    with pytest.raises(UserError, match=r"train\.parquet has no mask for 2007_000001: its cell is empty"):
        split[1]


def test_a_split_without_masks_can_be_predicted_and_not_scored(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [{"image": voc_row(0)["image"]}], content(("image", IMAGE)), 2)
    data = Hub(str(tmp_path), predict_split="test")
    assert next(iter(data.predict_dataloader()))["mask"].unique().tolist() == [255]
    with pytest.raises(UserError, match="has no masks for its split 'test'"):
        data.test_dataloader()


def test_a_checkpoint_holds_the_checksum_of_the_files(tmp_path):
    root = parquet_datasets.voc(tmp_path / "voc")
    state = Hub(str(root)).state_dict()
    assert Hub(str(root)).state_dict() == state
    parquet_datasets.voc(root, counts=((("train", 0), 3), (("val", 0), 2)))
    assert Hub(str(root)).state_dict()["checksum"] != state["checksum"]


def test_images_of_the_split_are_decoded_from_the_bytes_of_the_file(tmp_path):
    split = Hub(str(parquet_datasets.voc(tmp_path / "voc"))).open_split("train")
    jpeg = draw(4, parquet_datasets.VOC_SIZES[1], [*range(21), 255])[0]
    assert torch.equal(split[4]["image"], torch.from_numpy(np.array(Image.open(io.BytesIO(jpeg)))).permute(2, 0, 1))


def test_a_check_reads_everything_and_compares_images_of_splits_by_content(tmp_path, capsys):
    root = parquet_datasets.voc(tmp_path / "voc", ids=True)
    assert main(["prepare", "hub", "--root", str(root), "--verify"]) == 0
    assert "train: 15 images, 21 of 21 classes, " in capsys.readouterr().out
    write(root / "data/val-00000-of-00001.parquet", [voc_row(3) | {"id": "other"}, voc_row(16)],
          Features({"id": Value("string"), "image": IMAGE, "mask": IMAGE}), 2)  # fmt: skip
    with pytest.raises(UserError, match=r"1 images of .* are in train and in val \(2007_000003 = other\)"):
        check(Hub(str(root)))


def test_prepared_shards_are_pushed_and_streamed_from_the_hub(tmp_path, monkeypatch, capsys):
    """The upload goes to a stand-in of the API, which copies the directory that the server then serves."""
    out, hub = tmp_path / "out", tmp_path / "hub"
    root = parquet_datasets.voc_release(tmp_path / "release", range(4), range(4, 6))
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **options: options)
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, repo_id, repo_type, folder_path: shutil.copytree(folder_path, hub))
    prepare = ["prepare", "voc", "--root", str(root), "--out", str(out), "--other_counts", "--push", REPO]
    assert main(prepare) == 0
    assert f"{REPO}: uploaded; use it as --data.root hf://datasets/{REPO} --data.streaming true" in capsys.readouterr().out
    with serve(hub, handler=HubHandler) as (url, _):
        use_hub(monkeypatch, url)
        shards = VOC(root=f"hf://datasets/{REPO}@{COMMIT}", streaming=True).open_split("train")
        plain = Hub(REPO).open_split("train")
        for i in range(4):
            assert torch.equal(shards[i]["mask"], expected(i)) and torch.equal(plain[i]["mask"], expected(i))


@pytest.mark.parametrize(("file", "like", "crop"), [("voc_hub", VOC, 500), ("cityscapes_hub", Cityscapes, 628)])
def test_the_files_of_public_copies_build_the_dataset_they_replace(file, like, crop):
    text = resolve_experiment(["--config", "experiments/architectures/fcn8s.yaml", "--data", f"experiments/data/{file}.yaml"])
    data = build_dataset(yaml.safe_load(text)["data"])
    assert isinstance(data, Hub) and data.classes == like.classes and data.streaming and data.palette == tuple(like.palette)
    assert tuple(data.augmentation.transforms[1].crop_size) == (crop, crop)
