"""Networks of GluonCV and MXNet: channels silenced against channels removed, and which can be pruned at all."""

from __future__ import annotations

import re
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from gcp.backend import zoo
from gcp.errors import UserError
from gcp.experiment.zoo import task, tried
from scripts import zoo as script

# Of each family some of the cheapest, and the smallest side of an image that they take. The ordinary tests have the
# quickest of them.
QUICK = {
    "mobilenet0.25": 32,
    "mobilenetv3_small": 32,
    "cifar_resnet20_v1": 8,
    "cifar_resnet20_v2": 8,
    "squeezenet1.1": 224,
    "mxnet:squeezenet1.1": 224,
}
SLOW = {
    "yolo3_mobilenet0.25_voc": 32,
    "shufflenet_v2": 32,
    "mxnet:mobilenet0.25": 32,
    "ssd_300_mobilenet0.25_voc": 64,
    "mobilenet0.5": 32,
    "mobilenetv2_0.25": 32,
    "shufflenet_v1": 32,
    "resnet50_v1d_0.11": 32,
    "cifar_resnet56_v1": 8,
    "cifar_resnext29_32x4d": 8,
    "squeezenet1.0": 224,
    "mxnet:mobilenet0.5": 32,
    "mxnet:mobilenetv2_0.25": 32,
    "mxnet:squeezenet1.0": 224,
    "center_net_mobilenetv3_small_duc_voc": 32,
    "hrnet_w18_small_v1_s": 32,
    "mobile_pose_mobilenetv3_small": 64,
    "alexnet": 64,
    "resnet18_v1": 32,
    "resnet18_v1b_0.89": 32,
    "se_resnet18_v2": 32,
    "resnest14": 64,
    "cifar_wideresnet16_10": 8,
    "dla34": 32,
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
    "center_net_resnet18_v1b_voc": 64,
    "faster_rcnn_resnet50_v1b_voc": 96,
    "mask_rcnn_fpn_resnet18_v1b_coco": 64,
    "fcn_resnet50_voc": 64,
    "icnet_resnet50_citys": 480,
    "fastscnn_citys": 1024,
    "danet_resnet50_citys": 64,
    "simple_pose_resnet18_v1b": 64,
    "monodepth2_resnet18_kitti_stereo_640x192": 64,
}
DATA = "_(voc|coco|ade|citys|custom|mhpv1)(?=_int8|$)"  # what a network was made for: its number of classes
DEPTH = r"(?<=net|est|ext|vgg|t_w)(?!18|34)\d+"  # of networks of the same blocks, or their width
GOALS = {"classification": (161, 165), "detection": (75, 80), "segmentation": (31, 37)}


@pytest.mark.parametrize(
    "name, size", [*QUICK.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())]
)
def test_silenced_is_removed(name, size):
    trial = tried(name, input_shape=(3, size, size))
    assert trial.difference is not None, trial.said
    assert 0 < trial.difference < 1e-5 and trial.share > 0.4


def test_nothing_is_downloaded_for_a_builder_that_takes_no_number_of_classes(monkeypatch):
    asked = []
    monkeypatch.setattr(zoo.model_store, "get_model_file", lambda *args, **how: asked.append(args))
    with pytest.raises(UserError, match="yolo3_darknet53_voc"):
        zoo.from_gluoncv("yolo3_darknet53_voc", (3, 64, 64), n_classes=10)
    assert not asked


def test_names_and_what_they_are_for():
    families = zoo.families()
    names = [name for of in families.values() for name in of]
    assert len(names) == len(set(names)) and {"mxnet:resnet18_v1", "mxnet:inceptionv3"} <= set(families["mxnet"])
    assert {task(n) for n in families["ssd"] + families["rcnn"] + families["center_net"]} == {"detection"}
    assert {task(n) for n in families["action_recognition"]} == {"action"}
    assert task("darknet53") == task("hrnet_w18_c") == task("mxnet:vgg11") == "classification"
    assert task("hrnet_w18_s") == task("danet_resnet50_citys") == "segmentation"
    assert task("yolo3_darknet53_voc") == "detection" and task("simple_pose_resnet18_v1b") == "pose"


def test_the_table_is_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "families", dict)
    script.run(["--write", str(tmp_path / "table.md")])
    assert (tmp_path / "table.md").read_text().startswith("| family")
    with pytest.raises(UserError, match="--compare"):
        script.run(["--compare", "-1"])


def test_a_graph_with_graphs_inside_is_refused():
    trial = tried("mobilenet1.0_int8", compared=False)
    assert trial.share == 0 and "'mobilenet1.0_int8': MXNet cannot read its graph" in trial.said


def walked(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return name, tried(name, compared=False).share > 0


@pytest.mark.slow
def test_most_of_the_zoo_can_be_pruned():
    """Shapes only; of names that differ in their data set or depth alone, one stands for all."""
    names = {}
    for of in zoo.families().values():
        for name in of:
            if task(name) in GOALS:
                names.setdefault(re.sub(DEPTH, "", re.sub(DATA, "", name)), []).append(name)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        good = dict(pool.map(walked, [alike[0] for alike in names.values()]))
    for what, goal in GOALS.items():
        counts = [(good[alike[0]] * len(alike), len(alike)) for alike in names.values() if task(alike[0]) == what]
        assert tuple(map(sum, zip(*counts))) == goal, what
