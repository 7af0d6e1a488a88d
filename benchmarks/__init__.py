"""Measurements that can be repeated: ``python -m benchmarks NAME``. What they found lies in ``results/``."""
