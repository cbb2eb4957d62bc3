"""The only bridge to MXNet: GluonCV name -> Network, Network -> trainable block and back, files in three forms.

A saved network is MXNet's own `-symbol.json` + `-0000.params`, which plain MXNet loads without this project; the
input shape and GluonCV name travel as attributes of the input variable. GluonCV's pruned-ResNet form (a JSON of
weight shapes beside the parameters) can be written and read for its ResNets.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import re
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import mxnet as mx
import numpy as np
from mxnet import gluon

from gcp.errors import UserError
from gcp.graph.network import NORM, Network, Node, has_weight, parse_nodes
from gcp.storage import replacing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # GluonCV warns about optional packages that are not used here
    from gluoncv.model_zoo import get_model, get_model_list, model_store
    from gluoncv.model_zoo.pruned_resnet.resnetv1b_pruned import prune_gluon_block

NORM_RELU = "_contrib_BatchNormWithReLU"
INPUT_SHAPE, SOURCE = "__shape__", "__gluoncv_name__"
BACKWARD_BULK = 10000  # nodes; more than any network's backward pass has
GLUONCV_PREFIX = "resnetv1d_"  # GluonCV's reader of pruned ResNets expects it, for every depth and version
FROZEN = "__lr_mult__"  # MXNet's own attribute; 0.0 on variables that no optimiser may touch


def from_gluoncv(
    name: str,
    input_shape: Sequence[int],
    n_classes: Optional[int] = None,
    pretrained: bool = False,
    seed: Optional[int] = None,
    weights: Optional[os.PathLike] = None,
) -> Network:
    """A GluonCV network as a `Network`.

    `input_shape` is (channels, height, width); `n_classes` defaults to the network's own. Weights are GluonCV's
    pretrained ones, from the file `weights` if it is given, or drawn (He et al. 2015, uniform, as Gluon's MSRAPrelu
    does) when `seed` is given, or all zero without memory behind them: enough to describe a network, and fast.
    Raises UserError for an unknown name, an operator the walk does not know, an input the network cannot take.
    """
    block = _gluoncv_block(name, n_classes, pretrained, weights, seed or 0)
    try:
        symbol = block(mx.sym.var("data"))
    except (mx.MXNetError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(f"network '{name}' has no graph from one image to one output: {_first_line(error)}") from error
    symbol = symbol[0] if isinstance(symbol, (list, tuple)) else symbol
    shapes = _infer(symbol, input_shape, name)
    # Only what the graph reads: NASNet holds layers that it never calls.
    params = {k: p for k, p in block.collect_params().items() if k in shapes["variables"]}
    for key, p in params.items():
        p.shape = shapes["variables"][key]
    if pretrained:
        values = {k: p.data().asnumpy() for k, p in params.items()}
    elif seed is not None:
        np.random.seed(seed)
        mx.random.seed(seed)
        block.initialize(mx.init.MSRAPrelu(), force_reinit=True)
        values = {k: p.data().asnumpy() for k, p in params.items()}
    else:
        values = {k: np.broadcast_to(np.float32(0), shapes["variables"][k]) for k in params.keys()}
    frozen = {k for k, p in params.items() if p.grad_req == "null" and "running" not in k}
    nodes, output = parse_nodes(symbol.tojson())
    strip = _stripper(block.prefix, [n.name for n in nodes])
    kept, arrays = [], {}
    for node in nodes:
        attrs = {k: v for k, v in node.attrs.items() if not k.startswith("__")} if node.op == "null" else node.attrs
        if node.op == "null" and node.name in frozen:
            attrs[FROZEN] = "0.0"
        if node.op == "null" and node.name in values:
            arrays[strip(node.name)] = values[node.name]
        kept.append(replace(node, name=strip(node.name), attrs=attrs))
    net = Network(name, tuple(kept), output, _node_shapes(symbol, input_shape, name), arrays)
    return _with_free_scales(net)


def _with_free_scales(net: Network) -> Network:
    """The same function with `fix_gamma` off: MXNet overwrites the scale of such a batch norm, here it is kept at 1."""
    nodes, arrays = list(net.nodes), dict(net.arrays)
    for i, node in enumerate(net.nodes):
        if node.op in NORM and node.literal("fix_gamma", True):
            nodes[i] = replace(node, attrs={**node.attrs, "fix_gamma": "False"})
            gamma = node.inputs[1]
            nodes[gamma] = replace(nodes[gamma], attrs={**nodes[gamma].attrs, FROZEN: "0.0"})
            arrays[nodes[gamma].name] = np.ones(net.shapes[gamma], np.float32)
    return replace(net, nodes=tuple(nodes), arrays=arrays)


def _gluoncv_block(
    name: str, n_classes: Optional[int], pretrained: bool = False, weights: Optional[os.PathLike] = None, seed: int = 0
) -> gluon.HybridBlock:
    """The block; where published weights are for other classes, with an output layer drawn from the seed."""
    known = get_model_list()
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UserError(
            f"unknown network '{name}': neither a GluonCV network nor the prefix of a saved one "
            f"(no file '{name}-symbol.json'){hint}"
        )
    if n_classes is not None and n_classes < 1:
        raise UserError(f"network '{name}': {n_classes} classes; give at least 1")
    kwargs = {} if n_classes is None else {"classes": n_classes}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not pretrained:
                return _with_classes(get_model(name, **kwargs), n_classes)
            full = _published(name, weights)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise UserError(f"network '{name}' cannot be built with {n_classes} classes: {_first_line(error)}") from error
    if n_classes is None or _n_outputs(full) == n_classes:
        return full
    block, theirs = _with_classes(get_model(name, **kwargs), n_classes), full._collect_params_with_prefix()
    own, head = block._collect_params_with_prefix(), ("output", "fc")
    for key, value in theirs.items():  # all shapes first: what is initialised before its shape is known has no values
        own[key].shape = own[key].shape[:1] + value.shape[1:] if key.startswith(head) else value.shape
    np.random.seed(seed)
    mx.random.seed(seed)
    block.initialize(mx.init.MSRAPrelu())
    for key, value in theirs.items():
        if not key.startswith(head):
            own[key].set_data(value.data())
    return block


def _published(name: str, weights: Optional[os.PathLike]) -> gluon.HybridBlock:
    """The block with GluonCV's published weights: of the file, else of ~/.mxnet/models, else downloaded to there.

    UserError: none are published, they cannot be had, or the file's sha1 is not the published one.
    """
    keys = {public.lower(): key for key, public in zip(model_store._model_sha1, model_store.pretrained_model_list())}
    key, fix = keys.get(name.lower()), "GluonCV lists none for it; set pretrained to false"
    if key is not None:
        file_name = f"{key}-{model_store.short_hash(key)}"
        url = model_store._url_format.format(repo_url=model_store.apache_repo_url, file_name=file_name)
        fix = (
            f"get {url} where there is a network, unzip it, and put {file_name}.params into ~/.mxnet/models (or "
            "anywhere, with model.weights set to its path)"
        )
    if weights is None:
        try:
            return get_model(name, pretrained=True)
        except Exception as error:  # GluonCV's downloader raises whatever its HTTP client raises
            raise UserError(f"the published weights of '{name}' cannot be had ({_first_line(error)}): {fix}") from error
    if key is None:
        raise UserError(f"no weights of '{name}' are published, so '{weights}' is not them: {fix}")
    weights = Path(weights).expanduser()
    if not weights.is_file():
        raise UserError(f"'{weights}': the weights of '{name}' are not there: {fix}")
    if not model_store.check_sha1(weights, model_store._model_sha1[key]):
        raise UserError(f"'{weights}' is not {file_name}.params, whose sha1 is {model_store._model_sha1[key]}: {fix}")
    # GluonCV looks for its file in this folder first; the variable would send it elsewhere.
    with tempfile.TemporaryDirectory() as home, _without("MXNET_HOME"):
        Path(home, f"{file_name}.params").symlink_to(weights.resolve())
        return get_model(name, pretrained=True, root=home)


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """Run the block without an environment variable."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def _with_classes(block: gluon.HybridBlock, n_classes: Optional[int]) -> gluon.HybridBlock:
    """The block itself: GluonCV's pruned ResNets keep the weight shape of 1000 classes whatever number is asked for."""
    head = getattr(block, "fc", None)
    if n_classes is not None and isinstance(head, gluon.nn.Dense) and head.weight.shape[0] != n_classes:
        head.weight._shape, head.bias._shape = (n_classes, head.weight.shape[1]), (n_classes,)
    return block


