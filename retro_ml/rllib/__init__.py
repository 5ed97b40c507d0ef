"""RLlib driven by an ExperimentConfig: the only rooms, with `cluster`, that know Ray."""
