"""Ray's jobs API: hand a command to a cluster, follow what it prints, learn how it ended.

Nothing but HTTP to the head's port 8265 is needed. Ray's client asks without a limit of time and
follows a job's output until the connection breaks (2.60): here every request ends within seconds,
and a connection that is lost or silent is taken up again where it was.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import (
    AuthenticationTokenLoader,
    Config,
)
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from retro_ml.cluster.access import describe_token_fault, token_path
from retro_ml.cluster.driver_process import environment, first_line
from retro_ml.cluster.job_entry import EXIT_LINE, LEFT_LINE
from retro_ml.core.engine.launcher import LaunchError

REQUEST_TIMEOUT_S = 30.0
SILENCE_S = 15.0
"""A connection that brings nothing for so long is tried by a question of another kind."""
RETRY_S = 5.0
"""Between two tries to reach a head that does not answer."""
STOP_WAIT_S = 600
"""How long Ray waits for a stopped job's checkpoint before it kills; its own default is 3."""
KILLED = 137
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that tell of each package and connection on the screen."""

__all__ = ["Jobs", "LaunchError", "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    exit_code: int
    error: str | None = None
    """Why there is no exit code of the command's own."""


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of its head's dashboard, e.g. http://head:8265.
        allow_open: use it although it lets everybody in who reaches it.

    Raises:
        LaunchError: nothing answers there, it is no Ray of the same version, it wants a token
            that is not there, or it wants none.
    """

    def __init__(self, address: str, *, allow_open: bool = False) -> None:
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise LaunchError(
                f"{address} is no address of a jobs API -> the head's dashboard, e.g. "
                "http://head:8265"
            )
        _check_installed()
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._mode = _ask_mode(self.address)
        if self._mode == "disabled" and not allow_open:
            raise LaunchError(
                f"the Ray cluster at {self.address} has no token authentication: whoever reaches "
                "it runs code there (CVE-2023-48022) -> start its nodes with RAY_AUTH_MODE=token, "
                "or accept it with --allow-open-cluster"
            )
        self._client = self._connect()
        self._followers: dict[str, _Follower] = {}

    def find(self, job_id: str) -> JobDetails | None:
        """What is known of a job; None where there is none of this name. Raises LaunchError."""
        jobs = self._ask(self._client.list_jobs)
        return next((job for job in jobs if job.submission_id == job_id), None)

    def start(self, job_id: str, *, entrypoint: str, runtime_env: dict[str, Any]) -> None:
        """Hands a job to the cluster. Raises LaunchError."""
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "RAY_COLOR_PREFIX": "0"}
        self._ask(
            lambda: self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env={**runtime_env, "env_vars": variables},
            )
        )

    def stop(self, job_id: str) -> None:
        """Lets a job save a checkpoint and end. Raises LaunchError."""
        self._ask(lambda: self._client.stop_job(job_id))

    def read_output(self, job_id: str) -> str:
        """All that a job has printed so far. Raises LaunchError."""
        output: str = self._ask(lambda: self._client.get_job_logs(job_id))
        return output

    def has_work_left(self, job_id: str) -> bool:
        """Whether a job that succeeded ended before its work did. Raises LaunchError."""
        return _last_line(self.read_output(job_id)) == LEFT_LINE

    def follow(
        self,
        job_id: str,
        show: Callable[[str], object],
        *,
        notice: Callable[[str], object],
        patience_s: float = math.inf,
    ) -> Outcome:
        """Shows what the job prints until it has ended; another call goes on where one was left.

        Args:
            job_id: the job.
            show: is called with each new part of the output.
            notice: is told when the connection is lost.
            patience_s: how long the cluster may not answer.

        Raises:
            LaunchError: the cluster knows the job no more, the token is not accepted any more, or
                it has not answered for longer than `patience_s`.
        """
        follower = self._followers.setdefault(job_id, _Follower(self._client, job_id))
        told = False
        answered_s = time.monotonic()
        while True:
            lost: Exception | None = None
            follower.heard = False
            try:
                asyncio.run(follower.follow(show))
            except Exception as error:  # aiohttp's, Ray's; what it means, the next question tells
                lost = error
            told = told and not follower.heard
            if follower.heard:
                answered_s = time.monotonic()
            try:
                details = self._client.get_job_info(job_id)
                answered_s = time.monotonic()
                if details.status.is_terminal() or lost:
                    output = self._client.get_job_logs(job_id)
                    follower.show_from(len(output), output, show)
                if details.status.is_terminal():
                    return describe_outcome(details, output)
            except Exception as error:
                lost = self._refuse_final(error, job_id)
            if lost is None:
                continue
            if time.monotonic() - answered_s > patience_s:
                raise LaunchError(
                    f"the Ray cluster at {self.address} has not answered for {patience_s:g} s: "
                    f"{first_line(lost)}"
                ) from lost
            if not told:
                notice(f"connection lost ({first_line(lost)}); the job goes on, trying again")
            told = True
            time.sleep(RETRY_S)

    def _refuse_final(self, error: Exception, job_id: str) -> Exception:
        """The error, if asking again may help. Raises LaunchError."""
        if isinstance(error, AuthenticationError):
            raise LaunchError(first_line(error)) from None
        if "status code 404" in str(error):
            raise LaunchError(
                f"the cluster at {self.address} knows no job {job_id} any more (its head was "
                "started anew) -> the same command submits it again, and the run goes on from its "
                "last checkpoint"
            ) from None
        return error

    def _connect(self) -> JobSubmissionClient:
        # RAY_ADDRESS and its like would win over the address that was given.
        with environment({"RAY_API_SERVER_ADDRESS": self.address}):
            if self._mode == "token":
                _use_token(self.address)
            client = self._ask(lambda: _Client(self.address))
        theirs = client._server_ray_version
        if theirs != ray.__version__:
            raise LaunchError(
                f"Ray is {theirs} at {self.address} and {ray.__version__} here -> install "
                f"ray=={theirs} here, or the same image there"
            )
        return client

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except AuthenticationError as error:
            raise LaunchError(
                f"the Ray cluster at {self.address} does not accept this token: "
                f"{first_line(error)} -> put the cluster's into RAY_AUTH_TOKEN or {token_path()}"
            ) from None
        except Exception as error:  # requests' and Ray's own
            raise LaunchError(f"the Ray cluster at {self.address}: {first_line(error)}") from error


def describe_outcome(details: JobDetails, output: str) -> Outcome:
    """The exit code that the job's command had, as far as Ray knows or the output tells."""
    if details.status == JobStatus.STOPPED:
        # Ray notes none; the job's first process prints it, unless it was killed as well.
        last = _last_line(output)
        code = last.removeprefix(EXIT_LINE)
        if last != code and code.isdigit():
            return Outcome(int(code))
        return Outcome(KILLED, f"the job was killed {STOP_WAIT_S} s after it was asked to stop")
    if details.driver_exit_code is None:
        reason = first_line(Exception(details.message or details.status))
        return Outcome(3, f"the job was not run to its end: {reason}")
    code = details.driver_exit_code
    return Outcome(128 - code if code < 0 else code)


