"""Compare this toolkit with Torch-Pruning: time and memory of a cut, and a network's accuracy right after it.

Needs the environment that scripts/peers.sh creates. Every cut is timed in a process of its own, alternating between the
two. The accuracies are of a network of configs/without_training, which is trained if missing.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from gcp import command as command_line
from gcp import errors, runtime

NETWORK, SIDE = "resnet101", 224  # torchvision's name; our resnet101_v1b is the same network
RATIOS = (0.3, 0.5)  # fractions of every layer's channels that Torch-Pruning removes; ours prunes to the same MACs


def run(argv: list[str]) -> None:
    """Parse the arguments, measure, and write the results."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument("--repeats", type=command_line.positive(int), default=7, help="timed processes of each toolkit")
    parser.add_argument("--seeds", type=command_line.seeds, default=[0, 1, 2], metavar="0,1,2")
    parser.add_argument(
        "--config", default="configs/without_training/resnet18_v1b.yaml", help="configuration of the trained network"
    )
    command_line.add_set(parser)
    parser.add_argument("--out", metavar="STEM", default="results/beside_torch_pruning", help="write STEM.json and .md")
    parser.add_argument("--cut", choices=list(CUTS), help="make a single cut, print its seconds and MiB, and exit")
    args = parser.parse_args(argv)
    try:
        import torch_pruning  # noqa: F401
    except ImportError as error:
        wrong = f"{error.name} is not installed; create the environment with scripts/peers.sh"
        raise errors.UserError(f"{wrong} and run this with .venv-peers/bin/python") from error
    runtime.use_threads(1)
    if args.cut:
        print(json.dumps(_measured(CUTS[args.cut])))
        return
    from gcp import storage

    cuts = {name: [] for name in CUTS}
    for _ in range(args.repeats):
        for name in CUTS:
            done = subprocess.run([sys.executable, __file__, "--cut", name], capture_output=True, text=True, check=True)
            cuts[name].append(json.loads(done.stdout.splitlines()[-1]))
    here = runtime.environment()
    found = {**here, "versions": {**here["versions"], **_versions()}, "network": NETWORK, "side": SIDE, "cuts": cuts}
    found["accuracy"] = [row for seed in args.seeds for row in _accuracies(args.config, args.set, seed)]
    storage.write_json(f"{args.out}.json", found)
    storage.write_text(f"{args.out}.md", _table(found))
    print(_table(found))


def _versions() -> dict:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "torchvision", "torch-pruning")}


# ---- time and memory -----------------------------------------------------------------------------------------------


