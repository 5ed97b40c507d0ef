"""The cluster drill: several nodes on one machine, jobs, a node that dies and one that joins."""
