"""Runs the image as Kubernetes' restricted profile would: read-only, no capabilities, no root."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imaging.bucket import Bucket
from imaging.build import IMAGE
from imaging.evidence import (
    LIMIT_S,
    Failed,
    describe_checkpoint,
    expect,
    find_in_files,
    find_in_layer,
    newest_checkpoint,
    plant_secrets,
    read_status,
    wait_for_line,
    wait_until,
)

USER = 10001
HARDENED = [
    "--cgroups=disabled", "--no-healthcheck", "--ulimit", "nofile=16384:16384",
    "--ulimit", "nproc=32768:32768", "--read-only", "--tmpfs", "/tmp",
    "--tmpfs", "/home/retro:rw,size=64m,mode=1777", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--shm-size", "256m",
]  # fmt: skip
TRAIN_ANYWHERE = ["retro-ml", "run", "--game-id", "pong", "--seed", "1"]
TRAIN = [*TRAIN_ANYWHERE, "--output-dir", "/runs"]
LONG = ["--total-timesteps", "5000000", "--set", "checkpointing.every_steps=2000"]


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
            call = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--no-wait", "--"]
            call += [*TRAIN, "--experiment-id", "submitted", *LONG]
            self._podman("exec", "node-1", *call)
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

    def goes_on_from_a_bucket(self) -> str:
        """Of a killed run nothing but the bucket is left: the next container goes on from it."""
        with Bucket(self.secrets) as bucket:
            call = [*TRAIN_ANYWHERE, "--output-dir", bucket.uri, "--experiment-id", "staged", *LONG]
            where = [word for name, value in bucket.environment.items()
                     for word in ("--env", f"{name}={value}")]  # fmt: skip
            first = self._launch("s3-1", where, call, network="host")

            def has_saved() -> bool:
                if first.poll() is not None:
                    raise Failed((self.folder / "s3-1.txt").read_text())
                return bucket.newest_checkpoint("staged") > 0

            wait_until(has_saved, "no checkpoint in the bucket")
            self._podman("kill", "--signal", "KILL", "s3-1")
            expect(first.wait(timeout=LIMIT_S), 137)
            self._podman("rm", "--force", "s3-1")
            saved = bucket.newest_checkpoint("staged")
            second = self._launch("s3-2", where, call, network="host")
            line = wait_for_line(self.folder / "s3-2.txt", "going on from")
            expect(f"{saved:,}" in line, True, line)
            self._podman("kill", "--signal", "TERM", "s3-2")
            expect(second.wait(timeout=LIMIT_S), 143)
            status = bucket.read_status("staged")
            expect(status["state"], "interrupted")
            expect(bucket.newest_checkpoint("staged"), status["step"])
            bucket.find_secrets()
        return f'exit 137, then "{line.strip()}", 143 with {status["step"]:,} steps in the bucket'

    def next_cluster_goes_on(self) -> str:
        """The same entrypoint in a new Ray, as KubeRay's retry makes one, by its submitter."""
        entrypoint = [*TRAIN, "--experiment-id", "submitted", *LONG, "--max-hours", "0.001"]
        with self._node("node-2") as token:
            submitter = self._launch_submitter("node-2", token, shlex.join(entrypoint))
            code = submitter.wait(timeout=LIMIT_S)
        text = (self.folder / "submitter-of-node-2.txt").read_text()
        expect(code, 0, text)
        expect("has ended with exit code 0" in text, True, text)
        return next(line.strip() for line in text.splitlines() if "going on from" in line)

    def submitter_ends_with_its_cluster(self) -> str:
        """A head that is killed makes the submitter fail, so that another attempt is made."""
        with self._node("node-3") as token:
            submitter = self._launch_submitter("node-3", token, "echo begun; sleep 600")
            wait_for_line(self.folder / "submitter-of-node-3.txt", "begun")
            began_s = time.monotonic()
            self._podman("kill", "--signal", "KILL", "node-3")
            code = submitter.wait(timeout=LIMIT_S)
            took_s = time.monotonic() - began_s
        expect(code, 1, (self.folder / "submitter-of-node-3.txt").read_text())
        if took_s > 130:
            raise Failed(f"took {took_s:.0f} s, two of which are too many for KubeRay's 300")
        return f"exit 1 after {took_s:.0f} s without a head"

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
    def _node(self, name: str) -> Iterator[str]:
        """A head with CPUs of its own, in a network of its own, that says it is healthy.

        Yields its token.
        """
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
            yield token
        finally:
            self._podman("rm", "--force", "--depend", "--ignore", name)
            process.wait(timeout=LIMIT_S)

    def _launch_submitter(self, node: str, token: str, entrypoint: str) -> subprocess.Popen[bytes]:
        """As KubeRay's pod, in the node's network."""
        settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_DASHBOARD_ADDRESS": "127.0.0.1:8265",
            "RAY_JOB_SUBMISSION_ID": f"job-of-{node}",
        }
        where = [word for name, value in settings.items()
                 for word in ("--env", f"{name}={value}")]  # fmt: skip
        call = ["submit-job", entrypoint]
        return self._launch(f"submitter-of-{node}", where, call, network=f"container:{node}")

    def _launch(
        self, name: str, options: Sequence[str], call: Sequence[str], *, network: str = "none"
    ) -> subprocess.Popen[bytes]:
        # With what a pass that was cut off has left in its network.
        self._podman("rm", "--force", "--depend", "--ignore", name)
        command = ["podman", "--runtime", "crun", "run", "--name", name]
        command += [*self._options(), "--network", network, *options]
        with (self.folder / f"{name}.txt").open("wb") as file:
            return subprocess.Popen(
                [*command, IMAGE, *call], env=self.env, stdout=file, stderr=file
            )

    def _run(self, options: Sequence[str], call: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = ["podman", "--runtime", "crun", "run", "--rm"]
        command += [*self._options(), "--network", "none", *options]
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


def make_folder(folder: Path) -> None:
    """An empty one, in which the container's user may write runs."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "runs").mkdir(parents=True)
    os.chown(folder / "runs", USER, USER)
