"""What a choice costs. Every module that registers a cost is imported here, so that `COSTS` has them all."""

from gcp.cost import analytic, device, latency, memory

__all__ = ["analytic", "device", "latency", "memory"]
