"""Networks of GluonCV and MXNet: channels silenced against channels removed, and which can be pruned at all."""

from __future__ import annotations

import re
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from gcp.backend import zoo
from gcp.experiment.zoo import task, tried

# The cheapest of each family, and the smallest side of an image that it takes.
QUICK = {
    "mobilenet0.25": 32,
    "mobilenetv2_0.25": 32,
    "mobilenetv3_small": 32,
    "shufflenet_v1": 32,
    "shufflenet_v2": 32,
    "resnet18_v1": 32,
    "resnest14": 64,
    "resnet18_v1b_0.89": 32,
    "resnet50_v1d_0.11": 32,
    "cifar_resnet20_v2": 16,
    "cifar_wideresnet16_10": 8,
    "cifar_resnext29_32x4d": 8,
    "squeezenet1.1": 224,
    "dla34": 32,
    "mxnet:mobilenetv2_0.25": 32,
}
SLOW = {
    "alexnet": 64,
    "se_resnet18_v2": 32,
    "vgg11": 32,
    "densenet121": 224,
    "googlenet": 299,
    "inceptionv3": 299,
    "xception": 64,
    "resnext50_32x4d": 32,
    "nasnet_4_1056": 64,
    "residualattentionnet56": 224,
    "darknet53": 32,
    "hrnet_w18_small_v1_c": 64,
    "ssd_300_mobilenet0.25_voc": 300,
    "yolo3_mobilenet0.25_voc": 64,
    "center_net_resnet18_v1b_voc": 64,
    "fcn_resnet50_voc": 64,
    "simple_pose_resnet18_v1b": 64,
}


@pytest.mark.parametrize(
    "name, size", [*QUICK.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())]
)
def test_silenced_is_removed(name, size):
    trial = tried(name, input_shape=(3, size, size))
    assert trial.difference is not None, trial.said
    assert 0 < trial.difference < 1e-5 and trial.share > 0.4


def test_names_and_what_they_are_for():
    families = zoo.families()
    names = [name for of in families.values() for name in of]
    assert len(names) == len(set(names)) and {"mxnet:resnet18_v1", "mxnet:inceptionv3"} <= set(families["mxnet"])
    assert {task(n) for n in families["ssd"] + families["rcnn"] + families["center_net"]} == {"detection"}
    assert {task(n) for n in families["action_recognition"]} == {"action"}
    assert task("darknet53") == task("hrnet_w18_c") == task("mxnet:vgg11") == "classification"
    assert task("hrnet_w18_s") == task("danet_resnet50_citys") == "segmentation"
    assert task("yolo3_darknet53_voc") == "detection" and task("simple_pose_resnet18_v1b") == "pose"


def test_a_graph_with_graphs_inside_is_refused():
    trial = tried("mobilenet1.0_int8", compared=False)
    assert trial.share == 0 and "'mobilenet1.0_int8': MXNet cannot read its graph" in trial.said


def walked(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return name, tried(name, compared=False).share > 0


@pytest.mark.slow
def test_most_of_the_zoo_can_be_pruned():
    """Shapes only; of names that differ in their data set, and so in the number of classes, one."""
    names = {}
    for family, of in zoo.families().items():
        for name in of:
            if family != "action_recognition":
                names.setdefault(re.sub("_(voc|coco|ade|citys|custom|mhpv1)$", "", name), name)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = dict(pool.map(walked, names.values()))
    for what, share in ("classification", 0.95), ("detection", 0.9), ("segmentation", 0.8):
        of = [good for name, good in found.items() if task(name) == what]
        assert sum(of) >= share * len(of), f"{what}: {sum(of)} of {len(of)}"
