"""README.md, docs/metrics.md and docs/house.md say what the code does: tables, options, map."""

import re
from pathlib import Path

import pytest

from retro_ml import run
from retro_ml.core.artifacts.metrics_file import COLUMNS
from retro_ml.core.experiments.run_paths import RunPaths

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
HOUSE = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
# Ray Tune's own folder is gone when a run has ended.
PASSING = {"tune_dir", "experiment_dir", "lock_path"}
IN_VIDEOS = {"film_path", "learning_film_path"}


def table(text: str, title: str) -> list[list[str]]:
    """The cells of the rows of the table in `text` whose first column is called `title`."""
    body = text.split(f"\n| {title} |", maxsplit=1)[1].split("\n\n", maxsplit=1)[0]
    lines = body.splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_column_of_the_metrics_is_described_in_order() -> None:
    expected = [[f"`{column.name}`", column.kind.__name__, column.meaning] for column in COLUMNS]

    assert table(METRICS, "Column") == expected


def test_every_file_of_a_run_is_described() -> None:
    paths = RunPaths(output_dir="runs", experiment_id="my-run")
    properties = [name for name, kind in vars(RunPaths).items() if isinstance(kind, property)]
    values = [getattr(paths, name) for name in properties if name not in PASSING | IN_VIDEOS]
    names = {value.name for value in values if isinstance(value, Path)}

    assert {row[0].strip("`").split("/")[0] for row in table(README, "File")} == names


def test_every_option_in_the_table_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(["--help"])
    options = re.findall(r"`(--?[a-z-]+)`", " ".join(row[0] for row in table(README, "Option")))
    known = set(re.findall(r"--?[a-z][a-z-]*", capsys.readouterr().out))

    assert stopped.value.code == 0
    assert len(options) > 10
    assert set(options) <= known


def test_the_house_shows_every_module_and_no_other() -> None:
    tree = HOUSE.split("```\nretro_ml/\n", maxsplit=1)[1].split("\n```", maxsplit=1)[0]
    shown = re.findall(r"^  (\S+\.py) ", tree, flags=re.MULTILINE)
    package = ROOT / "retro_ml"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}

    assert len(shown) == len(set(shown))
    assert set(shown) == {name for name in modules if not name.endswith("__init__.py")}


def test_the_python_example_compiles() -> None:
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

    assert len(examples) == 3
    for example in examples:
        compile(example, "README.md", "exec")
