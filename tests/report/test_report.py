"""The report states what was measured, and its page fetches nothing."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

from dilated_seg.ablation.file import read as read_ablation
from dilated_seg.analysis import receptive_field
from dilated_seg.analysis.receptive_field import Context, Measured, MeasurementProtocol
from dilated_seg.analysis.resampling import count_pixels, mean_iou
from dilated_seg.errors import UserError
from dilated_seg.report import claims
from dilated_seg.report.claims import Claim
from dilated_seg.report.compare import compare
from dilated_seg.report.comparison import Comparison
from dilated_seg.report.results import Result, find_results, read_results
from dilated_seg.report.settings import read_settings
from dilated_seg.runs import EvaluatedImage, Run
from dilated_seg.runs.gallery import write_gallery_images
from dilated_seg.runs.strata import count_batch
from tests.support.evaluations import make_evaluation

CLASSES = ["ground", "tree", "<b>car & bus</b>"]
PALETTE = [(20, 20, 20), (40, 160, 60), (200, 60, 40)]
IMAGES, HEIGHT, WIDTH = 12, 24, 60
EVALUATION = "test-last"


def masks():
    """Small cars and large trees; a band of void."""
    rng = np.random.default_rng(0)
    found = np.zeros((IMAGES, HEIGHT, WIDTH), np.uint8)
    for mask in found:
        x, y = rng.integers(0, 30), rng.integers(0, 8)
        mask[y : y + 14, x : x + 20] = 1
        for _ in range(4):
            x, y = rng.integers(0, WIDTH - 4), rng.integers(0, HEIGHT - 4)
            mask[y : y + 3, x : x + 4] = 2
        mask[-1] = 255
    return found


def evaluated(folder, prediction, seed=0, strata=True, fields=False, **protocol):
    """A run's folder as an evaluation with this prediction would leave it."""
    truth = masks()
    matrices = np.stack([
        np.bincount(t[t < 3].astype(int) * 3 + p[t < 3], minlength=9).reshape(3, 3)
        for t, p in zip(truth, prediction, strict=True)
    ])  # fmt: skip
    names = [f"image{k}" for k in range(IMAGES)]
    counts = [None] * IMAGES
    if strata:
        counts = [
            count_batch({"mask": torch_of(t[None]), "size": [t.shape]}, p[None].astype(np.int16), 3, 255)[0]
            for t, p in zip(truth, prediction, strict=True)
        ]
    run = Run(folder)
    made = make_evaluation(CLASSES, matrices.sum(0), run.evaluation_dir, EVALUATION, **{"images": IMAGES} | protocol)
    cost = {
        "images_per_second": 12.5, "quartiles": [11.0, 13.0], "batches": 6, "memory_gb": None, "device": "CPU", "batch_size": 2,
        "size": [HEIGHT, WIDTH],
    }  # fmt: skip
    replace(made, cost=cost).save(list(map(EvaluatedImage, names, matrices, counts)))
    config = "model:\n  net: {class_path: dilated_seg.models.DilatedNet, init_args: {context: null, width: 0.1}}\n"
    rest = f"  weights: null\ndata: {{class_path: dilated_seg.data.Shapes}}\nseed_everything: {seed}\n"
    (folder / "config.yaml").write_text(config + rest)
    (folder / "metrics.csv").write_text("epoch,step,train/loss,val/mean_iou\n0,1,2.5,\n0,4,0.5,0.25\n0,9,0.25,0.5\n")
    for k in range(IMAGES):
        image = np.stack([truth[k] * 80] * 3, axis=2)
        write_gallery_images(run.gallery_dir(EVALUATION), names[k], image, truth[k], prediction[k], PALETTE)
    if fields:
        at = np.arange(IMAGES)
        predicted = np.stack([np.zeros(IMAGES, int), prediction[at, 5, 5]], axis=1)
        seen = Context(
            names, at, np.full(IMAGES, 5), np.full(IMAGES, 5), truth[at, 5, 5].astype(np.int64), (4, None), predicted
        )
        field = np.full((HEIGHT, WIDTH), 1 / (HEIGHT * WIDTH))
        probed = MeasurementProtocol("Made", "test", IMAGES, IMAGES, IMAGES, 0, "last", 9, "abc")
        theory = {"side": 99, "box": [0, HEIGHT - 1, 0, WIDTH - 1]}
        receptive_field.write(run, EVALUATION, Measured({}, probed, CLASSES, theory, field, seen))
    return folder


