"""The console script `retro-ml`: a subcommand's word -> the `main(argv)` of its module.

Modules are imported only when their word is typed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from retro_ml.core.experiments.faults import nearest_names

COMMANDS = {
    "run": ("retro_ml.run", "train an agent on an Atari game"),
    "sweep": ("retro_ml.sweep", "train games x algorithms x seeds x hyperparameters"),
    "submit": ("retro_ml.submit", "run a command of retro-ml on a Ray cluster, as a job"),
    "doctor": ("retro_ml.doctor", "look whether this machine or a cluster can run an experiment"),
    "evaluate": ("retro_ml.evaluate", "play whole games with a trained agent and score it"),
    "export": ("retro_ml.export", "write a trained agent as ONNX, torch.export or safetensors"),
    "watch": ("retro_ml.watch", "film a trained agent, or watch it in the terminal"),
    "list": ("retro_ml.list", "show the experiments under a folder"),
    "compare": ("retro_ml.compare", "show what differs between runs, and in what they reached"),
    "report": ("retro_ml.report", "tell what came of a run, or of many, in one page"),
    "k8s": ("retro_ml.k8s", "write a run's manifests for KubeRay: retro-ml k8s render"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the rest of `argv` to the subcommand; the process's exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[words[0]][0])
        exit_code: int = module.main(words[1:])
        return exit_code
    if words and words[0] in {"-h", "--help"}:
        print(_usage())
        return 0
    if words:
        suggestion = nearest_names(words[0], list(COMMANDS))
        print(f"error: {words[0]}: unknown command -> {suggestion}", file=sys.stderr)
    print(_usage(), file=sys.stderr)
    return 2


def _usage() -> str:
    lines = [f"  {word:<8} {meaning}" for word, (_, meaning) in COMMANDS.items()]
    return "\n".join(["usage: retro-ml COMMAND [options]", "", "commands:", *lines])


if __name__ == "__main__":
    sys.exit(main())
