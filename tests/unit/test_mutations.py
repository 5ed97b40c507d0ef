"""The table of faults put in on purpose fits the package as it is; whether each is found,
tests/mutations tells."""

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
MUTATIONS = tomllib.loads(
    (ROOT / "tests" / "mutations" / "mutations.toml").read_text(encoding="utf-8")
)["mutation"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation["name"])
def test_can_be_put_in(mutation: dict[str, Any]) -> None:
    assert mutation.keys() == {"name", "file", "old", "new", "tests"}
    original = (ROOT / mutation["file"]).read_text(encoding="utf-8")
    assert original.count(mutation["old"]) == 1, "the package has changed: change the table too"
    harmed = original.replace(mutation["old"], mutation["new"])
    assert ast.dump(ast.parse(harmed)) != ast.dump(ast.parse(original))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation["name"])
def test_its_tests_are_in_the_ordinary_suite(mutation: dict[str, Any]) -> None:
    assert mutation["tests"]
    for test in mutation["tests"]:
        file, function = test.split("::")
        assert Path(file).parts[:2] in {("tests", "unit"), ("tests", "integration")}
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in names


def test_each_has_a_name_of_its_own() -> None:
    names = [mutation["name"] for mutation in MUTATIONS]
    assert len(set(names)) == len(names)
