"""How one call runs an experiment: what is no part of the experiment itself and is not saved."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from retro_ml.core.experiments.fields import FrozenModel, Real, Switch


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
        description="stop after this many hours of training, at an iteration's end",
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
    progress: Literal["auto", "quiet"] = Field(
        default="auto",
        description="live on a terminal and plain lines elsewhere, or nothing at all",
    )
