"""The recipe of a run, saved in its checkpoints and compared when a run continues from one."""

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

# Options that the content of a checkpoint depends on: they cannot change.
FIXED = (
    "seed_everything", "model.net", "model.crf", "model.mean", "model.std", "model.weights", "model.weights_without",
    "model.lr_factors", "model.bias_lr", "model.bias_decay",
    "model.optimizer.class_path", "data.class_path", "data.init_args.batch_size",
    "data.init_args.global_batch_size", "data.init_args.streaming",
    "trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.overfit_batches",
)  # fmt: skip
REMEDY = "set it to that value, or start a new training from these weights with --model.weights instead of --ckpt_path"


class Recipe(Callback):
    """Writes the recipe into every checkpoint, and compares it when a run continues from one.

    The optimizer's arguments and the schedule are those of the new recipe from the checkpoint's step on, as if it had been
    followed from the start; the optimizer's state, such as its momentum, is the checkpoint's. Other changes raise an error. The
    run's config.yaml begins with a comment that names the checkpoint and the changes.

    Args:
        text: The resolved configuration, YAML.
        config: The same as a dictionary, for W&B.
    """

    def __init__(self, text: str, config: dict[str, Any]) -> None:
        self.text, self.config = text, config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration into the directory of a trained run, and log it to W&B."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if stage == "fit":
            file = Run(trainer.default_root_dir).config_file
            before = file.read_text() if file.is_file() else ""
            write_text(
                file, before.partition(self.text[:10])[0] + self.text
            )  # keeps the comment with the checkpoint it continued from
        for logger in trainer.loggers:
            if isinstance(logger, SafeWandbLogger):
                logger.log_config(self.config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["recipe"] = {"config": self.text, "images_per_step": count_images_per_step(trainer)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ANN401
        """Compare, before optimizers and schedules are restored.

        Raises:
            UserError: Training cannot continue from this checkpoint with the recipe, or the checkpoint has no recipe.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        path = Path(str(trainer.ckpt_path))
        recipe = checkpoint.get("recipe")
        if not recipe:
            raise UserError(
                f"{path} has no recipe, so it cannot be continued exactly: start from its "
                "weights with --model.weights instead of --ckpt_path"
            )
        changes = list(find_differences(recipe["config"], self.text))
        for name, before, now in changes:
            if is_part(name, FIXED):
                raise UserError(f"{path} was trained with {name} {before}, and not {now}: {REMEDY}")
        images, now = recipe["images_per_step"], count_images_per_step(trainer)
        if images and now and images != now:
            raise UserError(f"{path} was trained with {images} images a step, and not {now}, in all processes: {REMEDY}")
        if any(is_part(name, ("model.optimizer", "model.lr_scheduler")) for name, _, _ in changes):
            apply_recipe(pl_module, checkpoint, path)
        directory = Run(trainer.default_root_dir).checkpoint_dir
        if same_run := path.parent.resolve() == directory.resolve():
            relocate_callbacks(checkpoint, directory)
        ends = trainer.max_steps == checkpoint["global_step"]
        if not (same_run or ends or any(group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"])):
            raise UserError(
                f"the learning rate is 0 after step {checkpoint['global_step']}, where model.lr_scheduler ends: make it "
                "longer, such as with --model.lr_scheduler.init_args.total_iters, or set it to null"
            )
        if not same_run and trainer.is_global_zero:
            origin = [f"continued from {path}, after step {checkpoint['global_step']}"]
            origin += [f"{name}: {before} before, {now} since" for name, before, now in changes]
            print(*origin, sep="\n", flush=True)
            write_text(Run(trainer.default_root_dir).config_file, "".join(f"# {line}\n" for line in origin) + self.text)


def relocate_callbacks(checkpoint: dict[str, Any], directory: Path) -> None:
    """Set the current directory of checkpoints in the saved state of the callbacks.

    Lightning forgets the best score if the directory differs, and a worse checkpoint would replace the best.
    """
    for state in checkpoint["callbacks"].values():
        if isinstance(state, dict) and Path(str(state.get("dirpath"))).name == directory.name:
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = str(directory / Path(state[key]).name) if state[key] else ""
            state["best_k_models"] = {str(directory / Path(path).name): score for path, score in state["best_k_models"].items()}
            state["dirpath"] = str(directory)


def count_images_per_step(trainer: Trainer) -> list[int] | None:
    """Return the number of images per step, and of batches per step and process; None for data modules of other packages."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, SegmentationDataModule):
        return None
    return [data.get_batch_size() * trainer.world_size * data.passes, data.passes]


def apply_recipe(task: Any, checkpoint: dict[str, Any], path: Path) -> None:  # noqa: ANN401
    """Set a checkpoint's optimizer arguments and schedule to those of the task's recipe at the checkpoint's step.

    Raises:
        UserError: The schedule depends on metrics, or the optimizer needs a state that the checkpoint does not have.
    """
    built = task.configure_optimizers()
    optimizer, schedules = built["optimizer"], [built["lr_scheduler"]["scheduler"]] if "lr_scheduler" in built else []
    states = checkpoint["lr_schedulers"]
    if any(isinstance(s, torch.optim.lr_scheduler.ReduceLROnPlateau) for s in schedules) or any("best" in s for s in states):
        raise UserError(f"{path}: a schedule that depends on a metric cannot change during training: {REMEDY}")
    saved = checkpoint["optimizer_states"][0]
    saved_state = {key for state in saved["state"].values() for key in state}
    if (missing := list_optimizer_state(task) - saved_state) or len(saved["param_groups"]) != len(optimizer.param_groups):
        raise UserError(f"{path} lacks what model.optimizer needs now ({', '.join(sorted(missing))}): {REMEDY}")
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


def list_optimizer_state(task: Any) -> set[str]:  # noqa: ANN401
    """Return the names of the values that the task's optimizer keeps per parameter, found by a step of one parameter."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimizer = task.optimizer([parameter])
    optimizer.step()
    return {key for state in optimizer.state.values() for key in state}
