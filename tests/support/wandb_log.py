"""Reads back what W&B wrote into a run's folder without a server: the .wandb log and the files beside it."""

import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32 * 1024, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def bodies(content):
    """The records of a .wandb log, each put together from its pieces; a torn end is left out.

    The log is LevelDB's: blocks of 32 KiB, in each of them pieces with a checksum, a length and a kind.
    """
    assert content[:4] == b":W&B"
    position, body = HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:  # what is left of a block is too small for a piece
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        piece = content[position + HEADER : position + HEADER + length]
        if kind == 0 or len(piece) < length:
            return
        assert checksum == zlib.crc32(content[position + HEADER - 1 : position + HEADER] + piece)
        body = piece if kind in (FULL, FIRST) else body + piece
        position += HEADER + length
        if kind in (FULL, LAST):
            yield body


@dataclass
class Session:
    """What one process told W&B of a run."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list = field(default_factory=list)
    config: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)  # of the artifacts that tables are, by the path they will have
    exit_code: int | None = None

    def curve(self, key):
        """(step, value) of every time that a number was logged."""
        return [(row["trainer/global_step"], row[key]) for row in self.history if key in row]

    def table(self, key):
        """Columns and rows of a table as it was logged last."""
        table = json.loads(self.files[f"{key}.table.json"].read_text())
        return table["columns"], table["data"]


def put(mapping, item):
    path = list(item.nested_key) or [item.key]
    for key in path[:-1]:
        mapping = mapping.setdefault(key, {})
    mapping[path[-1]] = json.loads(item.value_json)


def read(log):
    """One .wandb log."""
    session = Session(log.parent)
    for body in bodies(log.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(body)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            session.id, session.name, session.group, session.job_type = (
                run.run_id,
                run.display_name,
                run.run_group,
                run.job_type,
            )
            session.tags = list(run.tags)
            for item in run.config.update:
                put(session.config, item)
        elif kind == "config":
            for item in record.config.update:
                put(session.config, item)
        elif kind == "history":
            row = {}
            for item in record.history.item:
                put(row, item)
            session.history.append(row)
            session.summary.update(row)
        elif kind == "summary":
            for item in record.summary.update:
                put(session.summary, item)
        elif kind == "artifact":
            session.files.update({entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents})
        elif kind == "exit":
            session.exit_code = record.exit.exit_code
    return session


def sessions(run):
    """Every session of a run's folder, in the order of time."""
    return [read(log) for log in sorted(run.glob("wandb/*run-*/run-*.wandb"))]
