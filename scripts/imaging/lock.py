"""`scripts/lock_requirements`: docker/requirements/*.txt and the licences, from pyproject.toml.

One file a package and one hash, those that pip takes on this machine's kind (CPython 3.11, Linux,
x86-64), so that a change of one version is a change of one line. PyTorch stands apart, because its
CPU build and the one with CUDA differ in what they bring along.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker/requirements"
LICENCES = ROOT / "docs/third-party-licences.md"
# What packages say in other words, or, where they say nothing, what their repositories do.
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
    # By their names.
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "pyasn1-modules": "BSD-2-Clause",
}
HEADS = {
    "runtime": "what retro_ml needs but for PyTorch",
    "torch-cpu": "PyTorch's CPU build and what it alone needs",
    "torch-cuda": "PyTorch with CUDA and what it alone needs",
    "build": "what makes retro_ml's wheel",
}


def main() -> int:
    """Resolve everything and write the files; the process's exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *_read_image_in()]
    with tempfile.TemporaryDirectory() as folder:
        pip = _make_pip(Path(folder))
        cpu = _resolve(pip, wanted)
        local = cpu["torch"].partition(" ")[0].partition("==")[2]
        if not local.endswith("+cpu"):
            print("error: pip finds no CPU build of PyTorch -> name an index that has it "
                  "(PIP_EXTRA_INDEX_URL)", file=sys.stderr)  # fmt: skip
            return 3
        # The same release from PyPI alone.
        cuda = _resolve(pip, [*wanted, f"torch=={local.partition('+')[0]}"], only_pypi=True)
        build = _resolve(pip, project["build-system"]["requires"])
    torch_only = _resolve_shared(cpu, cuda)
    _write("runtime", {name: line for name, line in cpu.items() if name not in torch_only})
    _write("torch-cpu", {name: cpu[name] for name in torch_only if name in cpu})
    _write("torch-cuda", {name: cuda[name] for name in torch_only if name in cuda})
    _write("build", build)
    everywhere = {name for name in cpu if name not in torch_only} | {"torch"}
    _write_licences("packages", everywhere)
    _write_licences("cuda", cuda.keys() - everywhere)
    return 0


def _read_image_in() -> list[str]:
    lines = (FOLDER / "image.in").read_text(encoding="utf-8").splitlines()
    return [text for line in lines if (text := line.partition("#")[0].strip())]


def _make_pip(folder: Path) -> list[str]:
    """A pip of its own, new enough to resolve without downloading what it resolves."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
    return pip


def _resolve(pip: list[str], wanted: list[str], *, only_pypi: bool = False) -> dict[str, str]:
    """Name -> `name==version --hash=...` of everything that `wanted` takes."""
    env = dict(os.environ)
    if only_pypi:
        # PIP_INDEX_URL stays: a mirror of PyPI.
        others = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL")
        env = {name: value for name, value in env.items() if name not in others}
        env["PIP_CONFIG_FILE"] = os.devnull
    command = [*pip, "install", "--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
    report = subprocess.run(
        [*command, "--report", "-", *wanted], check=True, env=env, stdout=subprocess.PIPE
    ).stdout
    return dict(sorted(_lock_line(item) for item in json.loads(report)["install"]))


_licences: dict[str, str] = {}


def _lock_line(item: dict[str, Any]) -> tuple[str, str]:
    name = item["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
    _licences[name] = _read_licence(name, item["metadata"])
    link = item["download_info"]
    sha256 = link["archive_info"].get("hashes", {}).get("sha256")
    if sha256 is None:
        sha256 = hashlib.sha256(Path(unquote(urlparse(link["url"]).path)).read_bytes()).hexdigest()
    return name, f"{name}=={item['metadata']['version']} --hash=sha256:{sha256}"


def _read_licence(name: str, metadata: dict[str, Any]) -> str:
    """In SPDX's terms, as far as a package says it."""
    kinds = [text.rpartition(" :: ")[2] for text in metadata.get("classifier", [])
             if text.startswith("License :: ")]  # fmt: skip
    text = (metadata.get("license") or "").strip()
    short = text if len(text) < 40 and "\n" not in text else ""
    said = metadata.get("license_expression") or short or "; ".join(kinds) or name
    return SPDX.get(name, SPDX.get(said, said))


def _write_licences(mark: str, names: Iterable[str]) -> None:
    """The table between two comments of docs/third-party-licences.md."""
    by_licence: dict[str, list[str]] = {}
    for name in sorted(names):
        by_licence.setdefault(_licences[name], []).append(name)
    lines = ["| Licence | Packages |", "|---|---|"]
    for licence, members in sorted(by_licence.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        lines.append(f"| {licence} | {', '.join(members)} |")
    text = LICENCES.read_text(encoding="utf-8")
    before, begin, rest = text.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- end of {mark} -->")
    LICENCES.write_text("\n".join([before + begin + "\n".join(lines), end + after]), "utf-8")


def _resolve_shared(cpu: dict[str, str], cuda: dict[str, str]) -> list[str]:
    """PyTorch, and what the two resolutions do not share. Raises ValueError if others differ."""
    apart = sorted({"torch", *cpu.keys() ^ cuda.keys()})
    other = [name for name in cpu if name not in apart and cpu[name] != cuda[name]]
    if other:
        raise ValueError(f"the indexes disagree about {', '.join(other)}; run it where they agree")
    return apart


def _write(name: str, lines: dict[str, str]) -> None:
    path = FOLDER / f"{name}.txt"
    head = f"# Made by scripts/lock_requirements: {HEADS[name]}.\n# CPython 3.11, Linux, x86-64.\n"
    path.write_text(head + "".join(f"{line}\n" for line in lines.values()), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    sys.exit(main())
