"""Keys and tokens in a run's environment are in nothing that the run leaves or prints."""

import base64
import os
import secrets
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def forms(value: str) -> list[bytes]:
    """As it is, and as base64 and hex would hide it (without what depends on its surroundings)."""
    raw = value.encode()
    return [raw, base64.b64encode(raw).rstrip(b"=")[:-2], raw.hex().encode()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, and every member of an archive."""
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        found[str(path)] = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found |= {f"{path}!{name}": archive.read(name) for name in archive.namelist()}
    return found


def test_nothing_that_a_run_leaves_has_a_secret(tmp_path: Path) -> None:
    planted = {
        "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(8).upper()}",
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
        "AWS_SESSION_TOKEN": secrets.token_urlsafe(60),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
    command = [sys.executable, "-m", "retro_ml.run", "--game-id", "pong", "--algorithm", "A2C"]
    command += ["-n", "2000", "--output-dir", str(tmp_path / "runs"), "--experiment-id", "x"]
    command += ["--set", "use_gpu=false", "--set", "checkpointing.every_steps=1000", "--json"]
    done = subprocess.run(
        command,
        env={**env, **planted, "HOME": str(tmp_path / "home"), "RAY_USAGE_STATS_ENABLED": "0"},
        check=False,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    kept = contents(tmp_path) | {"stdout": done.stdout, "stderr": done.stderr}
    names = {Path(name.partition("!")[0]).name for name in kept}
    assert {"config.json", "events.log", "training.log", "metrics.json", "model.zip"} <= names
    for name, value in planted.items():
        for form in forms(value):
            assert [place for place, content in kept.items() if form in content] == [], name


def test_a_planted_secret_would_be_found(tmp_path: Path) -> None:
    value = secrets.token_urlsafe(30)
    (tmp_path / "plain.log").write_text(f"key={value}")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", value)
    (tmp_path / "hidden").write_bytes(base64.b64encode(value.encode()))
    found = contents(tmp_path)
    assert sum(any(form in content for form in forms(value)) for content in found.values()) == 3
