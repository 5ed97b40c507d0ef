"""The benchmark's own arithmetic, tables and search for processes; nothing is timed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from benchmarking import __main__ as command
from benchmarking.answers import Answer, build_answers
from benchmarking.groups import (
    FULL,
    GROUPS,
    QUICK,
    RETRO_BF16,
    RETRO_FP32,
    SB3,
    SPIN,
    STOCK,
    STOCK_EXAMPLE,
    TIMED,
    Effort,
)
from benchmarking.marks import Mark, read_report_file, read_run_folder
from benchmarking.processes import MARKER, ProcessFamily
from benchmarking.rates import (
    Spread,
    ceiling,
    fifth_rates,
    memory_growth,
    ratios,
    spread,
    steady_rate,
)
from benchmarking.report import answers_table, build_markdown, replace_results, summarize
from benchmarking.results import build_results, keep_other_groups, save_results

from retro_ml.cluster.driver_process import SPIN_COUNT
from retro_ml.core.experiments.command_line import parse_command_line
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.run import build_experiment

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
MINE = f"test-{os.getpid()}"


def steady(rate: float, count: int) -> list[Mark]:
    return [Mark(1_000 * number, 1_000 * number / rate) for number in range(1, count + 1)]


def test_a_rate_leaves_out_the_first_iteration() -> None:
    marks = [Mark(1_000, 50.0), Mark(2_000, 54.0), Mark(3_000, 60.0)]

    assert steady_rate(marks) == 2_000 / 10.0
    assert steady_rate(marks, warmup_agent_steps=1_500) == 1_000 / 6.0
    assert steady_rate(marks[:1]) is None
    assert steady_rate([]) is None


def test_fifths_are_fifths_of_the_time() -> None:
    # 100 steps/s for 50 s, then 50 steps/s for 50 s.
    marks = [Mark(1_000 * n, 10.0 * n) for n in range(6)]
    marks += [Mark(5_000 + 500 * n, 50.0 + 10.0 * n) for n in range(1, 6)]

    assert fifth_rates(marks) == pytest.approx((100.0, 50.0))
    assert fifth_rates(marks[:5]) is None


def test_memory_is_compared_after_the_first_fifth_and_at_the_end() -> None:
    marks = [Mark(0, 0.0), Mark(1, 100.0)]
    memory = [(float(second), second * 1_000) for second in range(130)]

    assert memory_growth(memory, marks) == (22_500, 97_500)
    assert memory_growth([], marks) is None


def test_ratios_are_taken_repetition_by_repetition() -> None:
    found = ratios({1: 10.0, 2: 30.0, 3: 8.0}, {1: 5.0, 2: 10.0})

    assert found == [2.0, 3.0]
    assert spread(found) == Spread(2.5, 2.0, 3.0, 2)
    assert spread([]) is None


def test_the_ceiling_adds_the_times_of_the_parts() -> None:
    # 1/1000 + 1/500 + 4/2000 = 0.005 s for an agent step.
    found = ceiling(env=1_000, forward=500, update=2_000, samples_per_agent_step=4)

    assert found == pytest.approx(200.0)


def test_a_bar_is_met_or_missed_by_the_median() -> None:
    found = Spread(1.4, 1.0, 1.6, 3)

    assert Answer("ppo", "?", found, at_least=1.4).met is True
    assert Answer("ppo", "?", found, at_least=1.41).met is False
    assert Answer("ppo", "?", found, below=1.4).met is False
    assert Answer("ppo", "?", found, below=1.41).met is True
    assert Answer("ppo", "?", found).met is None
    assert Answer("ppo", "?", None, at_least=1.4).met is None


def test_misses_and_what_was_not_measured_are_shown() -> None:
    text = answers_table(
        [
            Answer("bus", "fast", Spread(2.0, 1.5, 2.5, 3), at_least=1.0, goal=3.0),
            Answer("bus", "slow", Spread(2_000.0, 2_000.0, 2_000.0, 1), "/s", at_least=50_000),
            Answer("bus", "large", Spread(0.051, 0.04, 0.06, 2), "%", below=0.03, note="why"),
            Answer("bus", "open", None, "GB"),
        ]
    )

    assert text.splitlines()[2:] == [
        "| fast | at least 1.00 | 3.00 | 2.00 (1.50 to 2.50) | met |  |",
        "| slow | at least 50,000/s |  | 2,000/s | **missed** |  |",
        "| large | below 3.0 % |  | 5.1 % (4.0 % to 6.0 %) | **missed** | why |",
        "| open |  |  | not measured |  |  |",
    ]


BuildResults = Callable[..., dict[str, Any]]


@pytest.fixture
def build() -> BuildResults:
    def build_with(runs: dict[str, list[dict[str, Any]]], *, cpu: str = "a cpu") -> dict[str, Any]:
        machine = {
            "cpu": cpu,
            "cores": 2,
            "memory_bytes": 2**34,
            "bf16_in_hardware": False,
            "system": "a system",
        }
        results = build_results(machine=machine, versions={"python": "3.11"}, mode="quick")
        for name, group_runs in runs.items():
            results["groups"][name] = {
                "meaning": name,
                "commit": "0123",
                "began_at": "2026-01-01T00:00:00+00:00",
                "runs": group_runs,
            }
        return json.loads(json.dumps(results))

    return build_with


def run(program: str, repetition: int, **values: Any) -> dict[str, Any]:
    empty = {
        "program": program,
        "repetition": repetition,
        "warmup_agent_steps": 0,
        "error": None,
        "first_mark_s": 9.0,
        "marks": [],
        "memory": [],
        "processes": 3,
        "facts": {},
    }
    return {**empty, **values}


def test_answers_come_from_the_samples(build: BuildResults) -> None:
    speeds = {RETRO_FP32: 300.0, RETRO_BF16: 330.0, SB3: 150.0, STOCK: 60.0, STOCK_EXAMPLE: 30.0}
    runs = [
        run(name, repetition, marks=steady(speed * repetition, 4), memory=[[0.0, int(1e6 * speed)]])
        for repetition in (1, 2)
        for name, speed in speeds.items()
    ]
    answers = {one.question: one for one in build_answers(build({"ppo": runs}))}

    medians = {name: one.found.median for name, one in answers.items() if one.found}
    assert medians == pytest.approx(
        {
            "rate, fp32 / Stable-Baselines3": 2.0,
            "rate, bf16 / Stable-Baselines3": 2.2,
            "rate, fp32 / RLlib": 5.0,
            "rate, fp32 / RLlib, its example's network": 10.0,
            "peak memory, fp32 / Stable-Baselines3": 2.0,
        }
    )
    assert "no bf16" in answers["rate, bf16 / Stable-Baselines3"].note


def test_a_failed_run_is_told_and_not_counted(build: BuildResults) -> None:
    results = build(
        {
            "a2c": [
                run(RETRO_FP32, 1, marks=steady(200.0, 3)),
                run(SB3, 1, marks=steady(100.0, 3), error="exit code 1: no memory"),
            ]
        }
    )

    answer, _ = build_answers(results)  # both precisions; no floors were measured
    text = build_markdown(results)

    assert answer.found is None
    assert "- Stable-Baselines3, repetition 1 failed: exit code 1: no memory" in text
    assert "| rate, fp32 / Stable-Baselines3 | at least 1.80 | 2.40 | not measured |" in text


def test_the_share_of_the_ceiling_takes_the_best_of_each_part_in_a_turn(
    build: BuildResults,
) -> None:
    def floor(repetition: int, env: float, forward: float, update: float) -> dict[str, Any]:
        facts = {
            "env_agent_steps_per_s": env,
            "forward_fp32_observations_per_s": forward,
            "update_fp32_samples_per_s": update,
        }
        return run("parts", repetition, facts=facts)

    results = build(
        {
            "ppo": [
                run(RETRO_FP32, 1, marks=steady(150.0, 3)),
                run(RETRO_FP32, 2, marks=steady(50.0, 3)),
                floor(1, 1_000, 100, 2_000),
                floor(1, 10, 500, 20),
                floor(2, 500, 250, 1_000),
            ]
        }
    )
    shares = [one.found for one in build_answers(results) if "parts allow" in one.question]
    (summary,) = [one for one in summarize(results) if "floor" in one]

    assert shares == [Spread(pytest.approx(0.625), pytest.approx(0.5), pytest.approx(0.75), 2)]
    assert [turn["ceiling"] for turn in summary["turns"]] == pytest.approx([200.0, 100.0])
    assert "1 / env" in summary["formula"]


def test_the_cost_of_tune_is_what_lies_between_and_what_others_computed(
    build: BuildResults,
) -> None:
    facts = {"between_share": 0.01, "other_cpu_share": 0.015}
    answers = build_answers(build({"overhead": [run(TIMED, 1, facts=facts)]}))

    assert answers[0].found == Spread(*[pytest.approx(0.025)] * 3, 1)
    assert answers[0].met


def test_only_the_part_between_the_comments_is_replaced() -> None:
    text = "# Title\n<!-- results -->\nold\n<!-- end of results -->\nrest\n"

    replaced = replace_results(text, "new\n")

    assert replaced == "# Title\n<!-- results -->\n\nnew\n\n<!-- end of results -->\nrest\n"
    assert replace_results(replaced, "new\n") == replaced
    with pytest.raises(ValueError, match="end of results"):
        replace_results("# Title\n<!-- results -->\n", "new\n")


def test_the_document_has_its_place_for_results() -> None:
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")

    assert "new" in replace_results(text, "new\n")


def test_measuring_some_groups_keeps_the_others(build: BuildResults, tmp_path: Path) -> None:
    path = tmp_path / "folder/benchmarks.json"
    save_results(build({"ppo": [run(SB3, 1)], "bus": [run("bus", 1)]}), path)
    now, elsewhere = build({}), build({}, cpu="another")

    assert keep_other_groups(now, path, measured_now={"ppo"}) is None
    assert "its machine is another" in str(keep_other_groups(elsewhere, path, measured_now=set()))
    assert list(now["groups"]) == ["bus"]
    assert elsewhere["groups"] == {}
    assert keep_other_groups(now, tmp_path / "none.json", measured_now=set()) is None


def test_a_report_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    assert read_report_file(tmp_path).marks == []
    (tmp_path / "report.jsonl").write_text(
        '{"agent_steps": 10, "time_s": 1.5}\n{"facts": {"a": 1}}\n{"facts": {"b": 2}}\n{"agent'
    )

    report = read_report_file(tmp_path)

    assert report.marks == [Mark(10, 1.5)]
    assert report.facts == {"a": 1, "b": 2}


def test_waiting_threads_wait_as_those_of_a_trial() -> None:
    assert SPIN["waiting"] == {"GOMP_SPINCOUNT": SPIN_COUNT}


def test_a_run_is_read_from_its_rows(tmp_path: Path) -> None:
    assert read_run_folder(tmp_path).marks == []
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark/metrics.csv").write_text(
        "type,timestamp,step,reward\n"
        "episode_finished,1970-01-01T00:00:01.000000+00:00,500,1.0\n"
        "training_step,1970-01-01T00:00:02.500000+00:00,1024,1.0\n"
        "training_step,1970-01-01T00:0"
    )

    assert read_run_folder(tmp_path).marks == [Mark(1024, 2.5)]


@pytest.mark.parametrize("effort", [FULL, QUICK])
def test_retro_ml_is_called_with_arguments_that_it_takes(effort: Effort) -> None:
    configs: list[ExperimentConfig] = []
    for group in GROUPS:
        for program in group.build(effort, 1):
            if program.arguments[1] == "retro_ml.run":
                call = parse_command_line(program.arguments[2:])
                configs.append(build_experiment(call)[0])

    algorithms = [config.algorithm for config in configs]
    assert algorithms == ["PPO", "PPO", "A2C", "A2C", "DQN", "DQN", "PPO", "PPO"]
    precisions = [config.resources.precision for config in configs]
    assert precisions == ["fp32", "bf16"] * 3 + ["auto"] * 2
    lengths = [config.total_timesteps / config.iteration_agent_steps for config in configs[:6:2]]
    assert lengths == [effort.ppo_iterations, effort.a2c_iterations, effort.dqn_iterations]


def test_the_bar_is_for_the_precision_that_is_chosen(build: BuildResults) -> None:
    speeds = {RETRO_FP32: 300.0, RETRO_BF16: 330.0, SB3: 150.0}
    results = build(
        {"dqn": [run(name, 1, marks=steady(speed, 4)) for name, speed in speeds.items()]}
    )
    bars = {}
    for in_hardware in (False, True):
        results["machine"]["bf16_in_hardware"] = in_hardware
        bars[in_hardware] = [answer.at_least for answer in build_answers(results)]
    assert bars == {False: [2.2, None], True: [None, 2.2]}


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A shell that has the marker and a `sleep` without it for its child."""
    process = subprocess.Popen(
        ["sh", "-c", f"env -u {MARKER} sh -c 'echo started; exec sleep 60 >&-' & wait"],
        env={"PATH": os.environ["PATH"], MARKER: MINE},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_programs_processes_are_found_by_marker_and_parent(
    sleeper: subprocess.Popen[bytes],
) -> None:
    family = ProcessFamily(MINE)

    members = family.find()
    count, size_bytes = family.measure()

    assert sleeper.pid in members
    assert len(members) == count == 2
    assert size_bytes > 10_000
    assert ProcessFamily(MINE[:-1]).find() == []


def test_a_member_stays_one_when_its_parent_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    family = ProcessFamily(MINE)
    (child,) = set(family.find()) - {sleeper.pid}

    sleeper.kill()
    sleeper.wait()

    assert family.find() == [child]
    assert ProcessFamily(MINE).find() == []
    family.kill()
    assert family.find() == []


@pytest.mark.parametrize("argv", [["--fast"], ["--only", "ppo,nonsense"], ["ppo"]])
def test_bad_arguments_are_one_message(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)

    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_the_measurer_imports_neither_ray_nor_torch() -> None:
    check = "import sys, benchmarking.__main__; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"

    answer = subprocess.run(
        [sys.executable, "-P", "-c", check], env={"PYTHONPATH": str(ROOT / "scripts")}, check=False
    )

    assert answer.returncode == 0
