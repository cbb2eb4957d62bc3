"""Makes tests/golden/onnx: small networks of distinct families as PyTorch's exporters write them, and their outputs.

Needs the environment of scripts/peers.sh: `python tests/make_onnx.py`. Weights are random; sizes are the smallest
that keep a family's structure.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision.models as zoo
from torch import nn
from torch.nn import functional

FOLDER = Path(__file__).parent / "golden" / "onnx"
SIDE, CLASSES = 32, 10


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, activation=nn.ReLU):
    """Convolution, batch norm, activation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), activation())


class Residual(nn.Module):
    """A basic block, with a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, 3, stride), conv(outputs, outputs, activation=nn.Identity))
        self.shortcut = conv(inputs, outputs, 1, stride, activation=nn.Identity)

    def forward(self, x):
        return functional.relu(self.body(x) + self.shortcut(x))


class Head(nn.Module):
    """Features, their mean, a dense layer."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features, self.fc = features, nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class CrossStage(nn.Module):
    """Darknet's cross-stage block behind a space-to-depth, with an upsampled and a pooled branch."""

    def __init__(self) -> None:
        super().__init__()
        leaky = lambda: nn.LeakyReLU(0.1)  # noqa: E731
        self.stem = conv(12, 16, activation=leaky)
        self.narrow, self.last = conv(8, 8, activation=leaky), conv(32, 16, 1, activation=nn.SiLU)

    def forward(self, x):
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        one, two = self.stem(x).chunk(2, 1)
        small = functional.max_pool2d(two, 2)
        more = functional.interpolate(small, scale_factor=2, mode="nearest")
        smooth = functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(torch.cat([one, self.narrow(two), more, smooth], 1))


class SamePadding(nn.Module):
    """TensorFlow's uneven borders, and fire modules with pools that round up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 8, 3, 2, bias=False), nn.Conv2d(8, 6, 1)
        self.norm, self.left, self.right = nn.BatchNorm2d(8), nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x):
        x = functional.hardswish(self.norm(self.stem(functional.pad(x, (0, 1, 0, 1)))))
        x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        x = functional.relu(self.squeeze(x))
        x = torch.cat([functional.relu(self.left(x)), functional.relu(self.right(x))], 1)
        return functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)


class Plain(nn.Module):
    """VGG's way: convolutions with biases, pools, dense layers behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
                                      nn.Conv2d(8, 12, 3, padding=1), nn.ELU(), nn.MaxPool2d(4))  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(48, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, CLASSES))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def mobilenet_v3() -> nn.Module:
    """Squeeze-excite, hard swish and hard sigmoid."""
    block = zoo.mobilenetv3.InvertedResidualConfig
    rows = [block(8, 3, 16, 8, True, "RE", 2, 1, 1), block(8, 5, 24, 16, True, "HS", 2, 1, 1)]
    return zoo.mobilenetv3.MobileNetV3(rows, last_channel=32, num_classes=CLASSES)


def efficientnet() -> nn.Module:
    """Squeeze-excite by sigmoid, swish."""
    block = zoo.efficientnet.MBConvConfig
    rows = [block(1, 3, 1, 8, 8, 1, 1, 1), block(4, 3, 2, 8, 12, 2, 1, 1)]
    return zoo.efficientnet.EfficientNet(rows, dropout=0.2, last_channel=32, num_classes=CLASSES)


def regnet() -> nn.Module:
    """Grouped convolutions and squeeze-excite."""
    rows = zoo.regnet.BlockParams([1, 2], [16, 24], [8, 8], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return zoo.regnet.RegNet(rows, num_classes=CLASSES, stem_width=8)


def convnext() -> nn.Module:
    """Layer norms along the channels, dense layers along the last axis, scaled branches."""
    rows = [zoo.convnext.CNBlockConfig(8, 12, 1), zoo.convnext.CNBlockConfig(12, None, 1)]
    return zoo.convnext.ConvNeXt(rows, num_classes=CLASSES)


NETWORKS = {  # name -> the network, and which of PyTorch's exporters writes it
    "resnet": (lambda: Head(nn.Sequential(conv(3, 8), Residual(8, 8, 1), Residual(8, 16, 2)), 16), "kept"),
    "resnet_folded": (lambda: Head(nn.Sequential(conv(3, 8), Residual(8, 8, 1), Residual(8, 16, 2)), 16), "default"),
    "resnet_unoptimised": (lambda: Head(nn.Sequential(conv(3, 8), Residual(8, 16, 2)), 16), "unoptimised"),
    "mobilenet_v2": (lambda: zoo.MobileNetV2(CLASSES, 0.25, [[1, 8, 1, 1], [4, 16, 2, 2]]), "kept"),
    "mobilenet_v3": (mobilenet_v3, "folded"),
    "efficientnet": (efficientnet, "default"),
    "densenet": (lambda: zoo.DenseNet(4, (2, 3), 8, num_classes=CLASSES), "kept"),
    "shufflenet": (lambda: zoo.ShuffleNetV2([2, 1, 1], [8, 16, 16, 24, 32], CLASSES), "kept"),
    "shufflenet_unoptimised": (lambda: zoo.ShuffleNetV2([2, 1, 1], [8, 16, 16, 24, 32], CLASSES), "unoptimised"),
    "regnet": (regnet, "kept"),
    "convnext": (convnext, "kept"),
    "cross_stage": (lambda: Head(CrossStage(), 16), "kept"),
    "same_padding": (lambda: Head(SamePadding(), 16), "kept"),
    "plain": (Plain, "default"),
}


def export(model: nn.Module, path: Path, how: str) -> None:
    """Write the file: with batch norms `kept` or `folded` by the older exporter, or by the newer one."""
    image = (torch.zeros(1, 3, SIDE, SIDE),)
    if how in ("kept", "folded"):
        kept = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False} if how == "kept" else {}
        torch.onnx.export(model, image, str(path), dynamo=False, input_names=["images"], **kept)
    else:
        optimize = how == "default"
        torch.onnx.export(model, image, str(path), dynamo=True, optimize=optimize, external_data=False, verbose=False)
        strip(path)


def strip(path: Path) -> None:
    """The newer exporter writes where in the source each node comes from, which is most of a small file."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.metadata_props[:]
    onnx.save(model, path)


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32))
    outputs = {}
    for name, (build, how) in NETWORKS.items():
        torch.manual_seed(0)
        model = build().eval()
        with torch.no_grad():
            for key, value in [*model.named_parameters(), *model.named_buffers()]:
                if key.endswith(("running_var", "layer_scale")):
                    value.uniform_(0.5, 1.5)
                elif key.endswith(("bias", "running_mean")):
                    value.normal_(0, 0.3)
            outputs[name] = model(images).numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export(model, FOLDER / f"{name}.onnx", how)
        print(name, (FOLDER / f"{name}.onnx").stat().st_size)
    np.savez(FOLDER / "outputs.npz", **outputs)


if __name__ == "__main__":
    main()
