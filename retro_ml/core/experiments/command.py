"""What all commands have in common: a call read, refused, stopped, and an answer printed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from retro_ml.core.experiments.command_line import UsageError
from retro_ml.core.experiments.faults import as_line, nearest_names

BAD_INPUT = 2


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print and exit.

    Args:
        word: of the command, after `retro-ml`.
        usage: what follows the word.
        description: for --help.
        epilog: likewise, after the options.
        missing: the fault of a call without its first argument.
    """

    def __init__(
        self, word: str, *, usage: str, description: str, epilog: str, missing: str = ""
    ) -> None:
        super().__init__(
            prog=f"retro-ml {word}",
            usage=f"retro-ml {word} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._missing = missing

    def error(self, message: str) -> NoReturn:
        """Raises UsageError, in the words that other faults have."""
        if message.startswith("the following arguments are required"):
            message = self._missing
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            unexpected = "it is no option, and there is nothing else to give"
            raise UsageError(describe_unknown(unknown.split(), self, unexpected=unexpected))
        text = message.removeprefix("argument ").replace(
            "expected one argument", "a value is missing"
        )
        raise UsageError([text])


def describe_unknown(
    unknown: Sequence[str], parser: argparse.ArgumentParser, *, unexpected: str
) -> list[str]:
    """One line for each word that a parser left over.

    Args:
        unknown: the words, as `parse_known_args` gives them.
        parser: knows the options that may have been meant.
        unexpected: what to do about a word that is no option.
    """
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    faults, after_flag = [], False
    for word in unknown:
        flag, equals, _ = word.partition("=")
        if word.startswith("-"):
            faults.append(f"{flag}: unknown -> {nearest_names(flag, known)}")
        elif not after_flag:  # otherwise most likely the unknown flag's value
            faults.append(f"{word}: unexpected -> {unexpected}")
        after_flag = word.startswith("-") and not equals
    return faults


def print_answer(text: str) -> None:
    """To stdout; a reader that has seen enough (`| head`) is no fault.

    What cannot be encoded, as in the name of a file that is no UTF-8, is escaped.
    """
    try:
        print(text.encode(errors="backslashreplace").decode(), flush=True)
    except BrokenPipeError:
        # Python would complain once more when it closes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(text: str, exit_code: int) -> int:
    """One line on stderr for what went wrong through no fault of the call; the exit code."""
    print(f"error: {as_line(text)}", file=sys.stderr)
    return exit_code


def refuse(word: str, faults: Sequence[str]) -> int:
    """One line a fault on stderr; the exit code."""
    for fault in faults:
        print(f"error: {as_line(fault)}", file=sys.stderr)
    print(f"hint: retro-ml {word} --help lists every option", file=sys.stderr)
    return BAD_INPUT


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


@contextmanager
def stoppable() -> Iterator[None]:
    """For the time of a command: SIGTERM is raised as Ctrl-C is, so that nothing of it is left.

    The next signal ends the process at once, also while Python itself ends and waits for requests
    to storage that are under way.

    Raises:
        SystemExit: with 143, for a SIGTERM that nobody told of.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [signal.SIGINT, signal.SIGTERM]
    before = {each: signal.getsignal(each) for each in signals}
    heard = False

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        nonlocal heard
        heard = True
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt

    for each in signals:
        if before[each] is not signal.SIG_IGN:  # as of a command that nohup or a shell's & began
            signal.signal(each, end)
    try:
        yield
    except Terminated:
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        if not heard:
            for each, handler in before.items():
                # None: a handler that was not set from Python cannot be set from Python.
                signal.signal(each, signal.SIG_DFL if handler is None else handler)


def tell_stopped(error: KeyboardInterrupt, text: str) -> int:
    """One line on stderr: what the error says, or else `text`; the exit code."""
    print(f"stopped: {as_line(str(error)) or text}", file=sys.stderr)
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
