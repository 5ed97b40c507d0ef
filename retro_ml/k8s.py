"""`python -m retro_ml.k8s`, `retro-ml k8s render`: the Kubernetes manifests of a run.

Exit codes: 0 done, 1 the manifests could not be written, 2 bad input. Neither a cluster nor
kubectl is asked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically
from retro_ml.core.experiments.command import BAD_INPUT, Parser, fail, print_answer, refuse
from retro_ml.core.experiments.command_line import UsageError, parse_command_line
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.faults import nearest_names
from retro_ml.deploy.kustomize import Manifest
from retro_ml.deploy.run_manifests import OVERLAYS, CannotRender, job_name, render_run
from retro_ml.run import build_experiment

_DESCRIPTION = """\
Write the Kubernetes manifests of a run, for KubeRay and `kubectl apply -f -`. The run is described
as for `retro-ml run`: by --config, --set and its flags."""

_EPILOG = """\
examples:
  retro-ml k8s render --config run.yaml --overlay gpu --out manifests
  retro-ml k8s render --game-id pong --experiment-id pong-1 --set output_dir=s3://bucket/runs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Render one run as `argv` says; the process's exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        flags, config = _read_call(words)
        manifests = _render(config, flags)
    except UsageError as error:
        return refuse("k8s render", error.faults)
    except CannotRender as error:
        return refuse("k8s render", error.faults)
    text = yaml.dump_all(manifests, Dumper=_PlainDumper, sort_keys=False, width=100)
    if flags.out is None:
        print_answer(text.removesuffix("\n"))
        return 0
    return _write(text, Path(flags.out) / f"{job_name(config.experiment_id)}.yaml")


class _PlainDumper(yaml.SafeDumper):
    """Writes out what stands twice, as people read manifests."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_PlainDumper.add_representer(str, _PlainDumper.represent_str)


def _read_call(words: list[str]) -> tuple[argparse.Namespace, ExperimentConfig]:
    """This command's flags, and the run that the others describe. Raises: UsageError."""
    parser = _build_parser()
    if not words or words[0] in {"-h", "--help"}:
        parser.print_help()
        raise SystemExit(0 if words else BAD_INPUT)
    if words[0] != "render":
        raise UsageError([f"{words[0]}: unknown -> {nearest_names(words[0], ['render'])}"])
    flags, others = parser.parse_known_args(words[1:])
    faults = []
    if flags.overlay not in OVERLAYS:
        faults.append(f"--overlay: {flags.overlay} -> {nearest_names(flags.overlay, OVERLAYS)}")
    call = parse_command_line(others)
    if call.options or call.print_config or call.dry_run or call.as_json:
        faults.append("options of one call of `retro-ml run` -> only what describes the run")
    if call.is_sweep:
        faults.append(
            "several runs -> one at a time, or a sweep: kubectl apply -k k8s/overlays/sweep"
        )
        raise UsageError(faults)
    try:
        config, _ = build_experiment(call)
    except UsageError as error:
        faults += error.faults
    if faults:
        raise UsageError(faults)
    return flags, config


def _build_parser() -> Parser:
    parser = Parser(
        "k8s render",
        usage="--config FILE [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--overlay",
        metavar="NAME",
        default="cpu",
        help=f"the kind of cluster: {', '.join(OVERLAYS)} (default: cpu)",
    )
    parser.add_argument("--image", metavar="IMAGE", help="the image, best by its digest")
    parser.add_argument(
        "--out", metavar="DIR", help="a folder for the file; by default it goes to stdout"
    )
    return parser


def _render(config: ExperimentConfig, flags: argparse.Namespace) -> list[Manifest]:
    from retro_ml.cluster.plan import plan_run

    plan = plan_run(config)
    return render_run(
        config,
        overlay=flags.overlay,
        image=flags.image,
        memory_bytes=plan.memory_bytes,
        disk_bytes=plan.disk_bytes,
    )


def _write(text: str, path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, lambda file: file.write(text.encode()))
    except (ArtifactError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        return fail(f"--out: {path.parent}: {reason} -> another folder", 1)
    print(f"manifests: {path}", file=sys.stderr)
    print(f"next: kubectl apply -f {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
