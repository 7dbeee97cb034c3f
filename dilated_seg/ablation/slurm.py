"""The launcher for SLURM: chains as jobs, submitted through submitit."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dilated_seg.ablation.launchers import Job, Launcher, format_title
from dilated_seg.ablation.plan import Ablation, Chain, is_finished
from dilated_seg.errors import UserError, format_error

if TYPE_CHECKING:  # submitit is an optional extra
    from submitit import Job as Submitted

    from dilated_seg.ablation.launchers import AnyJob

TIMEOUTS = 100  # default of --slurm max_num_timeout: the number of times a job may reach its time limit and be queued again


class Slurm(Launcher):
    """Submits jobs to SLURM and waits for them, and for those that an earlier call submitted.

    Args:
        ablation: The ablation.
        words: KEY=VALUE options of submitit.

    Raises:
        UserError: SLURM is not installed, or submitit rejects a key or value.
    """

    pause = 2

    def __init__(self, ablation: Ablation, words: Sequence[str]) -> None:
        super().__init__(ablation, len(ablation.chains))
        self.executor = build_executor(ablation, words)

    def carry_out(self, waiting: list[Chain], retries: int) -> None:
        self.running = dict(enumerate(list_slurm_jobs(self.ablation).items()))
        for chain, job in self.running.values():
            print(f"{format_title(chain)} was queued as job {job.job_id} before", flush=True)
        if self.running:
            print(f"(if SLURM does not know these jobs any more, remove {get_ids_file(self.ablation)})", flush=True)
        submitted = [chain for chain, _ in self.running.values()]
        super().carry_out([chain for chain in waiting if chain not in submitted], retries)

    def submit(self, batch: Mapping[int, Chain]) -> "list[Submitted[None]]":
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from dilated_seg.storage import write_text

        callables = [Job(self.ablation, chain, claim=False) for chain in batch.values()]
        try:
            jobs = self.executor.submit_array(callables)
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"SLURM rejected the jobs: {format_error(error)}") from None
        ids = read_job_ids(self.ablation)
        for chain, job in zip(batch.values(), jobs, strict=True):
            ids[self.ablation.get_relative_directory(chain)] = job.job_id
        write_text(get_ids_file(self.ablation), json.dumps(ids, indent=1) + "\n")
        print(f"queued: {' '.join(job.job_id for job in jobs)}", flush=True)
        return jobs

    def leave(self) -> None:
        if self.running:
            print(f"the jobs continue, see --status; to end them: {format_scancel(dict(self.running.values()))}", flush=True)


def build_executor(ablation: Ablation, words: Sequence[str]) -> Any:  # noqa: ANN401 - submitit's types say too little
    """Return submitit's executor for SLURM with the parameters of ``--slurm``.

    Raises:
        UserError: SLURM is not installed, or a parameter is missing, unknown or invalid.
    """
    from submitit import AutoExecutor

    values: dict[str, Any] = {"name": ablation.name, "max_num_timeout": TIMEOUTS}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise UserError(f"--slurm {word}: write KEY=VALUE, such as partition=gpu")
        key = key.removeprefix("slurm_")
        values["timeout_min" if key == "time" else key] = parse_value(value)
    if type(values.get("timeout_min")) is not int:
        raise UserError("--launcher slurm needs the time of a job in whole minutes: add --slurm time=240")
    if "cpus_per_task" in values:
        values.setdefault("srun_args", [f"--cpus-per-task={values['cpus_per_task']}"])  # SLURM 22.05's srun forgets it
    request_devices(values, ablation)
    limit = values.pop("max_num_timeout")
    try:
        executor = AutoExecutor(ablation.jobs / "submitit", cluster="slurm", slurm_max_num_timeout=limit)
    except RuntimeError:
        raise UserError("--launcher slurm needs SLURM, but there is no srun here: call it where sbatch works") from None
    for key, value in values.items():
        try:
            executor.update_parameters(**{f"slurm_{key}": value})
        except NameError:
            raise UserError(f"--slurm {key}: submitit has no such parameter for SLURM") from None
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"--slurm {key}={value}: {format_error(error)}") from None
    executor.update_parameters(slurm_stderr_to_stdout=True)
    return executor


def request_devices(values: dict[str, Any], ablation: Ablation) -> None:
    """Set the nodes and GPUs of a job to those of a run; its only task starts torchrun, which starts the processes.

    Raises:
        UserError: ``--slurm`` contradicts the ablation.
    """
    devices, nodes = ablation.devices_per_run, ablation.nodes_per_run
    for key, required in (("nodes", nodes), ("tasks_per_node", 1), ("ntasks_per_node", 1)):
        if values.get(key, required) != required:
            raise UserError(
                f"--slurm {key}={values[key]}: a job takes its nodes and devices from the ablation's nodes_per_run "
                f"({nodes}) and devices_per_run ({devices}), and starts their processes itself; leave it out"
            )
    if devices > 1 and values.setdefault("gpus_per_node", devices) not in (0, devices):
        raise UserError(f"--slurm gpus_per_node={values['gpus_per_node']}: devices_per_run is {devices}; leave it out")
    if nodes > 1:
        values["nodes"] = nodes
        values.setdefault("srun_args", []).extend(["--nodes=1", "--ntasks=1"])


def parse_value(value: str) -> Any:  # noqa: ANN401
    """Parse a value as JSON; return it as text if it is not JSON."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def get_ids_file(ablation: Ablation) -> Path:
    """Return the file with the ids of SLURM's jobs."""
    return ablation.jobs / "slurm.json"


def read_job_ids(ablation: Ablation) -> dict[str, str]:
    """Return the id of the newest job of each chain, by the chain's directory."""
    file = get_ids_file(ablation)
    ids: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
    return ids


def list_slurm_jobs(ablation: Ablation) -> "dict[Chain, Submitted[None]]":
    """Return the unfinished chains whose jobs SLURM has queued or is running, with their jobs."""
    ids = read_job_ids(ablation)
    if not ids:
        return {}
    logging.getLogger("submitit").setLevel(logging.ERROR)  # it logs with every poll that SLURM does not answer
    from submitit import SlurmJob

    jobs: dict[Chain, Submitted[None]] = {}
    for chain in ablation.chains:
        job_id = ids.get(ablation.get_relative_directory(chain))
        if job_id and not all(is_finished(run) for run in chain):
            job: SlurmJob[None] = SlurmJob(ablation.jobs / "submitit", job_id)
            if not job.done():
                jobs[chain] = job
    return jobs


def format_scancel(jobs: "Mapping[Chain, AnyJob]") -> str:
    """Return the command that ends jobs of SLURM."""
    return f"scancel {' '.join(job.job_id for job in jobs.values())}"
