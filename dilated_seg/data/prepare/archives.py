"""The archives that datasets are published as: fetched with their checksums, and unpacked without trusting them."""

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import Any

from dilated_seg.errors import UserError, format_error
from dilated_seg.storage import digest, download

Member = tuple[str, int, Callable[[], Any]]  # a file's name, its bytes, and how to open it

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
MAX_MEMBERS, MAX_BYTES = 1_000_000, 200 * 1024**3  # the largest of Cityscapes' has 20,000 files in 44 GB

# File, SHA-256, and where it lies: the authors' server first, then mirrors. The authors give MD5 or nothing: VOC's is what
# several readers of the file check, torchvision's and chainercv's among them; SBD's was found in torchvision's alone.
VOC = (
    "VOCtrainval_11-May-2012.tar",
    "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    (
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://pjreddie.com/media/files/VOCtrainval_11-May-2012.tar",
    ),
)
SBD = (
    "benchmark.tgz",
    "6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    ("https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",),
)


def fetch(file: str, checksum: str, urls: tuple[str, ...], folder: Path) -> Path:
    """Download a file from the first address that has it, unless it is there already.

    Raises:
        UserError: No address gave the file with this checksum.
    """
    target = folder / file
    if target.is_file() and digest(target) == checksum:
        return target
    problems = []
    for url in urls:
        try:
            download(url, target, checksum)
            return target
        except OSError as error:
            problems.append(f"{url}: {error}")
    raise UserError(f"{file} could not be downloaded ({'; '.join(problems)}): put it into {folder} yourself")


def archives(place: Path) -> list[Path]:
    """The archives in a folder, or the archive itself."""
    if not place.is_dir():
        return [place] if place.is_file() and place.name.lower().endswith(SUFFIXES) else []
    return sorted(p for p in place.iterdir() if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))


def check(archive: Path) -> None:
    """Compare an archive of VOC or SBD with the checksum of the published one; others have none.

    Raises:
        UserError: It is another file.
    """
    published = {file: checksum for file, checksum, _ in (VOC, SBD)}
    if archive.name in published and (found := digest(archive)) != published[archive.name]:
        raise UserError(f"{archive} is not the published file (SHA-256 {found}, not {published[archive.name]}): get it again")


def unpack(archive: Path, into: Path) -> None:
    """Unpack an archive below a folder, in which others may have been unpacked before.

    An archive whose files lie in no folder gets one of its own name.

    Raises:
        UserError: It is damaged, would write elsewhere, holds links or devices, or is larger than anything that is let in.
    """
    members, size = 0, 0
    with opened(archive) as files:
        names = []
        for name, length, _ in files():
            path, members, size = PurePosixPath(name.replace("\\", "/")), members + 1, size + length
            if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0]:
                raise UserError(f"{archive} holds {name}, which lies outside of it: get the archive from its publisher")
            if members > MAX_MEMBERS or size > MAX_BYTES:
                raise UserError(f"{archive} holds more than {MAX_MEMBERS:,} files or {MAX_BYTES >> 30} GiB: it is none of ours")
            names.append(path)
        if not names:
            raise UserError(f"{archive} holds no files: get it again")
        flat = all(len(path.parts) == 1 for path in names)
        base = into / archive.name.split(".")[0] if flat else into
        for name, length, content in files():
            target = base / name.replace("\\", "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with content() as source, target.open("wb") as copy:
                copyfileobj(source, copy, 1 << 20)
            if target.stat().st_size != length:
                raise UserError(f"{archive} is damaged: {name} has {target.stat().st_size:,} bytes, not {length:,}")


@contextmanager
def opened(archive: Path) -> Iterator[Callable[[], Iterator[Member]]]:
    """An archive's regular files, as a function that lists (name, bytes, function that opens it)."""
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                yield lambda: (
                    (m.filename, m.file_size, partial(zipped.open, m)) for m in zipped.infolist() if regular_zip(archive, m)
                )
        else:
            with tarfile.open(archive) as tar:
                look_through(tar)
                yield lambda: ((m.name, m.size, partial(tar.extractfile, m)) for m in tar if regular_tar(archive, m))
    except UserError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, such as a full disk
            raise
        raise UserError(f"{archive} cannot be unpacked ({format_error(error)}): get it again") from error


def look_through(tar: tarfile.TarFile) -> None:
    """Read a tar archive to its end, where its compression has a checksum; tarfile itself takes a damaged member for the end.

    Raises:
        tarfile.ReadError: After its last member there is no end.
    """
    for count, _ in enumerate(tar):
        if count == MAX_MEMBERS:  # before they fill the memory
            raise tarfile.ReadError(f"it holds more than {MAX_MEMBERS:,} files")
    stream: Any = tar.fileobj
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it is damaged or cut off after {tar.offset:,} bytes")
    while stream.read(1 << 20):
        pass


def regular_zip(archive: Path, member: zipfile.ZipInfo) -> bool:
    """Whether a member is a file.

    Raises:
        UserError: It is a link.
    """
    if member.external_attr >> 28 == 0xA:
        raise UserError(f"{archive} holds the link {member.filename}: get the archive from its publisher")
    return not member.is_dir()


def regular_tar(archive: Path, member: tarfile.TarInfo) -> bool:
    """Whether a member is a file.

    Raises:
        UserError: It is a link or a device.
    """
    if not (member.isfile() or member.isdir()):
        raise UserError(f"{archive} holds {member.name}, a link or device: get the archive from its publisher")
    return member.isfile()
