"""Configurations: what a file, its bases and overrides give, and the line that each mistake gets."""

from __future__ import annotations

import itertools
import os
import sys

import pytest
import yaml

from gcp import errors, options, runtime
from gcp.errors import UserError
from gcp.experiment import config
from gcp.experiment import record as records

MINIMAL = {
    "scale": "smoke",
    "model": {"name": "resnet18_v1b"},
    "data": {"name": "digits"},
    "train": {"epochs": 2},
    "prune": {"method": "gcp", "target": 0.5},
}


@pytest.fixture
def write(tmp_path):
    """Writes a configuration (a mapping, or text as it is) and gives its path."""

    def write(values, name="digits-gcp.yaml"):
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return write


def refused(path, *overrides) -> UserError:
    with pytest.raises(UserError) as caught:
        config.load(path, overrides)
    assert "\n" not in str(caught.value) and caught.value.key
    return caught.value


def mistake(path, *overrides) -> str:
    return str(refused(path, *overrides))


# What comes out


def test_defaults_and_given_values(write):
    cfg = config.load(write(MINIMAL))
    assert (cfg.name, cfg.scale, cfg.seed, cfg.output) == ("digits-gcp", "smoke", 0, "results/runs")
    assert cfg.model == config.Model(name="resnet18_v1b")
    assert cfg.data.input == (3, 32, 32)
    assert (cfg.prune.method, cfg.prune.target, cfg.prune.objective) == ("gcp", 0.5, "macs")


