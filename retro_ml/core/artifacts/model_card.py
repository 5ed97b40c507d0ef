"""README.md inside a model.zip: what the model is and how to use it, for people."""

from __future__ import annotations

from typing import Any

_HEAD = """\
---
library_name: retro_ml
tags: [reinforcement-learning, deep-reinforcement-learning, atari, {tags}]
---

# {algorithm} on {game}

A NatureCNN (Mnih et al. 2015) that plays {game}, trained with {algorithm} by
retro_ml {retro_ml} for {agent_steps} agent steps.

| | |
|---|---|
{table}

The score is the mean of the last 100 games in training, unclipped returns of whole games; it is no
evaluation. `retro-ml evaluate model.zip` plays whole games by a named protocol.

## Use

```python
import numpy as np

from retro_ml import Agent

agent = Agent.load("model.zip")
print(agent.play().score)  # one whole game
observation = np.zeros((4, 84, 84), np.uint8)  # or a batch of such
action = agent.act(observation, deterministic=True)
```
"""

_SB3 = """
Stable-Baselines3 reads the same file, and can train it further:

```python
import numpy as np
from stable_baselines3 import {algorithm}

model = {algorithm}.load("model.zip")
observation = np.zeros((4, 84, 84), np.uint8)
action, _ = model.predict(observation, deterministic=True)
```

Training there does without {losses}.
"""

_NO_SB3 = """
Stable-Baselines3 cannot read it: {reason}.
"""

_TAIL = """
Plain PyTorch, JAX and others read `weights.safetensors`; `retro-ml export model.zip --to onnx`
writes an ONNX file. Opening this archive with retro_ml runs no code from it.

## What it sees and does

Observations are `[4, 84, 84] uint8`: the last 4 frames in grey, oldest first, zeros before the
game's first. A frame is the pixelwise maximum of the last 2 of the {frame_skip} frames for which an
action is held. The division by 255 is part of the network.

{actions}

{protocol}

## Training

{training}
"""


def build_model_card(metadata: dict[str, Any], config: dict[str, Any]) -> str:
    """The card's Markdown, from what metadata.json and config.json say."""
    game, sb3 = metadata["game"], metadata["stable_baselines3"]
    algorithm = metadata["algorithm"]
    card = _HEAD.format(
        tags=", ".join([game["rom"], algorithm.lower()]),
        algorithm=algorithm,
        game=config["game_id"],
        retro_ml=metadata["versions"].get("retro_ml"),
        agent_steps=_show(metadata["agent_steps"]),
        table=_table(metadata, config),
    )
    if sb3["loads"]:
        card += _SB3.format(algorithm=algorithm, losses=", ".join(sb3["not_taken_over"]))
    else:
        card += _NO_SB3.format(reason=sb3["reason"])
    return card + _TAIL.format(
        frame_skip=metadata["preprocessing"]["frame_skip"],
        actions=_actions(game["action_meanings"]),
        protocol=_protocol(metadata["protocol"]),
        training=_training(metadata, config),
    )


def _table(metadata: dict[str, Any], config: dict[str, Any]) -> str:
    history = metadata["history"]
    best = history["best"] or {}
    rows = {
        "score": _show(metadata["score"]),
        "best score in training": _show(best.get("score")),
        "agent steps": _show(metadata["agent_steps"]),
        "frames": _show(history["frames"]),
        "games": _show(history["games"]),
        "seed": str(config["seed"]),
        "run": config["experiment_id"],
        "created": metadata["created_at"],
        "versions": ", ".join(f"{name} {v}" for name, v in metadata["versions"].items() if v),
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _actions(meanings: list[str]) -> str:
    named = ", ".join(f"{index} {meaning}" for index, meaning in enumerate(meanings))
    return f"Actions: {named}."


def _protocol(protocol: dict[str, Any]) -> str:
    noops = f"1 to {protocol['noop_max']} no-ops" if protocol["noop_max"] else "no no-ops"
    fire = "FIRE is pressed" if protocol["auto_fire"] else "FIRE is not pressed"
    return (
        f"Played with sticky actions of {protocol['sticky_actions']}, {noops} at the start, games "
        f"of {protocol['max_frames']:,} frames at most; {fire} at starts and after lost lives, "
        "where the game has it."
    )


def _training(metadata: dict[str, Any], config: dict[str, Any]) -> str:
    lines = []
    source = metadata.get("initialized_from")
    if source is not None:
        lines += [f"Began with the weights of another model: {source['description']}.", ""]
    lines += ["| agent steps | score |", "|---|---|"]
    for point in metadata["history"]["curve"][::_EVERY]:
        lines.append(f"| {_show(point['agent_steps'])} | {_show(point['score'])} |")
    lines += ["", f"{metadata['algorithm']}'s settings (all are in config.json):", ""]
    section = config[metadata["algorithm"].lower()]
    lines += [f"- {name}: {value}" for name, value in section.items()]
    return "\n".join(lines)


_EVERY = 5
"""Of the curve's points, each that many is shown."""


def _show(number: Any) -> str:
    if number is None:
        return "unknown"
    return f"{number:,}" if isinstance(number, int) else f"{number:,.1f}"
