"""`--track`: names in any of the ways that people write a list."""

import importlib.machinery
import importlib.util

import pytest
from pydantic import ValidationError

from retro_ml import run
from retro_ml.core.experiments.faults import describe_faults
from retro_ml.core.experiments.options import RunOptions

pytestmark = pytest.mark.unit


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Which of the services are taken for installed; may be changed."""
    names = {"wandb", "mlflow"}
    real = importlib.util.find_spec

    def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
        if name not in {"wandb", "mlflow"}:
            return real(name)
        return importlib.machinery.ModuleSpec(name, None) if name in names else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return names


@pytest.mark.parametrize(
    "value", ["wandb,mlflow", "wandb mlflow", ["wandb", "mlflow"], ["wandb,mlflow"]]
)
@pytest.mark.usefixtures("installed")
def test_spellings(value: str | list[str]) -> None:
    assert RunOptions(track=value).track == ("wandb", "mlflow")


@pytest.mark.parametrize("value", ["tensorboard", 3, {}, [3], ["wandb", None]])
@pytest.mark.usefixtures("installed")
def test_unknown_names(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        RunOptions.model_validate({"track": value})
    (fault,) = describe_faults(caught.value, RunOptions)
    assert "wandb" in fault


def test_a_missing_extra_is_told_with_its_remedy(
    installed: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    installed.remove("mlflow")

    assert run.main(["--game-id", "pong", "--track", "wandb,mlflow", "--print-config"]) == 2
    assert (
        "error: track: ['wandb', 'mlflow'] -> mlflow is not installed: "
        "pip install 'retro_ml[mlflow]'"
    ) in capsys.readouterr().err
