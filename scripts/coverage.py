"""Test which networks of torchvision and timm can be imported from PyTorch, pruned, and exported back.

PyTorch creates each network with random weights and exports it to ONNX; it is imported here, and its outputs are
compared with PyTorch's. Silencing 30 % of every channel group is compared with removing them. A pruned network is then
exported to ONNX again, and compared in onnxruntime and, through onnx2torch, in PyTorch. Needs the environment that
scripts/peers.sh creates.
"""

import gc
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Callable, Dict, Optional

from gcp import command as command_line
from gcp.errors import UserError
from gcp.storage import read_json, write_json

START, END = "<!-- coverage -->", "<!-- end of coverage -->"
TORCHVISION = """
alexnet convnext_tiny convnext_small densenet121 densenet161 densenet169 densenet201 efficientnet_b0 efficientnet_b1
efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_v2_s googlenet inception_v3 mnasnet0_5 mnasnet0_75
mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_1_6gf regnet_x_3_2gf regnet_x_400mf
regnet_x_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf resnet101 resnet152 resnet18 resnet34
resnet50 resnext101_32x8d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
squeezenet1_0 squeezenet1_1 vgg11 vgg11_bn vgg16 vgg16_bn wide_resnet50_2
""".split()
TIMM = """
bat_resnext26ts botnet26t_256 convnext_atto convnextv2_atto cs3darknet_s cspdarknet53 cspresnet50 darknet53
densenet121 dla34 dla46x_c dm_nfnet_f0 dpn48b dpn68b eca_nfnet_l0 ecaresnet26t edgenext_xx_small efficientnet_b0
efficientnet_lite0 efficientnetv2_rw_t ese_vovnet19b_dw fastvit_t8 fbnetc_100 gcresnet33ts gernet_s ghostnet_050
ghostnetv2_100 hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small inception_next_atto inception_resnet_v2
inception_v3 inception_v4 lcnet_050 legacy_xception levit_128s mixnet_s mobilenetv1_100 mobilenetv2_050
mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 nf_resnet26 nf_regnet_b0 pnasnet5large regnetx_002
regnety_002 regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d resnet10t resnet26d
resnet50d resnetblur50 resnetrs50 resnetv2_50 resnetv2_50x1_bit rexnet_100 selecsls42b semnasnet_050 seresnet50
skresnet18 spnasnet_100 starnet_s1 tf_efficientnet_b0 tf_mobilenetv3_small_minimal_100 tinynet_e tresnet_m vovnet39a
xception41
""".split()
SIDES = {  # start of a name -> side of its images in pixels, where 64 are too few
    "timm:bat": 256,
    "timm:botnet": 256,
    "timm:inception": 299,
    "timm:levit": 224,
    "timm:legacy_xception": 128,
    "timm:pnasnet": 331,
    "torchvision:alexnet": 224,
    "torchvision:googlenet": 224,
    "torchvision:inception": 299,
    "torchvision:squeezenet": 224,
    "torchvision:vgg": 224,
}
NAMES = [f"torchvision:{name}" for name in TORCHVISION] + [f"timm:{name}" for name in TIMM]
STEPS = ("exported", "imported", "pruned", "onnxruntime", "torch")
TOLERANCE = 1e-4  # of the largest output


class Differs(Exception):
    """A step ran, but its result is not what it should be."""


