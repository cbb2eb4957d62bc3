"""ONNX files, read within limits, without running anything in them, and without MXNet.

A file and the external data files that it names form one network. External data are beside the file or below its
folder, as ONNX requires; a path that leads outside is refused, however it is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Tuple

import numpy as np
import psutil

from gcp.errors import UserError
from gcp.storage import read_bytes

if TYPE_CHECKING:
    import onnx

SUFFIX = ".onnx"
OLDEST = 7  # opset; before it, elementwise operators had their own rules for axes
LARGEST = 2**31  # bytes of the file itself, limited by the format; more has to be external data
SHARE = 0.25  # fraction of the free memory that a network's numbers may take, as they are held more than once
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
AGAIN = "export it again, or give another file"


def is_onnx(name: str) -> bool:
    """Whether a network's name is the path of an ONNX file."""
    return name.lower().endswith(SUFFIX)


def read_model(path: Path) -> "onnx.ModelProto":
    """The file's content, with its graph checked as far as possible before its operators are translated.

    Raises UserError if the file cannot be read, is truncated or not an ONNX file, or holds something from which no
    network can be made here.
    """
    import onnx  # takes a quarter of a second, so only ONNX files import it
    from google.protobuf.message import DecodeError

    content = read_bytes(path, AGAIN, min(LARGEST, room()))
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        raise _wrong(path, "is not a complete ONNX file; obtain it again", "onnx.format") from None
    if not model.graph.node:
        raise _wrong(path, "holds no operators, so it is not a complete ONNX network; obtain it again", "onnx.format")
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if not OLDEST <= opset <= newest:
        raise _wrong(path, f"uses opset {opset}; only {OLDEST} to {newest} are read: export it with one of these")
    quantized = next((n.op_type for n in model.graph.node if n.op_type in QUANTIZED or n.op_type[:4] == "QLin"), None)
    if quantized:
        raise _wrong(path, f"is quantized ({quantized}); export the network before quantization", "onnx.quantized")
    if model.functions:
        raise _wrong(path, f"defines operators of its own ('{model.functions[0].name}'); inline them (onnx.inliner)")
    if model.graph.sparse_initializer:
        raise _wrong(path, "holds sparse arrays; export them as dense ones")
    return model


def room() -> int:
    """How many bytes a network's numbers may take."""
    return int(SHARE * psutil.virtual_memory().available)


def opset_of(model: "onnx.ModelProto") -> int:
    """The version of ONNX's own operators; 0 if the file does not state it."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def external_files(path: Path) -> List[Path]:
    """The external data files that belong to the file, each once. Raises UserError as `read_model` and `arrays` do."""
    model = read_model(path)
    tensors = [*model.graph.initializer, *attribute_tensors(model)]
    return sorted({_place(path, tensor)[0] for tensor in tensors if tensor.external_data})


def attribute_tensors(model: "onnx.ModelProto") -> List["onnx.TensorProto"]:
    """The tensors that are attributes of nodes, such as the values of constants; these can be external data, too."""
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    return [attribute.t for attribute in attributes if attribute.type == attribute.TENSOR]


def arrays(path: Path, model: "onnx.ModelProto") -> Dict[str, np.ndarray]:
    """The model's arrays by name, from the file and from its external data.

    Raises UserError for external data that are missing, too short or outside the file's folder, shapes that do not
    match the numbers, types that are not numeric, or more data than memory has room for, which is checked before any is
    allocated, with those of the attributes.
    """
    tensors = list(model.graph.initializer)
    size = sum(n_bytes(path, tensor) for tensor in [*tensors, *attribute_tensors(model)])
    if size > room():
        raise _wrong(path, f"holds arrays of {size:,} bytes; memory has room for {room():,}", "onnx.memory")
    return {tensor.name: array(path, tensor) for tensor in tensors}


def array(path: Path, tensor: "onnx.TensorProto") -> np.ndarray:
    """One array, which is read from its file if it is external data. Raises UserError as `arrays` does."""
    import onnx

    size = n_bytes(path, tensor)
    if tensor.external_data:
        place, offset = _place(path, tensor)
        end = place.stat().st_size
        if offset + size > end:
            raise _wrong(path, f"expects '{tensor.name}' in bytes {offset:,} to {offset + size:,} of '{place.name}'"
                         f", which has {end:,}; the two files do not belong together", "onnx.external")  # fmt: skip
        inner = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        with open(place, "rb") as file:
            file.seek(offset)
            inner.raw_data = file.read(size)
        tensor = inner
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise _wrong(
            path, f"holds '{tensor.name}', whose data do not match its shape ({error}); obtain it again"
        ) from None


def n_bytes(path: Path, tensor: "onnx.TensorProto") -> int:
    """The array's size in bytes by its shape. Raises UserError for a non-numeric type or a damaged shape."""
    import onnx

    kinds = onnx.TensorProto
    if tensor.data_type not in (*floats(), kinds.INT8, kinds.UINT8, kinds.INT32, kinds.INT64, kinds.BOOL):
        kind = kinds.DataType.Name(tensor.data_type) if tensor.data_type in kinds.DataType.values() else "unknown"
        raise _wrong(path, f"holds '{tensor.name}' of type {kind}; export the network in float32")
    if any(d < 0 for d in tensor.dims):
        raise _wrong(path, f"gives '{tensor.name}' an impossible shape; obtain the file again")
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod([itemsize, *tensor.dims], dtype=object))


