"""The report as files: it stands alone, tells faults in words, and lets nobody's text be markup."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from retro_ml import report as command
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.reporting import report as reporting
from retro_ml.reporting.figure_files import DrawnFigure, Figure
from retro_ml.reporting.groups import group_runs
from retro_ml.reporting.markup import join, tag
from retro_ml.reporting.references import Reference, load_references, select_references
from retro_ml.reporting.run_folders import find_runs
from retro_ml.reporting.run_records import load_run

pytestmark = pytest.mark.unit

MakeRun = Callable[..., Path]
ROOT = Path(__file__).parents[3]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class _Page(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second each; where they are not looked at they are left empty."""

    def render(figure: Figure) -> DrawnFigure:
        return DrawnFigure(figure.name, figure.title, b"png", b"svg", "<svg></svg>", "<svg></svg>")

    monkeypatch.setattr(reporting, "render", render)


def read(folder: Path) -> _Page:
    return _Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_report_of_a_run_stands_alone(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("a", scores=[1, 5, 9, 12], evaluation=[10, 20, 30])

    assert command.main([str(run), "--quiet"]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    page = read(run)

    # The answer first.
    assert page.text.index("20.0") < page.text.index("Learning")
    assert "score over 3 evaluation games (noop)" in page.text
    # Nothing is fetched, nothing runs, addresses are relative and lead somewhere.
    assert not {name for name, _ in page.elements} & {"script", "link", "iframe", "object", "img"}
    links = [a["href"] or "" for a in page.all("a")]
    files = [href for href in links if not href.startswith(("#", "https://"))]
    assert "config.json" in files
    assert "report/scores.csv" in files
    assert all((run / href).exists() for href in files)
    assert all(href[1:] in page.ids for href in links if href.startswith("#"))
    assert len(page.ids) == len(set(page.ids))
    text = (run / "report.html").read_text()
    assert not re.findall(r"(?:src|url)\s*[=(]\s*[\"']?(?:https?:)?//", text)
    assert not re.findall(r"<(?!a )[^>]*href=[\"']?(?:https?:)?//", text)
    # Figures say what they show, follow the page's colours, and are words, not outlines.
    figures = page.all("svg")
    assert len(figures) == 6  # three, for two widths
    for figure in figures:
        title, described = (figure["aria-labelledby"] or "").split()
        assert {title, described} <= set(page.ids)
    assert "var(--series-1)" in text
    assert "#0072b2" not in text.split("</style>", 1)[1]
    assert "score, mean of the last 100 games" in page.text


def test_each_figure_is_a_png_and_an_svg_and_each_table_a_csv(make_run: MakeRun) -> None:
    run = make_run("a", scores=[1, 5, 9, 12])

    assert command.main([str(run), "--quiet"]) == 0

    made = sorted(path.name for path in (run / "report").iterdir())
    figures = ["curves-breakout", "scores-breakout", "training-ppo-breakout"]
    assert {f"{name}{end}" for name in figures for end in (".png", ".svg")} <= set(made)
    for name in figures:
        assert (run / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ElementTree.parse(run / "report" / f"{name}.svg")
    with open(run / "report" / "runs.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["experiment_id"], row["state"], row["training_score"]) == ("a", "completed", "6.75")
    with open(run / "report" / "scores.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["score_low"]) < 6.75 < float(row["score_high"])


@pytest.mark.usefixtures("undrawn")
def test_what_was_published_leads_to_where_it_was(make_run: MakeRun) -> None:
    run = make_run("a", scores=[1, 5], game_id="BreakoutNoFrameskip-v4")

    assert command.main([str(run), "--quiet"]) == 0

    links = {a["href"] for a in read(run).all("a")}
    assert "https://arxiv.org/abs/1707.06347" in links
    assert "https://github.com/DLR-RM/rl-baselines3-zoo/blob/22e3ff2/benchmark.md" in links
    with open(run / "report" / "literature.csv", newline="") as file:
        sources = [row["source"] for row in csv.DictReader(file)]
    assert "rl-baselines3-zoo@22e3ff2 benchmark.md" in sources


def test_colours_and_lines_are_explained_in_each_figure(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        make_run(f"a{seed}", scores=[1, 5, 9], seed=seed)
        make_run(f"b{seed}", scores=[1, 2, 3], seed=seed, ppo={"clip": 0.3})

    assert command.main([str(tmp_path / "runs"), "--quiet"]) == 0

    told = {
        "curves": [
            "Learning curves on breakout",
            "clip 0.1",
            "clip 0.3",
            "band: its 95 % interval",
        ],
        "scores": ["Final scores on breakout", "clip 0.1", "clip 0.3", "single runs"],
        "training-ppo": ["Training of PPO on breakout", "clip 0.1", "clip 0.3", "single runs"],
    }
    for name, words in told.items():
        text = (tmp_path / "runs" / "report" / f"{name}-breakout.svg").read_text()
        assert [word for word in words if word not in text] == []


@pytest.mark.usefixtures("undrawn")
def test_nobodys_text_is_markup(make_run: MakeRun) -> None:
    run = make_run("a", scores=[1, 5])
    config = json.loads((run / "config.json").read_text())
    config["experiment_id"] = "x"
    (run / "config.json").write_text(json.dumps(config))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "failed", "error": HOSTILE}))
    (run / "<img src=x onerror=alert(3)>.txt").write_text("")
    (run / "videos").mkdir()
    (run / "videos" / "\"onerror='alert(4)'.mp4").write_bytes(b"film")

    assert command.main([str(run), "--quiet"]) == 0
    page = read(run)

    assert not {name for name, _ in page.elements} & {"script", "img"}
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert HOSTILE in page.text


@pytest.mark.usefixtures("undrawn")
def test_names_of_files_need_not_be_text(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsdecode(b"caf\xe9")
    run = make_run("a", scores=[1, 5]).parent.rename(tmp_path / odd) / "a"
    (run / f"{odd}.txt").write_text("")
    (run / "videos").mkdir()
    (run / "videos" / f"{odd}.mp4").write_bytes(b"film")
    output = tmp_path / "reports"

    assert command.main([str(run), "--quiet", "--output", str(output)]) == 0

    page = read(output)
    links = [a["href"] or "" for a in page.all("a")]
    assert "../caf%E9/a/caf%E9.txt" in links
    assert page.text.count("caf?.mp4") == 1
    assert command.main([str(run)]) == 0
    assert (run / "report.html").exists()
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("report: ")
    told.encode()


def test_escaping() -> None:
    assert tag("p", "<b>", title="\"'<") == '<p title="&quot;&#x27;&lt;">&lt;b&gt;</p>'
    assert join("a\x1b\x00", "\ud800", None, ["<", tag("br")]) == "a???&lt;<br>"


@pytest.mark.usefixtures("undrawn")
def test_a_formula_stays_text_in_a_spreadsheet(make_run: MakeRun) -> None:
    run = make_run("a", scores=[1])
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "error": "=HYPERLINK(1)"}))

    assert command.main([str(run), "--quiet"]) == 0
    with open(run / "report" / "runs.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["remarks"] == "'=HYPERLINK(1)"


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_with_runs_of_every_kind(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("a", scores=[1, 5], seed=1)
    make_run("b", scores=[1, 9], seed=2, ppo={"clip": 0.3})
    make_run("failed", scores=[1], seed=3, state="failed", total_timesteps=200)
    make_run("lost", scores=[1], seed=4, state="running", total_timesteps=200)
    make_run("given-up", scores=[1], seed=8, state="stopped", total_timesteps=200)
    make_run("nothing-yet", scores=[], seed=5, state="interrupted", total_timesteps=200)
    torn = make_run("torn", scores=[1], seed=6)
    (torn / "config.json").write_text('{"game_id": "brea')
    foreign = make_run("foreign", scores=[1], seed=7)
    (foreign / "config.json").write_text('{"game_id": "chess"}')
    (tmp_path / "runs" / "leaderboard.csv").write_text("run\n")

    assert command.main([str(tmp_path / "runs"), "--json"]) == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    page = read(tmp_path / "runs")

    assert made["runs"] == 6
    assert [text.split(":")[0] for text in made["left_out"]] == ["foreign", "torn"]
    assert "warning: left out: torn: config.json is damaged" in err
    assert "1 of 6 runs: failed: RuntimeError: no more." in page.text
    assert "1 of 6 runs: cut off without a word" in page.text
    assert "1 of 6 runs: stopped for good by the scheduler of its sweep." in page.text
    assert "Left out: torn: config.json is damaged: it is no JSON." in page.text
    assert "ppo.clip" in page.text
    assert "leaderboard.csv" in [a["href"] for a in page.all("a")]


@pytest.mark.usefixtures("undrawn")
def test_what_does_not_count_is_told_at_the_top(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a.before-20260102-030405", scores=[1, 1], seed=1, state="interrupted")
    make_run("a", scores=[5, 7], seed=1, evaluation=[90], evaluated_at=100)

    assert command.main([str(tmp_path / "runs"), "--quiet"]) == 0

    top = read(tmp_path / "runs").text.split("Final scores")[0]
    assert "score over the last 2 training games" in top
    assert "a.before-20260102-030405 has the config and seed of another run" in top
    assert "Evaluated before training went on, which does not count: a (100 of 200" in top


@pytest.mark.usefixtures("undrawn")
def test_several_folders_into_one_and_the_same_run_once(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make_run("a", scores=[1], seed=1), make_run("b", scores=[2], seed=2)
    same_name = make_run("a", scores=[3], seed=3, folder=tmp_path / "other runs")
    output = tmp_path / "the report"
    monkeypatch.chdir(tmp_path)

    folders = [str(one), str(two), "runs/../runs/a", str(same_name)]
    assert command.main([*folders, "--output", str(output), "--quiet"]) == 0
    page = read(output)

    assert "3 runs" in page.text
    assert "../other%20runs/a/config.json" in [a["href"] for a in page.all("a")]


@pytest.mark.usefixtures("undrawn")
def test_a_small_film_is_in_the_page_and_a_large_one_beside_it(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("a", scores=[1])
    (run / "videos").mkdir()
    (run / "videos" / "learning.mp4").write_bytes(b"film")

    assert command.main([str(run), "--quiet"]) == 0
    (video,) = read(run).all("video")
    assert video["src"] == "data:video/mp4;base64,ZmlsbQ=="

    for module in ("page", "report"):
        monkeypatch.setattr(f"retro_ml.reporting.{module}.MAX_FILM_BYTES", 3)
    assert command.main([str(run), "--quiet"]) == 0
    page = read(run)
    assert not page.all("video")
    assert "videos/learning.mp4" in [a["href"] for a in page.all("a")]


def test_a_run_without_a_finished_game_has_no_empty_figures_and_tables(make_run: MakeRun) -> None:
    run = make_run("a", scores=[], state="interrupted", game_id="BreakoutNoFrameskip-v4")

    assert command.main([str(run), "--quiet"]) == 0

    page = read(run)
    assert "no game is over yet" in page.text
    assert not page.all("svg")
    assert not {"final-scores", "beside-the-literature"} & set(page.ids)
    assert len(page.all("table")) == 1


def test_a_single_game_makes_no_curve(make_run: MakeRun) -> None:
    run = make_run("a", scores=[3])

    assert command.main([str(run), "--quiet"]) == 0

    assert "score over the only training game" in read(run).text
    assert "learning" not in read(run).ids
    assert not (run / "report" / "curves-breakout.png").exists()


def test_runs_that_say_nothing_of_their_losses(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(f"a{seed}", scores=[1, 5, 9], seed=seed)
        bare = make_run(f"b{seed}", scores=[1, 2, 3], seed=seed, ppo={"clip": 0.3})
        lines = (bare / "metrics.csv").read_text().splitlines(keepends=True)
        kept = [line for line in lines if "training_step" not in line]
        (bare / "metrics.csv").write_text("".join(kept))

    assert command.main([str(tmp_path / "runs"), "--quiet"]) == 0


@pytest.mark.usefixtures("undrawn")
def test_where_the_film_of_the_learning_is_too_large_a_smaller_one_is_shown(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retro_ml.reporting.report.MAX_FILM_BYTES", 4)
    run = make_run("a", scores=[0])
    (run / "videos").mkdir()
    (run / "videos" / "step-100.mp4").write_bytes(b"step")
    (run / "videos" / "agent.mp4").write_bytes(b"film")
    (run / "videos" / "learning.mp4").write_bytes(b"films")

    assert command.main([str(run), "--quiet"]) == 0

    (video,) = read(run).all("video")
    assert video["src"] == "data:video/mp4;base64,ZmlsbQ=="
    assert "The trained agent of a at play: agent.mp4." in read(run).text


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "RUN_OR_SWEEP_DIR: missing"),
        (["nowhere"], "nowhere -> no such folder"),
        (["empty"], "empty -> no run is in it"),
        (["torn"], "torn: config.json is damaged: it is no JSON -> nothing to report"),
        (["--colour", "empty"], "--colour"),
        (["empty", "--output"], "--output: a value is missing"),
    ],
)
def test_a_bad_call_is_refused_in_words(
    argv: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("torn").mkdir()
    Path("torn/config.json").write_text("{")
    Path("torn/metrics.csv").write_text("")

    assert command.main(argv) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.rglob("report*"))


def test_without_the_extra_that_draws(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("a", scores=[1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert command.main([str(run)]) == 2
    assert "pip install 'retro_ml[report]'" in capsys.readouterr().err


def test_the_commands_need_neither_ray_nor_pytorch(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", scores=[1, 2])
    make_run("b", scores=[1, 3])
    code = (
        "import sys; from retro_ml.cli import main; "
        "codes = [main(['list', 'runs']), main(['compare', 'runs/a', 'runs/b']), "
        "main(['report', 'runs', '--quiet'])]; "
        "assert codes == [0, 0, 0], codes; "
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.usefixtures("undrawn")
def test_a_place_that_cannot_be_written_is_told(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("a", scores=[1])
    (tmp_path / "in-the-way").write_text("")

    assert command.main([str(run), "--quiet", "--output", str(tmp_path / "in-the-way")]) == 1
    assert capsys.readouterr().err.startswith("error: cannot write ")


def test_the_published_figures_are_those_of_the_documentation() -> None:
    for name in ("reference_curves.csv", "reference_scores.csv"):
        own = ROOT / "retro_ml" / "reporting" / "data" / name
        assert own.read_bytes() == (ROOT / "docs" / "data" / name).read_bytes()
    curves, scores = load_references()
    references = [*curves, *scores]
    assert len(references) > 50
    assert all(reference.source and reference.protocol for reference in references)


def test_published_scores_are_looked_up_once_for_each_group(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [load_run(*find_runs(make_run(name, scores=[1, 2], ppo={"clip": clip})))
            for name, clip in (("a", 0.1), ("b", 0.2))]  # fmt: skip
    groups = group_runs(runs)
    references = select_references(runs[0].config)
    asked = []

    def select(config: ExperimentConfig) -> list[Reference]:
        asked.append(config)
        return references[1:]

    monkeypatch.setattr(reporting, "select_references", select)
    monkeypatch.setattr(reporting.figures, "learning_curves", lambda name, own, beside: beside)
    planned = reporting._plan(groups, references)
    assert planned["curves"] == [references[1:]]
    assert len(references) > len(asked) == len(groups) == 2
