"""Every fault in mutations.toml is found by the tests named beside it.

Not a part of the ordinary suite, because each one takes a pytest of its own:
`scripts/test tests/mutations` runs them. Each is put into a copy of the package.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MUTATIONS = tomllib.loads(Path(__file__).with_name("mutations.toml").read_text(encoding="utf-8"))[
    "mutation"
]
TIME_LIMIT_S = 300
TESTS_FAILED = 1
"""pytest's exit code; a module that cannot be imported or a test that is not there has another."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the tests need."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("retro_ml", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run_tests(checkout: Path, tests: list[str]) -> tuple[int, str]:
    """Exit code and output of pytest on the copy."""
    answer = subprocess.run(
        # Python puts the working directory first on the path, before an installed retro_ml;
        # without bytecode, which is told from its source by whole seconds and size.
        [sys.executable, "-B", "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *tests],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    return answer.returncode, answer.stdout


def test_the_copy_is_what_is_tested_and_passes_unharmed(checkout: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", "import retro_ml; print(retro_ml.__file__)"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(answer.stdout.strip()).is_relative_to(checkout)
    exit_code, output = run_tests(checkout, sorted({t for m in MUTATIONS for t in m["tests"]}))
    assert exit_code == 0, output


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation["name"])
def test_is_found(checkout: Path, mutation: dict[str, Any]) -> None:
    path = checkout / mutation["file"]
    original = path.read_text(encoding="utf-8")
    assert original.count(mutation["old"]) == 1
    path.write_text(original.replace(mutation["old"], mutation["new"]), encoding="utf-8")
    try:
        exit_code, output = run_tests(checkout, mutation["tests"])
    finally:
        path.write_text(original, encoding="utf-8")
    assert exit_code == TESTS_FAILED, output
    for test in mutation["tests"]:
        assert re.search(rf"^FAILED {re.escape(test)}(\[| |$)", output, re.MULTILINE), output
