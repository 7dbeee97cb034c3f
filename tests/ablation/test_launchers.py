"""Runs of an ablation in processes of their own, here and on SLURM, and runs that fail: the numbers stay the same."""

import os
import shutil
import signal

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from dilated_seg.__main__ import main
from dilated_seg.ablation import Local, claim, read
from dilated_seg.models import FrontEnd
from tests.support.commands import ROOT, THREADS

STUDY = """
experiments: {front end: FOLDER/frontend.yaml, late: [FOLDER/late.yaml, FOLDER/frontend.yaml], wrong: FOLDER/wrong.yaml}
common:
  data: {init_args: {images: [8, 2, 3], size: [24, 48], batch_size: 2}}
  model: {net: {init_args: {width: 0.02}}, lr_scheduler: {init_args: {total_iters: 6}}}
  trainer: {max_steps: 6, val_check_interval: 3, log_every_n_steps: 1, callbacks+: [{class_path: once.Once}]}
evaluate: test
"""

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}

# A callback that sends a signal, once: to the process that asked for it, or with 0 to its own.
ONCE = """
import os, time
from pathlib import Path
from lightning import Callback

class Once(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        order = Path(__file__).with_name("order")
        if trainer.global_step == 4 and order.exists():
            number, process = map(int, order.read_text().split())
            order.unlink()
            os.kill(process or os.getpid(), number)
            (stop,) = (callback for callback in trainer.callbacks if type(callback).__name__ == "StopOnSignal")
            for _ in range(600):
                if stop.received is None:
                    time.sleep(0.1)
"""

# sbatch, srun, scontrol and sacct, as far as submitit calls them: a file a job with its state. "hold" keeps jobs queued,
# "interrupt" is a Ctrl-C for who asks sacct.
SLURM = r"""#!/bin/bash
here=$(dirname "$0")
case $(basename "$0") in
sbatch)
    id=$(($(cat "$here/submitted") + 1)); echo $id > "$here/submitted"
    cp "$1" "$here/$id.sh"
    last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$1")
    for task in $(seq 0 "${last:-0}"); do
        name=$id${last:+_$task}; echo PENDING > "$here/$name.state"
        [ -e "$here/hold" ] || "$here/scontrol" release "$name"
    done
    echo "Submitted batch job $id" ;;
srun)
    while [[ $1 == -* ]]; do [ "$1" = --output ] && { out=$2; shift; }; shift; done
    out=${out//%A/$SLURM_ARRAY_JOB_ID}; out=${out//%a/$SLURM_ARRAY_TASK_ID}; out=${out//%j/$SLURM_JOB_ID}; out=${out//%t/0}
    exec "$@" >> "$out" 2>&1 ;;
scontrol)
    [ "$1" = requeue ] && { echo REQUEUED > "$here/$2.state"; exit; }
    export SLURM_JOB_ID=${2/_/0} SLURM_JOB_NAME=study SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0
    export SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0
    [[ $2 == *_* ]] && export SLURM_ARRAY_JOB_ID=${2%_*} SLURM_ARRAY_TASK_ID=${2#*_}
    { while echo RUNNING > "$here/$2.state"; bash "$here/${2%_*}.sh"; grep -q REQUEUED "$here/$2.state"; do :; done
      echo COMPLETED > "$here/$2.state"; } &> "$here/$2.batch" & ;;
sacct)
    echo "JobID|State|NodeList"
    for file in "$here"/*.state; do echo "$(basename "$file" .state)|$(cat "$file")|node"; done
    [ -e "$here/interrupt" ] && { rm "$here/interrupt"; kill -INT $PPID; sleep 1; } ;;
esac
exit 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of which one run needs a file that is not whole yet, and one cannot work."""
    folder = tmp_path_factory.mktemp("launch")
    source = (ROOT / "experiments/shapes/frontend.yaml").read_text().replace("../data", str(ROOT / "experiments/data"))
    (folder / "frontend.yaml").write_text(source)
    (folder / "late.yaml").write_text(source.replace("model:\n", f"model:\n  weights: {folder}/start.safetensors\n"))
    (folder / "start.safetensors").write_bytes(b"")  # still being copied
    (folder / "wrong.yaml").write_text(source.replace("lr: 2.0e-3", "lr: -1.0"))
    (folder / "once.py").write_text(ONCE)
    (folder / "study.yaml").write_text(STUDY.replace("FOLDER", str(folder)))
    two = {"late: [FOLDER/late.yaml, FOLDER/frontend.yaml], ": ""}
    for name, changes in (("two", two), ("one", two | {", wrong: FOLDER/wrong.yaml": ""})):
        text = STUDY
        for old, new in changes.items():
            text = text.replace(old, new)
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


