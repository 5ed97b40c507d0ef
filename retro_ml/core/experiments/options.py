"""How one call runs an experiment: what is no part of the experiment itself and is not saved."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from retro_ml.core.experiments.fields import FrozenModel, Real, Switch

TRACKERS = ("wandb", "mlflow")


def _read_names(value: Any) -> Any:
    """`wandb,mlflow`, alone or as items of a list, as a tuple of names."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        return value
    names = [name for item in items for name in item.replace(",", " ").split()]
    if not set(names) <= set(TRACKERS):
        raise PydanticCustomError("fault", "wandb, mlflow, or both as wandb,mlflow")
    return tuple(dict.fromkeys(names))


class RunOptions(FrozenModel):
    """Options of one call."""

    restart_behavior: Literal["resume", "restart", "fail"] = Field(
        default="resume",
        description="where the experiment exists already: go on with it, begin anew and keep the "
        "old folder aside, or refuse",
    )
    stop_score: Real | None = Field(
        default=None,
        description="stop as soon as the mean score of the last 100 games reaches this",
    )
    max_hours: Real | None = Field(
        default=None,
        gt=0,
        description="end this call after so many hours of training, at an iteration's end; the "
        "same command then goes on",
    )
    ray_address: str | None = Field(
        default=None,
        min_length=1,
        description="a running Ray cluster to use, e.g. host:6379 or auto "
        "(otherwise RAY_ADDRESS, or else a Ray of its own)",
    )
    allow_open_cluster: Switch = Field(
        default=False,
        description="use a Ray cluster without token authentication, where whoever reaches it "
        "runs code (CVE-2023-48022)",
    )
    wait_for_nodes: Switch = Field(
        default=False,
        description="where no node has room for a trial yet, wait for an autoscaler to start one",
    )
    track: Annotated[tuple[Literal["wandb", "mlflow"], ...], BeforeValidator(_read_names)] = Field(
        default=(),
        description="services that are told of the run besides its files: wandb, mlflow, or both "
        "as wandb,mlflow; each is an extra of its own",
    )
    progress: Literal["auto", "quiet"] = Field(
        default="auto",
        description="live on a terminal and plain lines elsewhere, or nothing at all",
    )

    @field_validator("track")
    @classmethod
    def _check_installed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if importlib.util.find_spec(name) is None:
                raise PydanticCustomError(
                    "fault",
                    "{remedy}",
                    {"remedy": f"{name} is not installed: pip install 'retro_ml[{name}]'"},
                )
        return names