def torch_of(array):
    import torch

    return torch.from_numpy(array)


def without_cars():
    prediction = masks().astype(int)
    prediction[prediction == 2] = 0
    prediction[prediction == 255] = 0
    return prediction


def perfect():
    return np.where(masks() == 255, 0, masks()).astype(int)


def noisy(seed=0, share=0.05):
    rng = np.random.default_rng(seed)
    wrong = rng.random(perfect().shape) < share
    return np.where(wrong, rng.integers(0, 3, wrong.shape), perfect())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of three networks, one of them with three seeds, and of three claims."""
    folder = tmp_path_factory.mktemp("report")
    runs = [
        evaluated(folder / "good" / "seed0", noisy(0), fields=True),
        evaluated(folder / "good" / "seed1", noisy(1), seed=1, fields=True),
        evaluated(folder / "good" / "seed2", noisy(3), seed=2, fields=True),
        evaluated(folder / "blind", without_cars(), fields=True),
        evaluated(folder / "same", noisy(2), fields=True),
    ]
    said = [
        Claim("details are kept", "good", "blind", classes=(CLASSES[2],), objects=16),
        Claim("blindness helps", "blind", "good", classes=(CLASSES[2],)),
        Claim("nothing differs", "same", "good", boundary=3),
    ]
    page = compare(
        find_results(runs), folder / "out", missing=["late, seed 0"], claims=said, command="dilated-seg ablate x.yaml"
    )
    return page.parent


def rows(file):
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_claims_about_networks_with_one_seed_are_observed_in_these_runs_or_not(report):
    verdicts = ["observed in these runs", "not observed in these runs", "not observed in these runs"]
    assert [row["verdict"] for row in rows(report / "claims.csv")] == verdicts
    text = (report / "report.md").read_text()
    assert "**details are kept: observed in these runs.** good minus blind: " in text
    assert "**blindness helps: not observed in these runs.** blind minus good: -" in text
    assert "(trained again, other images)" in text and "at least 3 seeds of each are needed for a statement" in text


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A report of three networks with three seeds each, and of three claims."""
    folder = tmp_path_factory.mktemp("study")
    runs = [
        evaluated(folder / name / f"seed{seed}", predict(seed), seed=seed)
        for name, predict in SEEDED.items()
        for seed in range(3)
    ]
    return compare(find_results(runs), folder / "out", claims=CLAIMS).parent


SEEDED = {
    "good": lambda seed: noisy(seed),
    "blind": lambda seed: np.where(noisy(seed + 20, 0.02) == 2, 0, noisy(seed + 20, 0.02)),
    "same": lambda seed: noisy(seed + 10),
}
CLAIMS = [
    Claim("details are kept", "good", "blind", classes=(CLASSES[2],), objects=16),
    Claim("blindness helps", "blind", "good", classes=(CLASSES[2],)),
    Claim("nothing differs", "same", "good", boundary=3),
]


def test_claims_hold_or_not_as_they_were_measured_with_three_seeds(study):
    assert [row["verdict"] for row in rows(study / "claims.csv")] == ["holds, not only here", "does not hold", "is open"]
    text = (study / "report.md").read_text()
    assert "**details are kept: holds, not only here.** good minus blind: " in text
    assert "**blindness helps: does not hold.** blind minus good: -" in text


def test_with_three_seeds_networks_are_told_apart_and_every_interval_names_its_kind(study):
    told = {(row["better"], row["worse"]): row for row in rows(study / "pairs.csv")}
    assert {pair: row["told apart"] for pair, row in told.items() if "blind" in pair} == dict.fromkeys(
        ((row["better"], row["worse"]) for row in told.values() if row["worse"] == "blind"), "yes"
    )
    for row in told.values():
        low, high = float(row["low"]), float(row["high"])
        assert row["interval"] == "trained again, other images" and row["seeds"] == "3"
        assert (
            float(row["new low"]) < float(row["repeat low"]) < low < high < float(row["repeat high"]) < float(row["new high"])
        )
    text = (study / "report.md").read_text()
    assert "## Pairwise differences" in text and " beats blind by " in text
    assert "| network | parameters | seeds | mean IoU (trained again, other images) |" in text