def run(argv: list) -> None:
    """Parse the arguments, try the networks, print and write the table."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--only", help="try only names that contain this; the page is then left unchanged")
    parser.add_argument("--results", type=Path, help="file for the results; networks in it are not tried again")
    parser.add_argument("--write", type=Path, help="write the table between the markers of this page")
    args = parser.parse_args(argv)
    try:
        import onnx2torch  # noqa: F401
        import timm  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error}; create the environment with scripts/peers.sh, and run this in it") from None
    kind = Dict[str, Dict[str, str]]
    known = read_json(args.results, kind) if args.results and args.results.exists() else {}
    names = [name for name in NAMES if not args.only or args.only in name]
    for name in names:
        if name not in known:
            known[name] = tried(name)
            print(f"{name}: {known[name]}", file=sys.stderr, flush=True)
            if args.results:
                write_json(args.results, known)
            gc.collect()
    text = table({name: known[name] for name in names})
    print(text, flush=True)
    if args.write and not args.only:
        page = args.write.read_text(encoding="utf-8")
        before, _, rest = page.partition(START)
        args.write.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def tried(name: str) -> Dict[str, str]:
    """The result of each step: "yes", the largest difference over the largest output, or what went wrong."""
    import numpy as np
    import torch

    from gcp.backend import export, torch_files, zoo
    from gcp.backend.blocks import predict
    from gcp.experiment import zoo as trials
    from gcp.graph.surgery import shrink

    side = next((side for start, side in SIDES.items() if name.startswith(start)), 64)
    images = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    found: Dict[str, str] = {}

    def step(what: str, function: Callable[[], object]) -> Optional[object]:
        """Run a step, unless an earlier one failed."""
        if not all(map(ok, found.values())):
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = function()
        except Exception as error:  # PyTorch's exporter can raise anything
            said = " ".join(str(error).replace(f"{folder}/", "").split())[:300]
            found[what] = said if isinstance(error, (UserError, Differs)) else f"{type(error).__name__}: {said}"
            return None
        found[what] = f"{result:.0e}" if isinstance(result, float) else "yes"
        return result

    def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
        value = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        if not value <= TOLERANCE:
            raise Differs(f"outputs differ by {value:.0e}")
        return value

    def pruned() -> float:
        trial = trials.tried(str(path), input_shape=images.shape[1:], redrawn=False)
        if trial.difference is None or trial.difference > TOLERANCE:
            raise Differs(f"outputs differ by {trial.difference:.0e}" if trial.difference else trial.said)
        return trial.difference

    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder, "large.onnx"), Path(folder, "small.onnx")
        model = step("exported", lambda: written(name, path, side))
        with torch.no_grad():
            step("imported", lambda: difference(predict(zoo.open_network(str(path)), images),
                                                model(torch.from_numpy(images)).numpy()))  # fmt: skip
        step("pruned", pruned)

        def again() -> np.ndarray:
            net = zoo.open_network(str(path))
            rng = np.random.default_rng(0)
            keep = {g.name: np.sort(rng.permutation(g.size)[: max(1, int(trials.KEPT * g.size))]) for g in net.groups}
            net = shrink(net, keep)
            export.to_onnx(net, small)  # which also compares the outputs in onnxruntime
            return predict(net, images)

        expected = step("onnxruntime", again)
        with torch.no_grad():
            run = lambda: torch_files.module(small)(torch.from_numpy(images)).numpy()  # noqa: E731
            step("torch", lambda: difference(run(), expected))
    return found


def written(name: str, path: Path, side: int) -> object:
    """PyTorch's network with random weights, which is exported to ONNX with its batch norms kept."""
    import timm
    import torch
    import torchvision

    torch.manual_seed(0)
    library, _, short = name.partition(":")
    if library == "timm":
        model = timm.create_model(short, num_classes=10)
    else:
        more = {"init_weights": True} if short in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(short, num_classes=10, **more)
    with torch.no_grad():  # no norms or scales are equal and none is zero, so every branch counts
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1 and key.endswith("weight") or key.endswith(("gamma", "layer_scale")):
                value.uniform_(0.4, 1.0)  # with more, the deepest networks amplify rounding
            elif key.endswith(("bias", "running_mean")):
                value.normal_(0, 0.3)
    model.eval()
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, side, side),),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        dynamic_axes={"images": {0: "batch"}},
        input_names=["images"],
    )
    return model


def table(found: Dict[str, Dict[str, str]]) -> str:
    """Markdown tables of how many networks pass each step, and of what went wrong."""
    rows = ["| step | torchvision | timm | all |", "|---|---|---|---|"]
    said = {
        "exported": "PyTorch's exporter writes it",
        "imported": "read, with equal outputs",
        "pruned": "30 % of the channels: silenced equals removed",
        "onnxruntime": "exported again, equal in onnxruntime",
        "torch": "and in PyTorch, by onnx2torch",
    }
    failures = []
    for what in STEPS:
        counts = []
        for library in ("torchvision:", "timm:", ""):
            those = [steps for name, steps in found.items() if name.startswith(library)]
            counts.append(f"{sum(ok(steps.get(what, 'not tried')) for steps in those)} of {len(those)}")
        rows.append(f"| {said[what]} | {' | '.join(counts)} |")
        failures += [f"| {name} | {said[what]} | {steps[what].partition('. ')[0]} |" for name, steps in found.items()
                     if what in steps and not ok(steps[what])]  # fmt: skip
    return "\n".join([*rows, "", "| network | where it ends | why |", "|---|---|---|", *failures])


def ok(said: str) -> bool:
    """Whether a step worked, that is, whether its result is "yes" or a difference."""
    return said == "yes" or re.fullmatch(r"\de[-+]\d+", said) is not None


if __name__ == "__main__":
    command_line.main(run)
