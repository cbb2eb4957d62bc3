"""Saved networks: MXNet's own `-symbol.json` + `-0000.params`, which plain MXNet loads without this project."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from gcp.backend.arrays import read_arrays
from gcp.backend.engine import copied, mx
from gcp.backend.onnx_files import is_onnx
from gcp.errors import UserError
from gcp.graph.channels import FROZEN, is_norm
from gcp.graph.network import Network, auxiliary, parse_nodes
from gcp.storage import network_files, read_text, replacing, write_text

INPUT_SHAPE, SOURCE = "__shape__", "__gluoncv_name__"


def with_free_scales(net: Network) -> Network:
    """The same function with `fix_gamma` off, and scales frozen at 1 where it was on.

    MXNet itself overwrites the scale of a batch norm with `fix_gamma`.
    """
    nodes, arrays = list(net.nodes), dict(net.arrays)
    for i, node in enumerate(net.nodes):
        if is_norm(net, i) and node.literal("fix_gamma", True):
            nodes[i] = replace(node, attrs={**node.attrs, "fix_gamma": "False"})
            gamma = node.inputs[1][0]
            nodes[gamma] = replace(nodes[gamma], attrs={**nodes[gamma].attrs, FROZEN: "0.0"})
            arrays[nodes[gamma].name] = np.ones(net.shapes[gamma][0], np.float32)
    return replace(net, nodes=tuple(nodes), arrays=arrays)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, skipping the lines that say where in MXNet's code it was raised."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(("Traceback", "  File"))]
    return lines[0][:200] if lines else type(error).__name__


def node_shapes(net: Network, input_shape: Sequence[int]) -> Tuple[Tuple[Tuple[int, ...], ...], ...]:
    """Per node of the graph, the shapes of its outputs for one image of `input_shape`, as MXNet infers them.

    Raises UserError if MXNet cannot read the graph, or the network cannot take such an image.
    """
    try:
        internals = mx.sym.load_json(net.to_json()).get_internals()
    except mx.MXNetError as error:  # such as an int8 graph, whose nodes contain subgraphs
        raise UserError(f"network '{net.name}': MXNet cannot read its graph: {first_line(error)}") from error
    image = "x".join(map(str, input_shape))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # MXNet prints before it raises
            warnings.simplefilter("ignore")
            args, outs, auxs = internals.infer_shape_partial(data=(1,) + tuple(input_shape))
    except Exception as error:  # MXNet's own type, or a plain one if sizes exceed its integers
        raise UserError(f"network '{net.name}' cannot take an input of {image}: {first_line(error)}") from error
    if args is None or any(not s or 0 in s for s in (*args, *outs, *auxs)):
        raise UserError(f"network '{net.name}' cannot take an input of {image}: some layer would be empty")
    variables = dict(zip([*internals.list_arguments(), *internals.list_auxiliary_states()], [*args, *auxs]))
    outputs, shapes = dict(zip(internals.list_outputs(), outs)), []
    read = {t for n in net.nodes for t in n.inputs}
    for i, node in enumerate(net.nodes):
        if node.op == "null" and node.name not in variables:
            wrong = f"no output depends on '{node.name}'; its graph is damaged, save it again"
            raise UserError(f"network '{net.name}': {wrong}", "symbol.format")
        if node.op == "null":
            shapes.append((tuple(variables[node.name]),))
            continue
        own = [outputs[node.name + "_output"]] if node.name + "_output" in outputs else []
        while f"{node.name}_output{len(own)}" in outputs:
            own.append(outputs[f"{node.name}_output{len(own)}"])
        while not own or (i, len(own)) in read:  # an output that MXNet does not list
            own.append((1,))
        shapes.append(tuple(tuple(s) for s in own))
    return tuple(shapes)


def check_outputs(text: str) -> None:
    """Raise ValueError if a Symbol JSON text reads an output that its node does not have: MXNet would read past it.

    MXNet, which alone knows how many outputs a node has, is asked about each node with variables as its inputs, and
    about the graphs within a node before the node. Raises whatever else `parse_nodes` and MXNet do.
    """
    graph = json.loads(text)
    nodes, heads = parse_nodes(text)
    alone: List[dict] = [{"op": "null", "name": "x", "inputs": []}]
    for i, raw in enumerate(graph["nodes"]):
        for inner in raw.get("subgraphs") or ():
            check_outputs(json.dumps(inner))
        alone.append({**raw, "name": f"{i}_", "inputs": [[0, 0, 0]] * len(raw["inputs"]), "control_deps": []})
    probe = {**graph, "nodes": alone, "arg_nodes": [0], "heads": [[i, 0, 0] for i in range(len(alone))]}
    listed = mx.sym.load_json(json.dumps(probe)).get_internals().list_outputs()
    n_outputs = Counter(name.partition("_")[0] for name in listed)
    for reader, tensors in [*((f"node '{n.name}'", n.inputs) for n in nodes), ("the network's output", heads)]:
        for i, o in tensors:
            if o >= n_outputs[str(i)]:
                has = f"which has {n_outputs[str(i)]}"
                raise ValueError(f"{reader} reads output {o} of node '{nodes[i].name}', {has}")


# ---- files ------------------------------------------------------------------------------------------------------


def save(net: Network, prefix: os.PathLike) -> Tuple[Path, Path]:
    """Write `<prefix>-symbol.json` and `<prefix>-0000.params`, each atomically; returns both paths."""
    symbol_path, params_path = network_files(prefix)
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    nodes = list(net.nodes)
    attrs = {INPUT_SHAPE: str((0,) + tuple(net.input_shape)), SOURCE: net.name}
    nodes[net.data] = replace(nodes[net.data], attrs=attrs)
    save_arrays(params_path, {f"{'aux' if n in auxiliary(net) else 'arg'}:{n}": v for n, v in net.arrays.items()})
    write_text(symbol_path, replace(net, nodes=tuple(nodes)).to_json(indent=1))
    return symbol_path, params_path


def load(prefix: os.PathLike, input_shape: Optional[Sequence[int]] = None) -> Network:
    """Read what `save` or Gluon's `export` wrote. `input_shape` is needed if the file does not state it.

    Raises UserError, which names the file, if one is missing, truncated, or has the shapes of another network.
    """
    symbol_path, params_path = network_files(prefix)
    for path in (symbol_path, params_path):
        if not path.exists():
            raise UserError(f"saved network '{prefix}': file '{path}' is missing", "network.absent")
    nodes, outputs = parse_nodes(symbol_text(symbol_path))
    arrays = {k.split(":", 1)[-1]: v for k, v in load_arrays(params_path).items()}
    free = [n for n in nodes if n.op == "null" and n.name not in arrays]
    if len(free) != 1 or free[0].name != "data":
        lacking = ", ".join(n.name for n in free if n.name != "data") or "data"
        raise UserError(f"'{params_path}' lacks {lacking}; it does not belong to '{symbol_path}'")
    if input_shape is None:
        shape = free[0].literal(INPUT_SHAPE)
        if not isinstance(shape, tuple) or len(shape) != 4:
            raise UserError(f"'{symbol_path}' does not state its input shape; give one (channels,height,width)")
        input_shape = shape[1:]
    nodes = tuple(replace(n, attrs={}) if n.name == "data" and n.op == "null" else n for n in nodes)
    net = Network(str(prefix), nodes, outputs, (), arrays)
    shapes = node_shapes(net, input_shape)
    wanted = {n.name: s[0] for n, s in zip(nodes, shapes) if n.op == "null"}
    for key, value in arrays.items():
        if key not in wanted:
            raise UserError(f"'{params_path}' holds '{key}', which is not in '{symbol_path}'")
        if wanted[key] != value.shape:
            needs = f"needs {wanted[key]} for an input of {'x'.join(map(str, input_shape))}"
            raise UserError(f"'{params_path}': '{key}' has shape {value.shape}, but '{symbol_path}' {needs}")
    return with_free_scales(replace(net, name=free[0].attrs.get(SOURCE, Path(prefix).name), shapes=shapes))


def symbol_text(path: Path) -> str:
    """The text of a Symbol JSON file that MXNet can read. Raises UserError if it is no such file, or is damaged."""
    try:
        text = read_text(path)
        check_outputs(text)
        mx.sym.load_json(text)
        return text
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, mx.MXNetError) as error:
        why = f"'{path}' is not a complete MXNet Symbol JSON file: {first_line(error)}"
        raise UserError(why, "symbol.format") from error


def is_saved(name: str) -> bool:
    """Whether a network brings its own weights: an ONNX file, or one or both files of a saved network."""
    return is_onnx(name) or any(path.exists() for path in network_files(name))


def save_arrays(path: os.PathLike, arrays: Dict[str, np.ndarray]) -> None:
    """Write arrays in MXNet's parameter format, whole or not at all. Raises UserError if they cannot be written."""
    with replacing(path) as temporary:
        try:
            mx.nd.save(str(temporary), {k: copied(v) for k, v in arrays.items()})
        except mx.MXNetError as error:  # MXNet's own streams report a full disk this way
            raise OSError(first_line(error)) from error


def load_arrays(path: Path) -> Dict[str, np.ndarray]:
    """Read arrays in MXNet's parameter format. Raises UserError if the file is truncated or is not such a file."""
    try:
        return read_arrays(path)
    except (ValueError, OSError) as error:
        why = f"'{path}' is not a complete MXNet parameter file: {first_line(error)}"
        raise UserError(why, "params.format") from error
