"""Networks from and to PyTorch: ResNet checkpoints by the names of their arrays, and networks as modules by onnx2torch.

A checkpoint is read without running anything in it: safetensors by its own library, PyTorch's files by PyTorch's
weights-only loader. GluonCV names the layers of its ResNets as torchvision and timm do, so arrays are matched by name:
the `weight` and `bias` of a norm are its `gamma` and `beta`, and nothing else differs.
"""

from __future__ import annotations

import contextlib
import operator
import re
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence

import numpy as np

from gcp.backend import zoo
from gcp.backend.files import first_line
from gcp.backend.onnx_files import room
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.storage import opened, replacing

SAFE, PICKLED, PROGRAM = (".safetensors",), (".pth", ".pt"), (".pt2",)
NEEDS = 'pip install -e ".[torch]"'
WITHIN = ("state_dict", "model_state_dict", "model", "net")  # where training scripts keep the arrays
COUNTERS = "num_batches_tracked"  # PyTorch's norms count batches, MXNet's do not
BLOCKS = {(2, 2, 2, 2): (18, None), (3, 4, 6, 3): (34, 50), (3, 4, 23, 3): (None, 101), (3, 8, 36, 3): (None, 152)}
VERSIONS = "bcds"  # of GluonCV's ResNets with PyTorch's names


def is_checkpoint(name: str) -> bool:
    """Whether a name is that of a checkpoint: a file of arrays, not of a graph."""
    return Path(name).suffix in SAFE + PICKLED


# ---- from PyTorch ---------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> Dict[str, np.ndarray]:
    """The arrays of a checkpoint by name, without the prefix of a parallel module.

    Raises UserError if it cannot be read, is damaged, needs PyTorch where that is not installed, or holds more than
    arrays.
    """
    with opened(path, "give a checkpoint file", room()):
        arrays = _safe_arrays(path) if path.suffix in SAFE else _torch_arrays(path)
    wrong = next((name for name, value in arrays.items() if value.dtype.kind not in "fiub"), None)
    if wrong or not arrays:
        raise UserError(f"'{path}': holds {f'{wrong!r}, which is no array of numbers' if wrong else 'no arrays'}",
                        "checkpoint.content")  # fmt: skip
    return {re.sub(r"^module\.", "", name): value for name, value in arrays.items()}


def _safe_arrays(path: Path) -> Dict[str, np.ndarray]:
    import safetensors
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"'{path}': not a complete safetensors file of NumPy types ({error}); save it again in float32",
                        "checkpoint.format") from None  # fmt: skip


def _torch_arrays(path: Path) -> Dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        fix = "save it as .safetensors (safetensors.torch.save_file(model.state_dict(), ...)), or install PyTorch: "
        raise UserError(f"'{path}': PyTorch's own files require PyTorch, which is not installed; {fix}{NEEDS}",
                        "torch.absent") from None  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about PyTorch's own storage, and how long it takes to check sparse arrays
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and PyTorch each have their own exceptions
        if "weights_only" in str(error) or "Unsupported" in str(error):
            fix = "it is not read, because loading it would run code; save model.state_dict() instead"
            raise UserError(f"'{path}': holds more than arrays, such as a whole module; {fix}",
                            "checkpoint.pickle") from None  # fmt: skip
        raise UserError(f"'{path}': not a complete PyTorch checkpoint; obtain it again", "checkpoint.format") from None
    for key in WITHIN:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError(f"'{path}': holds no state dict; save model.state_dict()", "checkpoint.content")
    if sum(value.numel() * value.element_size() for value in found.values()) > room():
        raise UserError(f"'{path}': its arrays are too large for the available memory", "checkpoint.memory")
    arrays = {}
    for name, value in found.items():
        try:
            if value.is_complex():  # of which float() would keep the real part
                raise TypeError("its numbers are complex")
            arrays[str(name)] = value.detach().float().numpy()
        except (TypeError, ValueError, RuntimeError) as error:  # sparse, quantized, or without any numbers
            fix = f"save dense float32 arrays ({first_line(error)})"
            raise UserError(f"'{path}': holds {str(name)!r}, which is no dense array of numbers; {fix}",
                            "checkpoint.content") from None  # fmt: skip
    return arrays


def resnet(
    arrays: Mapping[str, np.ndarray],
    name: Optional[str] = None,
    input_shape: Optional[Sequence[int]] = None,
    source: str = "",
) -> Network:
    """GluonCV's ResNet with torchvision's or timm's arrays, found by `name` or else by the arrays' names and shapes.

    Raises UserError, whose message begins with `source`, if no ResNet of GluonCV has arrays of these names and shapes.
    """
    arrays = {key: value for key, value in arrays.items() if not key.endswith(COUNTERS)}
    head = arrays.get("fc.weight", np.zeros(0))
    if head.ndim != 2 or not head.size:
        raise UserError(f"'{source}': has no matrix 'fc.weight', so it is not a torchvision or timm ResNet; "
                        "export the network as ONNX", "checkpoint.network")  # fmt: skip
    n_classes, shape = len(head), tuple(input_shape or (3, 224, 224))
    names = [name] if name else _candidates(arrays)
    for candidate in names:
        net = zoo.from_gluoncv(candidate, shape, n_classes)
        places = {  # without the layers that a network holds but never calls, as NASNet does
            key: own for key, own in zoo.structured_names(candidate, n_classes).items() if own in net.arrays
        }
        found = {_renamed(key, places): value for key, value in arrays.items()}
        wrong = _difference(found, {key: net.arrays[own].shape for key, own in places.items()})
        if not wrong:
            return net.with_arrays({places[key]: np.asarray(value, np.float32) for key, value in found.items()})
    what = f"GluonCV's {names[0]} has different arrays: {wrong}" if name else "no GluonCV ResNet has these array names"
    raise UserError(f"'{source}': {what}; export the network as ONNX", "checkpoint.network")


