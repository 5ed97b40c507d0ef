"""Runs the image as Kubernetes' restricted profile would: read-only, no capabilities, no root."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imaging.build import IMAGE

USER = 10001
LIMIT_S = 900.0
HARDENED = [
    "--cgroups=disabled", "--no-healthcheck", "--ulimit", "nofile=16384:16384",
    "--ulimit", "nproc=32768:32768", "--network", "none", "--read-only", "--tmpfs", "/tmp",
    "--tmpfs", "/home/retro:rw,size=64m,mode=1777", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--shm-size", "256m",
]  # fmt: skip
TRAIN = ["retro-ml", "run", "--game-id", "pong", "--output-dir", "/runs", "--seed", "1"]
LONG = ["--total-timesteps", "5000000", "--set", "checkpointing.every_steps=2000"]


class Failed(AssertionError):
    """A check did not hold; the message says what was seen."""


@dataclass
class Trial:
    """The checks of one image; each prints a line."""

    env: Mapping[str, str]
    folder: Path
    secrets: dict[str, str] = field(default_factory=dict)

    def check(self, what: str, run: Callable[[], str]) -> None:
        """Raises: Failed."""
        began_s = time.monotonic()
        seen = run()
        print(f"ok  {what}: {seen} ({time.monotonic() - began_s:.0f} s)", flush=True)

    # What is in it.

    def looks_hardened(self) -> str:
        """Who runs, what is left of the build."""
        script = (
            "import os, pathlib, shutil, sys\n"
            "status = pathlib.Path('/proc/self/status').read_text()\n"
            "kept = dict(line.split(':', 1) for line in status.splitlines())\n"
            "tools = [t for t in ('gcc', 'cc', 'make', 'git', 'curl') if shutil.which(t)]\n"
            "here = pathlib.Path('/opt/retro-ml')\n"
            "pips = [str(p) for p in here.glob('lib/*/site-packages/pip')]\n"
            "caches = [p for p in ('/root/.cache', '/home/retro/.cache') if os.path.exists(p)]\n"
            "print(os.getuid(), os.getgid(), kept['CapEff'].strip(), kept['NoNewPrivs'].strip(),\n"
            "      kept['Seccomp'].strip(), os.access('/', os.W_OK), tools + pips + caches)\n"
        )
        seen = self._run([], ["python", "-c", script]).stdout.strip()
        expect(seen, f"{USER} {USER} 0000000000000000 1 2 False []")
        return f"user {USER}, no capabilities, no new privileges, seccomp, no build tools"

    def serves_help(self) -> str:
        """The command without arguments, and what is packed with it."""
        done = self._run([], [])
        if "retro-ml COMMAND" not in done.stdout:
            raise Failed(done.stdout + done.stderr)
        rendered = self._run([], ["retro-ml", "k8s", "render", "--game-id", "pong"])
        expect(rendered.returncode, 0, rendered.stderr)
        expect("kind: RayJob" in rendered.stdout, True)
        return "prints its usage, renders manifests"

    # What it does.

    def trains(self) -> str:
        """The main job, with everything that a run leaves."""
        self.secrets = plant_secrets()
        planted = [word for name, value in self.secrets.items()
                   for word in ("--env", f"{name}={value}")]  # fmt: skip
        call = [*TRAIN, "--experiment-id", "main", "--run-type", "QUICK"]
        began_s = time.monotonic()
        done = self._run(planted, call)
        expect(done.returncode, 0, done.stderr)
        run = self.folder / "runs/main"
        names = {path.name for path in run.iterdir()}
        wanted = {"config.json", "status.json", "metrics.csv", "metrics.json", "events.log",
                  "training.log", "model.zip", "checkpoints"}  # fmt: skip
        expect(wanted - names, set())
        expect(read_status(run)["state"], "completed")
        find_in_files(run, list(self.secrets.values()))
        return f"10,000 agent steps, {len(wanted)} artifacts, in {time.monotonic() - began_s:.0f} s"

    def ends_by_sigterm(self) -> str:
        """A signal to the container becomes a checkpoint and exit code 143."""
        run, process = self._start("stopped")
        began_s = time.monotonic()
        self._podman("kill", "--signal", "TERM", "stopped")
        code = process.wait(timeout=LIMIT_S)
        took_s = time.monotonic() - began_s
        expect(code, 143, (self.folder / "stopped.txt").read_text())
        status = read_status(run)
        expect(status["state"], "interrupted")
        return f"exit 143 after {took_s:.0f} s, {describe_checkpoint(run)}"

    def ends_by_docker_stop(self) -> str:
        """`docker stop`: TERM, then KILL after the grace period, which is not needed."""
        run, process = self._start("docker-stop")
        began_s = time.monotonic()
        self._podman("stop", "--time", "60", "docker-stop")
        code = process.wait(timeout=LIMIT_S)
        took_s = time.monotonic() - began_s
        expect(code, 143)
        if took_s > 30:
            raise Failed(f"took {took_s:.0f} s")
        return f"exit 143 after {took_s:.0f} s of 60, {describe_checkpoint(run)}"

    def resumes_after_kill(self) -> str:
        """Without any grace nothing that was saved is lost: the same command goes on."""
        run, process = self._start("killed")
        self._podman("kill", "--signal", "KILL", "killed")
        expect(process.wait(timeout=LIMIT_S), 137)
        saved = newest_checkpoint(run)
        _, process = self._start("killed")
        line = wait_for_line(self.folder / "killed.txt", "going on from")
        expect(f"{saved:,}" in line, True, line)
        self._podman("kill", "--signal", "TERM", "killed")
        expect(process.wait(timeout=LIMIT_S), 143)
        return f'exit 137, then "{line.strip()}"'

    def node_ends_with_a_checkpoint(self) -> str:
        """As a head pod: healthy, a job submitted to it, stopped in the middle of the job."""
        with self._node("node-1"):
            self._submit("node-1", "--no-wait")
            run = self.folder / "runs/submitted"
            wait_until(lambda: newest_checkpoint(run) > 0, "no checkpoint")
            began_s = time.monotonic()
            self._podman("stop", "--time", "120", "node-1")
            took_s = time.monotonic() - began_s
            wait_for_line(self.folder / "node-1.txt", "end-node: stopping Ray")
        if took_s > 110:
            raise Failed(f"{took_s:.0f} s, so it was killed")
        expect(read_status(run)["state"], "interrupted")
        return f"healthy; stopped in {took_s:.0f} s, {describe_checkpoint(run)}"

    def next_cluster_goes_on(self) -> str:
        """The same entrypoint in a new Ray, as KubeRay's retry makes one."""
        with self._node("node-2"):
            done = self._submit("node-2", extra=["--max-hours", "0.001"])
            expect(done.returncode, 0, done.stdout.decode())
        lines = done.stdout.decode().splitlines()
        return next(line.strip() for line in lines if "going on from" in line)

    # What is in its layers.

    def has_no_secrets(self, archive: Path) -> str:
        """Neither what trivy takes for one, nor what lay in the environment of build and run."""
        done = self._trivy("--scanners", "secret", "--format", "json", "--input", str(archive))
        found = [
            f"{result['Target']}: {secret['Title']}"
            for result in json.loads(done).get("Results", [])
            for secret in result.get("Secrets", [])
        ]
        expect(found, [])
        layers = 0
        with tarfile.open(archive) as image:
            for member in image.getmembers():
                if member.name.endswith(".tar") and member.isfile():
                    layers += 1
                    find_in_layer(image, member, list(self.secrets.values()))
        return f"trivy finds none, the planted ones are in none of {layers} layers"

    def lists_its_parts(self, archive: Path) -> str:
        """A bill of materials in which every locked package stands."""
        path = self.folder / "sbom.cdx.json"
        text = self._trivy("--format", "cyclonedx", "--scanners", "license",
                           "--input", str(archive))  # fmt: skip
        path.write_text(text, encoding="utf-8")
        parts = json.loads(text)["components"]
        names = {part["name"].lower().replace("_", "-") for part in parts}
        wanted = {"retro-ml", "ray", "torch", "ale-py", "pyarrow", "pydantic"}
        expect(wanted - names, set())
        return f"{len(parts)} components in {path.name}"

    # How.

    def _start(self, name: str) -> tuple[Path, subprocess.Popen[bytes]]:
        """A long run that has just saved a checkpoint."""
        run = self.folder / "runs" / name
        seen = newest_checkpoint(run)
        process = self._launch(name, [], [*TRAIN, "--experiment-id", name, *LONG])
        end_s = time.monotonic() + LIMIT_S
        while newest_checkpoint(run) <= seen:
            if process.poll() is not None or time.monotonic() > end_s:
                raise Failed((self.folder / f"{name}.txt").read_text())
            time.sleep(0.2)
        return run, process

    @contextmanager
    def _node(self, name: str) -> Iterator[None]:
        """A head with CPUs of its own, in a network of its own, that says it is healthy."""
        token = secrets.token_hex(32)
        where = ["--env", "RAY_AUTH_MODE=token", "--env", f"RAY_AUTH_TOKEN={token}"]
        call = ["ray-node", "--head", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
        call += ["--object-store-memory=100000000"]
        process = self._launch(name, where, call)

        def is_healthy() -> bool:
            if process.poll() is not None:
                raise Failed((self.folder / f"{name}.txt").read_text())
            return self._podman("exec", name, "healthcheck", check=False).returncode == 0

        try:
            wait_until(is_healthy, "the node is never healthy")
            yield
        finally:
            self._podman("rm", "--force", name, check=False)
            process.wait(timeout=LIMIT_S)

    def _submit(
        self, node: str, *options: str, extra: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        call = ["exec", node, "ray", "job", "submit", "--address", "http://127.0.0.1:8265"]
        call += [*options, "--", *TRAIN, "--experiment-id", "submitted", *LONG, *extra]
        return self._podman(*call, check=False)

    def _launch(
        self, name: str, options: Sequence[str], call: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        self._podman("rm", "--force", name, check=False)
        command = ["podman", "--runtime", "crun", "run", "--name", name, *self._options(), *options]
        with (self.folder / f"{name}.txt").open("wb") as file:
            return subprocess.Popen(
                [*command, IMAGE, *call], env=self.env, stdout=file, stderr=file
            )

    def _run(self, options: Sequence[str], call: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = ["podman", "--runtime", "crun", "run", "--rm", *self._options(), *options]
        return subprocess.run(
            [*command, IMAGE, *call], env=self.env, check=False, capture_output=True, text=True,
            timeout=LIMIT_S,
        )  # fmt: skip

    def _options(self) -> list[str]:
        return [*HARDENED, "--volume", f"{self.folder / 'runs'}:/runs"]

    def _podman(self, *call: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["podman", "--runtime", "crun", *call], env=self.env, check=check, capture_output=True
        )

    def _trivy(self, *options: str) -> str:
        command = ["trivy", "image", "--quiet", "--skip-version-check", "--offline-scan"]
        command += ["--skip-db-update", "--cache-dir", str(self.folder / "trivy"), *options]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        expect(done.returncode, 0, done.stderr)
        return done.stdout


def wait_until(happened: Callable[[], bool], what: str) -> None:
    """Raises: Failed after a while."""
    end_s = time.monotonic() + LIMIT_S
    while not happened():
        if time.monotonic() > end_s:
            raise Failed(what)
        time.sleep(0.5)


def plant_secrets() -> dict[str, str]:
    """Keys and tokens as they would be there, which must appear nowhere."""
    return {
        "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(8).upper()}",
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def find_in_files(folder: Path, values: Sequence[str]) -> None:
    """Raises: Failed where one of `values` stands in a file."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for value in values:
                if value.encode() in content:
                    raise Failed(f"{path} has a planted secret")


def find_in_layer(image: tarfile.TarFile, member: tarfile.TarInfo, values: Sequence[str]) -> None:
    """Raises: Failed where one of `values` stands in an image's layer."""
    longest = max(map(len, values), default=0)
    file = image.extractfile(member)
    kept = b""
    while file is not None and (block := file.read(1 << 24)):
        content = kept + block
        if any(value.encode() in content for value in values):
            raise Failed(f"the layer {member.name} has a planted secret")
        kept = content[-longest:]


def newest_checkpoint(run: Path) -> int:
    """Agent steps of the newest whole checkpoint, 0 without."""
    found = run.glob("checkpoints/step-*/manifest.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)


def describe_checkpoint(run: Path) -> str:
    """Where a run can go on; it must be where it stopped. Raises: Failed."""
    steps, stopped = newest_checkpoint(run), read_status(run)["step"]
    expect(steps, stopped)
    return f"checkpoint at {steps:,} agent steps, where it stopped"


def read_status(run: Path) -> dict[str, Any]:
    """status.json."""
    status: dict[str, Any] = json.loads((run / "status.json").read_text(encoding="utf-8"))
    return status


def wait_for_line(path: Path, words: str) -> str:
    """The first line with `words`. Raises: Failed after a while."""
    found: list[str] = []

    def has_line() -> bool:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found[:] = [line for line in lines if words in line]
        return bool(found)

    wait_until(has_line, f"no line with {words!r} in {path}")
    return found[0]


def expect(seen: object, wanted: object, more: str = "") -> None:
    """Raises: Failed."""
    if seen != wanted:
        raise Failed(f"{seen!r} instead of {wanted!r}\n{more}")


def make_folder(folder: Path) -> None:
    """An empty one, in which the container's user may write runs."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "runs").mkdir(parents=True)
    os.chown(folder / "runs", USER, USER)
