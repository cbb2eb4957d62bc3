"""Networks by name: GluonCV's and MXNet's model zoos, ONNX files and saved networks; GluonCV's pruned-ResNet form.

A saved network is MXNet's own `-symbol.json` + `-0000.params`, which plain MXNet loads without this project; the input
shape and the GluonCV name are stored as attributes of the input variable. GluonCV's pruned-ResNet form (a JSON file of
weight shapes beside the parameters) can be written for its ResNets.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import json
import os
import re
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from gcp.backend import onnx_import
from gcp.backend.engine import gluon, mx
from gcp.backend.files import INPUT_SHAPE, first_line, is_saved, load, node_shapes, save_arrays, with_free_scales
from gcp.backend.onnx_files import is_onnx
from gcp.errors import UserError
from gcp.graph.channels import FROZEN, has_weight
from gcp.graph.network import Network, frozen, parse_nodes
from gcp.graph.surgery import redrawn, resized
from gcp.storage import expanded, write_text

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # GluonCV warns about optional packages that are not used here
    # It looks for PyTorch, which it does not need, and refuses to be imported beside a recent version of it.
    torch = sys.modules.get("torch")
    sys.modules["torch"] = None
    from gluoncv.model_zoo import get_model, get_model_list, model_store, model_zoo

    del sys.modules["torch"]
    if torch is not None:
        sys.modules["torch"] = torch
MXNET = "mxnet:"  # before a name: the network of MXNet's own model zoo
PART = "@"  # between a name and a number, the fraction of the network's width
WIDEST = 4.0
INPUTS = {  # start of a name -> (channels, height, width) of its images
    "cifar": (3, 32, 32),
    "(mxnet:)?inceptionv3$|xception": (3, 299, 299),
    "ssd_300": (3, 300, 300),
    "ssd_512|center_net|.*rcnn": (3, 512, 512),
    "yolo3": (3, 416, 416),
    "fcn|psp|deeplab|icnet|danet|hrnet.*_s$": (3, 480, 480),
    "fastscnn": (3, 1024, 1024),
    "monodepth2.*posenet": (6, 192, 640),
    "monodepth2": (3, 192, 640),
    ".*pose": (3, 256, 192),
}
GLUONCV_PREFIX = "resnetv1d_"  # GluonCV's reader of pruned ResNets expects it, for every depth and version


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
    pretrained ones, from the file `weights` if it is given; or drawn (He et al. 2015, normal, as Gluon's MSRAPrelu
    does) if `seed` is given; or all zero without memory behind them, which is fast and enough to describe a network.
    A name may end in a fraction of the width: `resnet18_v1b@0.5` has half of each group's channels, rounded half to
    even and at least 1, like MobileNets with their own multiplier (Howard et al. 2017, section 3.3).
    Raises UserError for an unknown name, a network that cannot be built as a graph, or an input that the network cannot
    take.
    """
    if PART in name:
        if pretrained:
            raise UserError(f"network '{name}': weights are published for the full width only; leave out '{PART}...'")
        return _at_part(name, input_shape, n_classes, seed)
    block = _gluoncv_block(name, n_classes, pretrained, weights, seed or 0)
    try:
        heads = _heads(block(mx.sym.var("data")), input_shape)
    except (mx.MXNetError, TypeError, ValueError, AttributeError, AssertionError, NameError) as error:
        raise UserError(f"network '{name}' has no graph from one image to its outputs: {first_line(error)}") from error
    nodes, outputs = parse_nodes((mx.sym.Group(heads) if len(heads) > 1 else heads[0]).tojson())
    params = block.collect_params()
    # Only parameters that the graph reads: NASNet holds layers that it never calls.
    read = {n.name: params[n.name] for n in nodes if n.op == "null" and n.name in params}
    net = Network(name, nodes, outputs, (), {key: np.zeros(()) for key in read})
    shapes = node_shapes(net, input_shape)
    found = {n.name: s[0] for n, s in zip(nodes, shapes)}
    fixed = {key for key, p in read.items() if p.grad_req == "null" and "running" not in key}
    for key, p in read.items():
        p.shape = found[key]
    if seed is not None and not pretrained:
        np.random.seed(seed)
        mx.random.seed(seed)
        params.setattr("grad_req", "null")  # else room for every array's gradient is made, too
        try:
            block.initialize(mx.init.MSRAPrelu(), force_reinit=True)
        except ValueError:  # detection networks request a matrix initialiser for vectors
            _initialize_each(read)
    if pretrained or seed is not None:
        values = {k: p.data().asnumpy() for k, p in read.items()}
    else:
        values = _zeros({k: found[k] for k in read})
    # Gluon numbers prefixes per process (`mobilenet0_`, `mobilenet1_`): names lose them if they stay distinct.
    short = {n.name: n.name[len(block.prefix) :] if n.name.startswith(block.prefix) else n.name for n in nodes}
    if len(set(short.values())) < len(nodes):
        short = {n.name: n.name for n in nodes}
    kept = []
    for node in nodes:
        attrs = {k: v for k, v in node.attrs.items() if not k.startswith("__")} if node.op == "null" else node.attrs
        if node.name in fixed:
            attrs[FROZEN] = "0.0"
        kept.append(replace(node, name=short[node.name], attrs=attrs))
    arrays = {short[k]: v for k, v in values.items()}
    return with_free_scales(Network(name, tuple(kept), outputs, shapes, arrays))