@pytest.fixture(autouse=True)
def environment(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", THREADS)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    monkeypatch.syspath_prepend(str(folder))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def serial(folder):
    """The study, one run after another in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("COLUMNS", "200")
        patch.setattr(torch, "get_num_threads", lambda: 1)  # no threads for several runs, however many the tests have
        assert main(["ablate", f"{folder}/study.yaml", "--out", f"{folder}/serial", "--retries", "1"]) == 1
    return folder / "serial"


def frontend(out):
    """What the front end scored, without its directory and the settings in which it differs from the others."""
    table = pq.read_table(out / "results.parquet").to_pandas().set_index("network").loc[["front end"]]
    return table.drop(columns=["run", "settings"])


def status(folder, study, out, capsys):
    """The stage and status of each run."""
    capsys.readouterr()
    assert main(["ablate", f"{folder}/{study}.yaml", "--out", str(out), "--status"]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_failed_run_prints_why_and_does_not_stop_the_others(folder, serial, capsys):
    assert "**Not in this comparison: late, seed 0, stage 2 of 2; wrong, seed 0.**" in (serial / "report.md").read_text()
    assert (serial / "wrong/seed0/failed").read_text() == "AdamW: Invalid learning rate: -1.0\n"
    said = status(folder, "study", serial, capsys)
    for text in (
        "start.safetensors is empty",
        "not tried: a stage before it failed",
        "failed: AdamW: Invalid",
        " finished ",
    ):
        assert said.count(text) == 1


@pytest.mark.slow
def test_failed_runs_are_retried_by_the_next_call(folder, serial, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    out = tmp_path / "out"
    shutil.copytree(serial, out)
    net = FrontEnd(8, width=0.02)
    save_file(net.state_dict(), tmp_path / "start.safetensors", {"mean": "0 0 0", "std": "255 255 255"})
    shutil.copy(tmp_path / "start.safetensors", folder)
    assert main(["ablate", f"{folder}/study.yaml", "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert "1 of 4: front end, seed 0 is finished" in printed.out
    assert printed.err.splitlines()[-1].startswith("wrong, seed 0 failed: AdamW: Invalid learning rate: -1.0 (see ")
    assert "Traceback" not in printed.err
    assert not list(out.glob("late/seed0/*/failed"))
    assert "**Not in this comparison: wrong, seed 0.**" in (out / "report.md").read_text()
    assert frontend(out).equals(frontend(serial))


@pytest.mark.skipif(THREADS != "1", reason="the serial runs have other threads")
def test_concurrent_runs_with_one_thread_each_give_the_same_results(folder, serial, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert main(["ablate", f"{folder}/two.yaml", "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.out.count(" starts as job ") == 2 and "img/s" not in printed.out
    assert "front end, seed 0 is finished" in printed.out and "wrong, seed 0 failed: AdamW: Invalid" in printed.out
    assert printed.err.splitlines()[-1].endswith(f"(see {out}/jobs/wrong/seed0.log)")
    assert "AdamW: Invalid learning rate" in (out / "jobs/wrong/seed0.log").read_text() and "Traceback" not in printed.err
    assert frontend(out).equals(frontend(serial))


def test_each_job_gets_one_device_and_its_share_of_the_threads(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS")
    ablation = read(folder / "one.yaml", tmp_path)
    assert [Local(ablation, None).environment(number) for number in range(2)] == [
        {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "4"} | PASSIVE,
        {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "7"} | PASSIVE,
    ]
    assert Local(ablation, 4).environment(2) == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "4"} | PASSIVE
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert Local(ablation, None).environment(1) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "1"} | PASSIVE
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Local(ablation, None).environment(0) == {"OMP_NUM_THREADS": "8", "CUDA_VISIBLE_DEVICES": "0"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert Local(ablation, None).environment(0) == {"OMP_NUM_THREADS": "8"}
    assert Local(read(folder / "study.yaml", tmp_path), None).environment(0) == {"OMP_NUM_THREADS": "2"} | PASSIVE
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert Local(ablation, 8).environment(0) == {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "ACTIVE"}


@pytest.mark.slow
def test_an_interruption_ends_the_jobs_after_they_have_saved(folder, serial, tmp_path, capsys):
    out = tmp_path / "out"
    (folder / "order").write_text(f"{int(signal.SIGINT)} {os.getpid()}")
    command = ["ablate", f"{folder}/one.yaml", "--out", str(out)]
    assert main([*command, "--jobs", "2"]) == 130
    assert "interrupted; to continue: dilated-seg ablate" in capsys.readouterr().out
    assert "stopped by a signal after step 5" in (out / "jobs/front_end/seed0.log").read_text()
    with claim(read(folder / "one.yaml", out).chains[0], read(folder / "one.yaml", out)):
        assert " running " in status(folder, "one", out, capsys)
        assert main(command) == 2
        assert "another process is training" in capsys.readouterr().err
    assert main(command) == 0
    assert f"continuing {out}" in capsys.readouterr().out
    assert frontend(out).equals(frontend(serial))


@pytest.mark.slow
def test_slurm_jobs_are_queued_once_and_continue_after_their_time_limit(folder, serial, tmp_path, capsys, monkeypatch):
    cluster, out = tmp_path / "cluster", tmp_path / "out"
    cluster.mkdir()
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        (cluster / name).write_text(SLURM)
        (cluster / name).chmod(0o755)
    for name, text in (("submitted", "0"), ("hold", ""), ("interrupt", "")):
        (cluster / name).write_text(text)
    monkeypatch.setenv("PATH", f"{cluster}{os.pathsep}{os.environ['PATH']}")
    command = ["ablate", f"{folder}/two.yaml", "--out", str(out)]
    slurm = [*command, "--launcher", "slurm", "--slurm", "time=240", "partition=gpu", "gpus_per_node=1", "cpus_per_task=4"]
    assert main(slurm) == 130
    printed = capsys.readouterr().out
    assert "queued: 1_0 1_1" in printed and "the jobs continue, see --status; to end them: scancel 1_0 1_1" in printed
    batch = (cluster / "1.sh").read_text()
    for line in ("--partition=gpu", "--time=240", "--gpus-per-node=1", "--signal=USR2@90", "--array=0-1%2", "--job-name=two"):
        assert f"#SBATCH {line}\n" in batch
    assert "--cpus-per-task=4 " in next(line for line in batch.splitlines() if line.startswith("srun"))
    assert status(folder, "two", out, capsys).count(" queued ") == 2
    assert main(command) == 2
    assert "SLURM still has runs" in capsys.readouterr().err
    (folder / "order").write_text(f"{int(signal.SIGUSR2)} 0")
    for task in (0, 1):
        os.spawnl(os.P_WAIT, str(cluster / "scontrol"), "scontrol", "release", f"1_{task}")
    assert main(slurm) == 1
    assert (cluster / "submitted").read_text().strip() == "1"
    log = (out / "jobs/front_end/seed0.log").read_text()
    for text in ("stopped by a signal after step 5", "Requeued job 1_0", f"continuing {out}"):
        assert text in log
    assert (out / "wrong/seed0/failed").read_text() == "AdamW: Invalid learning rate: -1.0\n"
    assert frontend(out).equals(frontend(serial))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--launcher=slurm"], "add --slurm time=240"),
        (["--launcher=slurm", "--slurm", "time=4:00:00"], "whole minutes"),
        (["--launcher=slurm", "--slurm", "time=240", "gpus"], "write KEY=VALUE"),
        (["--launcher=slurm", "--slurm", "time=240", "partitio=gpu"], "--slurm partitio: submitit has no such parameter"),
        (["--launcher=slurm", "--slurm", "time=240", "mem_gb=much"], "--slurm mem_gb=much"),
        (
            ["--launcher=slurm", "--slurm", "time=240", "nodes=2"],
            "takes its nodes and devices from the ablation's nodes_per_run (1)",
        ),
        (["--slurm", "time=240"], "--slurm is for --launcher slurm"),
        (["--launcher=slurm", "--jobs=2"], "--jobs is for --launcher local"),
        (["--jobs=0"], "must be at least 1"),
        (["--launcher=local", "--jobs=0"], "must be at least 1"),
        (["--retries=-1"], "at least 0"),
    ],
)
def test_wrong_launcher_options_are_a_user_error(folder, tmp_path, capsys, monkeypatch, words, sentence):
    (tmp_path / "srun").write_text("")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["ablate", f"{folder}/one.yaml", "--out", f"{tmp_path}/out", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("dilated-seg: ") and sentence in said
    assert not (tmp_path / "out").exists()


def test_jobs_that_slurm_rejects_are_a_user_error_and_nothing_is_queued(folder, tmp_path, capsys, monkeypatch):
    for name, text in (("srun", ""), ("sbatch", "#!/bin/sh\necho invalid partition >&2\nexit 1\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    words = ["--launcher", "slurm", "--slurm", "time=240", "partition=none"]
    assert main(["ablate", f"{folder}/two.yaml", "--out", f"{tmp_path}/out", *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "dilated-seg: SLURM rejected the jobs: invalid partition"
    assert not (tmp_path / "out/jobs/slurm.json").exists()


def test_the_slurm_launcher_without_slurm_is_a_user_error(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--launcher", "slurm", "--slurm", "time=240"]
    assert main(["ablate", f"{folder}/one.yaml", "--out", f"{tmp_path}/out", *words]) == 2
    assert "there is no srun here" in capsys.readouterr().err
