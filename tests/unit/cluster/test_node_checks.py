"""What is said of nodes that lack something; nodes themselves are in tests/integration."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retro_ml.cluster import node_checks
from retro_ml.cluster.node_checks import (
    Check,
    look_around,
    node_name,
    prove_nodes,
    versions_here,
)
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig

pytestmark = pytest.mark.unit
NODE = {"NodeID": "abcdef0123", "NodeManagerAddress": "10.0.0.2", "Resources": {"GPU": 2.0}}


def answer(**changed: Any) -> dict[str, dict[str, Any]]:
    found = {"versions": versions_here(), "missing_roms": [], "storage": {}, "gpus": 2}
    return {node_name(NODE): {**found, **changed}}


def test_each_fault_is_one_line_with_its_remedy() -> None:
    other = {**versions_here(), "torch": "1.0", "ray": "1.2.3"}
    checks = [
        *node_checks._check_versions(answer(versions=other)),
        *node_checks._check_roms(answer(missing_roms=["pong"]), ["pong"]),
        *node_checks._check_gpus([NODE], answer(gpus=1)),
    ]
    said = ("ray 1.2.3, the driver has", "torch 1.0, the driver has", "no ROM of pong", "sees 1 ->")
    assert [check.name for check in checks] == ["versions", "versions", "games", "GPUs"]
    for check, words in zip(checks, said, strict=True):
        assert check.fault is not None
        assert check.fault.startswith("node 10.0.0.2 (abcdef): ")
        assert words in check.fault
        assert check.fault.count(" -> ") == 1
        assert "\n" not in check.fault


def test_nodes_with_the_same_fault_share_its_line() -> None:
    old, older = ({**versions_here(), "torch": version} for version in ("2.0", "1.0"))
    missing = answer()[node_name(NODE)]
    answers = {f"node {i}": {**missing, "versions": old} for i in range(5)}
    answers["node 5"] = {**missing, "versions": older}
    several, one = node_checks._check_versions(answers)
    assert several.fault is not None
    assert several.fault.startswith("5 nodes (node 0, node 1, node 2, ...): torch 2.0, ")
    assert one.fault is not None
    assert one.fault.startswith("node 5: torch 1.0, ")


def test_nothing_is_said_of_nodes_that_have_all() -> None:
    checks = [
        *node_checks._check_versions(answer()),
        *node_checks._check_roms(answer(), ["pong"]),
        *node_checks._check_gpus([NODE], answer()),
    ]
    assert [check.fault for check in checks] == [None] * 3


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A driver's node with GPUs and another one, faked; the ids of those that are looked at."""
    context = SimpleNamespace(get_node_id=lambda: NODE["NodeID"])
    other = {**NODE, "NodeID": "999999", "Resources": {}}
    looked_at: list[list[str]] = []

    def check(configs: Any, nodes: Any) -> list[Check]:
        looked_at.append([node["NodeID"] for node in nodes])
        return [Check("games", "all")]

    monkeypatch.setattr(node_checks.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(node_checks, "alive_nodes", lambda: [NODE, other])
    monkeypatch.setattr(node_checks, "check_nodes", check)
    return looked_at


def test_the_driver_s_node_proves_the_gpus_that_it_promises(two_nodes: list[list[str]]) -> None:
    config = ExperimentConfig(game_id="pong")
    prove_nodes([config], embedded=False)
    prove_nodes([config.model_copy(update={"use_gpu": False})], embedded=False)
    prove_nodes([config], embedded=True)
    assert two_nodes == [[NODE["NodeID"], "999999"], ["999999"]]


def test_several_faults_are_a_line_each(
    two_nodes: list[list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = [Check("games", "", "a: no ROM -> x"), Check("GPUs", "", "b: none -> y")]
    monkeypatch.setattr(node_checks, "check_nodes", lambda configs, nodes: found)
    with pytest.raises(LaunchError, match="2 faults, a line each in the log; the first: a: no ROM"):
        prove_nodes([ExperimentConfig(game_id="pong")], embedded=False)
    assert caplog.messages == ["a: no ROM -> x", "b: none -> y"]
    del found[1]
    with pytest.raises(LaunchError, match=r"^a: no ROM -> x$"):
        prove_nodes([ExperimentConfig(game_id="pong")], embedded=False)


def test_a_node_reads_what_the_driver_wrote_and_leaves_its_own(tmp_path: Path) -> None:
    folder = (tmp_path / "runs").as_uri()
    with node_checks._probes([folder]) as (probes, faults):
        assert faults == []
        found = look_around(["pong", "no-such-game"], probes, NODE["NodeID"], 0)
        assert found["storage"] == {}
        assert found["missing_roms"] == ["no-such-game"]
        seen = answer(storage={})
        assert list(node_checks._read_back(probes[0], seen)) == []
        unseen = {"node 10.0.0.3 (999999)": seen[node_name(NODE)]}
        ((name, fault),) = node_checks._read_back(probes[0], unseen)
        assert name == "node 10.0.0.3 (999999)"
        assert "is not seen by the driver" in fault
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = (tmp_path / "file" / "runs").as_uri()
    with node_checks._probes([folder]) as (probes, faults):
        assert probes == []
        assert faults[0][0] == "the driver"
        assert faults[0][1].startswith(f"cannot write {tmp_path}/file/runs: ")
    gone = f"{tmp_path.as_uri()}/gone"
    one, other = (
        look_around([], [f"{gone}/probe"], name, 0)["storage"] for name in ("node1", "node2")
    )
    assert list(one) == [gone]
    assert one == other
