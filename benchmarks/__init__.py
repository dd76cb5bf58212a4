"""The benchmark: this project and its peers, on the same work, on the same machine, in turn. ``python -m benchmarks --help``."""
