"""A report of one run or of hundreds: read, grouped, drawn, written.

`report.html` stands alone; beside it the folder `report/` has each figure as PNG and SVG and each
table as CSV.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from retro_ml.core.artifacts.given_runs import GivenFolder, find_address
from retro_ml.core.artifacts.status import installed_versions
from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.reporting import figures
from retro_ml.reporting import report_tables as tables
from retro_ml.reporting.figure_files import DrawnFigure, Figure, render
from retro_ml.reporting.groups import Group, group_runs
from retro_ml.reporting.headline import (
    build_facts,
    build_notices,
    build_subtitle,
    build_title,
    is_about_games,
)
from retro_ml.reporting.page import MAX_FILM_BYTES, Film, Page, build_page
from retro_ml.reporting.references import Reference, select_references
from retro_ml.reporting.run_folders import FileFault, find_runs
from retro_ml.reporting.run_records import RunRecord, is_of_record, load_run
from retro_ml.reporting.tables import Table

PAGE_NAME, FOLDER_NAME = "report.html", "report"
MAX_GAMES = 20
"""Games and, per game, algorithms that are drawn; a report of the rest takes a call of its own."""
MAX_LISTED = 100
"""Runs whose files are listed in the page."""
_ANY = RunPaths(output_dir="/", experiment_id="any")
_FILMS = (_ANY.learning_film_path, _ANY.film_path)
_SWEEP_FILES = ("sweep.json", "leaderboard.csv", "leaderboard.json")


class NothingToReport(Exception):
    """No run can be reported; `faults` has one line for each reason."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `write_report` made."""

    page: Path
    folder: Path
    """Figures and tables."""
    files: tuple[Path, ...]
    """All that was written, the page last."""
    runs: int
    left_out: tuple[str, ...]
    """Runs that could not be read, and why."""


def is_of_report(name: str) -> bool:
    """Whether a report shows or links a file, by its name in a run's folder or beside the runs."""
    films = {path.relative_to(_ANY.experiment_dir).as_posix() for path in _FILMS}
    return is_of_record(name) or name in films or name in _SWEEP_FILES


def write_report(
    folders: Sequence[GivenFolder],
    *,
    output: Path,
    notice: Callable[[str], None] = lambda text: None,
) -> Report:
    """Reports the runs in `folders` and below.

    Args:
        folders: of runs, or folders that runs are in.
        output: the folder for report.html and report/; made if need be.
        notice: is told what takes time.

    Raises:
        NothingToReport: no run was found, or none can be read.
        ArtifactError: the output cannot be written.
    """
    runs, left_out = _load(folders, notice)
    groups = group_runs(runs)
    references = _collect_references(runs)
    notice(f"drawing {len(groups):,} group{'s' if len(groups) != 1 else ''}")
    drawn = {kind: [render(f) for f in those] for kind, those in _plan(groups, references).items()}
    made = _Maker(output, folders)
    own_tables = [tables.runs_table(groups, made.link_run)]
    if any(group.counted for group in groups):
        own_tables.insert(0, tables.scores_table(groups))
    if is_about_games(groups):
        own_tables.insert(0, tables.aggregate_table(groups))
    beside = tables.literature_table(groups, references) if references else None
    if beside is not None and not beside.rows:
        beside = None
    differences = tables.differences_table(groups)
    made.figures([figure for those in drawn.values() for figure in those])
    csvs = [*own_tables, *filter(None, (beside, differences)), *_curve_tables(groups)]
    if references:
        csvs.append(tables.references_table(references))
    made.tables(csvs)
    sweep = [folder.path / name for folder in folders for name in _SWEEP_FILES]
    page = Page(
        title=build_title(groups),
        subtitle=build_subtitle(groups),
        facts=build_facts(groups, references),
        notices=[*build_notices(groups, left_out), *_undrawn(groups)],
        film=_choose_film(groups, made),
        curves=drawn["curves"],
        scores=drawn["scores"],
        optimiser=drawn["optimiser"],
        tables=own_tables,
        references=beside,
        differences=differences,
        runs=runs,
        artifacts=[
            (run.name, made.link(run.paths.experiment_dir), made.list_files(run))
            for run in runs[:MAX_LISTED]
        ],
        files=[*made.listed, *((p.name, made.link(p)) for p in sweep if p.is_file())],
        made=f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by retro_ml "
        f"{installed_versions()['retro_ml']}.",
    )
    text = build_page(page)
    replace_atomically(output / PAGE_NAME, lambda file: file.write(text.encode()), shared=True)
    return Report(
        page=output / PAGE_NAME,
        folder=made.folder,
        files=(*made.written, output / PAGE_NAME),
        runs=len(runs),
        left_out=tuple(left_out),
    )


