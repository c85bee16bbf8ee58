"""How fast lro is on this machine, beside what the machine itself can do: `python -m benchmarks`."""