def _n_outputs(block: gluon.HybridBlock) -> int:
    return list(block.collect_params().values())[-1].shape[0]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _stripper(prefix: str, names: List[str]):
    """Gluon numbers prefixes per process (`mobilenet0_`, `mobilenet1_`): names are kept without."""

    def strip(name: str) -> str:
        return name[len(prefix) :] if prefix and name.startswith(prefix) else name

    stripped = [strip(n) for n in names]
    return strip if len(set(stripped)) == len(names) else (lambda name: name)


def _infer(symbol: mx.sym.Symbol, input_shape: Sequence[int], name: str) -> dict:
    """Shapes of all variables and of all first outputs, for a batch of one."""
    internals = symbol.get_internals()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # MXNet prints before it raises
            warnings.simplefilter("ignore")
            args, outs, auxs = internals.infer_shape(data=(1,) + tuple(input_shape))
    except mx.MXNetError as error:
        raise UserError(
            f"network '{name}' cannot take an input of {'x'.join(map(str, input_shape))}: {_first_line(error)}"
        ) from error
    variables = dict(zip(internals.list_arguments(), args))
    variables.update(zip(internals.list_auxiliary_states(), auxs))
    if any(shape is None or 0 in shape for shape in variables.values()) or any(0 in s for s in outs):
        raise UserError(
            f"network '{name}' cannot take an input of {'x'.join(map(str, input_shape))}: some layer would be empty"
        )
    return {"variables": variables, "outputs": dict(zip(internals.list_outputs(), outs))}


