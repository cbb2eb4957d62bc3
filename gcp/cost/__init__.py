"""What a choice of widths costs. Modules that register a cost are imported here, so that `COSTS` has all costs."""

from gcp.cost import analytic, device, latency, memory

__all__ = ["analytic", "device", "latency", "memory"]
