"""The recipe of a run, in its checkpoints: one that is continued with another recipe follows the new one, or is refused."""

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from dilated_seg.data import SegmentationDataModule
from dilated_seg.errors import UserError
from dilated_seg.runs.resume import find_differences, is_part
from dilated_seg.runs.run import Run
from dilated_seg.storage import write_text
from dilated_seg.training.loggers import SafeWandbLogger

# What a checkpoint holds, or what its place in the data depends on: another value would not be what is trained.
FIXED = (
    "seed_everything", "model.net", "model.crf", "model.mean", "model.std", "model.weights", "model.weights_without",
    "model.lr_factors", "model.optimizer.class_path", "data.class_path", "data.init_args.batch_size",
    "data.init_args.global_batch_size", "data.init_args.streaming",
    "trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.overfit_batches",
)  # fmt: skip
REMEDY = "give it that value, or start a training of its own from these weights with --model.weights instead of --ckpt_path"


class Recipe(Callback):
    """Writes the recipe into every checkpoint, and compares when a run continues from one.

    The learning rate and other values of the optimizer, and its schedule, are those of the new recipe from the checkpoint's
    step on, as if it had been followed from the start; the optimizer's state, such as its momentum, is the checkpoint's.
    What a checkpoint cannot be given is refused. The run's config.yaml says from where it was continued and what changed.

    Args:
        text: The resolved configuration, YAML.
        config: The same for W&B, which groups runs by it.
    """

    def __init__(self, text: str, config: dict[str, Any]) -> None:
        self.text, self.config = text, config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration into the directory of a run that is trained, and into W&B."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if stage == "fit":
            file = Run(trainer.default_root_dir).config_file
            before = file.read_text() if file.is_file() else ""
            write_text(file, before.partition(self.text[:10])[0] + self.text)  # where it was continued from stays at the top
        for logger in trainer.loggers:
            if isinstance(logger, SafeWandbLogger):
                logger.log_config(self.config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["recipe"] = {"config": self.text, "images_per_step": images_per_step(trainer)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ANN401
        """Compare, before optimizers and schedules are restored.

        Raises:
            UserError: The recipe cannot be followed from this checkpoint on, or the checkpoint does not hold its own.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        path = Path(str(trainer.ckpt_path))
        recipe = checkpoint.get("recipe")
        if not recipe:
            raise UserError(
                f"{path} does not hold the recipe it was trained with, so it cannot be continued exactly: start from its "
                "weights with --model.weights instead of --ckpt_path"
            )
        changes = list(find_differences(recipe["config"], self.text))
        for name, before, now in changes:
            if is_part(name, FIXED):
                raise UserError(f"{path} was trained with {name} {before}, and not {now}: {REMEDY}")
        images, now = recipe["images_per_step"], images_per_step(trainer)
        if images and now and images != now:
            raise UserError(f"{path} was trained with {images} images a step, and not {now}, in all processes: {REMEDY}")
        if any(is_part(name, ("model.optimizer", "model.lr_scheduler")) for name, _, _ in changes):
            follow(pl_module, checkpoint, path)
        folder = Run(trainer.default_root_dir).checkpoint_dir
        if own := path.parent.resolve() == folder.resolve():
            move(checkpoint, folder)
        ends = trainer.max_steps == checkpoint["global_step"]
        if not (own or ends or any(group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"])):
            raise UserError(
                f"the learning rate is 0 after step {checkpoint['global_step']}, where model.lr_scheduler ends: make it "
                "longer, such as with --model.lr_scheduler.init_args.total_iters, or name none"
            )
        if not own and trainer.is_global_zero:
            origin = [f"continued from {path}, after step {checkpoint['global_step']}"]
            origin += [f"{name}: {before} before, {now} since" for name, before, now in changes]
            print(*origin, sep="\n", flush=True)
            write_text(Run(trainer.default_root_dir).config_file, "".join(f"# {line}\n" for line in origin) + self.text)


def move(checkpoint: dict[str, Any], folder: Path) -> None:
    """Tell the callbacks in a run's checkpoint where their files are now, or how that directory is spelled now.

    Lightning forgets the best score if the directory is another, and a worse checkpoint would take the place of the best.
    """
    for state in checkpoint["callbacks"].values():
        if isinstance(state, dict) and Path(str(state.get("dirpath"))).name == folder.name:
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = str(folder / Path(state[key]).name) if state[key] else ""
            state["best_k_models"] = {str(folder / Path(path).name): score for path, score in state["best_k_models"].items()}
            state["dirpath"] = str(folder)


def images_per_step(trainer: Trainer) -> list[int] | None:
    """Return how many images a step takes, and in how many batches a process has its share; None for other datasets."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, SegmentationDataModule):
        return None
    return [data.get_batch_size() * trainer.world_size * data.passes, data.passes]


def follow(task: Any, checkpoint: dict[str, Any], path: Path) -> None:  # noqa: ANN401
    """Put the optimizer's values and the schedule of the task's own recipe, at the checkpoint's step, into a checkpoint.

    Raises:
        UserError: The schedule depends on metrics, or the optimizer needs a state that the checkpoint does not hold.
    """
    built = task.configure_optimizers()
    optimizer, schedules = built["optimizer"], [built["lr_scheduler"]["scheduler"]] if "lr_scheduler" in built else []
    states = checkpoint["lr_schedulers"]
    if any(isinstance(s, torch.optim.lr_scheduler.ReduceLROnPlateau) for s in schedules) or any("best" in s for s in states):
        raise UserError(f"{path}: a schedule that follows a metric cannot be changed on the way: {REMEDY}")
    saved = checkpoint["optimizer_states"][0]
    held = {key for state in saved["state"].values() for key in state}
    if (missing := state_of(task) - held) or len(saved["param_groups"]) != len(optimizer.param_groups):
        raise UserError(f"{path} does not hold what model.optimizer needs now ({', '.join(sorted(missing))}): {REMEDY}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*lr_scheduler.step.*before.*optimizer.step.*")
        for schedule in schedules:
            for _ in range(checkpoint["global_step"]):
                schedule.step()
    for group, now in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        parameters = group["params"]
        group.clear()
        group.update({key: value for key, value in now.items() if key != "params"}, params=parameters)
    checkpoint["lr_schedulers"] = [schedule.state_dict() for schedule in schedules]


def state_of(task: Any) -> set[str]:  # noqa: ANN401
    """Return the names of what the task's optimizer keeps of each parameter, from a step of one parameter."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimizer = task.optimizer([parameter])
    optimizer.step()
    return {key for state in optimizer.state.values() for key in state}
