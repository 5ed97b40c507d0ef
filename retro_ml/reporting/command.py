"""What the commands that read runs have in common: how they refuse a call and print an answer."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from retro_ml.core.experiments.command_line import UsageError
from retro_ml.core.experiments.faults import as_line

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
        text = message.removeprefix("argument ").replace(
            "expected one argument", "a value is missing"
        )
        raise UsageError([text])


def print_answer(text: str) -> None:
    """To stdout; a reader that has seen enough (`| head`) is no fault."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would complain once more when it closes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def refuse(word: str, faults: Sequence[str]) -> int:
    """One line a fault on stderr; the exit code."""
    for fault in faults:
        print(f"error: {as_line(fault)}", file=sys.stderr)
    print(f"hint: retro-ml {word} --help lists every option", file=sys.stderr)
    return BAD_INPUT
