"""Where a run's files end up: a folder of this machine, or storage named by a URI.

`s3://bucket/prefix`, `gs://bucket/prefix` and `file:///folder` name storage that takes whole
objects only. A run works in a local folder then, its staging place, and its files are sent on
while it goes on (`artifacts.run_mirror`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

STAGING_VARIABLE = "RETRO_ML_STAGING"
"""Environment variable: the folder that staging places are made in."""
SCHEMES = ("s3", "gs", "file")
CREDENTIALS_REMEDY = (
    "no keys and no options in the URI, which is saved and logged; give them by the environment: "
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION"
)
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_LIKE_A_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(s3|gs|file):/", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", re.ASCII)
# What a key may hold and be spelt the same in a URI, in a file's name and on a terminal.
_PATH = re.compile(r"[A-Za-z0-9 ._=+,~/-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Location:
    """A URI, read; `path` is `bucket/prefix`, or an absolute folder for file."""

    scheme: str
    path: str


def is_uri(output_dir: str) -> bool:
    """Whether it names storage rather than a folder of this machine."""
    return _LIKE_A_URI.match(output_dir) is not None


def normalize_uri(text: str) -> str:
    """The URI in the one spelling that is saved. Raises ValueError with what is allowed."""
    location = parse_uri(text)
    return f"{location.scheme}://{location.path}"


def parse_uri(text: str) -> Location:
    """The URI's parts.

    Raises:
        ValueError: says what is allowed; the text itself is not repeated, it may hold a key.
    """
    match = _URI.fullmatch(text.strip())
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in SCHEMES:
        raise ValueError("a folder's path, or a URI that begins with s3://, gs:// or file:///")
    rest = match[2].rstrip("/")
    host, _, path = rest.partition("/")
    if "@" in host or ":" in host or "?" in rest or "#" in rest:
        raise ValueError(CREDENTIALS_REMEDY)
    if scheme == "file":
        if host or not path:
            raise ValueError("file:// and an absolute folder, e.g. file:///mnt/runs")
    elif not _BUCKET.fullmatch(host):
        raise ValueError(f"{scheme}://BUCKET/PREFIX, with a bucket's name")
    segments = path.split("/") if path else []
    if not _PATH.fullmatch(path) or any(part in ("", ".", "..") for part in segments):
        raise ValueError(
            "a URI whose path has no empty part, no '.' or '..' and only letters, digits, "
            "spaces and ._=+,~-"
        )
    return Location(scheme, "/" + path if scheme == "file" else "/".join([host, *segments]))


def hide_credentials(text: str) -> str:
    """`text` with what a URI must not hold taken out, to be shown."""
    text = re.sub(r"://.*@", "://***@", text, flags=re.DOTALL)
    text = re.sub(r"(://[^?#]*)[?#].*", r"\1?***", text, flags=re.DOTALL)
    return re.sub(r"://[^/*]*:.*", "://***", text, flags=re.DOTALL)


def hide_credentials_in(message: str) -> str:
    """What somebody else's error says, without what the URIs in it must not hold."""
    message = re.sub(r"://.*@", "://***@", message, flags=re.DOTALL)
    return re.sub(r"://\S+", lambda uri: hide_credentials(uri[0]), message)


def local_dir(output_dir: str) -> Path:
    """Where files are made that belong to `output_dir`: itself, or the staging place of a URI."""
    return staging_dir(output_dir) if is_uri(output_dir) else Path(os.path.abspath(output_dir))


def staging_dir(uri: str) -> Path:
    """The local folder that stands for `uri` on this machine; the same for every call.

    In `$RETRO_ML_STAGING`, or `$XDG_CACHE_HOME/retro_ml/staging`, or
    `~/.cache/retro_ml/staging`; `s3://bucket/a` is `s3/bucket/a` there.
    """
    root = os.environ.get(STAGING_VARIABLE)
    if not root:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        root = os.path.join(cache, "retro_ml", "staging")
    location = parse_uri(uri)
    return Path(os.path.abspath(root), location.scheme, location.path.lstrip("/"))