def _at_part(name: str, input_shape: Sequence[int], n_classes: Optional[int], seed: Optional[int]) -> Network:
    """GluonCV's network at the fraction of its width in which the name ends."""
    base, _, number = name.partition(PART)
    try:
        part = float(number)
    except ValueError:
        part = np.nan
    if not 0 < part <= WIDEST:
        raise UserError(
            f"network '{name}': '{PART}' must be followed by a fraction of the width, above 0 and at most {WIDEST:g}"
        )
    whole = from_gluoncv(base, input_shape, n_classes, seed=seed)
    net = resized(whole, {group: max(1, round(part * n)) for group, n in whole.widths.items()})
    if seed is None:
        return replace(net, name=name, arrays=_zeros({k: a.shape for k, a in net.arrays.items()}))
    # An array that is never trained is a constant, such as a detection network's anchors, not a weight to be drawn.
    constants = {k: whole.arrays[k] for k in frozen(net) if whole.arrays[k].shape == net.arrays[k].shape}
    return replace(redrawn(net, seed).with_arrays(constants), name=name)


def _zeros(shapes: Mapping[str, tuple]) -> Dict[str, np.ndarray]:
    """Arrays of zeros that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def _initialize_each(params: Dict[str, gluon.Parameter]) -> None:
    """Initialise each parameter; if its own initialiser does not fit, with ones (scales, variances) or zeros."""
    for name, p in params.items():
        try:
            p.initialize(default_init=mx.init.MSRAPrelu(), force_reinit=True)
        except ValueError:
            p.initialize(init=mx.init.One() if name.endswith(("gamma", "var")) else mx.init.Zero(), force_reinit=True)


def _heads(made, input_shape: Sequence[int]) -> List[mx.sym.Symbol]:
    """A block's outputs without those of auxiliary classifiers, that is, further vectors with as many classes."""
    heads = _flat(made)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(mx.MXNetError):
        warnings.simplefilter("ignore")  # an input that the network cannot take is refused later, with all shapes known
        _, shapes, _ = mx.sym.Group(heads).infer_shape_partial(data=(1, *input_shape))
        if all(len(shape) == 2 and shape == shapes[0] for shape in shapes):
            return heads[:1]
    return heads


def _flat(heads) -> List[mx.sym.Symbol]:
    """The Symbols in the nested lists and tuples that a block returns."""
    return [s for head in heads for s in _flat(head)] if isinstance(heads, (list, tuple)) else [heads]


def is_known(name: str) -> bool:
    """Whether GluonCV has a network of this name."""
    return name.lower() in get_model_list()


def structured_names(name: str, n_classes: Optional[int] = None) -> Dict[str, str]:
    """GluonCV's structural names of a network's arrays (places in its blocks) -> their names in `from_gluoncv`."""
    block = _gluoncv_block(name, n_classes)
    places = block._collect_params_with_prefix()
    return {key: re.sub(f"^{re.escape(block.prefix)}", "", p.name) for key, p in places.items()}


def default_input(name: str) -> Tuple[int, int, int]:
    """(channels, height, width) of the images that a network is made for; 224 px if its name does not tell."""
    base = name.lower().partition(PART)[0]
    return next((shape for pattern, shape in INPUTS.items() if re.match(pattern, base)), (3, 224, 224))