class _Client(JobSubmissionClient):
    """Ray's, but each request ends."""

    def _do_request(self, method: str, endpoint: str, **how: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=REQUEST_TIMEOUT_S, **how)


class _Follower:
    """Shows a job's output once, however often it has to be asked for from its beginning."""

    def __init__(self, client: _Client, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._shown = 0
        self.heard = False
        """Whether anything has come since this was last set."""

    async def follow(self, show: Callable[[str], object]) -> None:
        """Until the job has ended or the connection is lost, which raises."""
        position = 0
        parts = self._client.tail_job_logs(self._job_id)
        part = asyncio.ensure_future(anext(parts))
        try:
            while True:
                if not (await asyncio.wait({part}, timeout=SILENCE_S))[0]:
                    # A connection that is cut somewhere between brings nothing, for ever.
                    details = await asyncio.to_thread(self._client.get_job_info, self._job_id)
                    if details.status.is_terminal():
                        return
                    continue
                try:
                    text = part.result()
                except StopAsyncIteration:
                    return
                part = asyncio.ensure_future(anext(parts))
                self.heard = True
                position += len(text)
                self.show_from(position, text, show)
        finally:
            part.cancel()
            await asyncio.gather(part, return_exceptions=True)
            await parts.aclose()

    def show_from(self, position: int, text: str, show: Callable[[str], object]) -> None:
        """What is new in `text`, which ends at this position of the whole output."""
        new = position - self._shown
        if new > 0:
            show(text[-new:])
            self._shown = position


def _last_line(output: str) -> str:
    return output.rstrip().rpartition("\n")[2]


def _check_installed() -> None:
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise LaunchError(
            f"Ray's jobs API is not installed here -> pip install 'ray[default]=={ray.__version__}'"
        ) from None


def _ask_mode(address: str) -> str:
    """How the cluster authenticates, which it tells everybody: "token" or "disabled"."""
    import requests

    try:
        answer = requests.get(f"{address}/api/authentication_mode", timeout=REQUEST_TIMEOUT_S)
        mode = answer.json()["authentication_mode"]
    except requests.exceptions.JSONDecodeError:
        raise LaunchError(f"what answers at {address} is no Ray dashboard") from None
    except (requests.exceptions.RequestException, KeyError, TypeError) as error:
        reason = first_line(error).rpartition(": ")[2].rstrip("')\"")
        raise LaunchError(
            f"nothing answers at {address}: {reason} -> the head's dashboard, e.g. "
            "http://head:8265; on Kubernetes by kubectl port-forward"
        ) from None
    return str(mode)


def _use_token(address: str) -> None:
    """Lets Ray's client show this user's token."""
    fault = describe_token_fault()
    if fault is not None:
        raise LaunchError(fault)
    if not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        raise LaunchError(
            f"the Ray cluster at {address} wants a token -> put it into RAY_AUTH_TOKEN, or into "
            f"{token_path()} with chmod 600"
        )
    with environment({"RAY_AUTH_MODE": "token"}):
        Config.initialize("")