def _node_shapes(symbol: mx.sym.Symbol, input_shape: Sequence[int], name: str) -> Tuple[Tuple[int, ...], ...]:
    """Per node of the graph, the shape without batch (of its array, for a variable that holds one)."""
    shapes = _infer(symbol, input_shape, name)
    result = []
    for raw in json.loads(symbol.tojson())["nodes"]:
        if raw["op"] == "null":
            shape = shapes["variables"][raw["name"]]
            result.append(tuple(shape[1:]) if raw["name"] == "data" else tuple(shape))
        else:
            key = raw["name"] + "_output"
            result.append(tuple(shapes["outputs"][key][1:]))
    return tuple(result)


# ---- files ------------------------------------------------------------------------------------------------------


def save(net: Network, prefix: os.PathLike) -> Tuple[Path, Path]:
    """Write `<prefix>-symbol.json` and `<prefix>-0000.params`, each atomically; returns both paths."""
    symbol_path, params_path = paths(prefix)
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    nodes = list(net.nodes)
    attrs = {INPUT_SHAPE: str((0,) + tuple(net.input_shape)), SOURCE: net.name}
    nodes[net.data] = replace(nodes[net.data], attrs=attrs)
    save_arrays(params_path, {f"{'aux' if n in auxiliary(net) else 'arg'}:{n}": v for n, v in net.arrays.items()})
    write_text(symbol_path, replace(net, nodes=tuple(nodes)).to_json())
    return symbol_path, params_path


