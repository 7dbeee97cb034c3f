"""The command ``dilated-seg VERB``: finds the verb, and imports what it needs only then."""

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
    """Run one verb.

    Exit status: 0 done, 1 failed, 2 a mistake in what was asked, 130 Ctrl-C, 141 what reads the output has ended (as `head`
    does), 143 ended by SIGTERM.
    """
    if os.getcwd() not in (os.path.abspath(path) for path in sys.path):
        sys.path.append(os.getcwd())  # classes of one's own are found here; behind what is installed, which nothing here hides
    try:
        status = run(args)
        sys.stdout.flush()
        return status
    except (BrokenPipeError, SystemExit) as end:
        if isinstance(end, SystemExit) and isinstance(end.__context__, BrokenPipeError):
            return 141  # rich has met it, and has dropped what was left
        if drop_output(isinstance(end, BrokenPipeError)):
            return 141
        raise


def drop_output(broken: bool) -> bool:
    """Whether nobody reads standard output any more; what is left of it is then dropped.

    Args:
        broken: Whether writing to some pipe has failed, be it this one or another.
    """
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        closed = broken and any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        closed = True
    except (AttributeError, OSError, ValueError):  # no poll on Windows; no file behind it, as in a notebook
        closed = False
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def run(args: Sequence[str] | None) -> int:
    """Run one verb; its mistakes and interruptions become a sentence and an exit status."""
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be what the terminal has no letters for
            stream.reconfigure(errors="backslashreplace")
    try:
        if not args or args[0] in ("-h", "--help"):
            print(overview())
            return 0
        if args[0] == "--version":
            print(f"dilated-seg {__version__}")
            return 0
        verb = args.pop(0)
        if verb not in COMMANDS:
            near = difflib.get_close_matches(verb, COMMANDS, 1)
            raise UserError(f"there is no verb '{verb}': " + (f"did you mean '{near[0]}'?" if near else "see --help"))
        wait_passively_if_shared()
        if verb in LIGHTNING:
            from dilated_seg.cli import CLI

            CLI([verb, *args])
            return 0
        return int(import_module(f"dilated_seg.commands.{verb}").main(args))
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
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning's way out
            return interrupted()
        if end.code is not None:
            raise
        print("dilated-seg: ended by SIGTERM", file=sys.stderr)  # Lightning's own way out, which would look like success
        return 143
    except KeyboardInterrupt:
        return interrupted()


def wait_passively_if_shared(load: str = "/proc/loadavg") -> None:
    """Let OpenMP's idle threads sleep if other processes need the cores; torch reads this when it is imported.

    Idle threads spin, which is faster on a machine of one's own, but takes the cores from the threads that have work to do:
    experiments/benchmarks/sharing_cores.py.

    Args:
        load: Linux's file of the load.
    """
    try:
        cores, running = len(os.sched_getaffinity(0)), Path(load).read_text().split()[3]  # such as 3/512: 3 threads run
        threads = int(os.environ.get("OMP_NUM_THREADS") or cores)
        others = int(running.partition("/")[0]) - 1
    except (AttributeError, OSError, ValueError):  # not Linux
        return
    if threads > 1 and others + threads > cores:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def interrupted() -> int:
    """Say so, and return the exit status that a shell has for Ctrl-C."""
    print("dilated-seg: interrupted", file=sys.stderr)
    return 130


def note_reason(reason: str) -> None:
    """Write why this process fails for the command that started it; of several processes, the first one counts."""
    if path := os.environ.get(REASON_FILE):
        with suppress(OSError), Path(path).open("x", encoding="utf-8") as file:
            file.write(reason)


def overview() -> str:
    """The help of the whole command."""
    rows = "\n".join(f"  {verb:<10}{what}" for verb, what in COMMANDS.items())
    return (
        "usage: dilated-seg VERB ...   (dilated-seg VERB --help for one verb)\n\n"
        f"Train, compare and trust the classic networks for semantic segmentation.\n\n{rows}"
    )


if __name__ == "__main__":
    sys.exit(main())
