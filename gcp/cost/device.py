"""A device that need not exist yet: latency predicted from its data sheet, for a search before the chip is available.

For one image, each conv or dense layer, with what follows it, takes as long as its multiply-accumulates or its memory
traffic, whichever takes longer (Williams, Waterman & Patterson, "Roofline", Communications of the ACM, 2009). The
multipliers process channels in blocks, so that a width between two multiples takes as long as the larger one: channel
counts that are curated for a device lie on the steps of this staircase.
"""

from __future__ import annotations

import math
from pathlib import Path

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Annotated

from pydantic import Field, ValidationError

from gcp.cost.base import COSTS, Cost, Term
from gcp.cost.layers import Layer, layers
from gcp.cost.sampling import Schema
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.options import Options, explained
from gcp.storage import read_yaml

Lanes = Annotated[int, Field(ge=1, le=65536)]


class Device(Schema):
    """A device as described by a YAML file.

    `parallel_inputs` and `parallel_outputs`: channels that the multipliers process at once. `macs_per_cycle`:
    multiply-accumulates per cycle when all multipliers are in use. `on_chip_kb`: memory for activations; a layer whose
    input and output fit into it moves only its weights. `overhead_us`: additional time for every layer.
    """

    name: Annotated[str, Field(max_length=200)]
    parallel_inputs: Lanes
    parallel_outputs: Lanes
    macs_per_cycle: Annotated[int, Field(ge=1, le=10**9)]
    clock_mhz: Annotated[float, Field(gt=0, le=10**5)]
    bandwidth_gb_per_s: Annotated[float, Field(gt=0, le=10**5)]
    on_chip_kb: Annotated[float, Field(ge=0, le=10**9)]
    bytes_per_value: Annotated[int, Field(ge=1, le=8)]
    overhead_us: Annotated[float, Field(ge=0, le=10**6)] = 0.0

    def seconds(self, layer: Layer, n_in: int, n_out: int) -> float:
        """Seconds that a layer with these numbers of input and output channels takes.

        An output of a grouped conv reads the inputs of its own conv group only, that of a depthwise one a single input,
        and all other input lanes are idle.
        """
        reads = layer.read_by_each(n_in)
        taps = layer.kernel_size / reads if layer.depthwise else layer.kernel_size * layer.conv_groups
        lanes = _blocks(reads, self.parallel_inputs) * _blocks(n_out, self.parallel_outputs)
        computing = taps * layer.positions * lanes / (self.macs_per_cycle * 1e6 * self.clock_mhz)
        weights = layer.kernel_size * (n_out if layer.depthwise else n_in * n_out)
        activations = layer.in_positions * n_in + layer.positions * n_out  # followers are applied on the way out
        moved = weights + (activations if activations * self.bytes_per_value > 1e3 * self.on_chip_kb else 0)
        return max(computing, moved * self.bytes_per_value / (1e9 * self.bandwidth_gb_per_s)) + 1e-6 * self.overhead_us


def _blocks(n: int, lanes: int) -> int:
    """A number of channels, rounded up to full blocks: the idle lanes of the last block count too."""
    return math.ceil(n / lanes) * lanes


def read(path: Path) -> Device:
    """Read a device's file. UserError: no such file, or a value that is missing or invalid, named by its key."""
    fix = "docs/latency.md describes what a device file holds"
    values = read_yaml(path, fix)
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no keys; {fix}", "device.format")
    try:
        return Device.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {explained(error)}; {fix}", "device.format") from None


class DeviceOptions(Options):
    """The path of the device's file."""

    device: str


@COSTS.register("device", DeviceOptions, label="Device time", method="GCP-device", paper_label="device time", unit="s")
def device_time(net: Network, options: DeviceOptions) -> Cost:
    """Seconds for a forward pass of one image on a device that is described by a file."""
    device = read(Path(options.device))

    def term(layer: Layer) -> Term:
        def seconds(*widths: int) -> float:
            return device.seconds(layer, *layer.widths(dict(zip(layer.groups, widths))))

        return Term(layer.groups, seconds, layer.name)

    granularity = math.lcm(device.parallel_inputs, device.parallel_outputs)
    return Cost([term(layer) for layer in layers(net)], granularity=granularity if granularity > 1 else None)