def load(prefix: os.PathLike, input_shape: Optional[Sequence[int]] = None) -> Network:
    """Read what `save` or Gluon's `export` wrote. `input_shape` is needed where the file does not say.

    Raises UserError, naming the file, for one that is missing, truncated, or of another network's shapes.
    """
    symbol_path, params_path = paths(prefix)
    for path in (symbol_path, params_path):
        if not path.is_file():
            raise UserError(f"saved network '{prefix}': file '{path}' is missing")
    try:
        nodes, output = parse_nodes(symbol_path.read_text())
        symbol = mx.sym.load_json(symbol_path.read_text())
    except (ValueError, KeyError, TypeError, IndexError, mx.MXNetError) as error:
        raise UserError(f"'{symbol_path}' is not a whole MXNet Symbol JSON: {_first_line(error)}") from error
    arrays = {k.split(":", 1)[-1]: v for k, v in load_arrays(params_path).items()}
    free = [n for n in nodes if n.op == "null" and n.name not in arrays]
    if len(free) != 1 or free[0].name != "data":
        raise UserError(
            f"'{params_path}' lacks {', '.join(n.name for n in free if n.name != 'data') or 'data'}; "
            f"it does not belong to '{symbol_path}'"
        )
    if input_shape is None:
        shape = free[0].literal(INPUT_SHAPE)
        if not isinstance(shape, tuple) or len(shape) != 4:
            raise UserError(f"'{symbol_path}' does not say its input shape; give one (channels,height,width)")
        input_shape = shape[1:]
    name = free[0].attrs.get(SOURCE, Path(prefix).name)
    wanted = _infer(symbol, input_shape, str(prefix))["variables"]
    for key, value in arrays.items():
        if key not in wanted:
            raise UserError(f"'{params_path}' holds '{key}', which '{symbol_path}' does not know")
        if tuple(wanted[key]) != value.shape:
            raise UserError(
                f"'{params_path}': '{key}' has shape {value.shape}, the graph in '{symbol_path}' "
                f"needs {tuple(wanted[key])} for an input of {'x'.join(map(str, input_shape))}"
            )
    nodes = tuple(replace(n, attrs={}) if n.name == "data" and n.op == "null" else n for n in nodes)
    return _with_free_scales(Network(name, nodes, output, _node_shapes(symbol, input_shape, str(prefix)), arrays))


def is_saved(prefix: str) -> bool:
    """Whether a saved network of this prefix is there (or half of one)."""
    return any(path.exists() for path in paths(prefix))


def open_network(
    name: str,
    input_shape: Optional[Sequence[int]] = None,
    n_classes: Optional[int] = None,
    pretrained: bool = False,
    seed: Optional[int] = None,
    weights: Optional[os.PathLike] = None,
    new_head: bool = False,
) -> Network:
    """A saved network if `name` is the prefix of one, else the GluonCV network of that name (224 px by default).

    With `new_head` a saved network gets a new output layer of `n_classes`, drawn from `seed`.
    """
    if is_saved(name):
        net = load(name, input_shape)
        if new_head:
            return with_new_head(net, net.n_classes if n_classes is None else n_classes, seed or 0)
        if n_classes is not None and net.n_classes != n_classes:
            raise UserError(
                f"saved network '{name}' has {net.n_classes} classes, {n_classes} are needed; set "
                "model.new_head to true for a new output layer"
            )
        return net
    return from_gluoncv(name, input_shape or (3, 224, 224), n_classes, pretrained, seed, weights)


def with_new_head(net: Network, n_classes: int, seed: int) -> Network:
    """The network with a new output layer of `n_classes`: weights as Gluon's MSRAPrelu draws them, biases zero.

    UserError unless its last operator is a dense layer that nothing else reads.
    """
    node = net.nodes[net.output]
    if node.op != "FullyConnected":
        raise UserError(
            f"network '{net.name}' ends in '{node.name}' ({node.op}); only a dense output layer can be "
            "replaced (model.new_head)"
        )
    n_inputs = net.shapes[node.inputs[1]][1]
    # Its slope of 0.25 gives the variance 2 / (1 + 0.25^2) over the mean of fan-in and fan-out.
    scale = np.sqrt(2 / (1 + 0.25**2) / ((n_inputs + n_classes) / 2))
    new = {
        net.weight(node.name): np.random.default_rng((seed, n_classes))
        .normal(0, scale, (n_classes, n_inputs))
        .astype(np.float32)
    }
    if net.bias(node.name) is not None:
        new[net.bias(node.name)] = np.zeros(n_classes, np.float32)
    nodes, shapes = list(net.nodes), list(net.shapes)
    nodes[net.output] = replace(node, attrs={**node.attrs, "num_hidden": str(n_classes)})
    shapes[net.output] = (n_classes,)
    for j in node.inputs[1:]:
        shapes[j] = new[net.nodes[j].name].shape
        if INPUT_SHAPE in net.nodes[j].attrs:
            nodes[j] = replace(net.nodes[j], attrs={**net.nodes[j].attrs, INPUT_SHAPE: str(shapes[j])})
    return Network(net.name, tuple(nodes), net.output, tuple(shapes), {**net.arrays, **new})