def _built(name: str, **kwargs) -> gluon.HybridBlock:
    """The block, built by GluonCV or, with `mxnet:` before its name, by MXNet, without any download."""
    if name.startswith(MXNET):
        return mx.gluon.model_zoo.vision.get_model(name[len(MXNET) :], **kwargs)
    builder = inspect.signature(model_zoo._models[name.lower()])
    if "classes" not in kwargs and "classes" in builder.parameters:
        if builder.parameters["classes"].default is inspect.Parameter.empty:  # the user's own classes, by name
            kwargs["classes"] = ["object"]
    elif name.lower().endswith("_custom") and isinstance(kwargs.get("classes"), int):
        kwargs["classes"] = [f"class {i}" for i in range(kwargs["classes"])]
    # Builders that take a base network fetch its weights unless told otherwise; others do not know the argument.
    if "pretrained_base" in builder.parameters:
        return get_model(name, pretrained=False, pretrained_base=False, **kwargs)
    for more in ({"pretrained": False, "pretrained_base": False}, {"pretrained": False}):
        with contextlib.suppress(TypeError, Warning):
            return get_model(name, **more, **kwargs)
    return get_model(name, **kwargs)


def _gluoncv_block(
    name: str, n_classes: Optional[int], pretrained: bool = False, weights: Optional[os.PathLike] = None, seed: int = 0
) -> gluon.HybridBlock:
    """The block; if published weights are for other classes, with an output layer drawn from the seed."""
    known = get_model_list()
    if name.lower() not in known and not (name.startswith(MXNET) and not pretrained):
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
                return _with_classes(_built(name, **kwargs), n_classes)
            full = _published(name, weights)
    except UserError:
        raise
    except Exception as error:  # each builder fails in its own way, and some download
        with_classes = "" if n_classes is None else f" with {n_classes} classes"
        raise UserError(f"network '{name}' cannot be built{with_classes}: {first_line(error)}") from error
    if n_classes is None or list(full.collect_params().values())[-1].shape[0] == n_classes:
        return full
    block, head = _with_classes(_built(name, **kwargs), n_classes), ("output", "fc")
    own, theirs = block._collect_params_with_prefix(), full._collect_params_with_prefix()
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
    """The block with GluonCV's published weights: from the file, else from ~/.mxnet/models, else downloaded to there.

    Raises UserError if none are published, they cannot be obtained, or the file's SHA-1 is not the published one.
    """
    keys = {public.lower(): key for key, public in zip(model_store._model_sha1, model_store.pretrained_model_list())}
    key, fix = keys.get(name.lower()), "GluonCV lists none for it; set pretrained to false"
    if key is not None:
        file_name = f"{key}-{model_store.short_hash(key)}"
        url = model_store._url_format.format(repo_url=model_store.apache_repo_url, file_name=file_name)
        fix = (
            f"download {url} where there is internet access, unzip it, and put {file_name}.params into "
            "~/.mxnet/models (or anywhere, with model.weights set to its path)"
        )
    if weights is None:
        try:
            return get_model(name, pretrained=True)
        except Exception as error:  # GluonCV's downloader raises whatever its HTTP client raises
            raise UserError(
                f"the published weights of '{name}' cannot be obtained ({first_line(error)}): {fix}"
            ) from error
    if key is None:
        raise UserError(f"no weights of '{name}' are published, so '{weights}' cannot be them: {fix}")
    weights = expanded(weights)
    if not weights.is_file():
        raise UserError(f"'{weights}': the file with the weights of '{name}' does not exist: {fix}")
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
    """The block itself, corrected: GluonCV's pruned ResNets have a weight shape for 1000 classes in any case."""
    head = getattr(block, "fc", None)
    if n_classes is not None and isinstance(head, gluon.nn.Dense) and head.weight.shape[0] != n_classes:
        head.weight._shape, head.bias._shape = (n_classes, head.weight.shape[1]), (n_classes,)
    return block


def open_network(
    name: str,
    input_shape: Optional[Sequence[int]] = None,
    n_classes: Optional[int] = None,
    pretrained: bool = False,
    seed: Optional[int] = None,
    weights: Optional[os.PathLike] = None,
    new_head: bool = False,
) -> Network:
    """The network in an ONNX file, the saved network with the prefix `name` if there is one, or else GluonCV's network.

    For GluonCV's, `input_shape` defaults to `default_input`. With `new_head`, a saved network gets a new output layer
    of `n_classes`, drawn from `seed`. GluonCV's name may end in a fraction of the network's width, as in
    `resnet18_v1b@0.5` (see `from_gluoncv`). Raises UserError if there is no such network, or it does not have
    `n_classes`.
    """
    if is_saved(name):
        net = onnx_import.load(name, input_shape) if is_onnx(name) else load(name, input_shape)
        if new_head:
            return with_new_head(net, net.n_classes if n_classes is None else n_classes, seed or 0)
        if n_classes is not None and net.n_classes != n_classes:
            raise UserError(
                f"saved network '{name}' has {net.n_classes} classes, {n_classes} are needed; set "
                "model.new_head to true for a new output layer"
            )
        return net
    return from_gluoncv(name, input_shape or default_input(name), n_classes, pretrained, seed, weights)


