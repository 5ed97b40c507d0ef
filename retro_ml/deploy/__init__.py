"""Kubernetes manifests: what is in k8s/, and what a run makes of it."""
