"""Everything that takes a batch: the one training loop, evaluation, stages that survive a kill.

The loop serves dense training, GCP's regularise and recover steps and fine-tuning alike; they differ in which
arrays are trainable, whether batch-norm statistics are frozen, and in the `Optimiser`.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Set, Tuple

import numpy as np
from tqdm import tqdm

from gcp.backend.blocks import from_block
from gcp.backend.engine import mx
from gcp.backend.files import load_arrays, save_arrays
from gcp.graph.network import Network, auxiliary
from gcp.runtime import hash_seed
from gcp.train.distributed import device, workers
from gcp.train.losses import Objective, Teacher
from gcp.train.optimisers import DivergedError, MixedSGD, Optimiser, all_finite, trained_block, values_of

FLUSH = 25  # steps between looks at the loss; each look waits for the device
CHECKPOINT_S = 60.0


def fit(
    net: Network,
    split,
    *,
    name: str,
    optimiser: Callable[[object], Optimiser],
    lr: Callable[[int], float],
    n_steps: int,
    batch: int,
    seed: int,
    augment: str = "none",
    frozen_statistics: bool = False,
    trainable: Optional[Set[str]] = None,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    teacher: Optional[Teacher] = None,
    dtype: str = "float32",
    checkpoint: Optional[Path] = None,
    on_epoch: Optional[Callable[..., None]] = None,
) -> Tuple[Network, float]:
    """Train for `n_steps` batches; returns the trained network and the mean training loss of its last epoch.

    `optimiser` makes one for the block (a `MixedSGD` where `dtype` is float16). A step's batch, augmentation, mixing
    and learning rate depend on `seed` and the step's number alone, and `checkpoint` (written every minute, taken away
    at the end by the caller's stage) holds parameters and optimiser state, so a killed run goes on to the same
    numbers. `on_epoch` gets the facts of each epoch, and of a last part of one, before any checkpoint that is further:
    a run that goes on can give an epoch again but leaves none out.
    Several workers each take their part of every batch, and normalise by that part's statistics; gradients are summed
    over the workers in every step, running statistics averaged (before anybody reads them) every `FLUSH` steps and at
    the end of each epoch, where their parameters have to be the same bit by bit.
    Raises DivergedError, naming the step, when the loss stops being finite; the last checkpoint stays.
    """
    ctx, team = device(), workers()
    state = load_arrays(checkpoint) if checkpoint is not None and team.share_file(checkpoint) else None
    if state is not None:
        net = net.with_arrays({k[len("net:") :]: v for k, v in state.items() if k.startswith("net:")})
    block = trained_block(net, ctx, frozen_statistics, trainable, dtype)
    opt = optimiser(block)
    if dtype == "float16":
        opt.take(net)
    objective = Objective(ctx, seed, label_smoothing, mixup, teacher)
    total = team.summing(opt.gradients())
    # Frozen statistics are the same for all, and stay so.
    moving = [] if frozen_statistics else sorted(auxiliary(net))
    average = team.averaging([block.collect_params()[k].data() for k in moving])
    done, losses = 0, []
    if state is not None:
        opt.restore(
            {k[len("opt:") :]: mx.nd.array(v, ctx, dtype=v.dtype) for k, v in state.items() if k.startswith("opt:")}
        )
        done, losses = int(state["step"][0]), state["losses"][1:].tolist()
    per_epoch = split.n_batches(batch)
    has_dropout = any(n.op == "Dropout" for n in net.nodes)
    bar = tqdm(
        total=n_steps * batch,
        initial=done * batch,
        desc=name,
        unit="img",
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 20,
        leave=False,
        disable=team.rank > 0,
    )
    saved_at = epoch_began = time.monotonic()
    epoch_from = done
    pending: List[mx.nd.NDArray] = []

    def flush() -> None:
        average()
        values = mx.nd.concat(*pending, dim=0)
        team.averaging([values])()
        values = values.asnumpy().astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise DivergedError(
                f"{name}: the loss is {values[bad[0]]} at step {done - len(pending) + bad[0] + 1} of "
                f"{n_steps}; lower its learning rate or penalty (the last checkpoint is kept)"
            )
        # relu turns NaN into 0, so the loss can stay finite over weights that are not.
        if not all_finite(values_of(block)):
            raise DivergedError(
                f"{name}: weights are no longer finite after step {done} of {n_steps}; lower its "
                "learning rate or penalty, check the images (the last checkpoint is kept)"
            )
        team.check(
            f"{name}, step {done} of {n_steps}",
            None
            if done % per_epoch and done < n_steps
            else lambda: {k: p.data().asnumpy() for k, p in block.collect_params().items()},
        )
        losses.extend(values.tolist())
        del losses[:-per_epoch]
        pending.clear()
        bar.set_postfix(
            epoch=f"{done / per_epoch:.2f}",
            loss=f"{np.mean(losses[-FLUSH:]):.3f}",
            lr=f"{lr(done - 1):.2g}",
            refresh=False,
        )

    try:
        while done < n_steps:
            epoch, skip = divmod(done, per_epoch)
            for x, y, _ in split.batches(batch, seed=(seed, epoch), augment=augment, part=team.part, first=skip):
                if done == n_steps:
                    break
                if has_dropout:  # the only user of MXNet's generator; seeded by step, so that a resumed run agrees
                    mx.random.seed(hash_seed(seed, done, *([team.rank] if team.n > 1 else [])))
                x, y = mx.nd.array(x, ctx), mx.nd.array(y, ctx)
                loss = objective(block, x, y, done)
                loss.backward(None if dtype == "float32" else mx.nd.full(loss.shape, opt.loss_scale, ctx))
                total()
                opt.step(lr(done), batch)
                pending.append(loss.mean())
                done += 1
                bar.update(batch)
                ends = done % per_epoch == 0 or done == n_steps
                if len(pending) == FLUSH or ends:
                    flush()
                    if ends and on_epoch is not None:
                        seconds = time.monotonic() - epoch_began
                        on_epoch(
                            **_epoch_facts(done, per_epoch, losses, lr(done - 1)),
                            seconds=seconds,
                            images_per_second=(done - epoch_from) * batch / seconds,
                        )
                        epoch_began, epoch_from = time.monotonic(), done
                    is_time = team.rank == 0 and time.monotonic() - saved_at > CHECKPOINT_S
                    if checkpoint is not None and is_time and done < n_steps:
                        _save_checkpoint(checkpoint, _trained(net, block, opt), opt, done, losses)
                        saved_at = time.monotonic()
    finally:
        bar.close()
    return _trained(net, block, opt), float(np.mean(losses)) if losses else math.nan


def _epoch_facts(done: int, per_epoch: int, losses: Sequence[float], lr: float) -> dict:
    """An epoch after `done` steps: its number (2.5 for a half after two), mean loss, and the last step's rate."""
    epoch = done / per_epoch
    n = done % per_epoch or per_epoch
    return {
        "epoch": int(epoch) if epoch == int(epoch) else epoch,
        "step": done,
        "training_loss": float(np.mean(losses[-n:])),
        "lr": lr,
    }


def _trained(net: Network, block, opt: Optimiser) -> Network:
    """The network with the block's present values, or with the optimiser's masters of them."""
    net = from_block(net, block)
    return net.with_arrays({k: v.asnumpy() for k, v in opt.masters.items()}) if isinstance(opt, MixedSGD) else net


def _save_checkpoint(path: Path, net: Network, opt: Optimiser, done: int, losses: List[float]) -> None:
    arrays = {f"net:{k}": v for k, v in net.arrays.items()}
    arrays.update({f"opt:{k}": v.asnumpy() for k, v in opt.state().items()})
    arrays["step"] = np.array([done], np.int64)
    arrays["losses"] = np.array([0.0] + losses, np.float64)  # MXNet's format has no empty arrays
    save_arrays(path, arrays)