def _ours():
    """A function that makes the cut: find the groups, score channels by L1 norm, remove half of every group."""
    from gcp.backend.zoo import from_gluoncv
    from gcp.graph.surgery import shrink
    from gcp.methods.criteria import CRITERIA

    net = from_gluoncv(f"{NETWORK}_v1b", (3, SIDE, SIDE), seed=0)

    def cut() -> None:
        scores = CRITERIA["l1"](SimpleNamespace(net=net))
        shrink(net, {g.name: np.sort(np.argsort(-scores[g.name])[: g.size // 2]) for g in net.groups})

    return cut


def _theirs():
    """The same by Torch-Pruning: its dependency graph, its L1 importance, and a pruning ratio of 0.5."""
    import torch
    import torch_pruning as tp
    import torchvision

    torch.set_num_threads(1)
    model, x = torchvision.models.get_model(NETWORK).eval(), torch.zeros(1, 3, SIDE, SIDE)

    def cut() -> None:
        importance = tp.importance.MagnitudeImportance(p=1)
        tp.pruner.BasePruner(model, x, importance, pruning_ratio=0.5, ignored_layers=[model.fc]).step()

    return cut


CUTS = {"ours": _ours, "theirs": _theirs}


def _measured(prepare) -> dict:
    """Seconds of a cut, and by how many MiB the peak memory of the process grew in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cut = prepare()
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        cut()
        seconds = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "mib": grown / 1024}


# ---- accuracy right after a cut -------------------------------------------------------------------------------------


def _accuracies(path: str, overrides: list[str], seed: int) -> list[dict]:
    """For each ratio, the test accuracy of the dense network, of Torch-Pruning's, and of ours at the MACs of theirs."""
    import tempfile

    import onnx2torch
    import torch
    import torch_pruning as tp

    from gcp.backend import export
    from gcp.cost.analytic import macs
    from gcp.cost.base import Budget
    from gcp.experiment import config
    from gcp.experiment.compress import FITTED_IMAGES, ONE_SHOT
    from gcp.experiment.plan import load_data, plan
    from gcp.experiment.run import dense_network
    from gcp.methods.base import METHODS, Problem
    from gcp.train.tasks import TASKS

    ((_, _, cfg),) = config.load_all(path, overrides, [seed])
    data = load_data(cfg.data, cfg.seed)
    net, _ = dense_network(cfg, data, plan(cfg, data)[0])
    task, cost, x = TASKS[data.task], macs(net), torch.zeros(1, *net.input_shape)

    def top1(model) -> float:
        with torch.no_grad():
            return task.evaluate(lambda images: model(torch.from_numpy(images)).numpy(), data.test)["top1"]

    rows = []
    for ratio in RATIOS:
        with tempfile.TemporaryDirectory() as folder:
            model = onnx2torch.convert(str(export.to_onnx(net, Path(folder) / "net.onnx"))).eval()
        before, dense_macs = top1(model), tp.utils.count_ops_and_params(model, x)[0]
        last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1:]
        importance = tp.importance.MagnitudeImportance()
        tp.pruner.BasePruner(model, x, importance, pruning_ratio=ratio, ignored_layers=last).step()
        kept = tp.utils.count_ops_and_params(model, x)[0] / dense_macs
        budget = Budget(cost, cost(net.widths), kept, 1)
        problem = Problem(net, budget, data, seed, cfg.data.batch, reconstruction_images=FITTED_IMAGES, moved="mean")
        options = METHODS.options["one_shot"](**ONE_SHOT)
        small = METHODS["one_shot"](problem, options, None).network
        ours = {"ours": task.evaluate(small, data.test)["top1"], "ours_kept": cost(small.widths) / budget.original}
        row = {
            "network": net.name,
            "data": data.name,
            "scale": cfg.scale,
            "seed": seed,
            "ratio": ratio,
            "n": len(data.test),
        }
        rows.append({**row, "dense": before, "theirs": top1(model), "theirs_kept": kept, **ours})
    return rows


def _table(found: dict) -> str:
    """Both parts of the comparison as Markdown tables."""
    cuts = {
        key: {name: [one[key] for one in each] for name, each in found["cuts"].items()} for key in ("seconds", "mib")
    }
    times = np.array(cuts["seconds"]["theirs"]) / np.array(cuts["seconds"]["ours"])
    low, middle, high = np.percentile(times, (25, 50, 75))
    mean = {key: {name: float(np.median(values)) for name, values in each.items()} for key, each in cuts.items()}
    lines = [
        f"| {NETWORK}, half of every group | this toolkit | Torch-Pruning {found['versions']['torch-pruning']} |",
        "|:---|---:|---:|",
        *(
            f"| {name} | {mean[key]['ours']:.{digits}f} | {mean[key]['theirs']:.{digits}f} |"
            for name, key, digits in (("seconds", "seconds", 2), ("MiB more than before", "mib", 0))
        ),
        "",
        f"Torch-Pruning's seconds over ours, in turns: {middle:.2f} (quartiles {low:.2f} to {high:.2f}, {len(times)} "
        f"processes each, one thread of {found['device']['cpu']}).",
        "",
        "| removed by Torch-Pruning | MACs kept % | dense top-1 % | Torch-Pruning, L2 | this toolkit, one shot |",
        "|:---|---:|---:|---:|---:|",
    ]
    for ratio in RATIOS:
        rows = [row for row in found["accuracy"] if row["ratio"] == ratio]
        percent = {k: 100 * np.array([row[k] for row in rows]) for k in ("theirs_kept", "dense", "theirs", "ours")}
        cells = [
            f"{v.mean():.2f}" + (f" ± {v.std(ddof=1):.2f}" if len(v) > 1 and k != "theirs_kept" else "")
            for k, v in percent.items()
        ]
        lines.append(f"| {100 * ratio:g} % of every layer | {' | '.join(cells)} |")
    row = found["accuracy"][0]
    lines += [
        "",
        f"{row['network']} on {row['data']} ({row['scale']} scale), {len(found['accuracy']) // len(RATIOS)} seeds, "
        f"{row['n']:,} test images, right after the cut and without training: Torch-Pruning's own default, and this "
        "toolkit's `compress.py --epochs 0` at the same MACs, which looks at training images for scores and weights, "
        "where Torch-Pruning looks at none.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command_line.main(run)
