"""A Ray of our own: on this machine, for one run, leaving no trace.

Its files lie in a short temporary folder (Unix socket paths end at 107 bytes) that is removed at
the end, or by the next start if this process was killed; its token comes by environment instead of
a file in HOME; it listens on loopback only; its workers run at the niceness of this process (Ray's
default of 15 starves a trial beside any other load).

It has a head (GCS) and a node (raylet) and nothing else of what Ray starts beside them: autoscaler,
dashboard and its agent, the agent for runtime environments, the log monitor. Nothing here asks
them, and they take 250 MB and the two seconds in which a trial could begin. ray.init offers no
choice (2.60: `include_dashboard=False` starts all but the dashboard's pages), so its private parts
are patched while it runs; `retro_ml.cluster.worker_output` reads the logs instead.

Head and node have a process group of their own: a signal to this process's group (Ctrl-C in a
terminal, `timeout`, `kill -TERM -PGID`) asks the run to end, which then needs them for its last
checkpoint; Ray shields them from SIGINT alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import node, ray_constants, services
from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.tune.execution import class_cache

from retro_ml.cluster.driver_process import (
    environment,
    first_line,
    own_signal_handlers,
    worker_environment,
)
from retro_ml.cluster.ray_folder import make_folder, remove_orphans
from retro_ml.cluster.sweeper import Sweeper
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.machine import count_cpus

OBJECT_STORE_BYTES = 1_000_000_000
"""Shared memory of an embedded Ray: rollouts of 64 remote env runners take less than half of it."""
PLACEHOLDER = 'sh -c "exec cat > /dev/null"'
"""Ends with the node, which holds its standard input."""
NODE_OPTIONS = {
    # The node insists on two commands, to which it adds arguments, and ends them with itself.
    "--dashboard_agent_command": PLACEHOLDER,
    "--runtime_env_agent_command": PLACEHOLDER,
    # With a port the node does not wait for an agent to name one; nobody listens there.
    "--metrics-agent-port": "1",
    "--metrics_export_port": "1",
    "--dashboard_agent_listen_port": "1",
    "--runtime_env_agent_port": "1",
    # One for the trial; env runners and learners start when they are asked for.
    "--num_prestart_python_workers": "1",
}
"""What is put in place of the node's own options."""

HEALTH_CHECKS = "200"
"""That the own node may miss, one every 3 s; after Ray's 5 the run would be at its end (2.60)."""


@contextmanager
def start_ray() -> Iterator[Path]:
    """A Ray with this process's CPUs, ended afterwards; gives its folder.

    Raises:
        LaunchError: none can be started here.
    """
    remove_orphans()
    folder, lock = make_folder()
    variables = {
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_worker_niceness": "0",
        "RAY_enable_metrics_collection": "0",
        # What the placeholders end by.
        "RAY_enable_pipe_based_agent_to_parent_health_check": "1",
        # A machine that is overloaded is not dead; a daemon that is, `head_watch` sees.
        "RAY_health_check_failure_threshold": HEALTH_CHECKS,
        # A job that was submitted to another Ray has a runtime environment, for that one's agent.
        RAY_JOB_CONFIG_JSON_ENV_VAR: None,
        **class_cache.DEFAULT_ENV_VARS,
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        **worker_environment(),
    }
    sweeper = Sweeper(folder)
    try:
        with (
            environment(variables),
            _fresh_token(),
            _loopback_only(),
            _bare_node(),
        ):
            try:
                with own_signal_handlers():
                    ray.init(
                        num_cpus=count_cpus(),
                        object_store_memory=OBJECT_STORE_BYTES,
                        include_dashboard=False,
                        log_to_driver=False,
                        _skip_env_hook=True,
                        _temp_dir=str(folder),
                    )
            except Exception as error:
                raise LaunchError(f"Ray cannot be started here: {first_line(error)}") from error
            sweeper.note_processes()
            try:
                yield folder
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        sweeper.dismiss()
        os.close(lock)


@contextmanager
def _fresh_token() -> Iterator[None]:
    """Lets Ray read the token from the environment; it keeps the first that a process has used."""
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Lets Ray take 127.0.0.1 for this machine's address, as it does on macOS.

    `ray.init(_node_ip_address="127.0.0.1")` is turned into the outside address on Linux, and Ray
    listens on it (2.60). The constant is read from the environment when Ray is imported, which
    may have happened long ago; the processes that Ray starts read it anew.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _bare_node() -> Iterator[None]:
    """Starts Ray's head and node without what goes with them; see above."""

    def start_process(command: list[str], process_type: str, *args: Any, **how: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_RAYLET:
            kept = [part for part in command if part.partition("=")[0] not in NODE_OPTIONS]
            command = kept + [f"{name}={value}" for name, value in NODE_OPTIONS.items()]
        return ray_start_process(command, process_type, *args, **how)

    def start_apart(*args: Any, **how: Any) -> subprocess.Popen[Any]:
        return popen(*args, **how, process_group=0)

    def start_nothing(self: Any, **_: Any) -> None:
        self._webui_url = None

    # Tune gives its actors variables by a runtime environment, and `uv run` gives all workers one;
    # they take an agent to make, and a worker of its own to use. Here workers are as this process.
    uv_run = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    tune_variables = class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE
    ray_start_process, popen = services.start_ray_process, services.ConsolePopen
    unwanted = ("start_monitor", "start_api_server", "start_log_monitor")
    before = {name: getattr(node.Node, name) for name in unwanted}
    services.start_ray_process, services.ConsolePopen = start_process, start_apart
    class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = {}, set()
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    for name in unwanted:
        setattr(node.Node, name, start_nothing)
    try:
        yield
    finally:
        services.start_ray_process, services.ConsolePopen = ray_start_process, popen
        class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = tune_variables
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = uv_run
        for name, function in before.items():
            setattr(node.Node, name, function)
