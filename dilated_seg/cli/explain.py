"""The help of Lightning's four commands, and messages for wrong arguments: what is wrong, where, and the nearest match."""

import difflib
import inspect
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from dilated_seg import models
from dilated_seg.cli.settings import CHOICES, SHORT, STRATEGIES, Setting, read_arguments
from dilated_seg.crf import DenseCRF
from dilated_seg.errors import format_error
from dilated_seg.storage import make_relative

EVALUATIONS = ("validate", "test", "predict")

# The beginning of help; the list of all options follows it.
CONFIG = "--config FILE           the experiment, then overlays; later files and options win"
DATA = "--data.root DIRECTORY   the dataset, or its shards; default: its environment variable"
USAGE = {
    "fit": f"""dilated-seg fit --config EXPERIMENT.yaml [--config OVERLAY.yaml ...] [OPTION ...]

such as: dilated-seg fit --config experiments/camvid/segnet.yaml --data.root data/camvid --trainer.max_steps 2000

ten common options; --print_config prints the resolved configuration, --model.net.help CLASS the options of a class:
  {CONFIG}
  --run_dir DIRECTORY     of the run; default: a new one below runs/; an existing run continues
  {DATA}
  --data.batch_size N     images per step
  --data.num_workers N    processes that read images
  --model.net CLASS       {", ".join(models.__all__)}, or mymodule.MyNet
  --model.weights FILE    initial weights: a file, a run's directory, or imagenet
  --model.optimizer.lr X  learning rate
  --trainer.max_steps N   number of steps; set the length of the schedule along with it
  --trainer.devices N     GPUs or processes; more than one needs --trainer.strategy ddp

all options:""",
} | {
    command: f"""dilated-seg {command} NETWORK [OPTION ...]

such as: dilated-seg {command} runs/mine --checkpoint last --inference 'Tiles(size=(512, 512))'

common options:
  NETWORK                 a run's directory or a checkpoint file; with --data, also a directory that export wrote or
                          OWNER/NAME at the Hugging Face Hub
  --checkpoint NAME       of the run: best (default), last, or a file; the results are written into its run
  --config FILE           an overlay, or without NETWORK the experiment; later files and options win
  {DATA}
  --inference CLASS       the inference strategy: {", ".join(STRATEGIES)}
  --crf                   refine with a dense CRF; its parameters are --crf.w1 and so on
  --run_dir DIRECTORY     for the results; default: the checkpoint's run

all options:"""
    for command in EVALUATIONS
}

# Common names of options in other projects, and their names here.
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

# Types in jsonargparse's messages, and their names in ours.
TYPES = {
    r"<class 'int'>": "a whole number", r"<class 'float'>": "a number", r"<class 'bool'>": "true or false",
    r"<class 'str'>": "text", r"<class 'list'>": "a list", r"<class 'dict'>": "a mapping",
    r"<class 'collections\.abc\.Sequence'>": "a list", r"a typing\.Literal\[([^\]]*)\]": r"one of \1",
}  # fmt: skip
NO_CLASS = re.compile(r"Expected a path but (\S*) either not accessible|Expected a dot import path string: (\S+)")
EXPECTED = re.compile(r"Expected (?:a )?(<class '[\w.]+'>|typing\.Literal\[[^\]]*\]|tuple with .*? elements)")
UNKNOWN = re.compile(r"(?:does not accept option|Option) '([^']+)'(?: is not accepted)?")


def explain(sentence: str, args: Sequence[str], options: Sequence[str]) -> str:
    """Return what is wrong, where, and the nearest match.

    Args:
        sentence: Message of jsonargparse.
        args: The command line.
        options: All options except those of classes that are chosen.
    """
    settings = read_arguments(args)
    if missing := re.search(r"the following arguments are required: ([\w.]+(?:, [\w.]+)*)", sentence):
        return explain_missing(sentence, missing[1])
    if stray := re.match(r"unrecognized arguments: (.*)", sentence):
        option = next((arg for arg in args if not arg[:1].isalnum() and stray[1].startswith(arg)), stray[1].split()[0])
        option = option.partition("=")[0]
        name = re.sub(r"^\W+", "", option)  # also without quotation marks and dashes as web pages have them
        if name == option:
            return f"{option} belongs to no option: options begin with --, and their values follow them (a list is one: [1,2])"
        return explain_key(name, settings, options) or f"{option}: unknown option{suggest_option(name, options)}"
    if unknown := UNKNOWN.search(sentence):
        return explain_key(unknown[1], settings, options) or sentence
    return explain_value(sentence, settings) if sentence.startswith("Parser key") else sentence


def describe_unused(args: Sequence[str], arguments: Mapping[str, object], name: str) -> str | None:
    """Return a sentence on options of data that the chosen dataset does not have, since it replaced another one.

    Args:
        args: The command line.
        arguments: The arguments of the chosen dataset.
        name: The class of the dataset.
    """
    known = {*arguments, "class_path", "init_args", "dict_kwargs", "help"}
    passed = [setting.keys for setting in read_arguments(args) if setting.value not in (None, "null")]
    unused = dict.fromkeys(keys[1] for keys in passed if keys[0] == "data" and len(keys) == 2 and keys[1] not in known)
    return f"{name} has no option {', '.join(unused)}, given for another dataset: not used" if unused else None