def test_a_config_does_not_change(write):
    cfg = config.load(write(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        cfg.prune.target = 0.1
    hash(cfg)  # lists became tuples


def test_override_wins_over_file_over_base(write):
    write({**MINIMAL, "seed": 1, "threads": 1, "finetune": {"epochs": 3, "lr": 0.5}}, "base.yaml")
    write({"base": "base.yaml", "seed": 2, "finetune": {"epochs": 4}}, "middle.yaml")
    top = write({"base": "middle.yaml", "prune": {"target": 0.2}})
    cfg = config.load(top, ["seed=3", "finetune.lr=0.25"])
    assert (cfg.threads, cfg.seed, cfg.prune.target) == (1, 3, 0.2)
    assert (cfg.finetune.epochs, cfg.finetune.lr) == (4, 0.25)


def test_one_target_replaces_another_of_a_layer_below(write):
    latency = {"method": "uniform", "objective": "latency", "latency_model": "m.json"}
    write({**MINIMAL, "prune": {**latency, "target": 0.5}}, "base.yaml")
    path = write({"base": "base.yaml", "prune": {"target_ms": 3.5}})
    assert config.load(path).prune.target_ms == 3.5
    prune = config.load(path, ["prune.target_images_per_second=9"]).prune
    assert (prune.target, prune.target_ms, prune.target_images_per_second) == (1, None, 9)
    assert config.load(path, ["prune.target=0.25"]).prune.target == 0.25
    assert "are alternatives" in mistake(path, "prune={target: 0.5, target_ms: 2}")


def test_a_run_with_a_target_in_milliseconds_can_be_read_back_from_its_folder(write, tmp_path, monkeypatch):
    """Its config.yaml states every key, and so the fraction to keep, at its default, beside the milliseconds."""
    monkeypatch.chdir(tmp_path)
    latency = {"method": "uniform", "objective": "latency", "latency_model": "m.json", "target_ms": 3.5}
    (tmp_path / "m.json").write_text("{}")
    cfg = config.load(write({**MINIMAL, "prune": latency}))
    with records.open_run(cfg) as run:
        assert yaml.safe_load((run.path / "config.yaml").read_text())["prune"]["target"] == 1
        assert config.load(run.path / "config.yaml") == cfg


def test_base_is_relative_to_the_file_that_says_it(write, tmp_path):
    (tmp_path / "deep").mkdir()
    write(MINIMAL, "base.yaml")
    assert config.load(write("base: ../base.yaml\n", "deep/child.yaml")).prune.target == 0.5


def test_a_path_may_begin_at_home(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write({"model": {"name": "~/net.onnx"}, "output": "~/runs"}, "over.yaml")
    path = write({**MINIMAL, "base": "~/over.yaml", "model": {}, "finetune": {"teacher": "~/teacher"}})
    cfg = config.load(path, ["prune.device=~/a.yaml", "prune.latency_model=~nobody-here/b.json"])
    assert (cfg.output, cfg.model.name) == (f"{tmp_path}/runs", f"{tmp_path}/net.onnx")
    assert (cfg.finetune.teacher, cfg.prune.device) == (f"{tmp_path}/teacher", f"{tmp_path}/a.yaml")
    assert cfg.prune.latency_model == "~nobody-here/b.json"
    assert config.load(path, ["paper.starts_from=~/a.yaml"]).paper.starts_from == f"{tmp_path}/a.yaml"
    with pytest.raises(UserError, match="output: '~nobody-here/runs'"):
        config.load(path, ["output=~nobody-here/runs"])


def test_an_overlay_lies_over_the_chain_and_under_set(write, tmp_path):
    top = write({**MINIMAL, "output": "results/big/a", "data": {"name": "folder", "root": "data/big"}, "seed": 1})
    over = write(
        {"seed": 2, "train": {"epochs": 1}, "moved": {"results/big": "results/small", "data/big": "data/small"}},
        "over.yaml",
    )
    cfg = config.load(top, ["data.root=data/big"], [over])
    assert (cfg.seed, cfg.train.epochs, cfg.prune.target, cfg.name) == (2, 1, 0.5, "digits-gcp")
    assert (cfg.output, cfg.data.root) == ("results/small/a", "data/big")
    assert config.load(top, [], [over]).data.root == "data/small"
    assert config.load(top, ["output=results/bigger"], [over]).output == "results/bigger"
    over = write({"suffix": "-small", "seed": 2}, "over.yaml")
    assert config.load(top, [], [over]).name == "digits-gcp-small"
    with pytest.raises(UserError, match="over.yaml: suffix: 1 should be the text to append"):
        config.load(top, [], [write({"suffix": 1}, "over.yaml")])
    for old, new in itertools.product(("data/big", "data/big/"), ("data/small", "data/small/")):
        cfg = config.load(top, (), [write({"moved": {old: new}}, "over.yaml")])
        assert cfg.data.root == "data/small", "a slash at the end of a folder's name changes nothing"
    for moved in (["data"], {"data": 1}):
        over = write({"moved": moved}, "over.yaml")
        with pytest.raises(UserError, match="over.yaml: moved: .* should name folders"):
            config.load(top, [], [over])
    with pytest.raises(UserError, match="over.yaml: train.epochs: -1 should be"):
        config.load(top, [], [write({"train": {"epochs": -1}}, "over.yaml")])


def test_override_is_read_as_yaml(write):
    cfg = config.load(
        write({**MINIMAL, "data": {"name": "fashion_mnist"}}),
        ["prune.gcp.lam=[0.1, 1e-2]", "data.root=~/a=b", "train.wd=1e-4", "model.pretrained=yes"],
    )
    assert cfg.prune.gcp.lam == (0.1, 0.01)
    assert cfg.data.root == "~/a=b"
    assert cfg.train.wd == 1e-4  # YAML 1.1 reads the text "1e-4"
    assert cfg.model.pretrained is True


def test_the_dump_of_a_config_loads_as_the_same_config(write):
    cfg = config.load(write(MINIMAL), ["data.input=[3, 64, 48]", "prune.gcp.lam=[0.1, 0.3]"])
    dump = yaml.safe_dump(cfg.model_dump(mode="json"))
    assert config.load(write(dump, "config.yaml")) == cfg


# Fingerprints


def test_threads_that_decode_decide_no_number_and_young_keys_do(write):
    plain, *others = (
        config.load(write({**MINIMAL, "data": {"name": "folder", "root": "x"}}), overrides)
        for overrides in ([], ["data.workers=7"], ["data.on_bad_image=error"], ["data.on_bad_image=skip"])
    )
    for fingerprint in (config.Config.fingerprint, config.Config.dense_fingerprint):
        assert [fingerprint(other) == fingerprint(plain) for other in others] == [True, True, False]


def test_fingerprint_ignores_name_and_output_only(write):
    path = write(MINIMAL)
    print_ = config.load(path).fingerprint()
    assert len(print_) == 12 and set(print_) <= set("0123456789abcdef")
    assert config.load(path, ["name=other", "output=elsewhere"]).fingerprint() == print_
    for change in (
        "seed=1",
        "scale=paper",
        "threads=1",
        "prune.target=0.25",
        "finetune.extra_epochs=1",
        "data.n_train=100",
    ):
        assert config.load(path, [change]).fingerprint() != print_, change
    for change in ("throughput.batch=1", "data.root=null", "finetune.lr=0.1"):
        assert config.load(path, [change]).fingerprint() == print_, change  # decides no number, or is the default
    fashion = [config.load(path, ["data.name=fashion_mnist", *root]).fingerprint() for root in ([], ["data.root=a"])]
    assert fashion[0] == fashion[1]
    folder = [config.load(path, ["data.name=folder", f"data.root={root}"]).fingerprint() for root in ("a", "b")]
    assert folder[0] != folder[1]  # only its path says what a folder holds


def test_fingerprint_holds_the_content_of_files(write, tmp_path):
    model = tmp_path / "model.json"
    path = write(
        {**MINIMAL, "prune": {"method": "gcp", "objective": "latency", "target": 0.5, "latency_model": str(model)}}
    )
    with pytest.raises(UserError, match="prune.latency_model"):
        config.load(path).fingerprint()
    model.write_text("{}")
    first = config.load(path).fingerprint()
    model.write_text("{ }")
    assert config.load(path).fingerprint() != first
    moved = tmp_path / "moved.json"
    moved.write_text("{}")
    assert config.load(path, [f"prune.latency_model={moved}"]).fingerprint() == first


@pytest.mark.parametrize("key", ["model.name", "train.teacher", "finetune.teacher"])
@pytest.mark.parametrize("name", ["big", "./big", "big-symbol.json", "./big-0000.params"])
def test_fingerprint_holds_both_files_of_a_saved_network_however_it_is_named(write, tmp_path, monkeypatch, key, name):
    """By its prefix or either file, in the working directory or with a slash: the graph and the weights count."""
    monkeypatch.chdir(tmp_path)
    graph, weights = tmp_path / "big-symbol.json", tmp_path / "big-0000.params"
    graph.write_text("graph"), weights.write_text("weights")
    cfg = config.load(write(MINIMAL), [f"{key}={name}"])
    prints = {cfg.fingerprint()}
    for file in (graph, weights):
        file.write_text("others")
        prints.add(cfg.fingerprint())
    assert len(prints) == 3


def test_fingerprint_ignores_keys_of_other_methods(write):
    uniform = write({**MINIMAL, "prune": {"method": "uniform", "target": 0.5}}, "uniform.yaml")
    gcp = write(MINIMAL)
    for key in ("prune.gcp.score=paper", "prune.gcp.iterations=9", "prune.gcp.lam=[3]"):
        assert config.load(uniform, [key]).fingerprint() == config.load(uniform).fingerprint(), key
        assert config.load(gcp, [key]).fingerprint() != config.load(gcp).fingerprint(), key
    assert config.load(uniform, ["prune.uniform.criterion=random"]).fingerprint() != config.load(uniform).fingerprint()
    assert config.load(gcp, ["prune.uniform.criterion=random"]).fingerprint() == config.load(gcp).fingerprint()


def test_fingerprint_does_not_tell_equal_numbers_apart(write):
    path = write(MINIMAL)
    whole, decimal = (config.load(path, [f"train.lr={lr}"]) for lr in ("1", "1.0"))
    assert whole.fingerprint() == decimal.fingerprint()


def test_dense_fingerprint_is_shared_by_what_starts_from_the_same_network(write):
    path = write(MINIMAL)
    print_ = config.load(path).dense_fingerprint()
    for change in ("prune.target=0.25", "prune.method=uniform", "finetune.epochs=9", "throughput.batch=1", "name=b"):
        assert config.load(path, [change]).dense_fingerprint() == print_, change
    for change in (
        "seed=1",
        "model.name=resnet34_v1b",
        "data.n_train=100",
        "train.epochs=3",
        "threads=1",
        "scale=paper",
    ):
        assert config.load(path, [change]).dense_fingerprint() != print_, change


# Mistakes in keys and values


@pytest.mark.parametrize(
    "override, key, fix",
    [
        ("prune.taget=0.5", "prune.taget", "did you mean prune.target?"),
        ("data.n_trian=5", "data.n_trian", "did you mean data.n_train?"),
        ("finetune.extra_epoch=5", "finetune.extra_epoch", "did you mean finetune.extra_epochs?"),
        ("prun.target=0.5", "prun", "did you mean prune?"),
        ("target=0.5", "target", "did you mean prune.target?"),  # in the wrong place
        ("qqq=1", "qqq", "the keys are name, scale, seed"),
        ("throughput.qqq=1", "throughput.qqq", "the keys of throughput are batch, repeats"),
    ],
)
def test_unknown_key_is_answered_with_the_nearest_known_one(write, override, key, fix):
    error = refused(write(MINIMAL), override)
    assert error.key == "config.unknown-key"
    assert str(error).startswith(f"--set {override}: {key}: no such key; {fix}")


@pytest.mark.parametrize(
    "override, part",
    [
        ("prune.target=0", "prune.target: 0 should be greater than 0 (the fraction of the cost to keep, in (0, 1])"),
        ("prune.target=-0.5", "prune.target: -0.5 should be greater than 0"),
        ("prune.target=1.01", "prune.target: 1.01 should be less than or equal to 1"),
        ("prune.target=.nan", "prune.target: nan"),
        ("prune.target=half", "prune.target: 'half' should be a valid number"),
        ("prune.target='0.5'", "prune.target: '0.5' should be a valid number"),
        ("prune.target=true", "prune.target: True should be a valid number"),
        ("prune.target={}", "prune.target: {} should be a valid number"),
        ("prune.method=gpc", "prune.method: 'gpc' should be 'none', "),
        ("prune.method=", "prune.method: nothing should be"),
        ("prune.round_to=0", "prune.round_to: 0 should be greater than or equal to 1"),
        ("prune.gcp.iterations=2.5", "prune.gcp.iterations: 2.5 should be a valid integer"),
        ("prune.gcp.lam=0.1", "prune.gcp.lam: 0.1 does not fit: a list of penalties"),
        ("prune.gcp.lam=[]", "prune.gcp.lam: [] does not fit"),
        ("prune.gcp.lam=[0.1, -1]", "prune.gcp.lam.1: -1 should be greater than or equal to 0"),
        ("prune.gcp.lam=[.inf]", "prune.gcp.lam.0: inf"),
        ("prune.gcp.regularise_epochs=0", "prune.gcp.regularise_epochs: 0 should be greater than 0"),
        ("prune=gcp", "prune: 'gcp' should be a section with the keys method, objective"),
        ("prune=", "prune: nothing should be a section"),
        ("scale=", "scale: nothing should be 'paper', 'reduced' or 'smoke'"),
        ("scale=huge", "scale: 'huge' should be 'paper', 'reduced' or 'smoke'"),
        ("seed=true", "seed: True should be a valid integer"),
        ("seed=-1", "seed: -1 should be greater than or equal to 0"),
        ("name=a/b", "name: 'a/b'"),
        ("name=..", "name: '..'"),
        ("name=7", "name: 7 should be a valid string"),
        ("model.pretrained=1", "model.pretrained: 1 should be a valid boolean"),
        ("model.name=", "model.name: nothing should be a valid string"),
        (
            "data.name=cifar",
            "data.name: 'cifar' should be 'digits', 'fashion_mnist', 'folder', 'imagenet', 'images' or 'caltech256'",
        ),
        ("data.input=[3, 32]", "data.input: [3, 32] does not fit: a list of channels, height, width"),
        ("data.input=[1, 32, 32]", "data.input.0: 1 should be greater than or equal to 3 (a list of channels"),
        ("data.input=[3, 0, 32]", "data.input.1: 0 should be greater than or equal to 1"),
        ("data.input=[3, 32.5, 32]", "data.input.1: 32.5 should be a valid integer"),
        ("data.validation=0.6", "data.validation: 0.6 should be less than or equal to 0.5"),
        ("data.validation=0", "data.validation: 0 should be greater than or equal to 0.01"),
        ("train.epochs=-1", "train.epochs: -1 should be greater than or equal to 0"),
        ("train.lr=0", "train.lr: 0 should be greater than 0"),
        ("train.momentum=1", "train.momentum: 1 should be less than 1"),
        ("train.mixup=-0.2", "train.mixup: -0.2 should be greater than or equal to 0"),
        ("train.schedule=poly", "train.schedule: 'poly' should be 'cosine' or 'step'"),
        ("train.step_epochs=30", "train.step_epochs: 30 does not fit: schedule step: a list of the epochs"),
        ("train.step_epochs=[0]", "train.step_epochs.0: 0 should be greater than or equal to 1"),
        ("train.step_factor=1", "train.step_factor: 1 should be less than 1"),
        ("train.dtype=bfloat16", "train.dtype: 'bfloat16' should be 'float32' or 'float16'"),
        ("finetune={teacher: dense, teacher_weight: 0}", "finetune.teacher_weight: 0 should be greater than 0"),
        ("finetune.last_gamma_zero=true", "finetune.last_gamma_zero: no such key; did you mean train.last_gamma_zero?"),
    ],
)
def test_wrong_value_is_named_with_its_key_and_what_would_be_right(write, override, part):
    error = refused(write(MINIMAL), override)
    assert error.key == ("config.unknown-key" if "no such key" in part else "config.value")
    assert str(error).startswith(f"--set {override}: {part}")


@pytest.mark.parametrize("wrong, near", [("method=gpc", "gcp"), ("one_shot.criterion=fpgn", "fpgm")])
def test_a_misspelt_name_is_answered_with_the_nearest(write, wrong, near):
    assert str(refused(write(MINIMAL), f"prune.{wrong}")).endswith(f"; did you mean '{near}'?")


@pytest.mark.parametrize(
    "override, part",
    [
        ("prune.method=none", "target: 0.5 cannot be met by method: none; set prune.method to"),
        ("data.name=folder", "name: folder needs a root; set data.root"),
        ("data.name=imagenet", "name: imagenet needs a root; set data.root to a folder with train.rec and val.rec"),
        ("data.name=caltech256", "name: caltech256 needs a root; set data.root to 256_ObjectCategories.tar"),
        (
            "data.root=a",
            "root is for name: fashion_mnist or folder or imagenet or images or caltech256, and digits does not",
        ),
        ("data={name: images, root: a, n_classes: 10}", "images takes its labels from the network, but 'resnet18_v1b'"),
        ("data.per_class=30", "per_class is for name: caltech256"),
        ("data.split_file=a.json", "split_file is for name: caltech256"),
        ("data={name: caltech256, root: a, split_file: a.txt}", "split_file: 'a.txt' must end in .json or .csv"),
        ("train.warmup_epochs=3", "warmup_epochs: 3 is longer than the whole training; set it to at most"),
        ("model={name: runs/net, pretrained: true}", "'runs/net' is a saved network"),
        ("prune={method: uniform}", "method: uniform needs a target; set prune.target"),
        ("train={epochs: 9, schedule: step}", "schedule: step needs step_epochs; set it to the epochs after which"),
        (
            "train.step_epochs=[1]",
            "step_epochs is for schedule: step, but the schedule is cosine; set schedule to step",
        ),
        ("finetune.step_factor=0.5", "step_factor is for schedule: step, but the schedule is cosine"),
        ("train={epochs: 9, schedule: step, step_epochs: [3, 3]}", "step_epochs: [3, 3] must be increasing"),
        (
            "train={epochs: 9, schedule: step, step_epochs: [3, 9]}",
            "step_epochs: [3, 9] goes beyond the training, which ends after epoch 9",
        ),
        ("finetune={epochs: 5, extra_epochs: 2, schedule: step, step_epochs: [7]}", "ends after epoch 7"),
        (
            "train={epochs: 9, schedule: step, step_epochs: [2], warmup_epochs: 3}",
            "begins before the end of warmup_epochs",
        ),
        ("train.teacher_weight=0.9", "teacher_weight: 0.9 has no effect without a teacher; set teacher to a network"),
        ("finetune.teacher_temperature=4", "teacher_temperature: 4 has no effect without a teacher"),
        ("train.teacher=dense", "teacher: dense is the very network being trained here"),
        (
            "model={name: resnet18_v1b, weights: a.params}",
            "weights is for a file of GluonCV's published weights; set model.pretrained to true",
        ),
    ],
)
def test_impossible_combination(write, override, part):
    values = {**MINIMAL, "prune": None} if override.startswith("prune={") else MINIMAL
    error = refused(write(values), override)
    assert error.key == "config.combination" and part in str(error)


@pytest.mark.parametrize("model", ["{name: resnet18_v1b, pretrained: true}", "{name: runs/net}"])
def test_a_combination_of_two_sections_names_both(write, model):
    path = write(MINIMAL)
    message = mistake(path, f"model={model}", "train.last_gamma_zero=true")
    assert message.startswith(f"{path}: train.last_gamma_zero: true is for a network that starts from random weights")


def test_steps_may_end_within_the_extra_epochs(write):
    cfg = config.load(write(MINIMAL), ["finetune={epochs: 5, extra_epochs: 2, schedule: step, step_epochs: [3, 6]}"])
    assert (cfg.finetune.step_epochs, cfg.finetune.all_epochs) == ((3, 6), 7)


@pytest.mark.parametrize("key", ["scale", "model", "data", "train"])
def test_missing_section_is_named_with_the_file(write, key):
    path = write({k: v for k, v in MINIMAL.items() if k != key})
    error = refused(path)
    assert error.key == "config.missing-key" and str(error).startswith(f"{path}: {key} is missing: ")


def test_a_misspelt_key_is_not_reported_as_missing(write):
    path = write({"sclae" if k == "scale" else k: v for k, v in MINIMAL.items()})
    assert mistake(path) == f"{path}: sclae: no such key; did you mean scale?"


def test_missing_key_of_a_section(write):
    path = write({**MINIMAL, "model": {}})
    assert mistake(path).startswith(f"{path}: model.name is missing: a GluonCV name, the path of an ONNX file")


def test_a_mistake_in_a_base_names_the_base(write):
    base = write({**MINIMAL, "seed": "zero"}, "base.yaml")
    child = write("base: base.yaml\nthreads: 1\n")
    assert mistake(child).startswith(f"{base}: seed: 'zero' should be a valid integer")
    assert config.load(child, ["seed=0"]).seed == 0


def test_a_stem_that_cannot_name_a_folder(write):
    path = write(MINIMAL, "my run.yaml")
    assert mistake(path).startswith(f"{path}: name: 'my run' should start with a letter, a digit or _")
    assert config.load(path, ["name=my-run"]).name == "my-run"


def test_saved_network_is_told_from_a_gluoncv_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine-symbol.json").touch()
    assert config.Model(name="mine").is_saved and config.Model(name="runs/net").is_saved
    assert not config.Model(name="resnet18_v1b").is_saved


@pytest.mark.parametrize(
    "key, value, bound",
    [
        ("train.epochs", "10000000000000000000000", "2,147,483,648"),
        ("train.epochs", "100001", "100000"),
        ("finetune.extra_epochs", "100001", "100000"),
        ("data.n_train", "9999999999", "2,147,483,648"),
        ("threads", "1025", "1024"),
        ("workers", "1025", "1024"),
        ("gpus", "[1024]", "1023"),
        ("throughput.batch", "65537", "65536"),
        ("throughput.repeats", "100001", "100000"),
        ("prune.gcp.iterations", "10001", "10000"),
        ("prune.gcp.regularise_epochs", "10001", "10000"),
        ("prune.round_to", "65537", "65536"),
        ("output", "x" * 1001, "1,000 characters"),
        ("gpus", str([0] * 1001), "1,000 items"),
        ("train.lr", "1e30", "2,147,483,648"),
    ],
)
def test_absurd_counts_are_refused_before_anything_starts(write, key, value, bound):
    message = mistake(write(MINIMAL), f"{key}={value}")
    assert f": {key}" in message and " should " in message and bound in message and len(message) < 450


# Mistakes in files and overrides


def test_missing_file(tmp_path):
    assert mistake(tmp_path / "no.yaml").startswith(f"{tmp_path / 'no.yaml'}: cannot be read: No such file")


def test_missing_base_says_who_asked(write, tmp_path):
    path = write("base: gone.yaml\n")
    assert mistake(path).startswith(f"{path}: base: {tmp_path / 'gone.yaml'}: cannot be read")


@pytest.mark.parametrize(
    "base, key",
    [
        (r'"a\0b"', "yaml.syntax"),
        (r'"\ud800"', "yaml.syntax"),
        ("loop", "file.read"),
        ("n" * 300, "file.read"),
        ("a/" * 3000, "file.read"),
        (".", "file.kind"),
        ("pipe", "file.kind"),
    ],
)
def test_a_base_that_no_file_can_be(write, tmp_path, base, key):
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    assert refused(write(f"base: {base}\n")).key == key


def test_bases_in_a_circle(write):
    write("base: b.yaml\n", "a.yaml")
    write("base: c.yaml\n", "b.yaml")
    path = write("base: a.yaml\n", "c.yaml")
    assert "form a cycle: c.yaml -> a.yaml -> b.yaml -> c.yaml" in mistake(path)


@pytest.mark.parametrize(
    "text, part",
    [
        ("scale: smoke\nseed: [1\n", "line 3: not valid YAML"),
        ("seed: 1\nscale: smoke\nseed: 2\n", "line 3: not valid YAML: the key 'seed' is given twice"),
        ("seed: !!python/object:os.system {}\n", "not valid YAML"),  # not a way to run code
        ("when: 2020-99-99\n", "when: no such key"),  # nothing here is a date
        ("- scale: smoke\n", "a configuration consists of `key: value` lines"),
        ("just words\n", "a configuration consists of `key: value` lines"),
        ("base: [a.yaml, b.yaml]\n", "base: ['a.yaml', 'b.yaml'] should be the path of one configuration file"),
        ("1: 2\n", "1: no such key"),
        ("", "is missing"),
    ],
)
def test_files_that_are_no_configuration(write, text, part):
    path = write(text)
    assert mistake(path).startswith(str(path)) and part in mistake(path)


def test_a_binary_file_is_no_configuration(tmp_path):
    path = tmp_path / "net.params"
    path.write_bytes(b"\x12\x01\xff\xfe")
    assert mistake(path).startswith(f"{path}: not a text file")


@pytest.mark.parametrize("override", ["prune.target", "=1", ".target=1", "prune..target=1", ""])
def test_override_without_key_or_value(write, override):
    assert mistake(write(MINIMAL), override).startswith(f"--set {override}: should look like section.key")


def test_override_that_is_not_yaml(write):
    message = mistake(write(MINIMAL), "prune.gcp.lam=[0.1")
    assert message.startswith("--set prune.gcp.lam=[0.1, line 1: not valid YAML")


def test_override_of_base(write):
    assert "base belongs in a file" in mistake(write(MINIMAL), "base=other.yaml")


def test_physical_cores_of_this_machine():
    assert 1 <= runtime.physical_cores() <= (config.os.cpu_count() or 1)


def test_a_key_that_decides_no_number_leaves_the_fingerprints_alone(write):
    path = write({**MINIMAL, "model": {"name": "resnet18_v1b", "pretrained": True}})
    cfg = config.load(path)
    for change in ("tensorboard=true", "model.weights=a.params"):
        changed = config.load(path, [change])
        assert changed != cfg, change
        assert (changed.fingerprint(), changed.dense_fingerprint()) == (cfg.fingerprint(), cfg.dense_fingerprint())


@pytest.mark.parametrize(
    "change", ["mixup=0.2", "dtype=float16", "label_smoothing=0.1", "teacher=resnet50_v1", "last_gamma_zero=true"]
)
def test_the_recipe_of_the_dense_network_is_in_both_fingerprints(write, change):
    path = write(MINIMAL)
    cfg, changed = config.load(path), config.load(path, [f"train.{change}"])
    assert changed.fingerprint() != cfg.fingerprint() and changed.dense_fingerprint() != cfg.dense_fingerprint()


# ---- saved networks named by a pattern; rows of the paper's tables ------------------------------------------------


def finished(folder, name):
    (folder / name).mkdir(parents=True)
    (folder / name / "final-symbol.json").write_text("{}")


def test_a_pattern_means_the_one_run_of_its_seed(tmp_path):
    path = tmp_path / "row.yaml"
    path.write_text(
        f"scale: smoke\nmodel: {{name: '{tmp_path}/gcp-seed{{seed}}-*/final', new_head: true}}\n"
        "data: {name: digits}\ntrain: {epochs: 1}\n"
    )
    assert config.load(path).model.is_pattern, "no run yet: it loads all the same"
    finished(tmp_path, "gcp-seed0-aaa")
    finished(tmp_path, "gcp-seed1-bbb")
    for seed, folder in ((0, "gcp-seed0-aaa"), (1, "gcp-seed1-bbb")):
        cfg = config.load(path, [f"seed={seed}"])
        assert cfg.model.name == f"{tmp_path}/{folder}/final" and not cfg.model.is_pattern
    finished(tmp_path, "gcp-seed1-ccc")
    with pytest.raises(errors.UserError, match="gcp-seed1-bbb.*gcp-seed1-ccc.*model.name=PREFIX"):
        config.load(path, ["seed=1"])


def test_a_new_head_is_for_saved_networks():
    with pytest.raises(errors.UserError, match="new_head"):
        options.section(config.Model, {"name": "resnet18_v1b", "new_head": True})


def test_the_place_in_the_paper_decides_no_number(tmp_path):
    path = tmp_path / "row.yaml"
    path.write_text("scale: smoke\nmodel: {name: resnet18_v1b}\ndata: {name: digits}\ntrain: {epochs: 1}\n")
    plain, placed = config.load(path), config.load(path, ["paper.table=table3", "paper.level=2", "paper.chosen=true"])
    assert plain.fingerprint() == placed.fingerprint() and plain.dense_fingerprint() == placed.dense_fingerprint()
    with pytest.raises(errors.UserError, match="paper.table"):
        config.load(path, ["paper.table=table9"])


# Workers and GPUs


def test_the_number_of_workers_is_part_of_the_fingerprint_and_gpus_are_not(write):
    path = write(MINIMAL)
    for print_ in (config.Config.fingerprint, config.Config.dense_fingerprint):
        one, two = print_(config.load(path)), print_(config.load(path, ["workers=2"]))
        assert one != two
        assert print_(config.load(path, ["workers=1"])) == print_(config.load(path, ["gpus=[3]"])) == one
        for other in (["gpus=[0, 1]"], ["gpus=[2, 3]", "workers=2"]):
            assert print_(config.load(path, other)) == two


@pytest.mark.parametrize(
    "overrides, part",
    [
        (["gpus=[1, 1]"], "gpus: [1, 1] names a GPU twice"),
        (["gpus=[0, 1]", "workers=3"], "workers: 3 cannot be spread evenly over the 2 gpus"),
        (["workers=5"], "data.batch: 64 images cannot be divided evenly among 5 workers; set it to a multiple of 5"),
        (["workers=0"], "workers: 0"),
        (["gpus=0"], "gpus: 0"),
    ],
)
def test_workers_that_cannot_be(write, overrides, part):
    assert part in mistake(write(MINIMAL), *overrides)


@pytest.mark.parametrize(
    "visible, gpus, local_rank, chosen",
    [
        (None, (), 0, None),
        (None, (0, 1), 1, "1"),
        (None, (4, 2), 0, "4"),
        ("5,7", (), 1, "5,7"),
        ("5,7", (0, 1), 1, "7"),
    ],
)
def test_a_worker_sees_its_own_gpu(monkeypatch, visible, gpus, local_rank, chosen):
    monkeypatch.delitem(sys.modules, "mxnet", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is restored even where the next line deletes it
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES") if visible is None else monkeypatch.setenv(
        "CUDA_VISIBLE_DEVICES", visible
    )
    runtime.use_gpu(gpus, local_rank)
    assert config.os.environ.get("CUDA_VISIBLE_DEVICES") == chosen


@pytest.mark.parametrize("visible", ["5,7", ""])
def test_a_gpu_that_is_not_visible(monkeypatch, visible):
    monkeypatch.delitem(sys.modules, "mxnet", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=f"no GPU 2 among CUDA_VISIBLE_DEVICES='{visible}'") as caught:
        runtime.use_gpu((0, 2), 1)
    assert caught.value.key == "gpu.absent"


def test_workers_on_one_machine_share_its_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runtime, "physical_cores", lambda: 8)
    assert runtime.n_threads(0, 3) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert runtime.n_threads(0, 3) == 5 and runtime.n_threads(4, 3) == 4


def test_a_network_to_start_from_counts_by_its_content_wherever_it_lies(write, tmp_path):
    """A pattern names nothing yet: no fingerprint, not done. Later the content decides, not the name of its folder."""
    path = write({**MINIMAL, "model": {"name": f"{tmp_path}/source-seed{{seed}}-*/final", "new_head": True}})
    pattern = config.load(path)
    assert pattern.model.is_pattern and not records.is_done(pattern)
    with pytest.raises(UserError, match="model.name"):
        pattern.fingerprint()
    prints = []
    for name in ("source-seed0-aaaa", "source-seed0-bbbb"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "final-symbol.json").write_text("{}")
        (folder / "final-0000.params").write_bytes(b"weights")
        prints.append(config.load(path).fingerprint())
        (folder / "final-0000.params").write_bytes(b"others")
        prints.append(config.load(path).fingerprint())
        (folder / "final-symbol.json").unlink()
    assert prints[0] == prints[2] != prints[1] == prints[3]