def test_variances_are_those_of_the_seeds_and_more_seeds_tell_smaller_differences_apart(study):
    found = {row["network"]: row for row in rows(study / "variance.csv")}
    results = [Run(study.parent / "good" / f"seed{k}").evaluation(EVALUATION) for k in range(3)]
    values = [100 * result.mean_iou for result in results]
    assert float(found["good"]["over seeds measured"]) == pytest.approx(np.std(values, ddof=1), abs=0.001)
    for row in rows(study / "power.csv"):
        assert float(row["with 3 seeds"]) > float(row["with 5 seeds"]) > float(row["with 10 seeds"]) > 0


VICTORY = re.compile(
    r"\b(sure|beats?|better|best|holds?|wins?|winner|outperforms?|superior|ahead of|worse one)\b", re.IGNORECASE
)


def test_with_one_seed_no_sentence_says_that_a_network_is_better(tmp_path, capsys):
    runs = [evaluated(tmp_path / "a", noisy()), evaluated(tmp_path / "b", without_cars())]
    claims = [Claim("details are kept", "a", "b", objects=16), Claim("less is more", "b", "a")]
    compare(find_results(runs), tmp_path / "out", claims=claims)
    printed, text = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    page = re.sub(r"<style.*?</style>|<[^>]+>", " ", (tmp_path / "out" / "report.html").read_text(), flags=re.DOTALL)
    for said in (printed, text, page):
        said = said.replace("the best and the worst", "")  # how images are chosen
        assert not VICTORY.search(said), VICTORY.search(said)
        assert "(these weights, other images)" in said and "at least 3 seeds of each network are needed" in said
    assert "**details are kept: observed in these runs.**" in text and "**less is more: not observed in these runs.**" in text
    assert "## Pairwise differences" in text and "mean IoU (these weights, other images)" in text
    assert [row["told apart"] for row in rows(tmp_path / "out" / "pairs.csv")] == ["1 of 3 seeds"]


def test_with_two_seeds_the_report_explains_the_wide_interval_and_the_remedy(tmp_path):
    runs = [
        evaluated(tmp_path / name / f"seed{seed}", predict(seed), seed=seed)
        for name, predict in SEEDED.items()
        for seed in range(2)
    ]
    text = (compare(find_results(runs), tmp_path / "out").parent / "report.md").read_text()
    assert "which is why the intervals are wide: train 3 or more" in text
    assert "at least 3 seeds of each network are needed" in text and " beats " not in text


def test_metrics_of_the_report_equal_those_of_the_evaluations(report):
    found = {row["network"]: row for row in rows(report / "networks.csv")}
    results = [Run(report.parent / "good" / f"seed{k}").evaluation(EVALUATION) for k in range(3)]
    values = [float(mean_iou(count_pixels(result.images[1]).sum(0))) for result in results]
    assert float(found["good"]["mean IoU"]) == pytest.approx(100 * np.mean(values), abs=0.006)
    assert float(found["good"]["low"]) < float(found["good"]["mean IoU"]) < float(found["good"]["high"])
    assert found["blind"]["<b>car & bus</b>"] == "0.0"


def test_pairs_are_all_there_and_the_blind_network_is_found_out(report):
    found = {(row["better"], row["worse"]): float(row["p adjusted"]) for row in rows(report / "pairs.csv")}
    assert len(found) == 3
    assert {row["told apart"] for row in rows(report / "pairs.csv")} == {"1 of 3 seeds"}
    assert all((p < 0.05) == ("blind" in pair) for pair, p in found.items())


def test_small_objects_tell_the_blind_network_apart_and_large_ones_do_not(report):
    found = {(row["network"], row["where"]): float(row["mean IoU"]) for row in rows(report / "objects.csv")}
    assert found["blind", "< 16"] < 5 < 50 < found["good", "< 16"]
    assert found["blind", "256 to 1023"] > 75


