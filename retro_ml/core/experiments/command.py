"""What all commands have in common: how a call is read and refused, and an answer printed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
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
