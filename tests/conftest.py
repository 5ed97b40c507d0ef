"""What all tests need: no message leaves this machine because of them, and a storage to talk to."""

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before the first `import ray`, which reads it; worker processes inherit it.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# Ignored where a shell has begun the tests behind itself, and what they begin would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test depends on the time that a case takes; what may never end has limits of its own.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ordinary", _COMMON, max_examples=25, derandomize=True, database=None)
settings.register_profile("nightly", _COMMON, max_examples=1_000, print_blob=True)
settings.load_profile("nightly" if os.environ.get("RETRO_ML_TESTS") == "nightly" else "ordinary")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the longest tests to the nights."""
    if os.environ.get("RETRO_ML_TESTS") == "nightly":
        return
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="long: RETRO_ML_TESTS=nightly scripts/test"))


KEY, SECRET = "AKIAPLANTEDKEY123456", "planted/secret+of/the/tests/0123456789abc"
"""Planted: neither may be found in anything that a run leaves."""


class S3Server:
    """A real S3 server (moto's) on loopback, in front of which faults can be put.

    `fault(method, path)` is asked for every request and may return a status to answer instead,
    or wait. `stop` takes the endpoint away, `start` brings it back with all objects.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        self._server: Any = None
        self._port = 0
        self.fault: Callable[[str, str], int | None] | None = None
        self.requests: list[tuple[str, str]] = []
        self.start()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        status = self.fault(method, path) if self.fault is not None else None
        if status is None:
            return self._app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        names = {503: "SlowDown", 403: "AccessDenied"}
        body = f"<Error><Code>{names.get(status, 'InternalError')}</Code></Error>"
        start_response(f"{status} fault", [("Content-Type", "application/xml")])
        return [body.encode()]

    def start(self) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log_request(self, *args: Any) -> None:
                pass

        self._server = make_server(
            "127.0.0.1", self._port, self, threaded=True, request_handler=Silent
        )
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to use it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """Another program's view of it."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def keys(self, bucket: str) -> set[str]:
        """Every object's key, the markers of folders apart."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = {item["Key"] for page in pages for item in page.get("Contents", ())}
        return {key for key in keys if not key.endswith("/")}

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Every object's content by key."""
        client = self.client()
        found = {}
        for key in self.keys(bucket):
            with suppress(client.exceptions.NoSuchKey):  # deleted meanwhile
                found[key] = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return found


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server without faults, with an empty bucket `runs`, named by this process's environment.

    What it holds is gone after the test.
    """
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.fault = None
    s3_server.requests.clear()
    s3_server.client().create_bucket(Bucket="runs")
    yield s3_server
    s3_server.fault = None
    reset = f"{s3_server.environment['AWS_ENDPOINT_URL']}/moto-api/reset"
    urllib.request.urlopen(urllib.request.Request(reset, method="POST")).close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits for what another thread or process does; fails after four minutes."""

    def wait(happened: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 240.0
        while not happened():
            assert time.monotonic() < end_s
            time.sleep(0.1)

    return wait
