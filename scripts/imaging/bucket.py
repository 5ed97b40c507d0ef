"""A bucket on this machine's loopback (moto's S3), and what a run has left in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSelector, FileType, S3FileSystem

from imaging.evidence import Failed

NAME = "runs"


class Bucket:
    """For the time of a `with` block.

    Args:
        keys: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, which the run is given.
    """

    uri = f"s3://{NAME}/lab"

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = {name: value for name, value in keys.items() if name.startswith("AWS_")}
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)

    def __enter__(self) -> Bucket:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
        self._server.start()
        _, port = self._server.get_host_and_port()
        endpoint = f"127.0.0.1:{port}"
        self.environment = {**self._keys, "AWS_ENDPOINT_URL": f"http://{endpoint}",
                            "AWS_REGION": "us-east-1"}  # fmt: skip
        self._files = S3FileSystem(
            access_key=self._keys["AWS_ACCESS_KEY_ID"],
            secret_key=self._keys["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=endpoint,
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        self._files.create_dir(NAME)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def newest_checkpoint(self, experiment_id: str) -> int:
        """Agent steps of the newest whole checkpoint, 0 without."""
        steps = [
            int(parts[-2].removeprefix("step-"))
            for parts in (path.split("/") for path in self._paths(experiment_id))
            if parts[-1] == "manifest.json" and parts[-2].startswith("step-")
        ]
        return max(steps, default=0)

    def read_status(self, experiment_id: str) -> dict[str, Any]:
        """status.json."""
        status: dict[str, Any] = json.loads(self._read(f"{NAME}/lab/{experiment_id}/status.json"))
        return status

    def find_secrets(self) -> None:
        """Raises: Failed where one of the keys stands in an object."""
        for path in self._paths(""):
            content = self._read(path)
            if any(value.encode() in content for value in self._keys.values()):
                raise Failed(f"s3://{path} has a planted secret")

    def _paths(self, experiment_id: str) -> Iterator[str]:
        folder = f"{NAME}/lab/{experiment_id}".rstrip("/")
        selector = FileSelector(folder, allow_not_found=True, recursive=True)
        for info in self._files.get_file_info(selector):
            if info.type == FileType.File:
                yield info.path

    def _read(self, path: str) -> bytes:
        with self._files.open_input_stream(path) as file:
            content: bytes = file.read()
            return content
