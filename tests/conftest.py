"""What all tests need: no message leaves this machine because of them."""

import os

# Before the first `import ray`, which reads it; worker processes inherit it.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