def with_new_head(net: Network, n_classes: int, seed: int) -> Network:
    """The network with a new output layer of `n_classes`: weights as Gluon's MSRAPrelu draws them, biases zero.

    Raises UserError unless the network's first output comes from a dense layer.
    """
    head = net.outputs[0][0]
    node = net.nodes[head]
    if node.op != "FullyConnected":
        raise UserError(
            f"network '{net.name}' ends in '{node.name}' ({node.op}); only a dense output layer can be "
            "replaced (model.new_head)"
        )
    n_inputs = net.arrays[net.weight(node.name)].shape[1]
    # MSRAPrelu's slope of 0.25 gives the variance 2 / (1 + 0.25^2) over the mean of fan-in and fan-out.
    scale = np.sqrt(2 / (1 + 0.25**2) / ((n_inputs + n_classes) / 2))
    drawn = np.random.default_rng((seed, n_classes)).normal(0, scale, (n_classes, n_inputs))
    new = {net.weight(node.name): drawn.astype(np.float32)}
    if net.bias(node.name) is not None:
        new[net.bias(node.name)] = np.zeros(n_classes, np.float32)
    nodes, shapes = list(net.nodes), list(net.shapes)
    nodes[head] = replace(node, attrs={**node.attrs, "num_hidden": str(n_classes)})
    shapes[head] = ((1, n_classes),)
    for j, _ in node.inputs[1:]:
        shapes[j] = (new[net.nodes[j].name].shape,)
        if INPUT_SHAPE in net.nodes[j].attrs:
            nodes[j] = replace(net.nodes[j], attrs={**net.nodes[j].attrs, INPUT_SHAPE: str(shapes[j][0])})
    return Network(net.name, tuple(nodes), net.outputs, tuple(shapes), {**net.arrays, **new})


# ---- GluonCV's pruned-ResNet form -------------------------------------------------------------------------------


def save_gluoncv(net: Network, prefix: os.PathLike) -> Tuple[Path, Path]:
    """Write `<prefix>.json` (shapes of the weights) and `<prefix>.params` as `prune_gluon_block` reads them.

    Only for GluonCV's ResNets whose convolutions have no bias (v1b to v1e, CIFAR v1, basic-block v1). Raises UserError
    for other networks.
    """
    biased = [n.name for n in net.nodes if n.op == "Convolution" and net.bias(n.name) is not None]
    reason = f"conv '{biased[0]}' has a bias, which that form cannot hold" if biased else None
    if "resnet" not in net.name or "v2" in net.name:
        reason = "it is not one of GluonCV's version-1 ResNets"
    if reason:
        raise UserError(f"network '{net.name}' cannot be written in GluonCV's pruned-ResNet form: {reason}")
    weights = [net.nodes[j].name for node in net.nodes if has_weight(node) for j, _ in node.inputs[1:]]
    json_path, params_path = Path(f"{prefix}.json"), Path(f"{prefix}.params")
    save_arrays(params_path, {GLUONCV_PREFIX + k: v for k, v in net.arrays.items()})
    shapes = {GLUONCV_PREFIX + name: list(net.arrays[name].shape) for name in weights}
    write_text(json_path, json.dumps(shapes, indent=1))
    return json_path, params_path


def families() -> Dict[str, List[str]]:
    """GluonCV's names by the module that builds them, followed by MXNet's own under `mxnet`."""
    found: Dict[str, List[str]] = {}
    for name in get_model_list():
        module = inspect.getmodule(model_zoo._models[name]).__name__.split(".")[2]
        found.setdefault("resnetv1b" if module == "pruned_resnet" else module, []).append(name)
    try:
        mx.gluon.model_zoo.vision.get_model("")
    except ValueError as error:  # its message lists the names
        found["mxnet"] = [MXNET + name for name in str(error).split("\n\t")[1:]]
    return found
