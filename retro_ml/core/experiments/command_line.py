"""The flags of `retro-ml run`, made from ExperimentConfig and RunOptions by pydantic-settings.

A field is written once, in its model; here are only the other names that people know from other
trainers, and what one call adds. Values stay text until the models validate them, so that all
faults of a call are found together.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pydantic import create_model
from pydantic_settings import BaseSettings, CliSettingsSource

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.faults import nearest_names
from retro_ml.core.experiments.nearest import either
from retro_ml.core.experiments.options import RunOptions

_ALIASES: dict[str, str | list[str]] = {
    "game-id": ["env", "env-id"],
    "algorithm": "algo",
    "total-timesteps": ["n", "timesteps"],
}

# Several values of these make a sweep.
_LISTED = {
    "--game-id": "game_id",
    "--env": "game_id",
    "--env-id": "game_id",
    "--algorithm": "algorithm",
    "--algo": "algorithm",
}

# What most people set comes first in --help.
_FIRST = ("game_id", "algorithm", "run_type", "total_timesteps", "seed", "preset", "output_dir")

_DESCRIPTION = """\
Train an agent on an Atari game and keep everything in one folder,
<output-dir>/<experiment-id>."""

_EPILOG = """\
Settings come from, later ones first: flags, --set, the --config file, --preset, defaults.

Several games, several algorithms or --seeds make a sweep (retro-ml sweep --help): one run for
each combination, several at once, and a table of who won.

examples:
  retro-ml run --game-id BreakoutNoFrameskip-v4 --run-type QUICK --seed 42
  retro-ml run --game-id breakout pong --algorithm PPO DQN --seeds 5
  retro-ml run --env ALE/Pong-v5 --algo dqn -n 2_000_000 --preset dopamine
  retro-ml run --config runs/my-run/config.json --experiment-id again --set ppo.clip=0.2
"""


class UsageError(ValueError):
    """The command line cannot be read; `faults` has one line for each reason."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


@dataclass(frozen=True)
class CommandLine:
    """One call, read but not validated."""

    fields: dict[str, Any]
    """Of ExperimentConfig, as nested as it is; values are text, switches bool."""
    options: dict[str, Any]
    """Of RunOptions."""
    config_file: str | None
    overrides: list[str]
    print_config: bool
    dry_run: bool
    as_json: bool
    grid: dict[str, list[str]] = field(default_factory=dict)
    """Of a sweep: the fields that were given several values."""
    num_seeds: str | None = None
    """Of a sweep: how many, from the seed on; text."""

    @property
    def is_sweep(self) -> bool:
        """Whether more than one run is asked for."""
        return bool(self.grid) or self.num_seeds is not None


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """What `argv` says. Raises: UsageError. `--help` prints and raises SystemExit(0)."""
    parser, source = _build_source()
    words, grid = _take_lists([_to_kebab_case(word) for word in argv])
    namespace, unknown = parser.parse_known_args(words)
    if unknown:
        raise UsageError(_describe_unknown(unknown, parser))
    # The source would take the values of a repeated flag apart, at commas and quotes.
    flags = {name: value for name, value in vars(namespace).items() if name != "set"}
    fields = source(parsed_args=argparse.Namespace(**flags))()
    options = {name: fields.pop(name) for name in RunOptions.model_fields if name in fields}
    if namespace.quiet:
        options["progress"] = "quiet"
    return CommandLine(
        fields=fields,
        options=options,
        config_file=namespace.config,
        overrides=namespace.set,
        print_config=namespace.print_config,
        dry_run=namespace.dry_run,
        as_json=namespace.json,
        grid=grid,
        num_seeds=namespace.seeds,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        text = text.replace("expected one argument", "a value is missing -> e.g. --seed=42")
        text = re.sub("ignored explicit argument (.*)", r"takes no value -> leave out \1", text)
        raise UsageError([text])


def _build_source() -> tuple[_Parser, CliSettingsSource[Any]]:
    parser = _Parser(
        prog="retro-ml run",
        usage="retro-ml run --game-id GAME [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_build_formatter,
        allow_abbrev=False,
        add_help=False,
    )
    _add_call_flags(parser)
    source: CliSettingsSource[Any] = CliSettingsSource(
        _build_settings(),
        root_parser=parser,
        add_argument_method=_add_argument,
        add_argument_group_method=_add_argument_group,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="null",
        cli_use_class_docs_for_groups=True,
        cli_shortcuts=_ALIASES,
    )
    return parser, source


def _build_formatter(prog: str) -> argparse.HelpFormatter:
    width = min(100, shutil.get_terminal_size().columns - 2)
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=width)