def test_context_is_in_percent_of_the_pixels_asked_for(report):
    found = {(row["network"], row["radius"]): float(row["right"]) for row in rows(report / "context.csv")}
    truth = masks()[:, 5, 5]
    assert found["blind", "whole"] == pytest.approx(100 * np.mean(without_cars()[:, 5, 5] == truth), abs=0.01)
    assert found["blind", "4"] == pytest.approx(100 * np.mean(truth == 0), abs=0.01)


def test_every_image_of_the_markdown_is_a_file(report):
    text = (report / "report.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) >= 10 and all((report / picture).stat().st_size > 1000 for picture in pictures)
    assert "Not in this comparison: late, seed 0" in text and "dilated-seg ablate x.yaml" in text


CONFIG = """
seed_everything: {seed}
trainer: {{max_steps: {steps}, devices: 2, accumulate_grad_batches: 3}}
model: {{net: {{class_path: dilated_seg.models.{net}, init_args: {{width: 0.1}}}}, weights: {weights}}}
data:
  class_path: dilated_seg.data.CamVid
  init_args:
    batch_size: {batch}
    num_workers: {workers}
    augmentation: {{class_path: dilated_seg.data.ScaleAndCrop, init_args: {{crop_size: {crop}}}}}
run_dir: somewhere/{seed}
"""
EQUAL = {"steps": 400, "net": "FCN", "weights": "imagenet", "batch": 4, "workers": 2, "crop": [360, 480]}


def configured(folder, seed=0, **values):
    """A run with an evaluation and this configuration."""
    evaluated(folder, noisy(seed), seed=seed)
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, **EQUAL | values))
    return folder


def test_settings_that_differ_are_listed_and_an_unequal_budget_is_stated_first(tmp_path, capsys):
    runs = [configured(tmp_path / "a" / "seed0"), configured(tmp_path / "a" / "seed1", seed=1)]
    runs += [configured(tmp_path / "b" / "seed0", net="UNet", steps=800, batch=2, crop=[240, 240], workers=0)]
    out = compare(find_results(runs), tmp_path / "out").parent
    found = {row["setting"]: (row["a"], row["b"]) for row in rows(out / "settings.csv")}
    assert found == {
        "training steps, all stages": ("400", "800"),
        "batch size, all devices": ("24", "12"),
        "data.augmentation.crop_size": ("[360, 480]", "[240, 240]"),
        "model.net": ("FCN", "UNet"),
        "trainer.max_steps": ("400", "800"),
        "data.batch_size": ("4", "2"),
        "data.num_workers": ("2", "0"),
    }
    warning = "Not trained alike: training steps, batch size, crops and augmentation differ"
    text, printed = (out / "report.md").read_text(), capsys.readouterr().out
    assert text.index(f"**{warning}**") < text.index("## Pairwise differences") and f"warning: {warning}" in printed
    assert pq.read_table(out / "results.parquet")["settings"].to_pylist()[2].startswith('{"training steps, all stages": "800"')


def test_seeds_that_differ_in_more_than_the_seed_are_named(tmp_path):
    runs = [configured(tmp_path / "a" / "seed0"), configured(tmp_path / "a" / "seed1", seed=1, batch=2)]
    text = (compare(find_results(runs), tmp_path / "out").parent / "report.md").read_text()
    assert "**Runs of one name differ in more than the seed: batch size, all devices, data.batch_size.**" in text
    assert "24 \\| 12" in text


def test_runs_that_differ_in_the_seed_alone_have_no_warning(tmp_path):
    runs = [configured(tmp_path / name / f"seed{seed}", seed=seed) for name in "ab" for seed in range(2)]
    text = (compare(find_results(runs), tmp_path / "out").parent / "report.md").read_text()
    assert "differ in nothing but the seed" in text and "Not trained alike" not in text


def test_steps_of_the_run_that_weights_come_from_are_counted(tmp_path):
    first = configured(tmp_path / "first")
    (first / "finished").touch()
    second = configured(tmp_path / "second", weights=first, steps=100)
    assert read_settings(Run(second))["training steps, all stages"] == "500"


