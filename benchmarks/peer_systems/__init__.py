"""What benchmarks/peers.py compares: one set of workloads, and a runner for each system."""