def _candidates(arrays: Mapping[str, np.ndarray]) -> Sequence[str]:
    """Names of GluonCV's ResNets with the same kind and numbers of blocks."""
    found = {tuple(map(int, m.groups())) for m in map(re.compile(r"layer(\d)\.(\d+)\.").match, arrays) if m}
    blocks = tuple(sum(layer == k for layer, _ in found) for k in (1, 2, 3, 4))
    depth = BLOCKS.get(blocks, (None, None))["layer1.0.conv3.weight" in arrays]
    return [f"resnet{depth}_v1{v}" for v in VERSIONS if zoo.is_known(f"resnet{depth}_v1{v}")]


def _renamed(key: str, places: Mapping[str, str]) -> str:
    """The array's name in GluonCV."""
    layer, _, kind = key.rpartition(".")
    norm = {"weight": "gamma", "bias": "beta"}.get(kind, kind)
    return f"{layer}.{norm}" if f"{layer}.{norm}" in places else key


def _difference(found: Mapping[str, np.ndarray], shapes: Mapping[str, tuple]) -> str:
    """The first array that is missing, superfluous or of another shape, in words; empty if there is none."""
    for key in [*shapes, *found]:
        if key not in found or key not in shapes:
            return f"'{key}' is {'missing' if key in shapes else 'not among them'}"
        if found[key].shape != shapes[key]:
            return f"'{key}' has the shape {found[key].shape}, not {shapes[key]}"
    return ""


# ---- to PyTorch -----------------------------------------------------------------------------------------------------


def module(path: Path) -> Any:
    """An ONNX file as a `torch.nn.Module` in evaluation mode, converted by onnx2torch.

    Raises UserError if onnx2torch is not installed, or does not know an operator of the file.
    """
    try:
        import onnx2torch
    except ImportError as error:
        raise UserError(f"a PyTorch module needs additional packages ({error}): {NEEDS}", "torch.absent") from None
    with _by_pytorch(f"'{path}' cannot be converted to a PyTorch module"):
        return _with_constants(onnx2torch.convert(str(path)).eval())


@contextlib.contextmanager
def _by_pytorch(what: str) -> Iterator[None]:
    """Turn whatever PyTorch and its converters raise into one UserError, whose message begins with `what`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{what}: {reason}", "torch.operator") from error


def _with_constants(module: Any) -> Any:
    """The module with the shapes of its reshapes and the bounds of its slices as constants.

    onnx2torch reads these from arrays at every call, which PyTorch's exporters cannot follow.
    """
    graph, functions = module.graph, {"OnnxReshape": reshaped, "OnnxSlice": sliced}
    for node in list(graph.nodes):
        kind = type(module.get_submodule(node.target)).__name__ if node.op == "call_module" else ""
        if kind in functions and all(arg.op == "get_attr" for arg in node.args[1:]):
            numbers = [operator.attrgetter(arg.target)(module).tolist() for arg in node.args[1:]]
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_function(functions[kind], (node.args[0], *numbers)))
            graph.erase_node(node)
    module.recompile()
    return module


def reshaped(x: Any, shape: Sequence[int]) -> Any:
    """A tensor in another shape, where 0 keeps an axis's length, as in ONNX."""
    return x.reshape([x.shape[k] if length == 0 else length for k, length in enumerate(shape)])


def sliced(x: Any, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int] = ()) -> Any:
    """Part of a tensor along some axes, as in ONNX."""
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes)):
        x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
    return x


def outputs(torch_module: Any, images: np.ndarray) -> np.ndarray:
    """A module's outputs for images (n, channels, height, width). Raises UserError if PyTorch cannot run it."""
    import torch

    with torch.no_grad(), _by_pytorch("PyTorch cannot run the module that onnx2torch made"):
        return torch_module(torch.from_numpy(images)).numpy()


def save(torch_module: Any, path: Path, input_shape: Sequence[int]) -> None:
    """Write a module: as a program (.pt2) for any batch size, or as its state dict (.safetensors, .pth, .pt)."""
    import torch

    with replacing(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in PROGRAM:
            images, batch = torch.zeros(2, *input_shape), {0: torch.export.Dim("batch")}
            with _by_pytorch(f"'{path}' cannot be written; write a state dict (.pth) or ONNX"):
                torch.export.save(torch.export.export(torch_module, (images,), dynamic_shapes=(batch,)), temporary)
        elif path.suffix in SAFE:
            from safetensors.torch import save_file

            save_file({key: value.contiguous() for key, value in torch_module.state_dict().items()}, temporary)
        else:
            torch.save(torch_module.state_dict(), temporary)