def paths(prefix: os.PathLike) -> Tuple[Path, Path]:
    text = re.sub(r"(-symbol\.json|-0000\.params)$", "", str(prefix))
    return Path(text + "-symbol.json"), Path(text + "-0000.params")


def auxiliary(net: Network) -> set:
    """Names of the arrays that MXNet calls auxiliary: running means and variances."""
    return {net.nodes[j].name for n in net.nodes if n.op in NORM for j in n.inputs[3:]}


def write_text(path: os.PathLike, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def save_arrays(path: os.PathLike, arrays: Dict[str, np.ndarray]) -> None:
    """Write arrays in MXNet's parameter format, whole or not at all. UserError where the disk is full."""
    with replacing(path) as temporary:
        try:
            mx.nd.save(str(temporary), {k: mx.nd.array(v, dtype=v.dtype) for k, v in arrays.items()})
        except mx.MXNetError as error:  # MXNet's own streams report a full disk this way
            raise OSError(_first_line(error)) from error


def load_arrays(path: Path) -> Dict[str, np.ndarray]:
    """Read arrays in MXNet's parameter format; UserError for a file that is truncated or no such file."""
    try:
        loaded = mx.nd.load(str(path))
    except (mx.MXNetError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"'{path}' is not a whole MXNet parameter file: {_first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"'{path}' holds arrays without names; it is not a saved network")
    return {k: v.asnumpy() for k, v in loaded.items()}


# ---- GluonCV's pruned-ResNet form -------------------------------------------------------------------------------


def _gluoncv_key(name: str) -> str:
    return GLUONCV_PREFIX + name


def save_gluoncv(net: Network, prefix: os.PathLike) -> Tuple[Path, Path]:
    """Write `<prefix>.json` (shapes of the weights) and `<prefix>.params` as `prune_gluon_block` reads them.

    Only for GluonCV's ResNets whose convs have no bias (v1b to v1e, CIFAR v1, basic-block v1); UserError else.
    """
    reason = None
    if "resnet" not in net.name or "v2" in net.name:
        reason = "it is not one of GluonCV's version-1 ResNets"
    biased = [n.name for n in net.nodes if n.op == "Convolution" and net.bias(n.name) is not None]
    if biased and reason is None:
        reason = f"conv '{biased[0]}' has a bias, which that form cannot hold"
    if reason:
        raise UserError(f"network '{net.name}' cannot be written in GluonCV's pruned-ResNet form: {reason}")
    shapes = {}
    for node in net.nodes:
        if has_weight(node):
            for j in node.inputs[1:]:
                name = net.nodes[j].name
                shapes[_gluoncv_key(name)] = list(net.arrays[name].shape)
    json_path, params_path = Path(f"{prefix}.json"), Path(f"{prefix}.params")
    save_arrays(params_path, {_gluoncv_key(k): v for k, v in net.arrays.items()})
    write_text(json_path, json.dumps(shapes, indent=1))
    return json_path, params_path


def load_gluoncv(name: str, prefix: os.PathLike, n_classes: int) -> gluon.HybridBlock:
    """The GluonCV block of `name` cut to what `save_gluoncv` wrote, by GluonCV's own reader."""
    block = _gluoncv_block(name, n_classes)
    shapes = json.loads(Path(f"{prefix}.json").read_text())
    prune_gluon_block(block, block.name, shapes, params=mx.nd.load(f"{prefix}.params"), pretrained=True)
    return block


# ---- blocks -----------------------------------------------------------------------------------------------------


def to_symbol(net: Network, frozen_statistics: bool = False, fused: bool = False) -> mx.sym.Symbol:
    """The graph as a Symbol.

    With `frozen_statistics` batch norm uses its running statistics in training too. With `fused` a batch norm and
    the relu that alone reads it are one operator, of CPUs only. Not every network trains with that: neighbouring
    kernels may lay out channels in blocks of 8 and of 16, and oneDNN has no fused backward between the two.
    """
    nodes = [
        replace(n, attrs={**n.attrs, "use_global_stats": "True"}) if frozen_statistics and n.op in NORM else n
        for n in net.nodes
    ]
    for i, norm in _norms_before_relu(net) if fused else ():
        nodes[i] = replace(nodes[norm], op=NORM_RELU, name=nodes[i].name)
    nodes[net.data] = Node("null", "data", {})
    return mx.sym.load_json(replace(net, nodes=tuple(nodes)).to_json())


def _norms_before_relu(net: Network) -> List[Tuple[int, int]]:
    """(relu, batch norm) node pairs where the relu is the batch norm's only reader and feeds no strided conv.

    The gradient that a strided conv hands down can be laid out in memory as the fused operator's backward does not
    like: 19.5 ms instead of some 5 in ResNet-50 at 224 px, batch 8.
    """
    readers: Dict[int, List[int]] = {}
    for i, node in enumerate(net.nodes):
        for j in node.inputs:
            readers.setdefault(j, []).append(i)

    def is_strided(i: int) -> bool:
        return net.nodes[i].op == "Convolution" and max(net.nodes[i].literal("stride", (1, 1))) > 1

    return [
        (i, node.inputs[0])
        for i, node in enumerate(net.nodes)
        if (node.op == "relu" or node.op == "Activation" and node.attrs["act_type"] == "relu")
        and net.nodes[node.inputs[0]].op in NORM
        and readers[node.inputs[0]] == [i]
        and not any(map(is_strided, readers.get(i, ())))
    ]


def to_block(
    net: Network,
    ctx: Optional[mx.Context] = None,
    frozen_statistics: bool = False,
    trainable: Optional[set] = None,
    fused: bool = False,
    dtype: str = "float32",
) -> gluon.SymbolBlock:
    """A hybridized block that holds a copy of the arrays on `ctx`.

    `trainable`: names of the arrays that get gradients; all but the frozen ones by default. `fused`: see `to_symbol`;
    without it the graph runs as it is saved. With `dtype` float16 it computes in that, from float32 images to float32
    outputs; the arrays of batch norms stay float32, as MXNet's operator has them.
    """
    ctx = ctx or mx.cpu()
    of_norms = {net.nodes[j].name for n in net.nodes if n.op in NORM for j in n.inputs[1:]}
    aux = auxiliary(net)
    fixed = {n.name for n in net.nodes if n.attrs.get(FROZEN) == "0.0"} | aux
    params = gluon.ParameterDict("")
    for name, value in net.arrays.items():
        learn = name not in fixed and (trainable is None or name in trainable)
        kind = value.dtype if dtype == "float32" or name in of_norms else dtype
        p = params.get(
            name, shape=value.shape, dtype=kind, grad_req="write" if learn else "null", differentiable=name not in aux
        )
        p.initialize(mx.init.Zero(), ctx=ctx)
        p.set_data(mx.nd.array(value, ctx=ctx, dtype=kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "input type is not inferred": the input's type is known when it comes
        fused = fused and ctx.device_type == "cpu"
        symbol, data = to_symbol(net, frozen_statistics, fused), mx.sym.var("data")
        if dtype != "float32":
            data = mx.sym.var("data", dtype="float32")  # said, so that the types of all parameters follow from it
            symbol = mx.sym.cast(symbol(data=mx.sym.cast(data, dtype)), "float32")
        block = gluon.SymbolBlock(symbol, data, params=params)
    # One bulk for all of backward: in MXNet's bulks of 15 nodes some convs compute weight gradients that frozen
    # weights do not ask for. GCP's step of ResNet-18 at 32 px, batch 64: 93 -> 82 ms, gradients equal bit by bit.
    block.hybridize(static_alloc=True, static_shape=True, backward_bulk_size=BACKWARD_BULK)
    return block


def from_block(net: Network, block: gluon.SymbolBlock) -> Network:
    """The network with the block's present values; arrays that the block holds in float16 stay the network's own."""
    # A static graph's backward writes the running statistics; reading them does not wait for it by itself.
    mx.nd.waitall()
    return net.with_arrays(
        {k: p.data().asnumpy() for k, p in block.collect_params().items() if np.dtype(p.dtype) != np.float16}
    )


def predict(net: Network, images: np.ndarray) -> np.ndarray:
    """Outputs, shape (n, classes), of the network for images of shape (n, channels, height, width)."""
    return to_block(net)(mx.nd.array(images)).asnumpy()
