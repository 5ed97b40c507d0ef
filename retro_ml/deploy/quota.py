"""Whether all that a run asks for has room in its namespace's quota.

Kubernetes makes no pod beyond it and says so in an event that nobody looks for: the run would wait
for an hour and then be given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

_UNITS = {"m": Fraction(1, 1000)} | {
    unit: Fraction(2**power) for unit, power in (("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40))
}


def check_quota(manifests: list[dict[str, Any]]) -> list[str]:
    """A line for each thing of which the RayJob asks for more than the ResourceQuota allows."""
    (quota,) = (m for m in manifests if m["kind"] == "ResourceQuota")
    (job,) = (m for m in manifests if m["kind"] == "RayJob")
    needed: dict[str, Fraction] = {}
    for containers, pods in _pods(job["spec"]):
        needed["pods"] = needed.get("pods", Fraction()) + pods
        for sizes in containers:
            for name, size in _flatten(sizes):
                needed[name] = needed.get(name, Fraction()) + pods * read_quantity(size)
    faults = []
    for name, most in quota["spec"]["hard"].items():
        if needed.get(name, Fraction()) > read_quantity(most):
            asked = _write(needed[name], most)
            faults.append(
                f"resources: {name} of {asked} in all -> at most {most}, by the namespace's quota"
            )
    return faults


def read_quantity(text: str) -> Fraction:
    """A quantity as Kubernetes writes it: 128, 500m, 512Gi."""
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return Fraction(text.removesuffix(unit)) * factor
    return Fraction(text)


def _write(size: Fraction, like: str) -> str:
    """In the unit of `like`."""
    unit = next((unit for unit in _UNITS if like.endswith(unit)), "")
    return f"{float(size / _UNITS.get(unit, Fraction(1))):g}{unit}"


def _pods(job: Mapping[str, Any]) -> Iterator[tuple[list[Mapping[str, Any]], int]]:
    """The resources of a pod's containers, and how many such pods there are at the start."""
    cluster = job["rayClusterSpec"]
    head = _sizes(cluster["headGroupSpec"]["template"])
    if cluster.get("enableInTreeAutoscaling"):
        head.append(cluster["autoscalerOptions"]["resources"])
    yield head, 1
    yield _sizes(job["submitterPodTemplate"]), 1
    for group in cluster["workerGroupSpecs"]:
        yield _sizes(group["template"]), group["replicas"]


def _sizes(template: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [container["resources"] for container in template["spec"]["containers"]]


def _flatten(resources: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """`requests.cpu` and so on, as a quota names them."""
    for kind, sizes in resources.items():
        for name, size in sizes.items():
            yield f"{kind}.{name}", size