def test_one_run_has_several_rows_of_different_protocols(tmp_path):
    run = Run(evaluated(tmp_path / "a", noisy()))
    plain = run.evaluation(EVALUATION)
    crf = replace(plain, name="test-last-crf", protocol=replace(plain.protocol, crf="DenseCRF(iterations=10)"))
    crf.save([EvaluatedImage(name, matrix) for name, matrix in zip(*plain.images, strict=True)])
    results = [Result("a", run, plain), Result("a, CRF", run, run.evaluation("test-last-crf"))]
    out = compare(results, tmp_path / "out").parent
    assert {row["setting"]: row["a, CRF"] for row in rows(out / "settings.csv")} == {
        "evaluation: inference": "whole image, then DenseCRF(iterations=10)"
    }
    assert [row["network"] for row in rows(out / "networks.csv")][:2] == ["a", "a, CRF"]


def test_confusion_matrices_are_summed_over_seeds_and_divided_by_the_pixels_of_each_class(report):
    found = [row for row in rows(report / "confusion.csv") if row["network"] == "good"]
    matrix = sum(Run(report.parent / "good" / f"seed{k}").evaluation(EVALUATION).matrix for k in range(3))
    assert [int(row["pixels"]) for row in found] == matrix.ravel().tolist()
    share = 100 * matrix / matrix.sum(1, keepdims=True)
    assert [float(row["percent of the class"]) for row in found] == pytest.approx(share.ravel().tolist(), abs=0.006)
    page = (report / "report.html").read_text()
    assert page.count("<caption>") == 3 and f'class="h{share[0, 0]:.0f}"' in page
    saved = pq.read_table(report / "results.parquet")["confusion"].to_pylist()
    assert np.sum(saved[:3], axis=0).tolist() == matrix.ravel().tolist()


