"""Files that torch.save wrote; their pickle is never executed."""

import os
import pickle
import warnings
import zipfile
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dilated_seg.errors import CorruptError, format_error

MAX_EXPANSION = 200  # size of a zip archive's content over that of the file; compressed constant arrays stay below it


def load_torch(file: BinaryIO, map_location: Any = "cpu") -> Any:  # noqa: ANN401 - as torch.load's
    """Load an open file without executing its pickle.

    Raises:
        CorruptError: The file is damaged, not one of torch's, or would have to be executed.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                check_expansion(archive, file)
        file.seek(0)
        with warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location=map_location, weights_only=True)
    except (CorruptError, ImportError):
        raise
    except pickle.UnpicklingError as error:
        raise CorruptError("is a pickle that would have to be executed, or is damaged: save its state_dict alone") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CorruptError("needs more memory than is free") from error
    except Exception as error:  # torch has no error of its own for a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorruptError(f"is damaged: {format_error(error)}") from error


def check_state_dict(state: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """Return the argument; raise CorruptError unless it is a state dict whose tensors are plain arrays."""
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CorruptError("is not a state dict of named tensors")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CorruptError(f"holds {name!a} in a form that is not a plain array")
    return state


def check_expansion(archive: zipfile.ZipFile, file: BinaryIO) -> None:
    """Raise CorruptError if the members of a zip archive are far larger than its file."""
    expanded = sum(member.file_size for member in archive.infolist())
    if expanded > MAX_EXPANSION * max(file.seek(0, os.SEEK_END), 1 << 20):
        raise CorruptError(f"would unpack to {expanded:,} bytes, far more than weights")
