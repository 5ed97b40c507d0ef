"""URIs as output_dir: one spelling, no keys in them, a staging place for each."""

from pathlib import Path

import pytest

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.locations import (
    hide_credentials,
    hide_credentials_in,
    is_uri,
    staging_dir,
)
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.run import main

pytestmark = pytest.mark.unit
SECRET = "wJalr/XUtnFEMI"


def build(output_dir: str) -> ExperimentConfig:
    return ExperimentConfig(game_id="breakout", output_dir=output_dir, experiment_id="x")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("S3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://bucket", "gs://bucket"),
        ("file:///mnt/runs/", "file:///mnt/runs"),
        ("runs", "runs"),
    ],
)
def test_a_uri_has_one_spelling_and_survives_saving(given: str, kept: str) -> None:
    config = build(given)
    assert config.output_dir == kept
    assert ExperimentConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "uri",
    [
        "http://x/y",
        "s3:/bucket/x",
        "s3://",
        "s3:///x",
        "s3://bucket/../x",
        "s3://bucket//x",
        "s3://bucket/a%20b",
        "s3://bucket/a\nb",
        "file://mnt/x",
        "file:///",
        "gs://bucket/x#y",
    ],
)
def test_other_uris_are_refused_with_one_line(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--game-id", "breakout", "--output-dir", uri]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: output_dir: ")
    assert errors.count("\n") == 2  # and the hint


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIAXYZ:{SECRET}@bucket/x",
        f"s3://AKIAXYZ:{SECRET}",
        f"s3://bucket/x?access_key=AKIAXYZ&secret_key={SECRET}",
        f"s3://bucket/x#{SECRET}",
    ],
)
def test_keys_in_a_uri_are_refused_and_not_shown(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--game-id", "breakout", "--output-dir", uri]) == 2
    errors = capsys.readouterr().err
    assert "give them by the environment: AWS_ACCESS_KEY_ID" in errors
    assert "AKIAXYZ" not in errors.replace("AWS_ACCESS_KEY_ID", "")
    assert SECRET not in errors
    assert SECRET not in hide_credentials(f"what {uri}")
    assert SECRET not in hide_credentials_in(f"{uri} failed: refused")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no answer from http://h/api: refused", "no answer from http://h/api: refused"),
        ("http://me:a word@h/api failed: refused", "http://***@h/api failed: refused"),
        ("http://h/api?token=a failed: refused", "http://h/api?*** failed: refused"),
        ("postgres://me:a/b@h failed", "postgres://***@h failed"),
    ],
)
def test_a_message_keeps_what_is_no_credential(said: str, shown: str) -> None:
    assert hide_credentials_in(said) == shown


def test_the_staging_place_follows_the_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path))
    paths = build("s3://bucket/a").paths
    assert paths.experiment_dir == tmp_path / "s3" / "bucket" / "a" / "x"
    assert paths.storage_uri == "s3://bucket/a/x"
    assert staging_dir("s3://bucket/a/x") == paths.experiment_dir
    monkeypatch.delenv("RETRO_ML_STAGING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert staging_dir("file:///mnt") == tmp_path / "cache/retro_ml/staging/file/mnt"
    assert RunPaths("runs", "x").storage_uri is None


def test_a_folder_is_no_uri() -> None:
    assert not any(is_uri(path) for path in ("runs", "/a/b", "a:b", "~/runs", "./s3/x"))
