"""Archives of datasets: downloaded by their checksums, and unpacked by the libraries' safe filters."""

import tarfile
import zipfile
import zlib
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from dilated_seg.errors import UserError, format_error
from dilated_seg.storage import digest, download

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
MAX_MEMBERS, MAX_BYTES = 1_000_000, 200 * 1024**3  # Cityscapes' largest archive has 20,000 files in 44 GB

# File, SHA-256, and URLs: the authors' server first, then mirrors. The authors publish an MD5 or nothing: VOC's checksum is in
# several packages, such as torchvision and chainercv, SBD's in torchvision only.
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


def fetch(file: str, checksum: str, urls: tuple[str, ...], directory: Path) -> Path:
    """Download a file, unless it exists, from the first URL that works; raise UserError if none has this checksum."""
    target = directory / file
    if target.is_file() and digest(target) == checksum:
        return target
    problems = []
    for url in urls:
        try:
            download(url, target, checksum)
            return target
        except OSError as error:
            problems.append(f"{url}: {error}")
    raise UserError(f"{file} cannot be downloaded ({'; '.join(problems)}): put it into {directory} yourself")


def list_archives(path: Path) -> list[Path]:
    """Return the archives in a directory, or the archive itself."""
    if not path.is_dir():
        return [path] if path.is_file() and path.name.lower().endswith(SUFFIXES) else []
    return sorted(p for p in path.iterdir() if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))


def check_published(archive: Path) -> None:
    """Raise UserError if an archive of VOC or SBD has another checksum than the published one; others have none."""
    published = {file: known for file, known, _ in (VOC, SBD)}
    if archive.name in published and (checksum := digest(archive)) != published[archive.name]:
        raise UserError(
            f"{archive} is not the published file (SHA-256 {checksum}, not {published[archive.name]}): download it again"
        )


def unpack(archive: Path, into: Path) -> None:
    """Unpack an archive into a directory; if its files are in no directory, into a subdirectory with the archive's name.

    Raises:
        UserError: The archive is damaged, holds links, devices or paths outside of it, or is larger than ``MAX_BYTES``.
    """
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                sizes = {member.filename: member.file_size for member in zipped.infolist() if not member.is_dir()}
                zipped.extractall(choose_directory(archive, sizes, into))
        else:
            with tarfile.open(archive) as tar:
                members = list_members(tar)
                sizes = {member.name: member.size for member in members if not member.isdir()}
                tar.extractall(choose_directory(archive, sizes, into), members, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the operating system, such as a full disk
            raise
        raise UserError(f"{archive} cannot be unpacked ({format_error(error)}): download it again") from error


def choose_directory(archive: Path, sizes: dict[str, int], into: Path) -> Path:
    """Return where to unpack an archive, from the names and sizes in bytes of its files.

    Raises:
        UserError: The archive holds no files, too many or too large ones, or a path outside of it.
    """
    if not sizes:
        raise UserError(f"{archive} holds no files: download it again")
    if len(sizes) > MAX_MEMBERS or sum(sizes.values()) > MAX_BYTES:
        raise UserError(f"{archive} holds more than {MAX_MEMBERS:,} files or {MAX_BYTES >> 30} GiB: no supported dataset does")
    paths = {name: PurePosixPath(name.replace("\\", "/")) for name in sizes}
    for name, path in paths.items():
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{archive} holds {name}, a path outside of it: download the archive from its publisher")
    flat = all(len(path.parts) == 1 for path in paths.values())
    return into / archive.name.split(".")[0] if flat else into


def list_members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return the members of a tar archive after reading it to its end, which checks the checksum of its compression.

    Raises:
        tarfile.ReadError: The end is missing; tarfile itself ends silently at a damaged member.
    """
    members = list(islice(tar, MAX_MEMBERS + 1))
    stream: Any = tar.fileobj
    if len(members) <= MAX_MEMBERS:
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it is damaged or cut off after {tar.offset:,} bytes")
        while stream.read(1 << 20):
            pass
    return members
