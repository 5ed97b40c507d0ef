"""`scripts/image_test`: builds the image for real, runs it hardened, scans it, says what it saw.

Needs root, buildah, podman, crun and debootstrap, and trivy, which the test extra brings; neither a
Docker engine nor a registry. The image stays in DIR for `podman` to use.

Exit codes: 0 every check held, 1 one did not, 2 bad arguments, 3 this machine cannot do it.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
import time
from pathlib import Path

from imaging.build import IMAGE, CannotBuild, build, check_tools, make_base, store
from imaging.evidence import Failed
from imaging.trial import Trial, make_folder


def main() -> int:
    """Build, run, scan; the process's exit code."""
    call = parse()
    folder = Path(call.dir).resolve()
    began_s = time.monotonic()
    try:
        check_tools()
        leave_hybrid_cgroups()
        env = store(folder)
        print(f"ok  base: {make_base(folder, env):.0f} s", flush=True)
        # A builder's own secrets, which must not get into any layer.
        planted = {"AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30)}
        print(f"ok  build: {build(folder, {**env, **planted}):.0f} s", flush=True)
        try_out(folder, env, planted=planted)
    except CannotBuild as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except Failed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(f"done in {time.monotonic() - began_s:.0f} s")
    return 0


def leave_hybrid_cgroups() -> None:
    """Take cgroups out of this process's sight: crun refuses a machine with both kinds of them.

    Its mount namespace is its own, so nothing changes for others.
    """
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    if not Path("/sys/fs/cgroup/unified").is_dir():
        return
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in mounts:
        if mount.startswith("/sys/fs/cgroup/"):
            subprocess.run(["umount", "--lazy", mount], check=True)


def try_out(folder: Path, env: dict[str, str], *, planted: dict[str, str]) -> None:
    """Every check. Raises: Failed."""
    trial = Trial(env, folder / "trial")
    make_folder(trial.folder)
    trial.check("size", lambda: measure(env))
    trial.check("hardened", trial.looks_hardened)
    trial.check("usage", trial.serves_help)
    trial.check("main job", trial.trains)
    trial.check("SIGTERM", trial.ends_by_sigterm)
    trial.check("docker stop", trial.ends_by_docker_stop)
    trial.check("SIGKILL", trial.resumes_after_kill)
    trial.check("bucket", trial.goes_on_from_a_bucket)
    trial.check("node with a job", trial.node_ends_with_a_checkpoint)
    trial.check("next cluster", trial.next_cluster_goes_on)
    trial.check("cluster gone", trial.submitter_ends_with_its_cluster)
    trial.secrets |= {f"builder's {name}": value for name, value in planted.items()}
    archive = folder / "image.tar"
    archive.unlink(missing_ok=True)
    try:
        command = ["podman", "save", "--quiet", "--output", str(archive), IMAGE]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        trial.check("secrets", lambda: trial.has_no_secrets(archive))
        trial.check("SBOM", lambda: trial.lists_its_parts(archive))
    finally:
        archive.unlink(missing_ok=True)


def measure(env: dict[str, str]) -> str:
    """The image's size."""
    command = ["podman", "image", "inspect", "--format", "{{.Size}}", IMAGE]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return f"{int(done.stdout) / 1e9:.2f} GB unpacked"


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="scripts/image_test", description=__doc__)
    parser.add_argument("--dir", default=Path.home() / ".cache/retro-ml-image",
                        help="of images and logs (~/.cache/retro-ml-image)")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