def explain_missing(sentence: str, required: str) -> str:
    """Explain that an experiment or a class lacks an argument."""
    if "model.net" in required or required.endswith("data"):
        return "a network and a dataset are required: pass --config experiments/….yaml, or --model.net and --data"
    key = re.match(r'Parser key "([^"]+)"', sentence)
    return f"{key[1]} requires {required}: set --{key[1]}.{required.split(', ')[0]}, or init_args" if key else sentence


def explain_key(name: str, settings: Sequence[Setting], options: Sequence[str]) -> str:
    """Explain an unknown key: the setting that has it and the nearest match; return "" if no setting has it."""
    wanted = tuple(name.split("."))
    setting = next((s for s in reversed(settings) if s.path[-len(wanted) :] == wanted), None)
    setting = setting or next((s for s in reversed(settings) if wanted[0] in s.path), None)
    if setting is None:
        return ""
    path = setting.keys
    for depth in range(len(path) - 1, 0, -1):
        if kind := find_class(".".join(path[:depth]), settings):
            names = list_parameters(kind)
            near = difflib.get_close_matches(path[depth], [*names, "class_path", "init_args", "dict_kwargs"], 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names) or 'none'}"
            return f"{setting}: {kind.__name__} has no argument {path[depth]}: {hint}"
    sign = "" if setting.file else "--"
    return f"{setting}: unknown {'key' if setting.file else 'option'}{suggest_option('.'.join(path), options, sign)}"


def suggest_option(name: str, options: Sequence[str], sign: str = "--") -> str:
    """Return the nearest match of an unknown option, also among its names in other projects, as the end of a message."""
    near = difflib.get_close_matches(name, [*options, "config"], 1, 0.75)
    other = difflib.get_close_matches(name.rpartition(".")[2], ELSEWHERE, 1, 0.8)
    meant = near[0] if near else ELSEWHERE[other[0]] if other else ""
    return f": did you mean {sign}{meant}?" if meant else ""


def find_class(key: str, settings: Iterable[Setting]) -> type | None:
    """Return the class that the settings choose for an option, the last one if several do."""
    names = [s.value for s in settings if ".".join(s.keys).removesuffix(".class_path") == key and isinstance(s.value, str)]
    if not names:
        return DenseCRF if key in ("crf", "model.crf") else None
    for prefix in ("", "torch.optim.", "torch.optim.lr_scheduler.", "lightning.pytorch.callbacks."):
        module, _, name = SHORT.get(names[-1], prefix + names[-1]).rpartition(".")
        try:
            kind = getattr(import_module(module), name, None) if module else None
        except Exception:  # an import may raise anything: no nearest match then
            kind = None
        if isinstance(kind, type):
            return kind
    return None


def list_parameters(kind: type) -> list[str]:
    """Return the named parameters of a constructor, and of those of its bases to which it passes ``**kwargs``."""
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
    """Explain a value of a wrong type."""
    key = ".".join(re.findall(r'Parser key "([^"]+)":', sentence))
    rest = sentence.rpartition('":')[2].strip()
    keys = key.split(".")
    setting = next((setting for setting in reversed(settings) if setting.keys[-len(keys) :] == keys), None)
    location = str(setting or key)
    if no_class := NO_CLASS.search(rest):
        return explain_class(no_class[1] or no_class[2] or "", rest, location, key)
    expected = [part for part in dict.fromkeys(EXPECTED.findall(rest)) if "NoneType" not in part]
    if not expected:
        return f"{location}: {rest.partition(' Not a valid subclass')[0]}"
    text = " or ".join(f"a {part}" if not part.startswith("<") else part for part in expected)
    for pattern, name in TYPES.items():
        text = re.sub(pattern, name, text)
    value = setting.value if setting and isinstance(setting.value, str | int | float) else ""
    return f"{f'{location} {value}'.strip()}: expected {text}"


def explain_class(name: str, rest: str, location: str, key: str) -> str:
    """Explain that a class cannot be found or imported."""
    if "." not in name:
        option = next((option for option in CHOICES if option == key or option.endswith(f".{key}")), key)
        lower = {choice.lower(): choice for choice in CHOICES.get(option, SHORT)}
        near = difflib.get_close_matches(name.lower(), lower, 1)
        hint = f"did you mean {lower[near[0]]}?" if near else f"choose one of {', '.join(lower.values())}, or an import path"
        return f"{location} {name}: unknown class: {hint}"
    if other := re.search(r"does not correspond to a subclass of (\w+)", rest):
        return f"{location} {name}: not a subclass of {other[1]}; a function needs a return type, such as -> nn.Module"
    problem = re.search(r"Problem with given class_path '[^']*': (.*?)(?: Expected| Given value|$)", rest)
    return f"{location} {name}: {problem[1] if problem else rest}"


def explain_rejection(kind: type, error: Exception) -> str:
    """Return a constructor's message about its arguments, with the line that raised it if the class is a user's."""
    file = Path(str(inspect.getsourcefile(kind) or ""))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    installed = "site-packages" in file.parts or Path(models.__file__).parents[1] in file.parents
    location = "" if installed or not lines else f" ({make_relative(file)}, line {lines[-1]})"
    message = format_error(error).removeprefix(f"{kind.__name__}: ")
    return f"{kind.__name__}: {message}{location}"
