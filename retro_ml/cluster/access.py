"""Who may use a Ray: tokens, their file, and clusters that ask for none.

A Ray without token authentication runs the code of whoever reaches its ports (CVE-2023-48022).
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

ASK_TIMEOUT_S = 30.0
ASK = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"retro_ml", None, 10)
print("open")
"""
"""Asks Ray's head for something harmless. A process has one way to authenticate for all of its
connections (2.60), so it takes one of its own to ask without a token."""


def is_open(gcs_address: str) -> bool:
    """Whether the head at this address answers somebody who shows no token."""
    without = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", ASK, gcs_address],
            env={**without, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:  # no answer, while whoever has the token gets one
        return False
    return done.stdout.strip() == "open"


def token_path() -> Path:
    """Where Ray reads the token from, unless it stands in RAY_AUTH_TOKEN."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def describe_token_fault() -> str | None:
    """What is wrong with the file of this user's token, with its remedy; None if nothing is.

    Ray itself writes it for everybody to read (2.60, ~/.ray/auth_token as 0644).
    """
    path = token_path()
    if os.environ.get("RAY_AUTH_TOKEN") or not path.is_file():
        return None
    status = path.stat()
    if status.st_uid == os.getuid() and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return (
            f"the token in {path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}); "
            f"chmod 600 {path}"
        )
    return None
