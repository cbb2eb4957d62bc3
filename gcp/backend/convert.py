"""Converting networks from one form to another, and checking that both give the same outputs for the same images.

Forms are recognised by the ends of names: `.onnx`; `.safetensors`, `.pth` and `.pt`, arrays of PyTorch; `.pt2`, a
program of PyTorch; anything else is a saved network's prefix, or a GluonCV name to convert from.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence

import numpy as np

from gcp.backend import export, files, torch_files, zoo
from gcp.backend.blocks import predict
from gcp.backend.onnx_files import is_onnx
from gcp.errors import UserError
from gcp.graph.network import Network

TOLERANCE = 1e-4  # largest difference between two forms, relative to the largest output
IMAGES = 2  # two, so that a network that mixes the images of a batch is detected


def convert(
    source: str,
    target: str,
    input_shape: Optional[Sequence[int]] = None,
    network: Optional[str] = None,
    pretrained: bool = False,
    check: bool = False,
) -> Dict[str, Any]:
    """Write `target` from `source`; returns what was written and, with `check`, the difference between the two forms.

    `network`: the GluonCV network whose arrays a checkpoint holds. Raises UserError if one of the forms cannot be read
    or written, or if they cannot be compared or differ by more than `TOLERANCE`; then nothing is kept.
    """
    path = Path(target)
    if torch_files.is_checkpoint(source):
        if check:
            fix = "export the network from PyTorch as ONNX and convert that"
            raise UserError(f"'{source}' holds arrays without a graph, so there is nothing to compare with; {fix}",
                            "convert.check")  # fmt: skip
        net = torch_files.resnet(torch_files.read_checkpoint(Path(source)), network, input_shape, source)
    else:
        net = zoo.open_network(source, input_shape, pretrained=pretrained)
    facts = {"network": net.name, "input": list(net.input_shape), "classes": net.n_classes}
    if is_onnx(source) and check:
        facts["difference"] = difference(net, lambda images: export.onnx_outputs(source, 1, each=True)(images), source)
    if is_onnx(target):
        facts |= {"files": [str(export.to_onnx(net, path))], "opset": export.OPSET, "ir": export.IR}
        if check and not is_onnx(source):  # `to_onnx` has compared them, and more strictly
            try:
                facts["difference"] = difference(net, export.onnx_outputs(path, threads=1), target)
            except UserError:
                path.unlink(missing_ok=True)
                raise
    elif path.suffix in torch_files.SAFE + torch_files.PICKLED + torch_files.PROGRAM:
        with tempfile.TemporaryDirectory() as folder:
            module = torch_files.module(export.to_onnx(net, Path(folder, "network.onnx")))
        if check:
            facts["difference"] = difference(net, lambda images: torch_files.outputs(module, images), target)
        torch_files.save(module, path, net.input_shape)
        facts["files"] = [target]
    else:
        facts["files"] = [str(written) for written in files.save(net, target)]
    return facts


def difference(net: Network, other: Callable[[np.ndarray], np.ndarray], name: str) -> float:
    """The largest difference between the outputs of the network in MXNet and in another form, over the largest output.

    Raises UserError, which names the other form, if it is more than `TOLERANCE` or the other form cannot be compared.
    """
    images = np.random.default_rng(0).normal(size=(IMAGES, *net.input_shape)).astype(np.float32)
    expected = predict(net, images)
    try:
        found = other(images)
    except UserError:
        raise
    except Exception as error:  # each runtime has its own exceptions
        raise UserError(f"'{name}' cannot be run for comparison: {files.first_line(error)}", "convert.check") from error
    if expected.shape != found.shape:
        raise UserError(
            f"'{name}' outputs {found.shape}, but MXNet outputs {expected.shape}; nothing is kept", "convert.check"
        )
    largest = float(np.abs(expected).max())
    value = float(np.abs(found - expected).max()) / (largest or 1.0)
    if not value <= TOLERANCE:  # so that NaN is refused
        raise UserError(f"'{name}' differs from MXNet by {value:.1g} of the largest output; rounding explains "
                        f"at most {TOLERANCE:g}; nothing is kept", "convert.check")  # fmt: skip
    return value
