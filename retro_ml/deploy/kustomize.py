"""Renders the folders in k8s/ as `kubectl kustomize` does, so that nothing but Python is needed.

Of kustomize there is what those folders use: resources, components, configMapGenerator from files,
JSON patches (RFC 6902: add, replace, remove) by kind and name, replacements that copy a whole
object's field, and objects that stay local. Anything else is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_KNOWN = {
    "apiVersion", "kind", "resources", "components", "configMapGenerator", "generatorOptions",
    "patches", "replacements",
}  # fmt: skip
_LOCAL = "config.kubernetes.io/local-config"


class UnknownKustomization(ValueError):
    """A kustomization says what is not understood here."""


def manifests_folder() -> Path:
    """k8s/, of the installed package or of the checkout."""
    packaged = Path(__file__).with_name("k8s")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "k8s"


def render(folder: Path, *, swap: Mapping[str, str] | None = None) -> list[Manifest]:
    """The manifests of a folder with a kustomization.yaml.

    Args:
        folder: that folder.
        swap: names of components, and which others to take in their place.

    Raises: UnknownKustomization.
    """
    manifests = _accumulate([], folder, swap or {})
    return [manifest for manifest in manifests if _LOCAL not in _annotations(manifest)]


def _accumulate(manifests: list[Manifest], folder: Path, swap: Mapping[str, str]) -> list[Manifest]:
    """A Component works on what was there before; a Kustomization on its own resources."""
    spec = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    unknown = sorted(spec.keys() - _KNOWN)
    if unknown:
        raise UnknownKustomization(f"{folder}: {', '.join(unknown)}")
    manifests = list(manifests) if spec["kind"] == "Component" else []
    for name in spec.get("resources", []):
        manifests += _load(folder / name, swap)
    for name in spec.get("components", []):
        path = Path(name)
        manifests = _accumulate(
            manifests, folder / path.parent / swap.get(path.name, path.name), swap
        )
    for generator in spec.get("configMapGenerator", []):
        manifests = _generate(manifests, generator, spec.get("generatorOptions", {}), folder)
    for patch in spec.get("patches", []):
        for manifest in _select(manifests, patch["target"]):
            for operation in yaml.safe_load(patch["patch"]):
                apply_operation(manifest, operation)
    for replacement in spec.get("replacements", []):
        _replace(manifests, replacement)
    return manifests


def apply_operation(manifest: Manifest, operation: Mapping[str, Any]) -> None:
    """One operation of a JSON patch, in place. Raises: UnknownKustomization."""
    *parents, last = [
        part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
    ]
    place: Any = manifest
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    kind = operation["op"]
    if kind == "remove":
        del place[int(last) if isinstance(place, list) else last]
    elif kind not in {"add", "replace"}:
        raise UnknownKustomization(f"op: {kind}")
    elif isinstance(place, list) and last == "-":
        place.append(copy.deepcopy(operation["value"]))
    elif isinstance(place, list):
        raise UnknownKustomization(f"{operation['path']}: only the end of a list")
    else:
        place[last] = copy.deepcopy(operation["value"])


def _load(path: Path, swap: Mapping[str, str]) -> list[Manifest]:
    if path.is_dir():
        return _accumulate([], path, swap)
    # Deep copies: what YAML's anchors share is patched apart.
    text = path.read_text(encoding="utf-8")
    return [_unshare(manifest) for manifest in yaml.safe_load_all(text)]


def _unshare(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unshare(item) for name, item in value.items()}
    return [_unshare(item) for item in value] if isinstance(value, list) else value


def _generate(
    manifests: list[Manifest],
    generator: Mapping[str, Any],
    options: Mapping[str, Any],
    folder: Path,
) -> list[Manifest]:
    metadata = {"name": generator["name"], "namespace": generator["namespace"]}
    made = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**metadata, "labels": dict(options["labels"])},
        "data": {name: (folder / name).read_text(encoding="utf-8") for name in generator["files"]},
    }
    if generator.get("behavior") == "replace":
        others = _select(manifests, {"kind": "ConfigMap", "name": generator["name"]})
        manifests = [manifest for manifest in manifests if manifest not in others]
    return [*manifests, made]


def _replace(manifests: Sequence[Manifest], replacement: Mapping[str, Any]) -> None:
    source = replacement["source"]
    (found,) = _select(manifests, {"kind": source["kind"]})
    for target in replacement["targets"]:
        for manifest in _select(manifests, target["select"]):
            for path in target["fieldPaths"]:
                value = {"op": "add", "path": "/" + path.replace(".", "/")}
                apply_operation(manifest, {**value, "value": found[source["fieldPath"]]})


def _select(manifests: Sequence[Manifest], target: Mapping[str, str]) -> list[Manifest]:
    return [
        manifest
        for manifest in manifests
        if manifest["kind"] == target["kind"]
        and target.get("name") in {None, manifest["metadata"]["name"]}
    ]


def _annotations(manifest: Manifest) -> Mapping[str, str]:
    annotations: Mapping[str, str] = manifest["metadata"].get("annotations", {})
    return annotations
