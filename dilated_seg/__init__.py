"""Train, compare and trust the classic networks for semantic segmentation."""

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake of the user's that one sentence explains: what is wrong, where, and what to do.

    The command line prints the sentence and exits with 2; nobody sees a traceback. It is no ValueError: jsonargparse would take
    that for its own and wrap it in a page of types.
    """

    def __str__(self) -> str:
        # A DataLoader's worker sends its whole traceback as the message; the sentence is what follows our name in it.
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class ResourceError(UserError):
    """A file could not be read for a reason that is not the file's: memory, the disk, the connection.

    Training with ``on_bad_image="skip"`` does not skip the file.
    """


class LostProcessError(UserError):
    """Another process of the run ended or hangs: the reason of the failure is there, not here."""


REASON_FILE = "DILATED_SEG_REASON_FILE"  # names the file in which the first process of a run that fails says why
