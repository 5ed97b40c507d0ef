"""Who may talk to whom, by what the policies select."""

import itertools
from typing import Any

import pytest

pytestmark = pytest.mark.unit

Manifest = dict[str, Any]
OPERATOR = {"namespace": "kuberay", "labels": {"app.kubernetes.io/name": "kuberay-operator"}}
DNS = {"namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
NODE_DNS = {"cidr": "169.254.20.10/32"}
STRANGER = {"namespace": "elsewhere", "labels": {"app": "shop"}}


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def is_peer(peer: Manifest, other: Manifest, *, home: str) -> bool:
    if "ipBlock" in peer:
        return False  # addresses, no pods
    if "namespaceSelector" in peer:
        names = {"kubernetes.io/metadata.name": other["namespace"]}
        if not selects(peer["namespaceSelector"], names):
            return False
    elif other["namespace"] != home:
        return False
    return selects(peer.get("podSelector", {}), other["labels"])


def allows(
    policies: list[Manifest], pod: Manifest, other: Manifest, *, way: str, port: int
) -> bool:
    """Whether `pod` may get (ingress) from or send (egress) to `other` at `port`, TCP."""
    side = {"ingress": "from", "egress": "to"}[way]
    for policy in policies:
        spec = policy["spec"]
        if not selects(spec["podSelector"], pod["labels"]):
            continue
        for rule in spec.get(way, []):
            ports = [entry["port"] for entry in rule.get("ports", []) if entry["protocol"] == "TCP"]
            if "ports" in rule and port not in ports:
                continue
            if any(is_peer(peer, other, home=pod["namespace"]) for peer in rule[side]):
                return True
    return False


def reaches(policies: list[Manifest], pod: Manifest, other: Manifest, port: int) -> bool:
    """Both ends have to allow it; what is elsewhere has no policies of ours."""
    out = pod["namespace"] != "retro-ml" or allows(policies, pod, other, way="egress", port=port)
    into = other["namespace"] != "retro-ml" or allows(
        policies, other, pod, way="ingress", port=port
    )
    return out and into


@pytest.fixture
def policies(manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"]


@pytest.fixture
def nodes(pods: list[Manifest]) -> dict[str, Manifest]:
    """One of each kind: head, worker, and the submitter where there is one."""
    return {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["metadata"] for pod in pods
    }


def test_everything_is_denied_first(policies: list[Manifest]) -> None:
    denied = [
        policy["spec"]
        for policy in policies
        if policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ]
    assert len(denied) == 1
    for policy in policies:
        assert policy["metadata"]["namespace"] == "retro-ml"
        for way in ("ingress", "egress"):  # an empty rule or peer would allow all
            for rule in policy["spec"].get(way, []):
                assert all(rule.get({"ingress": "from", "egress": "to"}[way], [{}]))
                assert rule[{"ingress": "from", "egress": "to"}[way]]


def test_ray_nodes_reach_each_other_at_any_port(
    policies: list[Manifest], nodes: dict[str, Manifest]
) -> None:
    head, worker = nodes["ray-head"], nodes["ray-worker"]
    for one, other in itertools.product([head, worker], repeat=2):
        for port in (6379, 8265, 10001, 52365, 30000):
            assert reaches(policies, one, other, port)


def test_the_jobs_api_is_for_the_submitter_and_the_operator(
    policies: list[Manifest], nodes: dict[str, Manifest]
) -> None:
    head = nodes["ray-head"]
    callers = [OPERATOR, *([nodes["submitter"]] if "submitter" in nodes else [])]
    for caller in callers:
        assert reaches(policies, caller, head, 8265)
        for port in (6379, 10001, 52365):
            assert not reaches(policies, caller, head, port)
        assert not reaches(policies, caller, nodes["ray-worker"], 8265)


def test_nobody_else_gets_in(policies: list[Manifest], nodes: dict[str, Manifest]) -> None:
    neighbour = {"namespace": "retro-ml", "labels": {"app": "shop"}}
    for node in nodes.values():
        for port in (22, 443, 6379, 8265, 10001, 52365):
            assert not reaches(policies, STRANGER, node, port)
            assert not reaches(policies, neighbour, node, port)
            assert not reaches(policies, node, STRANGER, port)


def test_names_are_resolved_and_nothing_else_is_asked_there(
    policies: list[Manifest], nodes: dict[str, Manifest]
) -> None:
    for node in nodes.values():
        assert reaches(policies, node, DNS, 53)
        assert not reaches(policies, node, DNS, 443)
        assert not reaches(policies, node, STRANGER, 53)


def test_names_are_resolved_by_a_cache_on_the_machine_too(policies: list[Manifest]) -> None:
    """NodeLocal DNSCache: pods ask an address of their machine, not a pod of kube-system."""
    rules = [
        (policy["spec"]["podSelector"], rule)
        for policy in policies
        for rule in policy["spec"].get("egress", [])
        if {"ipBlock": NODE_DNS} in rule["to"]
    ]
    assert len(rules) == 1
    selector, rule = rules[0]
    assert selector == {}
    assert {(port["protocol"], port["port"]) for port in rule["ports"]} == {
        ("UDP", 53),
        ("TCP", 53),
    }


def test_addresses_outside_are_open_only_for_what_needs_them(
    manifests: list[Manifest], policies: list[Manifest], nodes: dict[str, Manifest]
) -> None:
    """443 to storage where runs go to a bucket, the API server where there is an autoscaler."""
    pods = [m for m in manifests if m["kind"] in {"RayJob", "RayCluster"}]
    scaled = any(pod["spec"].get("rayClusterSpec", pod["spec"]).get("enableInTreeAutoscaling")
                 for pod in pods)  # fmt: skip
    on_s3 = not any(manifest["kind"] == "PersistentVolumeClaim" for manifest in manifests)
    storage: set[int] = {443} if on_s3 else set()
    api: set[int] = {443, 6443} if scaled else set()
    expected = {"ray-head": storage | api, "ray-worker": storage, "submitter": set()}
    for name, node in nodes.items():
        blocks = [
            (peer["ipBlock"], {port["port"] for port in rule["ports"]})
            for policy in policies
            if selects(policy["spec"]["podSelector"], node["labels"])
            for rule in policy["spec"].get("egress", [])
            for peer in rule["to"]
            if "ipBlock" in peer and peer["ipBlock"] != NODE_DNS
        ]
        assert set().union(*(ports for _, ports in blocks)) == expected[name]
        closed = {"0.0.0.0/0": "169.254.0.0/16", "::/0": "fe80::/10"}
        for block, _ in blocks:  # but for the machine's metadata, which gives away its role
            assert closed[block["cidr"]] in block["except"]
        for family in closed:
            ports = [ports for block, ports in blocks if block["cidr"] == family]
            assert set().union(*ports) == expected[name]
