"""The program ``dilated-seg COMMAND``. The modules of a command are imported when it is called."""

import difflib
import io
import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from dilated_seg import __version__
from dilated_seg.commands import COMMANDS, LIGHTNING
from dilated_seg.errors import REASON_FILE, LostProcessError, UserError


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Exit status: 0 success, 1 failure, 2 invalid input, 130 Ctrl-C, 141 the reader of the output has ended (such as `head`), 143
    SIGTERM.
    """
    if os.getcwd() not in (os.path.abspath(path) for path in sys.path):
        sys.path.append(os.getcwd())  # for the user's own classes; last, so that no file here hides an installed module
    try:
        status = run(args)
        sys.stdout.flush()
        return status
    except (BrokenPipeError, SystemExit) as end:
        if isinstance(end, SystemExit) and isinstance(end.__context__, BrokenPipeError):
            return 141  # rich has caught the error and dropped the rest of the output
        if drop_output(isinstance(end, BrokenPipeError)):
            return 141
        raise


def drop_output(broken: bool) -> bool:
    """Return whether the reader of standard output has ended; the rest of the output is then dropped.

    Args:
        broken: Whether writing to any pipe has failed.
    """
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        closed = broken and any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        closed = True
    except (AttributeError, OSError, ValueError):  # no poll on Windows; no file descriptor, as in a notebook
        closed = False
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def run(args: Sequence[str] | None) -> int:
    """Run one command; print a UserError or an interruption as one sentence and return the exit status."""
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal may lack characters of a file name
            stream.reconfigure(errors="backslashreplace")
    try:
        if not args or args[0] in ("-h", "--help"):
            print(overview())
            return 0
        if args[0] == "--version":
            print(f"dilated-seg {__version__}")
            return 0
        command = args.pop(0)
        if command not in COMMANDS:
            near = difflib.get_close_matches(command, COMMANDS, 1)
            raise UserError(f"unknown command '{command}': " + (f"did you mean '{near[0]}'?" if near else "see --help"))
        wait_passively_if_shared()
        if command in LIGHTNING:
            from dilated_seg.cli import CLI

            CLI([command, *args])
            return 0
        return int(import_module(f"dilated_seg.commands.{command}").main(args))
    except UserError as error:
        print(f"dilated-seg: {error}", file=sys.stderr)
        if not isinstance(error, LostProcessError):
            note_reason(str(error))
        return 2
    except BrokenPipeError:
        raise
    except Exception as error:
        note_reason(f"{type(error).__name__}: {error}")
        raise
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # how Lightning exits
            return report_interruption()
        if end.code is not None:
            raise
        print("dilated-seg: ended by SIGTERM", file=sys.stderr)  # how Lightning exits, with the status of success
        return 143
    except KeyboardInterrupt:
        return report_interruption()


def wait_passively_if_shared(load: str = "/proc/loadavg") -> None:
    """Let OpenMP's idle threads sleep if other processes need the cores; torch reads this when it is imported.

    Idle threads spin, which is faster on an idle machine, but slows other processes down:
    experiments/benchmarks/sharing_cores.py.

    Args:
        load: The file in which Linux reports the load.
    """
    try:
        cores, running = len(os.sched_getaffinity(0)), Path(load).read_text().split()[3]  # such as 3/512: 3 threads run
        threads = int(os.environ.get("OMP_NUM_THREADS") or cores)
        others = int(running.partition("/")[0]) - 1
    except (AttributeError, OSError, ValueError):  # not Linux
        return
    if threads > 1 and others + threads > cores:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def report_interruption() -> int:
    """Print that the command was interrupted; return the exit status of Ctrl-C in a shell."""
    print("dilated-seg: interrupted", file=sys.stderr)
    return 130


def note_reason(reason: str) -> None:
    """Write the reason of a failure into a file for the parent process, unless another process has written one."""
    if path := os.environ.get(REASON_FILE):
        with suppress(OSError), Path(path).open("x", encoding="utf-8") as file:
            file.write(reason)


def overview() -> str:
    """Return the help of the program."""
    rows = "\n".join(f"  {command:<12}{about}" for command, about in COMMANDS.items())
    return (
        "usage: dilated-seg COMMAND ...   (dilated-seg COMMAND --help for one command)\n\n"
        f"Train, evaluate and compare networks for semantic segmentation.\n\n{rows}"
    )


if __name__ == "__main__":
    sys.exit(main())