def _add_call_flags(parser: argparse.ArgumentParser) -> None:
    call = parser.add_argument_group("this call")
    call.add_argument("-h", "--help", action="help", help="show this and stop")
    call.add_argument("--config", metavar="FILE", help="a JSON or YAML file with fields and values")
    call.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="set a field, e.g. ppo.clip=0.2; may be repeated",
    )
    call.add_argument(
        "--seeds",
        metavar="N",
        help="a sweep over so many seeds, from --seed on; several games after --game-id, or "
        "algorithms after --algorithm, make one too",
    )
    call.add_argument(
        "--print-config", action="store_true", help="print the complete config as JSON and stop"
    )
    call.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the run would take (steps, time, disk, memory) and stop",
    )
    call.add_argument("--quiet", action="store_true", help="show no progress")
    call.add_argument(
        "--json", action="store_true", help="print the result as one JSON object on stdout"
    )


def _build_settings() -> type[BaseSettings]:
    fields = ExperimentConfig.model_fields
    names = [*_FIRST, *(name for name in fields if name not in _FIRST)]
    chosen = {name: fields[name] for name in names}
    chosen |= {name: field for name, field in RunOptions.model_fields.items() if name != "progress"}
    definitions: dict[str, Any] = {
        name: (field.annotation, field) for name, field in chosen.items()
    }
    return create_model("Flags", __base__=BaseSettings, **definitions)


_METAVARS = {
    "int": "N",
    "float": "X",
    "str": "TEXT",
    "datetime": "TIME",
    "tuple[{wandb,mlflow},...]": "NAMES",
}


def _add_argument(container: Any, *names: str, **kwargs: Any) -> Any:
    """Python's words in pydantic-settings' help become the user's."""
    if kwargs.get("help") == argparse.SUPPRESS:
        return None  # a whole section as JSON: --set and --config have better faults
    text = re.sub(
        r" \((default: (null|None|\(\))|default factory: .*)\)$", "", kwargs.get("help", "")
    )
    text = text.replace("(default: True)", "(default: true)")
    text = text.replace("(default: False)", "(default: false)")
    kwargs["help"] = text.replace("%", "%%").replace("%%%%", "%%")
    if "metavar" in kwargs:
        kwargs["metavar"] = _METAVARS.get(kwargs["metavar"], kwargs["metavar"])
    return container.add_argument(*names, **kwargs)


def _add_argument_group(parser: Any, **kwargs: Any) -> Any:
    return parser.add_argument_group(**kwargs)


def _to_kebab_case(word: str) -> str:
    """`--game_id=x_y` as `--game-id=x_y`: both spellings of a flag are accepted."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if word.startswith("--") else word


def _take_lists(words: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words with one value for each flag, and all values of the flags that have several."""
    kept: list[str] = []
    grid: dict[str, list[str]] = {}
    taking: str | None = None
    for word in words:
        flag, equals, value = word.partition("=")
        if word.startswith("-"):
            taking = _LISTED.get(flag)
            if taking is not None:
                grid[taking] = [value] if equals else []
            kept.append(word)
        elif taking is None or not grid[taking]:
            kept.append(word)
            if taking is not None:
                grid[taking].append(word)
        else:
            grid[taking].append(word)
    return kept, {name: values for name, values in grid.items() if len(values) > 1}


def _describe_unknown(unknown: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    if "--" in unknown:
        return ["--: unexpected -> leave it out, there is nothing but options"]
    faults = []
    after_flag = False
    for word in unknown:
        if word.startswith("-") and word != "-":
            flag = word.partition("=")[0]
            faults.append(f"{flag}: unknown -> {_suggest_flags(flag, known)}")
            after_flag = "=" not in word
        elif after_flag:
            after_flag = False  # most likely the unknown flag's value
        else:
            hint = "options begin with --, switches such as --no-use-gpu take no value"
            faults.append(f"{word}: unexpected -> {hint}")
    return faults


def _suggest_flags(flag: str, known: Sequence[str]) -> str:
    # A section's field without its section, e.g. --learning-rate.
    homes = [name for name in known if name.endswith("." + flag.lstrip("-"))]
    if homes:
        return f"did you mean {either(homes)}?"
    section, _, name = flag.rpartition(".")
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    prefix = section + "." if section and siblings else ""
    names = [other.removeprefix(prefix) for other in siblings or known]
    suggestion = nearest_names(name if prefix else flag, names, prefix=prefix)
    return suggestion if suggestion.endswith("?") else "--help lists all options"
