"""`render` gives what `kubectl kustomize` gives, and refuses what it does not understand."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from retro_ml.deploy.kustomize import (
    UnknownKustomization,
    apply_operation,
    manifests_folder,
    render,
)

from .conftest import COMPOSED, FOLDERS, compose

pytestmark = pytest.mark.unit


def keyed(manifests: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}


def kubectl(folder: Path) -> list[dict[str, Any]]:
    found = os.environ.get("RETRO_ML_KUBECTL") or shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is not installed (RETRO_ML_KUBECTL)")
    done = subprocess.run([found, "kustomize", str(folder)], check=True, capture_output=True)
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("name", [*FOLDERS, *COMPOSED])
def test_it_renders_as_kubectl_does(name: str, tmp_path: Path) -> None:
    composed = name in COMPOSED
    folder = manifests_folder() / "overlays" / name
    if composed:
        # kubectl refuses links and absolute paths, so the folder lies beside a copy.
        shutil.copytree(manifests_folder(), tmp_path / "k8s")
        folder = compose(tmp_path / name, COMPOSED[name])
        text = (folder / "kustomization.yaml").read_text()
        there = os.path.relpath(manifests_folder(), folder)
        (folder / "kustomization.yaml").write_text(text.replace(there, "../k8s"))
    expected, made = keyed(kubectl(folder)), keyed(render(folder))

    assert len(made) >= 7
    assert made == expected


def test_what_it_does_not_understand_is_refused(tmp_path: Path) -> None:
    text = "kind: Kustomization\nnamePrefix: x-\nresources: []\n"
    (tmp_path / "kustomization.yaml").write_text(text)
    with pytest.raises(UnknownKustomization, match="namePrefix"):
        render(tmp_path)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "add", "path": "/a/x~1y", "value": 1}, {"a": {"b": [1], "x/y": 1}}),
        ({"op": "add", "path": "/a/b/-", "value": 2}, {"a": {"b": [1, 2]}}),
        ({"op": "replace", "path": "/a/b", "value": 2}, {"a": {"b": 2}}),
        ({"op": "remove", "path": "/a/b/0"}, {"a": {"b": []}}),
    ],
)
def test_operations_of_a_json_patch(operation: dict[str, Any], expected: dict[str, Any]) -> None:
    manifest: dict[str, Any] = {"a": {"b": [1]}}
    apply_operation(manifest, operation)
    assert manifest == expected


@pytest.mark.parametrize("operation", [{"op": "move", "path": "/a"}, {"op": "add", "path": "/b/0"}])
def test_other_operations_are_refused(operation: dict[str, Any]) -> None:
    with pytest.raises(UnknownKustomization):
        apply_operation({"a": 1, "b": [1]}, {"value": 1, **operation})
