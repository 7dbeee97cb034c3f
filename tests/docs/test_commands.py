"""Every command line of README and docs/ is run, parsed, or listed in NOT_RUN with the reason why it is not."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dilated_seg.commands import COMMANDS as VERBS
from tests.conftest import ROOT
from tests.support import fake_datasets
from tests.support.commands import run_command

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)

# How each kind of command is tested. The first pattern that matches counts.
NOT_RUN = {
    r"git clone|cd ": "there is no address",
    r"pip install|source ": "it changes the environment: tests/test_installation.py runs what the wheel holds",
    r"pip download|python -m zipfile ": "it needs a package index, for a package of 55 MB",
    r"python experiments/benchmarks/": "it trains for half an hour: tests/analysis/test_replication.py computes the tables",
    r"make ": "its targets are what runs the tests; that they exist is tested below",
    r"export [A-Z_]+=": "a variable of the reader's shell",
    r"torchrun ": "it needs two machines",
    r"wandb sweep ": "it needs W&B's server: tests/experiments/test_sweeps.py reads the sweeps",
    r"dilated-seg port ": "it needs the published file: tests/weights ports small files of the same layout",
    r"dilated-seg prepare ": "it needs the dataset: tests/data/test_prepare.py prepares small copies",
    r"dilated-seg report experiments/results/": "tests/report/test_saved.py makes such a page from smaller results",
    r"dilated-seg validate --config experiments/camvid/": "it needs CamVid and published weights",
    r"dilated-seg validate .* ReflectedTiles": "it needs a DilatedNet of full size: tests/inference/test_strategies.py",
}
# It would train for minutes: it is parsed here, and tests/experiments trains every experiment for some steps.
PARSED = r"dilated-seg fit "
# It would train for minutes: its runs are listed here, and tests/ablation trains small ablations.
DRY_RUN = r"dilated-seg ablate "


def list_commands(page: Path) -> list[str]:
    """Return the command lines of a page's shell blocks, without comments."""
    if page.name == "extending.md":  # tests/docs/test_extending.py runs it
        return []
    text = "\n".join(BLOCK.findall(page.read_text())).replace("\\\n", "")
    lines = (re.sub(r"(^|\s)# .*", "", line).strip() for line in text.splitlines())
    return [part.strip() for line in lines for part in line.split(" && ") if part]


COMMANDS = {page: list_commands(page) for page in PAGES}


def matching(pattern: str) -> list[object]:
    """Return the command lines of a kind, each once, as parameters of a test."""
    commands = sorted({line for lines in COMMANDS.values() for line in lines if re.match(pattern, line)})
    return [pytest.param(command, id=command.removeprefix("dilated-seg ")[:70]) for command in commands]


def run_kind(command: str) -> bool:
    """Whether a command line is run as it stands."""
    return not re.match("|".join([*NOT_RUN, PARSED, DRY_RUN]), command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_are_in_shell_blocks(page):
    assert not re.findall(r"^ +(?:dilated-seg|make|pip|python|torchrun|wandb) .*", page.read_text(), re.M)


def list_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_within_sentences_exist(page):
    known = {"dilated-seg": VERBS.keys(), "make": list_targets()}
    commands = [shlex.split(line) for line in re.findall(r"`((?:dilated-seg|make|python) [^`]+)`", page.read_text())]
    assert [words for words in commands if words[0] in known and words[1] not in known[words[0]]] == []
    assert [words for words in commands if words[0] == "python" and not (ROOT / words[1]).is_file()] == []


def test_every_reason_and_every_command_is_needed():
    commands = [command for page in PAGES for command in COMMANDS[page]]
    assert len(commands) > 50
    assert [pattern for pattern in (*NOT_RUN, PARSED, DRY_RUN) if not any(re.match(pattern, line) for line in commands)] == []
    assert [line for line in commands if run_kind(line) and not line.startswith("dilated-seg ")] == []
    assert {line.split()[1] for line in commands if line.startswith("dilated-seg ")} <= VERBS.keys()
    assert {name for line in commands if line.startswith("make ") for name in line.split()[1:]} <= list_targets()


@pytest.mark.parametrize("command", matching(PARSED))
def test_an_experiment_of_a_page_is_parsed(command, tmp_path, monkeypatch):
    from dilated_seg.cli.parser import build_parser, expand_arguments, parse

    fake_datasets.folder(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(command)[2:] if word != "--print_config"]
    net = parse(build_parser("fit"), expand_arguments("fit", words)).model.net.class_path
    assert net.startswith("dilated_seg.models.") or f"--model.net {net}" in command  # of another package


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(run_kind, COMMANDS[page]))], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "runs/mine")
    fake_datasets.folder(tmp_path / "photos")
    (tmp_path / "more").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "more/last.jpg")
    monkeypatch.setattr("tests.support.commands.ROOT", tmp_path)  # where commands are run
    for command in filter(run_kind, COMMANDS[page]):
        if "runs/yours" in command:
            no_links = shutil.ignore_patterns("wandb")
            shutil.copytree(tmp_path / "runs/mine", tmp_path / "runs/yours", ignore=no_links, dirs_exist_ok=True)
        result = run_command(*shlex.split(command)[1:])
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"


@pytest.mark.parametrize("command", matching(DRY_RUN))
def test_an_ablation_of_a_page_names_its_runs(command, capsys):
    words = [word for word in shlex.split(command)[1:] if word != "--status"]
    result = run_command(*words, *(["--dry_run"] if "--dry_run" not in words else []))
    assert result.returncode == 0 and "fit --config" in result.stdout, result.stderr


def test_my_own_data_train_by_the_command_of_readme(tmp_path, monkeypatch):
    (command,) = (line for line in COMMANDS[ROOT / "README.md"] if "--data Folder" in line)
    fake_datasets.folder(tmp_path / "photos", images=12)
    monkeypatch.setattr("tests.support.commands.ROOT", tmp_path)
    small = ["--trainer.max_steps=2", "--model.net.init_args.width=0.02", "--run_dir=run"]
    result = run_command(*shlex.split(command)[1:], *small)
    assert result.returncode == 0, result.stderr
