"""What is measured: the groups, the programs in each, and how much of it.

The programs of a group take turns, A B C A B C ..., so that a machine that slows down slows all of
them; ratios are taken within a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarking.marks import (
    EXPERIMENT_ID,
    read_finished_run_folder,
    read_report_file,
    read_run_folder,
)
from benchmarking.watch import FOLDER, Program

GAME = "BreakoutNoFrameskip-v4"
RETRO_FP32, RETRO_BF16 = "retro_ml fp32", "retro_ml bf16"
# In the precision that it chooses for itself.
RETRO, TIMED = "retro_ml", "retro_ml, timed"
SB3, STOCK, STOCK_EXAMPLE = "Stable-Baselines3", "RLlib", "RLlib, its example's network"
# Agent steps of one iteration of retro_ml: PPO 8 games x 128; A2C 13 updates of 16 x 5; DQN 16
# rounds of 4 x 4.
ITERATION = {"PPO": 1_024, "A2C": 1_040, "DQN": 256}
DQN_WARMUP = 1_000
"""Agent steps that DQN's rates leave out: 500 without updates, then some with."""
# PyTorch's waiting threads spin by default; retro_ml's trials end that soon (GOMP_SPINCOUNT).
SPIN = {"spinning": {}, "waiting": {"GOMP_SPINCOUNT": "30000"}}


@dataclass(frozen=True)
class Effort:
    """How much is done."""

    repetitions: int
    ppo_iterations: int
    """Of every program but stock RLlib; the first is warm-up, here and below."""
    stock_iterations: int
    a2c_iterations: int
    dqn_iterations: int
    dqn_sb3_agent_steps: int
    floor_s: float
    """For each of the four to seven parts of a floor."""
    long_s: float
    replay_size: int
    rows: int
    games: int


FULL = Effort(
    repetitions=3,
    ppo_iterations=8,
    stock_iterations=4,
    a2c_iterations=9,
    dqn_iterations=24,
    dqn_sb3_agent_steps=2_500,
    floor_s=2.0,
    long_s=300.0,
    replay_size=1_000_000,
    rows=50_000,
    games=1_000_000,
)
QUICK = Effort(
    repetitions=1,
    ppo_iterations=4,
    stock_iterations=2,
    a2c_iterations=4,
    dqn_iterations=12,
    dqn_sb3_agent_steps=1_750,
    floor_s=0.7,
    long_s=45.0,
    replay_size=200_000,
    rows=20_000,
    games=20_000,
)


@dataclass(frozen=True)
class Group:
    """Programs that take turns."""

    name: str
    meaning: str
    build: Callable[[Effort, int], list[Program]]
    """The programs of one repetition (from 1), which is also the seed."""
    once: bool = False
    """One repetition, whatever the effort."""


def build_ppo(effort: Effort, repetition: int) -> list[Program]:
    """All that train PPO."""
    steps = effort.ppo_iterations * ITERATION["PPO"]
    stock = ["--iterations", str(effort.stock_iterations), "--seed", str(repetition)]
    return [
        build_retro(RETRO_FP32, algorithm="PPO", agent_steps=steps, seed=repetition),
        build_sb3("PPO", agent_steps=steps, mark_every=ITERATION["PPO"], seed=repetition),
        build_retro(
            RETRO_BF16, algorithm="PPO", agent_steps=steps, seed=repetition, precision="bf16"
        ),
        build_own(STOCK, "stock_rllib", stock),
        build_own(STOCK_EXAMPLE, "stock_rllib", [*stock, "--example-network"]),
        *build_floors("PPO", effort),
    ]


def build_overhead(effort: Effort, repetition: int) -> list[Program]:
    """A run that notes what it spends outside of `Algorithm.train()`."""
    steps = effort.ppo_iterations * ITERATION["PPO"]
    retro = build_retro(
        TIMED, algorithm="PPO", agent_steps=steps, seed=repetition, precision="auto"
    )
    module, arguments = "benchmarking.programs.overhead", retro.arguments[2:]
    return [
        replace(
            retro,
            arguments=["-m", module, *arguments],
            read=read_report_file,
            read_finished=read_report_file,
        )
    ]


def build_a2c(effort: Effort, repetition: int) -> list[Program]:
    """retro_ml's and Stable-Baselines3's A2C."""
    steps = effort.a2c_iterations * ITERATION["A2C"]
    return [
        build_retro(RETRO_FP32, algorithm="A2C", agent_steps=steps, seed=repetition),
        build_sb3("A2C", agent_steps=steps, mark_every=ITERATION["A2C"], seed=repetition),
        build_retro(
            RETRO_BF16, algorithm="A2C", agent_steps=steps, seed=repetition, precision="bf16"
        ),
        *build_floors("A2C", effort),
    ]