class _Maker:
    """Writes the files beside the page, and knows their addresses as seen from it."""

    def __init__(self, output: Path, folders: Sequence[GivenFolder]) -> None:
        self.output = Path(os.path.abspath(output))
        self.folder = self.output / FOLDER_NAME
        # The report of runs in storage may lie among them; from elsewhere it names where they are.
        self._elsewhere = [one for one in folders if not self.output.is_relative_to(one.path)]
        self.written: list[Path] = []
        self.listed: list[tuple[str, str]] = []
        """Name and address of each file that was written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError.from_os_error(error, self.folder) from error

    def figures(self, drawn: Sequence[DrawnFigure]) -> None:
        for figure in drawn:
            self._save(f"{figure.name}.png", figure.png)
            self._save(f"{figure.name}.svg", figure.svg)

    def tables(self, made: Sequence[Table]) -> None:
        for table in made:
            self._save(f"{table.name}.csv", table.as_csv())

    def link(self, path: Path) -> str:
        address = find_address(path, self._elsewhere)
        if address != str(path):
            return quote(os.fsencode(address), safe="/:")
        # Bytes, because a file's name need not be UTF-8.
        return quote(os.fsencode(os.path.relpath(path, self.output)))

    def link_run(self, run: RunRecord) -> str:
        return self.link(run.paths.experiment_dir)

    def list_files(self, run: RunRecord) -> list[tuple[str, str]]:
        folder = run.paths.experiment_dir
        own = {FOLDER_NAME, PAGE_NAME, run.paths.lock_path.name}
        try:
            names = sorted(
                entry.name + ("/" if entry.is_dir() else "")
                for entry in os.scandir(folder)
                if entry.name not in own and not entry.name.startswith(".")
            )
        except OSError:
            return []
        return [(name, self.link(folder / name)) for name in names]

    def _save(self, name: str, content: bytes) -> None:
        replace_atomically(self.folder / name, lambda file: file.write(content), shared=True)
        self.written.append(self.folder / name)
        self.listed.append((name, quote(f"{FOLDER_NAME}/{name}")))


def _load(
    folders: Sequence[GivenFolder], notice: Callable[[str], None]
) -> tuple[list[RunRecord], list[str]]:
    faults: list[str] = []
    found: dict[Path, RunPaths] = {}
    for folder in (one.path for one in folders):
        try:
            if not folder.is_dir():
                faults.append(f"{folder} -> no such folder; give that of a run, or one with runs")
                continue
            below = {os.path.realpath(p.experiment_dir): p for p in find_runs(folder)}
        except OSError as error:
            faults.append(f"{folder} -> cannot be read: {error.strerror}")
            continue
        if not below:
            faults.append(
                f"{folder} -> no run is in it: a run has a config.json and a status.json or "
                "metrics.csv"
            )
        found |= {Path(path): paths for path, paths in below.items()}
    if faults:
        raise NothingToReport(faults)
    notice(f"reading {len(found):,} run{'s' if len(found) != 1 else ''}")
    runs, left_out = [], []
    for paths in found.values():
        try:
            runs.append(load_run(paths))
        except FileFault as fault:
            left_out.append(f"{paths.experiment_dir.name}: {fault}")
    if not runs:
        raise NothingToReport([f"{text} -> nothing to report" for text in left_out])
    return _tell_apart(runs, folders), left_out


def _tell_apart(runs: Sequence[RunRecord], folders: Sequence[GivenFolder]) -> list[RunRecord]:
    """Runs of the same name with their folders."""
    count = Counter(run.name for run in runs)
    return [
        run
        if count[run.name] == 1
        else replace(run, name=find_address(run.paths.experiment_dir, folders))
        for run in runs
    ]


def _collect_references(runs: Sequence[RunRecord]) -> list[Reference]:
    found = dict.fromkeys(r for run in runs for r in select_references(run.config))
    return sorted(found, key=lambda r: (r.game, r.algorithm, r.implementation, r.agent_steps))


def _plan(groups: Sequence[Group], references: Sequence[Reference]) -> dict[str, list[Figure]]:
    planned: dict[str, list[Figure]] = {"curves": [], "scores": [], "optimiser": []}
    for game, own in _by_game(groups)[:MAX_GAMES]:
        name = _file_word(game)
        known = {r for group in own for r in select_references(group.runs[0].config)}
        beside = [r for r in references if r in known]
        if any(group.curve is not None for group in own):
            planned["curves"].append(figures.learning_curves(f"curves-{name}", own, beside))
        if any(group.counted for group in own):
            planned["scores"].append(figures.final_scores(f"scores-{name}", own, beside))
        for algorithm, alike in groupby(own, key=lambda group: group.algorithm):
            those = list(alike)
            if any(len(run.metrics.iterations["step"]) > 1 for g in those for run in g.runs):
                planned["optimiser"].append(
                    figures.optimiser(f"training-{algorithm.lower()}-{name}", those)
                )
    planned["optimiser"] = planned["optimiser"][:MAX_GAMES]
    return planned


def _curve_tables(groups: Sequence[Group]) -> list[Table]:
    return [
        tables.curves_table(own, name=f"curves-{_file_word(game)}")
        for game, own in _by_game(groups)
    ]


def _by_game(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    return [(game, list(own)) for game, own in groupby(groups, key=lambda group: group.game)]


def _file_word(game: str) -> str:
    return "".join(sign if sign.isalnum() or sign == "_" else "-" for sign in game).strip("-")


def _undrawn(groups: Sequence[Group]) -> list[str]:
    games = len(_by_game(groups))
    if games <= MAX_GAMES:
        return []
    return [f"Figures are of the first {MAX_GAMES} of {games} games; tables have all."]


def _choose_film(groups: Sequence[Group], made: _Maker) -> Film | None:
    """Of the best run that has one: the agent learning, or else trained, or else the newest.

    The first of these that is small enough to be shown in the page.
    """
    runs = [run for group in groups for run in group.runs if run.films]
    if not runs:
        return None
    run = max(runs, key=_training_rank)
    learning, trained = run.paths.learning_film_path, run.paths.film_path
    found = [path for path in (learning, trained, *reversed(run.films)) if path in run.films]
    small = [path for path in found if path.stat().st_size <= MAX_FILM_BYTES]
    path = (small or found)[0]
    words = {
        learning: f"The agent of {run.name} while it learns, milestone after milestone: ",
        trained: f"The trained agent of {run.name} at play: ",
    }
    return Film(
        path=path, href=made.link(path), words=words.get(path, f"The agent of {run.name} at play: ")
    )


def _training_rank(run: RunRecord) -> float:
    score = run.training_score()
    return float("-inf") if score is None else score
