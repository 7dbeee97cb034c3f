"""What the command line says: help, and of a mistake what is wrong, where, and what was probably meant."""

import difflib
import inspect
import re
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from dilated_seg import models
from dilated_seg.cli.settings import CHOICES, SHORT, STRATEGIES, Setting, read_arguments, shorten
from dilated_seg.crf import DenseCRF
from dilated_seg.errors import format_error

EVALUATIONS = ("validate", "test", "predict")

# What help begins with; the whole list of options follows it.
CONFIG = "--config FILE           the experiment, then overlays: what comes later wins, so flags stand behind it"
DATA = "--data.root DIRECTORY   where the dataset is, or its shards; or its environment variable"
USAGE = {
    "fit": f"""dilated-seg fit --config EXPERIMENT.yaml [--config OVERLAY.yaml ...] [OPTION ...]

such as: dilated-seg fit --config experiments/camvid/segnet.yaml --data.root data/camvid --trainer.max_steps 2000

ten options for most purposes; --print_config shows what would be run, --model.net.help CLASS the options of a class:
  {CONFIG}
  --run_dir DIRECTORY     of the run: a new one below runs/ if not given, and a run that is there continues
  {DATA}
  --data.batch_size N     images a step
  --data.num_workers N    processes that read images
  --model.net CLASS       {", ".join(models.__all__)}, or mymodule.MyNet
  --model.weights FILE    to start from: a file, a run's directory, or imagenet
  --model.optimizer.lr X  the learning rate
  --trainer.max_steps N   the length of training; set the length of the schedule along with it
  --trainer.devices N     GPUs or processes at once; more than one needs --trainer.strategy ddp

all options:""",
} | {
    verb: f"""dilated-seg {verb} RUN [OPTION ...]

such as: dilated-seg {verb} runs/mine --checkpoint last --inference Tiles

options for most purposes:
  --checkpoint NAME       best, which it is if not given, last, or a file; the results are written into its run
  --config FILE           an overlay, or without RUN the experiment: what comes later wins, so flags stand behind it
  {DATA}
  --inference CLASS       the inference strategy: {", ".join(STRATEGIES)}
  --crf                   refine by a dense CRF; its options are --crf.w1 and so on
  --run_dir DIRECTORY     to write into, if not into the checkpoint's run

all options:"""
    for verb in EVALUATIONS
}

# What people call options elsewhere, and what they are called here.
ELSEWHERE = {
    "learning_rate": "model.optimizer.lr", "lr": "model.optimizer.lr", "weight_decay": "model.optimizer.weight_decay",
    "momentum": "model.optimizer.momentum", "optimizer": "model.optimizer", "scheduler": "model.lr_scheduler",
    "batch_size": "data.batch_size", "workers": "data.num_workers", "num_workers": "data.num_workers", "root": "data.root",
    "crop_size": "data.augmentation.crop_size", "dataset": "data", "net": "model.net", "network": "model.net",
    "epochs": "trainer.max_epochs", "max_epochs": "trainer.max_epochs", "steps": "trainer.max_steps",
    "max_steps": "trainer.max_steps", "gpus": "trainer.devices", "devices": "trainer.devices", "precision": "trainer.precision",
    "seed": "seed_everything", "out": "run_dir", "output_dir": "run_dir", "checkpoint": "ckpt_path", "resume": "run_dir",
    "weights": "model.weights", "width": "model.net.width",
}  # fmt: skip

# What jsonargparse says, and what it means.
TYPES = {
    r"<class 'int'>": "a whole number", r"<class 'float'>": "a number", r"<class 'bool'>": "true or false",
    r"<class 'str'>": "text", r"<class 'list'>": "a list", r"<class 'dict'>": "a mapping",
    r"<class 'collections\.abc\.Sequence'>": "a list", r"a typing\.Literal\[([^\]]*)\]": r"one of \1",
}  # fmt: skip
NO_CLASS = re.compile(r"Expected a path but (\S*) either not accessible|Expected a dot import path string: (\S+)")
EXPECTED = re.compile(r"Expected (?:a )?(<class '[\w.]+'>|typing\.Literal\[[^\]]*\]|tuple with .*? elements)")
UNKNOWN = re.compile(r"(?:does not accept option|Option) '([^']+)'(?: is not accepted)?")


def explain(sentence: str, args: Sequence[str], options: Sequence[str]) -> str:
    """Return what is wrong, where, and the most similar of what would be right.

    Args:
        sentence: What jsonargparse says.
        args: The command line.
        options: All options without those of classes that are chosen.
    """
    settings = read_arguments(args)
    if missing := re.search(r"the following arguments are required: ([\w.]+(?:, [\w.]+)*)", sentence):
        return explain_missing(sentence, missing[1])
    if stray := re.match(r"unrecognized arguments: (.*)", sentence):
        option = next((arg for arg in args if arg.startswith("--") and stray[1].startswith(arg)), stray[1].split()[0])
        option = option.partition("=")[0]
        if not option.startswith("-"):
            return f"{option} belongs to no option: options begin with --, and their values follow them (a list is one: [1,2])"
        return explain_key(option.lstrip("-"), settings, options) or f"there is no option {option}"
    if unknown := UNKNOWN.search(sentence):
        return explain_key(unknown[1], settings, options) or sentence
    return explain_value(sentence, settings) if sentence.startswith("Parser key") else sentence


