"""What is said of nodes that lack something; nodes themselves are in tests/integration."""

from pathlib import Path
from typing import Any

import pytest

from retro_ml.cluster import node_checks
from retro_ml.cluster.node_checks import look_around, node_name, versions_here

pytestmark = pytest.mark.unit
NODE = {"NodeID": "abcdef0123", "NodeManagerAddress": "10.0.0.2", "Resources": {"GPU": 2.0}}


def answer(**changed: Any) -> dict[str, dict[str, Any]]:
    found = {"versions": versions_here(), "missing_roms": [], "storage": {}, "gpus": 2}
    return {node_name(NODE): {**found, **changed}}


def test_each_fault_is_one_line_with_its_remedy() -> None:
    other = {**versions_here(), "torch": "1.0"}
    checks = [
        node_checks._check_versions(answer(versions=other)),
        node_checks._check_roms(answer(missing_roms=["pong"]), ["pong"]),
        node_checks._check_gpus([NODE], answer(gpus=1)),
    ]
    for check, said in zip(checks, ("has torch 1.0", "no ROM of pong", "sees 1"), strict=True):
        assert check.fault is not None
        assert check.fault.startswith("node 10.0.0.2 (abcdef) ")
        assert said in check.fault
        assert " -> " in check.fault
        assert "\n" not in check.fault


def test_nothing_is_said_of_nodes_that_have_all() -> None:
    checks = [
        node_checks._check_versions(answer()),
        node_checks._check_roms(answer(), ["pong"]),
        node_checks._check_gpus([NODE], answer()),
    ]
    assert [check.fault for check in checks] == [None] * 3


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
        assert "is not seen by the driver" in "".join(node_checks._read_back(probes[0], unseen))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = (tmp_path / "file" / "runs").as_uri()
    with node_checks._probes([folder]) as (probes, faults):
        assert probes == []
        assert faults[0].startswith(f"the driver cannot write {tmp_path}/file/runs: ")
    found = look_around([], [f"{tmp_path.as_uri()}/gone/probe"], "n", 0)
    assert list(found["storage"]) == [f"{tmp_path.as_uri()}/gone"]