def build_dqn(effort: Effort, repetition: int) -> list[Program]:
    """retro_ml's and Stable-Baselines3's DQN, one update of 32 for every 4 agent steps."""
    steps = effort.dqn_iterations * ITERATION["DQN"]
    fp32, bf16 = (
        build_retro(
            name,
            algorithm="DQN",
            agent_steps=steps,
            seed=repetition,
            precision=precision,
            fields=["dqn.replay_size=10000", "dqn.warmup_agent_steps=500"],
            warmup_agent_steps=DQN_WARMUP,
        )
        for name, precision in ((RETRO_FP32, "fp32"), (RETRO_BF16, "bf16"))
    )
    sb3 = build_sb3(
        "DQN",
        agent_steps=effort.dqn_sb3_agent_steps,
        mark_every=250,
        seed=repetition,
        warmup_agent_steps=DQN_WARMUP,
    )
    return [fp32, sb3, bf16, *build_floors("DQN", effort)]


def build_floors(algorithm: str, effort: Effort) -> list[Program]:
    """An algorithm's parts, with threads that spin and threads that wait as a trial's do."""
    return [
        build_own(
            f"parts, {name}",
            "floors",
            ["--algorithm", algorithm, "--seconds", str(effort.floor_s)],
            environment=environment,
        )
        for name, environment in SPIN.items()
    ]


def build_first(effort: Effort, repetition: int) -> list[Program]:
    """The main job, until its first row is there."""
    return [
        build_retro(
            RETRO,
            algorithm="PPO",
            agent_steps=None,
            seed=repetition,
            precision="auto",
            stop_at_first_mark=True,
        )
    ]


def build_long(effort: Effort, repetition: int) -> list[Program]:
    """PPO for minutes."""
    return [
        build_retro(
            RETRO,
            algorithm="PPO",
            agent_steps=10_000_000,
            seed=repetition,
            precision="auto",
            options=["--max-hours", f"{effort.long_s / 3600:.6f}"],
        )
    ]


def build_replay(effort: Effort, repetition: int) -> list[Program]:
    """A full replay."""
    return [build_own("replay", "replay", ["--size", str(effort.replay_size)])]


def build_bus(effort: Effort, repetition: int) -> list[Program]:
    """The bus and the writers."""
    return [build_own("bus", "bus", ["--rows", str(effort.rows), "--games", str(effort.games)])]


def build_retro(
    name: str,
    *,
    algorithm: str,
    agent_steps: int | None,
    seed: int,
    precision: str = "fp32",
    fields: list[str] | None = None,
    options: list[str] | None = None,
    warmup_agent_steps: int = 0,
    stop_at_first_mark: bool = False,
) -> Program:
    """retro_ml as its user runs it; the main job's length where `agent_steps` is None."""
    length = ["--run-type", "QUICK"]
    if agent_steps is not None:
        length = ["--total-timesteps", str(agent_steps)]
    values = ["use_gpu=false", f"resources.precision={precision}", *(fields or [])]
    arguments = ["-m", "retro_ml.run", "--game-id", GAME, "--algorithm", algorithm, *length]
    arguments += ["--seed", str(seed), *(options or []), "--quiet"]
    arguments += ["--output-dir", FOLDER, "--experiment-id", EXPERIMENT_ID]
    arguments += [part for value in values for part in ("--set", value)]
    return Program(
        name,
        arguments,
        read=read_run_folder,
        read_finished=read_finished_run_folder,
        warmup_agent_steps=warmup_agent_steps,
        stop_at_first_mark=stop_at_first_mark,
    )


def build_sb3(
    algorithm: str, *, agent_steps: int, mark_every: int, seed: int, warmup_agent_steps: int = 0
) -> Program:
    """Stable-Baselines3."""
    arguments = ["--algorithm", algorithm, "--agent-steps", str(agent_steps)]
    arguments += ["--mark-every", str(mark_every), "--seed", str(seed)]
    return build_own(SB3, "sb3", arguments, warmup_agent_steps=warmup_agent_steps)


def build_own(
    name: str,
    module: str,
    arguments: list[str],
    *,
    environment: dict[str, str] | None = None,
    warmup_agent_steps: int = 0,
) -> Program:
    """A program of `benchmarking.programs`."""
    return Program(
        name,
        ["-m", f"benchmarking.programs.{module}", *arguments],
        read=read_report_file,
        read_finished=read_report_file,
        environment=environment or {},
        warmup_agent_steps=warmup_agent_steps,
    )


GROUPS = (
    Group("ppo", "PPO beside Stable-Baselines3 and RLlib", build_ppo),
    Group("a2c", "A2C beside Stable-Baselines3", build_a2c),
    Group("dqn", "DQN beside Stable-Baselines3", build_dqn),
    Group("overhead", "what Tune, bus and writers cost", build_overhead),
    Group("first", "from the start to the first row", build_first),
    Group("long", "PPO for minutes: rate and memory over time", build_long, once=True),
    Group("replay", "memory of DQN's replay", build_replay, once=True),
    Group("bus", "the bus and the writers", build_bus, once=True),
)
GROUP_NAMES = tuple(group.name for group in GROUPS)