def explain_missing(sentence: str, needed: str) -> str:
    """Explain that an experiment or a class lacks an argument."""
    if "model.net" in needed or needed.endswith("data"):
        return "a network and a dataset are needed: --config experiments/….yaml has both, or say --model.net and --data"
    key = re.match(r'Parser key "([^"]+)"', sentence)
    return f"{key[1]} needs {needed}: say it by --{key[1]}.{needed.split(', ')[0]}, or in init_args" if key else sentence


def explain_key(name: str, settings: Sequence[Setting], options: Sequence[str]) -> str:
    """Explain a key that nothing takes: where it stands, and what was probably meant; return "" if it stands nowhere."""
    wanted = tuple(name.split("."))
    place = next((s for s in reversed(settings) if s.path[-len(wanted) :] == wanted), None)
    place = place or next((s for s in reversed(settings) if wanted[0] in s.path), None)
    if place is None:
        return ""
    path = place.keys
    for depth in range(len(path) - 1, 0, -1):
        if kind := find_class(".".join(path[:depth]), settings):
            names = list_parameters(kind)
            near = difflib.get_close_matches(path[depth], [*names, "class_path", "init_args", "dict_kwargs"], 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(names) or 'nothing'}"
            return f"{place}: {kind.__name__} takes no {path[depth]}: {hint}"
    near = difflib.get_close_matches(".".join(path), options, 1, 0.75)
    known = difflib.get_close_matches(path[-1], ELSEWHERE, 1, 0.8)
    meant = near[0] if near else ELSEWHERE[known[0]] if known else ""
    what, sign = ("key", "") if place.file else ("option", "--")
    return f"{place}: there is no such {what}" + (f": did you mean {sign}{meant}?" if meant else "")


def find_class(key: str, settings: Iterable[Setting]) -> type | None:
    """Return the class that the settings choose for an option, the last of them if several do."""
    chosen = None
    for setting in settings:
        if ".".join(setting.keys).removesuffix(".class_path") == key and isinstance(setting.value, str):
            chosen = setting.value
    if chosen is None and key in ("crf", "model.crf"):
        return DenseCRF
    for place in ("", "torch.optim.", "torch.optim.lr_scheduler.", "lightning.pytorch.callbacks."):
        module, _, name = SHORT.get(str(chosen), f"{place}{chosen}").rpartition(".")
        try:
            kind = getattr(import_module(module), name, None) if module else None
        except Exception:  # whatever a module raises where it is imported: then there is no hint
            kind = None
        if isinstance(kind, type):
            return kind
    return None


def list_parameters(kind: type) -> list[str]:
    """Return what a class's constructor takes by name, and those of its bases to which it passes the rest."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            known = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            names |= dict.fromkeys(name for name in known if name not in ("self", "params", "optimizer"))
            if all(p.kind != p.VAR_KEYWORD for p in parameters):
                break
    return list(names)


def explain_value(sentence: str, settings: Sequence[Setting]) -> str:
    """Explain a value that an option does not take."""
    key = ".".join(re.findall(r'Parser key "([^"]+)":', sentence))
    rest = sentence.rpartition('":')[2].strip()
    keys = key.split(".")
    place = next((setting for setting in reversed(settings) if setting.keys[-len(keys) :] == keys), None)
    where = f"{place}" if place else key
    if no_class := NO_CLASS.search(rest):
        return explain_class(no_class[1] or no_class[2] or "", rest, where, key)
    expected = [part for part in dict.fromkeys(EXPECTED.findall(rest)) if "NoneType" not in part]
    if not expected:
        return f"{where}: {rest.partition(' Not a valid subclass')[0]}"
    text = " or ".join(f"a {part}" if not part.startswith("<") else part for part in expected)
    for pattern, meaning in TYPES.items():
        text = re.sub(pattern, meaning, text)
    value: Any = place.value if place else None
    given = f" {value}" if isinstance(value, str | int | float) else ""
    hint = f": write {float(value):.0f}" if text == "a whole number" and is_whole(value) else ""
    return f"{where}{given}: {text} is expected{hint}"


def is_whole(value: Any) -> bool:  # noqa: ANN401
    """Return whether a text is a whole number in another spelling, such as 1e5."""
    try:
        return float(value).is_integer()
    except (TypeError, ValueError):
        return False


def explain_class(name: str, rest: str, where: str, key: str) -> str:
    """Explain that a class cannot be found or imported."""
    if "." not in name:
        option = next((option for option in CHOICES if option == key or option.endswith(f".{key}")), key)
        lower = {choice.lower(): choice for choice in CHOICES.get(option, SHORT)}
        near = difflib.get_close_matches(name.lower(), lower, 1)
        hint = f"did you mean {lower[near[0]]}?" if near else f"take {', '.join(lower.values())}, or give an import path"
        return f"{where} {name}: there is no such class: {hint}"
    if "does not correspond to a subclass of" in rest:
        return f"{where} {name}: this is no {rest.rpartition(' ')[2]}"
    problem = re.search(r"Problem with given class_path '[^']*': (.*?)(?: Expected| Given value|$)", rest)
    return f"{where} {name}: {problem[1] if problem else rest}"


def explain_refusal(kind: type, error: Exception) -> str:
    """Return what a constructor says of its arguments, and the line that says it if it is of no installed package."""
    file = Path(str(inspect.getsourcefile(kind) or ""))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    installed = "site-packages" in file.parts or Path(models.__file__).parents[1] in file.parents
    where = "" if installed or not lines else f" ({shorten(file)}, line {lines[-1]})"
    return f"{kind.__name__}: {format_error(error)}{where}"
