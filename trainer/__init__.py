"""Training on published shards (see README.md)."""

import os

# Before torch starts its threads: those that wait shall sleep. Where other processes want the cores, spinning threads
# take them from those that compute: a demo step took five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
