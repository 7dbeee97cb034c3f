"""An ablation's workspace and report: of what its runs log, as files without a server, saved and found again with one."""

import json

import pytest

from tests.support.commands import ROOT, run_process
from tests.support.wandb_log import sessions
from tests.support.wandb_server import Server
from tests.training.test_wandb import nobody, somebody

pytestmark = pytest.mark.slow

FILE = """
experiments: {front end: EXPERIMENTS/shapes/frontend.yaml}
common:
  data: {init_args: {images: [8, 2, 3], size: [24, 48], batch_size: 2}}
  model: {net: {init_args: {width: 0.02}}, lr_scheduler: {init_args: {total_iters: 2}}}
  trainer: {max_steps: 2, val_check_interval: 2, log_every_n_steps: 1}
evaluate: test
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """An ablation that ran without a key, and what it would have asked of W&B's server if it had asked."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(FILE.replace("EXPERIMENTS", str(ROOT / "experiments")))
    with Server() as anywhere:
        listens = {"WANDB_BASE_URL": anywhere.url, "http_proxy": anywhere.url, "https_proxy": anywhere.url}
        command = ["ablate", folder / "study.yaml", "--out", folder / "out", "--dashboard"]
        result = run_process(*command, **nobody(folder), **listens)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout, anywhere.seen


def spec(folder, name):
    return json.loads((folder / "out/dashboard" / f"{name}.json").read_text())["spec"]


def shown(folder):
    """The panels of the workspace and of the report, by section."""
    workspace = [section["panels"] for section in spec(folder, "workspace")["section"]["panelBankConfig"]["sections"]]
    grids = [block["metadata"] for block in spec(folder, "report")["blocks"] if block["type"] == "panel-grid"]
    return workspace, [grid["panelBankSectionConfig"]["panels"] for grid in grids]


def test_evaluations_of_an_ablation_are_stored_in_their_runs(study):
    folder, _, _ = study
    (session,) = sessions(folder / "out/front_end/seed0")
    assert (session.group, session.job_type, session.name) == ("study", "fit", "front end")
    assert session.summary.keys() >= {"val/mean_iou", "test/mean_iou", "test/iou/dot", "test/confusion_picture"}
    assert [row[0] for row in session.table("test/images")[1]] == ["test000000", "test000001", "test000002"]


def test_without_a_key_the_dashboard_is_written_to_files_and_nothing_is_sent(study):
    folder, printed, seen = study
    assert seen == []
    assert f"dashboard: {folder}/out/dashboard/workspace.json" in printed and "wandb sync" in printed


def test_the_panels_show_what_the_runs_log(study):
    folder, _, _ = study
    (session,) = sessions(folder / "out/front_end/seed0")
    workspace, report = shown(folder)
    for sections in (workspace, report):
        configs = [panel["config"] for panels in sections for panel in panels]
        metrics = {metric for config in configs for metric in config.get("metrics", ())}
        assert metrics >= {"val/mean_iou", "train/loss", "test/mean_iou", "test/iou/night hill"}
        pictures = {key for config in configs for key in config.get("mediaKeys", ())}
        assert metrics | pictures <= session.summary.keys()
        assert all(config["groupBy"] == "displayName" for config in configs if "metrics" in config)
        assert any(name.startswith("lr-") and name.endswith("/pg1") for name in session.summary)
        assert any(config.get("metricRegex") == "^lr-[^/]+/pg1$" for config in configs)
        text = json.dumps(configs)
        for table in ("test/confusion_table", "test/images"):
            assert f'"{table}"' in text and session.table(table)
    assert len(workspace) == len(report)


def test_panels_of_the_dashboard_do_not_overlap(study):
    for panels in shown(study[0])[1]:
        covered = [
            (x, y)
            for layout in (panel["layout"] for panel in panels)
            for x in range(layout["x"], layout["x"] + layout["w"])
            for y in range(layout["y"], layout["y"] + layout["h"])
        ]
        assert len(covered) == len(set(covered)) and max(x for x, _ in covered) < 24


def test_workspace_and_report_contain_only_the_ablations_runs_and_its_protocol(study):
    folder, _, _ = study
    report = spec(folder, "report")["blocks"]
    sets = [*spec(folder, "workspace")["section"]["runSets"]]
    sets += [one for block in report if block["type"] == "panel-grid" for one in block["metadata"]["runSets"]]
    for runs in sets:
        filters = [(f["key"]["name"], f["value"]) for f in runs["filters"]["filters"]]
        assert filters == [("group", "study"), ("jobType", ["fit", "test"])]
    text = json.dumps(report)
    for words in ("dataset: Shapes; split: test; images: 3", "| front end |", "(background everywhere)"):
        assert words in text


PUBLISH = """
import sys
from dilated_seg import ablation
from dilated_seg.ablation import dashboard
study = ablation.read(*sys.argv[1:])
dashboard.publish(study)
dashboard.publish(study)
"""


def test_a_second_publication_updates_workspace_and_report_at_the_server(study):
    folder, _, _ = study
    with Server() as server:
        result = run_process(folder / "study.yaml", folder / "out", code=PUBLISH, **somebody(folder, server.url))
    assert result.returncode == 0, result.stderr
    saved = [values for what, values in server.seen if what.lower().startswith("upsertview")]
    assert [view.get("id") for view in saved] == [None, None, "view1", "view2"]
    assert [json.loads(view["spec"]).keys() for view in saved[:2]] == [spec(folder, n).keys() for n in ("workspace", "report")]
    assert result.stdout.count(f"workspace: {server.url}") == result.stdout.count(f"report: {server.url}") == 2