def _place(path: Path, tensor: "onnx.TensorProto") -> Tuple[Path, int]:
    """The external data file that holds an array, and the offset at which the array begins there."""
    texts = [(entry.key, entry.value) for entry in tensor.external_data]
    facts = {key: value for key, value in texts if isinstance(value, str)}  # protobuf gives bytes if not UTF-8
    location, offset = facts.get("location", ""), facts.get("offset", "0")
    folder = path.parent.resolve()
    try:
        place = (folder / location.replace("\0", "")).resolve()
    except (RuntimeError, OSError):  # a symbolic link that leads to itself
        place = Path("/")
    if not location or "\0" in location or Path(location).is_absolute() or folder not in place.parents:
        fix = "only files in its own folder are read"
        raise _wrong(path, f"keeps '{tensor.name}' in {location!r:.200}; {fix}", "onnx.external")
    if not place.is_file():
        raise _wrong(path, f"keeps '{tensor.name}' in '{location}', which is not in its folder; put it there",
                     "onnx.external")  # fmt: skip
    if not offset.isdecimal() or len(offset) > 15:
        raise _wrong(
            path, f"gives the invalid offset {offset!r:.50} for '{tensor.name}' in '{location}'", "onnx.external"
        )
    return place, int(offset)


def image_input(path: Path, model: "onnx.ModelProto") -> Tuple[str, List[int]]:
    """Name of the network's input, and (channels, height, width) of an image, 0 where the file leaves it free.

    Raises UserError if there are several inputs, or one that is not a batch of images.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs[:5]) or "none"
        raise _wrong(path, f"must have one input, the images; it has {len(inputs)} ({names})", "onnx.inputs")
    kind = inputs[0].type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
    if len(dims) != 4:
        raise _wrong(path, f"has input '{inputs[0].name}' with {len(dims)} axes; images have 4 (batch, channels, "
                     "height, width)", "onnx.inputs")  # fmt: skip
    if kind.elem_type not in floats():
        raise _wrong(path, f"has input '{inputs[0].name}', which is not floating-point; export the network "
                     "without the preprocessing steps", "onnx.inputs")  # fmt: skip
    if dims[0] > 1:
        raise _wrong(path, f"is exported for batches of {dims[0]} images; export it for one, or with a free batch axis",
                     "onnx.batch")  # fmt: skip
    return inputs[0].name, dims[1:]


def floats() -> Tuple[int, ...]:
    """ONNX's codes for the floating-point types."""
    import onnx

    kinds = onnx.TensorProto
    return (kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE)


def _wrong(path: Path, what: str, key: str = "onnx.content") -> UserError:
    return UserError(f"'{path}' {what}", key)
