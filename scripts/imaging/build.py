"""Builds the image where there is neither a Docker engine nor a registry: buildah and debootstrap.

The base is Debian's own Python 3.11 on a minimal system. pip's configuration on this machine, the
certificates and package folders that it names, are lent to the build and stay outside the image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/python:3.11-slim"
IMAGE = "localhost/retro-ml:test"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
TOOLS = {"buildah": "buildah", "podman": "podman", "crun": "crun", "debootstrap": "debootstrap"}


class CannotBuild(Exception):
    """This machine cannot; the message says what to do."""


def check_tools() -> None:
    """Raises: CannotBuild."""
    if os.geteuid() != 0:
        raise CannotBuild("mounting and unpacking take root -> run it as root")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)]
    if missing:
        raise CannotBuild(f"{', '.join(missing)} not found -> apt install {' '.join(missing)}")


def store(folder: Path) -> dict[str, str]:
    """The environment in which buildah and podman keep everything below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    conf = folder / "storage.conf"
    graph, run = folder / "graph", folder / "run"
    conf.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{graph}"\nrunroot = "{run}"\n',
        encoding="utf-8",
    )
    return {**os.environ, "CONTAINERS_STORAGE_CONF": str(conf)}


def make_base(folder: Path, env: Mapping[str, str]) -> float:
    """The base image, unless the store has it; seconds that it took. Raises: CannotBuild."""
    exists = subprocess.run(["buildah", "inspect", BASE], env=env, check=False, capture_output=True)
    if exists.returncode == 0:
        return 0.0
    began_s = time.monotonic()
    rootfs = folder / "rootfs"
    if not (rootfs / "usr/bin/python3.11").exists():
        shutil.rmtree(rootfs, ignore_errors=True)
        debootstrap = shutil.which("debootstrap", path=f"{env['PATH']}:/usr/sbin") or "debootstrap"
        call = [debootstrap, "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(rootfs)]
        run_logged(call, env=env, log=folder / "debootstrap.log")
    for leftover in ("var/cache/apt/archives", "var/lib/apt/lists", "var/log"):
        for path in (rootfs / leftover).rglob("*"):
            if path.is_file():
                path.unlink()
    container = _ask(["buildah", "from", "scratch"], env)
    mount = _ask(["buildah", "mount", container], env)
    subprocess.run(["cp", "-a", f"{rootfs}/.", mount], check=True)
    for call in (
        ["buildah", "config", "--cmd", "python3", container],
        ["buildah", "umount", container],
        ["buildah", "commit", "--quiet", "--rm", container, BASE],
    ):
        subprocess.run(call, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began_s


def build(folder: Path, env: Mapping[str, str], *, context: Path = ROOT) -> float:
    """The image from the Dockerfile, PyTorch's CPU build; seconds. Raises: CannotBuild."""
    began_s = time.monotonic()
    call = ["buildah", "bud", "--isolation", "chroot", "--format", "docker", "--layers"]
    call += ["--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", "TORCH=cpu"]
    call += ["--build-arg", f"REVISION={_read_revision()}"]
    for path in lent_to_pip():
        call += ["--volume", f"{path}:{path}:ro"]
    call += ["--file", str(context / "docker/Dockerfile"), "--tag", IMAGE, str(context)]
    run_logged(call, env=env, log=folder / "build.log")
    return time.monotonic() - began_s


def lent_to_pip() -> list[Path]:
    """Files and folders of this machine that pip's configuration needs to find packages."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "debug"], check=True, capture_output=True, text=True
    ).stdout
    found = {Path(line.split(", ")[0].strip()) for line in listed.splitlines()
             if line.strip().endswith("exists: True") and line.strip().startswith("/")}  # fmt: skip
    settings = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    for line in settings.splitlines():
        for word in line.partition("=")[2].strip("'").split():
            if word.startswith("file:"):  # an index: its files lie beside its pages
                found.add(Path(unquote(urlparse(word).path)).parent)
            elif word.startswith("/"):
                found.add(Path(word))
    return sorted(path for path in found if path.exists())


def run_logged(call: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
    """Runs a long command whose output goes to a file. Raises: CannotBuild with its end."""
    with log.open("wb") as file:
        done = subprocess.run(call, env=env, check=False, stdout=file, stderr=file)
    if done.returncode != 0:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise CannotBuild(f"{call[0]} failed, {log} says why:\n{end}")


def _ask(call: Sequence[str], env: Mapping[str, str]) -> str:
    return subprocess.run(
        call, env=env, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def _read_revision() -> str:
    call = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    done = subprocess.run(call, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
