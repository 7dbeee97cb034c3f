"""Find the Parquet files of a dataset in a directory, behind a URL or at the Hugging Face Hub; read footers and splits."""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dilated_seg import storage
from dilated_seg.data.hub_index import ParquetFile, locate, read_index, write_index
from dilated_seg.data.row_groups import open_file, retry
from dilated_seg.errors import UserError, explain_system_error, explain_url_error, format_error

NAME = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME
COMMIT = re.compile(r"[0-9a-f]{40}")
# Other names of splits, which may also begin the name of a file or be that of a directory.
ALIASES = {
    "train": ("train", "training"), "val": ("val", "validation", "valid", "dev"), "test": ("test", "testing"),
}  # fmt: skip
NUMBERED = re.compile(r"(?:parquet-)?(.+?)-\d{5}-of-\d{5}\b")  # as `datasets` names files
WORD = re.compile(rf"(?:^|[-_.])({'|'.join(name for names in ALIASES.values() for name in names)})(?=[-_.\d]|$)", re.IGNORECASE)


def pin_revision(repo: str, revision: str | None) -> str | None:
    """Return the commit of a branch or tag (main by default) of a dataset at the Hub; None for a directory or URL.

    Raises:
        UserError: There is neither such a dataset nor such a directory, or the Hub cannot be reached.
    """
    if storage.is_url(repo) or Path(repo).exists():
        if revision:
            raise UserError(f"data.revision is {revision}, but {repo} is not at the Hub: remove data.revision")
        return None
    if not NAME.fullmatch(repo):
        raise UserError(f"data.repo {repo} is neither a directory, a Parquet file, a URL nor OWNER/NAME at the Hub")
    if revision and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    with explain_access(repo, f"{repo} is not a directory on this machine, and at the Hub "):
        return str(HfApi().dataset_info(repo, revision=revision).sha)


def open_files(repo: str, revision: str | None, subset: str | None) -> dict[str, list[ParquetFile]]:
    """Return the Parquet files of each split, as the dataset names its splits.

    Args:
        repo: A directory, a Parquet file, a URL, or OWNER/NAME at the Hub.
        revision: The commit, for a dataset at the Hub.
        subset: The configuration, of a dataset that has several.

    Raises:
        UserError: There are none, or one cannot be read.
    """
    root = f"hf://datasets/{repo}@{revision}" if revision else repo
    with explain_access(repo):
        names, known = list_files(root, fixed=revision is not None)
        card = read_card(root) if "README.md" in names else {}
        splits = divide_splits([name for name in names if name.endswith(".parquet")], card, subset, repo)
        missing = [name for files in splits.values() for name in files if name not in known]
        with ThreadPoolExecutor(8) as pool:
            read = pool.map(lambda name: read_footer(root, name, *names[name]), missing)
            known |= dict(zip(missing, read, strict=True))
        if missing and storage.is_url(root):
            write_index(root, names, known)
    return {split: [known[name] for name in files] for split, files in splits.items()}


def list_files(root: str, fixed: bool) -> tuple[dict[str, tuple[int, str]], dict[str, ParquetFile]]:
    """Return size and version of all files by relative path, and the Parquet files whose footers are in the cache.

    If the content cannot change (``fixed``), a cached index is used without a request.
    """
    names, known = read_index(root) if storage.is_url(root) else ({}, {})
    if not (fixed and names):
        names = {name: state for name, state in sorted(find_files(root))}
    return names, {name: file for name, file in known.items() if names.get(name) == (file.size, file.version)}


def find_files(root: str) -> Iterator[tuple[str, tuple[int, str]]]:
    """Yield relative path, size and version of each Parquet file and of the card."""
    system, base = storage.find_system(root)
    base = base.rstrip("/")
    single = base.partition("?")[0].endswith(".parquet")
    for path in [base] if single else list_paths(system, base):
        name = path.rpartition("/")[2] if single else path[len(base) + 1 :]
        if re.search(r"(^|/)\.", name) or not name.partition("?")[0].endswith((".parquet", "README.md")):
            continue
        info = retry(partial(system.info, path))
        if info.get("size") is None or not info.get("partial", True):
            raise UserError(f"the server of {path} does not serve parts of files (HTTP Range): copy the dataset to a directory")
        marks = (info.get(key) for key in ("ETag", "Last-Modified", "blob_id", "mtime", "LastModified"))
        yield name.partition("?")[0], (info["size"], next((str(mark) for mark in marks if mark), ""))