class Reader(HTMLParser):
    """Notes tags that are open, ids, links and everything that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.fetched, self.tags = [], [], [], [], set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        self.ids += [given["id"]] if tag == "section" else []
        self.links += [given["href"]] if tag == "a" else []
        self.fetched += [
            value for key, value in attrs if key in ("src", "xlink:href", "data") or (key == "href" and tag != "a")
        ]
        if tag not in ("meta", "link", "img", "path", "use", "image", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in ("path", "use", "image"):
            return
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_fetches_nothing(report):
    page = (report / "report.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.open == [] and "script" not in reader.tags
    assert len(reader.ids) == len(set(reader.ids)) > 10
    assert reader.links == [f"#{name}" for name in reader.ids]
    assert all(address.startswith(("data:", "#")) for address in reader.fetched)
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_names_of_classes_are_text_and_no_markup(report):
    page = (report / "report.html").read_text()
    assert "<b>car" not in page and "&lt;b&gt;car &amp; bus&lt;/b&gt;" in page


def test_plots_take_the_color_of_the_pages_text(report):
    page = (report / "report.html").read_text()
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) >= 9 and all("currentColor" in drawing for drawing in drawings)
    assert "#17191d" not in page and "prefers-color-scheme: dark" in page


@pytest.mark.slow
def test_the_same_evaluations_give_the_same_page(report, tmp_path):
    runs = [report.parent / name for name in ("good", "blind", "same")]
    pages = [compare(find_results(runs), tmp_path / "out").read_text() for _ in range(2)]
    assert pages[0] == pages[1]


BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
MEASURE = """<!DOCTYPE html><body style="margin:0"><iframe id=f style="border:0;width:WIDTHpx;height:4000px"></iframe><script>
const frame = document.getElementById("f");
frame.onload = () => {
  const page = frame.contentDocument, over = [];
  for (const one of page.querySelectorAll("body *")) {
    const box = one.getBoundingClientRect();
    if (box.right > WIDTH + 1 && !one.closest(".wide") && !one.closest("svg")) over.push(one.tagName + "." + one.className);
  }
  document.title = "measured " + page.documentElement.scrollWidth + " " + over.slice(0, 5).join(",") + " end";
};
frame.srcdoc = PAGE;
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_in_a_browser_and_its_console_is_silent(report, tmp_path, width):
    page = json.dumps((report / "report.html").read_text()).replace("</", "<\\/")
    (tmp_path / "frame.html").write_text(MEASURE.replace("WIDTH", str(width)).replace("PAGE", page))
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/user",
    ]
    command += ["--virtual-time-budget=5000", "--window-size=1400,4000", "--dump-dom", f"file://{tmp_path}/frame.html"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>measured (\d+) (.*?) end</title>", result.stdout)
    assert found, result.stderr[-2000:]
    assert int(found[1]) <= width and found[2] == ""
    assert "CONSOLE" not in result.stderr


def test_runs_without_strata_are_compared_without_them_and_claims_about_them_are_not_measured(tmp_path):
    runs = [evaluated(tmp_path / "a", noisy(), strata=False), evaluated(tmp_path / "b", perfect())]
    compare(find_results(runs), tmp_path / "out", claims=[Claim("details", "b", "a", objects=16)])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "**details: not measured.** A run has no stratified counts: evaluate it again." in text
    assert "Near boundaries" not in text and "Receptive fields" not in text


def test_a_single_network_is_a_report_without_pairs(tmp_path):
    compare(find_results([evaluated(tmp_path / "a", noisy())]), tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Pairwise differences" not in text and "Variance over" not in text and "## IoU of each class" in text


def test_images_that_cannot_be_predicted_again_are_named_in_a_sentence(tmp_path):
    runs = [evaluated(tmp_path / "a", noisy()), evaluated(tmp_path / "b", without_cars(), inference="tiles")]
    shutil.rmtree(tmp_path / "b" / "gallery")
    compare(find_results(runs), tmp_path / "out")
    said = (tmp_path / "out" / "report.md").read_text()
    assert f"Some images are not shown, because they cannot be predicted here: {tmp_path}/b was evaluated by tiles." in said


def test_the_images_shown_are_those_that_networks_differ_most_on(report, tmp_path):
    text = (report / "report.html").read_text()
    names = ("good/seed0", "blind", "same")
    comparison = Comparison(read_results([Run(report.parent / name) for name in names], EVALUATION, names))
    each = np.array([mean_iou(count_pixels(result.evaluation.images[1])) for result in comparison.results])
    widest = int(np.argmax(each.max(0) - each.min(0)))
    assert f"image{widest}: networks differ most" in text


def test_per_image_matrices_that_do_not_add_up_are_an_error(tmp_path):
    run = evaluated(tmp_path / "a", noisy())
    table = pq.read_table(run / "evaluations" / f"{EVALUATION}.parquet")
    pq.write_table(table.slice(1), run / "evaluations" / f"{EVALUATION}.parquet")
    with pytest.raises(UserError, match="evaluate the run again"):
        compare(find_results([run, evaluated(tmp_path / "b", perfect())]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


GOOD = {"says": "x", "better": "a", "worse": "b"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("text", "has claims that are not a list"),
        ([GOOD | {"where": 1}], "unknown key 'where'"),
        ([{"says": "x", "better": "a"}], "without 'worse'"),
        ([GOOD | {"worse": "c"}], "about the unknown network 'c': choose from a, b"),
        ([GOOD | {"classes": "dot"}], "classes dot: give a list"),
        ([GOOD | {"objects": 65}], "objects: 65, which was not counted apart: choose from 16, 64, 256"),
        ([GOOD | {"boundary": 41}], "boundary: 41, which was not counted apart: choose from 1 to 40"),
        ([GOOD | {"boundary": 3, "objects": 64}], "make it two claims"),
    ],
)
def test_invalid_claims_are_a_user_error(tmp_path, content, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        claims.read_claims(tmp_path / "x.yaml", content, ["a", "b"])


def test_a_claim_about_an_unknown_class_is_an_error_before_training(tmp_path):
    with pytest.raises(UserError, match="names the unknown class 'car': choose from tree, road"):
        claims.require_known_classes([Claim("x", "a", "b", classes=("car",))], ["tree", "road"])


def test_the_quickstart_claims_what_the_papers_claim():
    ablation = read_ablation("experiments/quickstart.yaml")
    assert [claim.measure for claim in ablation.claims] == [
        "IoU of dot",
        "IoU of dot",
        "mean IoU of star, sun, within 3 pixels of a boundary",
        "IoU of wire",
        "mean IoU of star, sun, within 3 pixels of a boundary",
        "mean IoU",
    ]


def test_the_quickstart_trains_three_seeds_or_more():
    ablation = read_ablation("experiments/quickstart.yaml")
    assert len({one.seed for one in ablation.runs}) >= 3