def list_paths(system: Any, directory: str) -> Iterator[str]:  # noqa: ANN401 - a file system of fsspec
    """Yield the paths of the files in and below a directory.

    fsspec's ``find`` leaves out directories that it cannot list, and so a part of the dataset; here that is an error.
    """
    for entry in sorted(retry(partial(system.ls, directory, detail=True)), key=lambda entry: str(entry["name"])):
        path = entry["name"].rstrip("/")
        if entry["type"] != "directory":
            yield path
        elif path != directory:
            yield from list_paths(system, path)


def read_footer(root: str, name: str, size: int, version: str) -> ParquetFile:
    """Read the footer of a Parquet file."""
    path = locate(root, name)
    try:
        with retry(lambda: pq.ParquetFile(open_file(path))) as file:
            return ParquetFile(path, size, version, file.metadata, name)
    except (pa.ArrowException, OSError) as error:
        if storage.is_url(path) and not isinstance(error, pa.ArrowException):
            raise
        raise UserError(f"{path} cannot be read as Parquet ({format_error(error)}): copy or upload it again") from error


def read_card(root: str) -> dict[str, Any]:
    """Return the metadata at the beginning of a dataset's card."""
    text = storage.read_text(root, "README.md")
    try:
        content = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except (yaml.YAMLError, IndexError):
        content = {}
    return content if isinstance(content, dict) else {}


def divide_splits(names: Sequence[str], card: Mapping[str, Any], subset: str | None, repo: str) -> dict[str, list[str]]:
    """Return the Parquet files of each split, from the configuration of the card or their names.

    Raises:
        UserError: There are no files, or the dataset has several subsets and none is given.
    """
    configs = {
        str(entry.get("config_name", "default")): entry for entry in card.get("configs") or () if isinstance(entry, dict)
    }
    if subset is None and len(configs) > 1 and "default" not in configs:
        raise UserError(f"{repo} has the subsets {', '.join(configs)}: choose one with data.subset")
    if subset and configs and subset not in configs:
        raise UserError(f"{repo} has no subset {subset}, only {', '.join(configs)}")
    chosen = configs.get(subset or ("default" if "default" in configs else next(iter(configs), "")), {})
    splits: dict[str, list[str]] = {}
    if isinstance(chosen.get("data_files"), list) and all(isinstance(entry, dict) for entry in chosen["data_files"]):
        for entry in chosen["data_files"]:
            patterns = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
            splits[entry["split"]] = [n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns)]
        splits = {split: files for split, files in splits.items() if files}
    if not splits:
        for name in names:
            if not subset or configs or subset in name.split("/")[:-1]:
                splits.setdefault(find_split(name), []).append(name)
    if not splits:
        raise UserError(f"{repo} has no Parquet files{f' of the subset {subset}' if subset else ''}: give their directory")
    return splits


def find_split(name: str) -> str:
    """Return the split that a file's name or its nearest directory with a split's name states; "train" if neither does."""
    *directories, file = name.split("/")
    if numbered := NUMBERED.match(file):
        return numbered[1]
    for part in (file.removesuffix(".parquet"), *reversed(directories)):
        if word := WORD.search(part):
            return word[1].lower()
    return "train"


@contextmanager
def explain_access(repo: str, before: str = "") -> Iterator[None]:
    """Raise UserError instead of the error of a storage library."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ImportError):  # fsspec names the package that this kind of URL needs
            raise UserError(f"cannot read {repo}: {format_error(error)}") from error
        remote = storage.is_url(repo) or not Path(repo).exists()
        problem = explain_url_error(repo, error) if remote else explain_system_error(repo, error)
        if problem:
            raise type(problem)(f"{before}{problem}") from error
        raise
