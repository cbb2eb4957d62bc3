"""Everything that takes a batch: the one training loop, evaluation, stages that survive a kill.

The loop serves dense training, GCP's regularise and recover steps and fine-tuning alike; they differ in which
arrays are trainable, whether batch-norm statistics are frozen, and in the `Optimiser`.
"""
from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Protocol, Set, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd
from tqdm import tqdm

from gcp.config import UserError
from gcp.gluon import auxiliary, from_block, load, load_arrays, save, save_arrays, to_block, write_text
from gcp.network import Network

FLUSH = 25  # steps between looks at the loss; each look waits for the device
CHECKPOINT_S = 60.0
FINITE_ARRAYS = 200  # as many as `multi_all_finite` has room for


class DivergedError(UserError):
    """The loss was no longer a finite number."""


class Optimiser(Protocol):
    """Applies one step's gradients; its state is plain arrays, so that checkpoints need no pickle."""

    def step(self, lr: float, batch: int) -> None:
        """Update the parameters from their gradients, which are sums over `batch` images."""

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """All that the next step depends on besides the parameters' values."""

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Take over what `state` gave."""


class SGD:
    """SGD with momentum; weight decay on weights only, not on scales, shifts and biases (He et al. 2019).

    One `sgd_mom_update` per array instead of Gluon's aggregated `multi_sgd_mom_update`, which took 3.5 times as
    long on a CPU (28 ms of a 104 ms step of ResNet-18 at 32 px, batch 64).
    """

    def __init__(self, block, momentum: float = 0.9, wd: float = 0.0, only: Optional[Set[str]] = None) -> None:
        self._params = {k: p for k, p in block.collect_params().items()
                        if p.grad_req != "null" and (only is None or k in only)}
        self._momentum = momentum
        self._wd = {k: wd if k.endswith("weight") else 0.0 for k in self._params}
        self._velocity = {k: mx.nd.zeros_like(p.data()) for k, p in self._params.items()}

    def step(self, lr: float, batch: int) -> None:
        """One update of every array."""
        for name, p in self._params.items():
            w = p.data()
            mx.nd.sgd_mom_update(w, p.grad(), self._velocity[name], out=w, lr=lr, momentum=self._momentum,
                                 wd=self._wd[name], rescale_grad=1.0 / batch)

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """The velocities."""
        return self._velocity

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Take over velocities."""
        for name, value in self._velocity.items():
            value[:] = state[name]


def cosine(lr: float, n_steps: int, n_warmup: int = 0) -> Callable[[int], float]:
    """Learning rate of step i: linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017, no restarts)."""
    def at(i: int) -> float:
        if i < n_warmup:
            return lr * (i + 1) / n_warmup
        return lr * 0.5 * (1 + math.cos(math.pi * (i - n_warmup) / max(1, n_steps - n_warmup)))
    return at


def constant(lr: float) -> Callable[[int], float]:
    """The same learning rate at every step."""
    return lambda i: lr


def device() -> mx.Context:
    """The first GPU if this MXNet has one, else the CPU."""
    return mx.gpu(0) if mx.context.num_gpus() else mx.cpu()


def smoothed_loss(output: mx.nd.NDArray, labels: mx.nd.NDArray, smoothing: float) -> mx.nd.NDArray:
    """Cross entropy per image, shape (batch,), against labels smoothed towards the uniform distribution."""
    log_p = mx.nd.log_softmax(output)
    loss = -mx.nd.pick(log_p, labels)
    return loss if smoothing == 0 else (1 - smoothing) * loss - smoothing * log_p.mean(axis=1)


def fit(net: Network, split, *, name: str, optimiser: Callable[[object], Optimiser], lr: Callable[[int], float],
        n_steps: int, batch: int, seed: int, augment: str = "none", frozen_statistics: bool = False,
        trainable: Optional[Set[str]] = None, label_smoothing: float = 0.0,
        checkpoint: Optional[Path] = None) -> Tuple[Network, float]:
    """Train for `n_steps` batches; returns the trained network and the mean training loss of its last epoch.

    `optimiser` makes one for the block. A step's batch, augmentation and learning rate depend on `seed` and the
    step's number alone, and `checkpoint` (written every minute, taken away at the end by the caller's stage) holds
    parameters and optimiser state, so a killed run goes on to the same numbers.
    Raises DivergedError, naming the step, when the loss stops being finite; the last checkpoint stays.
    """
    ctx = device()
    state = load_arrays(checkpoint) if checkpoint is not None and checkpoint.exists() else None
    if state is not None:
        net = net.with_arrays({k[len("net:"):]: v for k, v in state.items() if k.startswith("net:")})
    block = trained_block(net, ctx, frozen_statistics, trainable)
    opt = optimiser(block)
    done, losses = 0, []
    if state is not None:
        opt.restore({k[len("opt:"):]: mx.nd.array(v, ctx, dtype=v.dtype) for k, v in state.items()
                     if k.startswith("opt:")})
        done, losses = int(state["step"][0]), state["losses"][1:].tolist()
    per_epoch = split.n_batches(batch)
    has_dropout = any(n.op == "Dropout" for n in net.nodes)
    bar = tqdm(total=n_steps * batch, initial=done * batch, desc=name, unit="img", file=sys.stderr,
               mininterval=0.5 if sys.stderr.isatty() else 20, leave=False)
    saved_at = time.monotonic()
    pending: List[mx.nd.NDArray] = []

    def flush() -> None:
        values = mx.nd.concat(*pending, dim=0).asnumpy().astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise DivergedError(f"{name}: the loss is {values[bad[0]]} at step {done - len(pending) + bad[0] + 1} of "
                                f"{n_steps}; lower its learning rate or penalty (the last checkpoint is kept)")
        # relu turns NaN into 0, so the loss can stay finite over weights that are not.
        if not all_finite(values_of(block)):
            raise DivergedError(f"{name}: weights are no longer finite after step {done} of {n_steps}; lower its "
                                "learning rate or penalty, check the images (the last checkpoint is kept)")
        losses.extend(values.tolist())
        del losses[:-per_epoch]
        pending.clear()
        bar.set_postfix(loss=f"{np.mean(losses[-FLUSH:]):.3f}", refresh=False)

    try:
        while done < n_steps:
            epoch, skip = divmod(done, per_epoch)
            for k, (x, y, _) in enumerate(split.batches(batch, seed=(seed, epoch), augment=augment)):
                if k < skip:
                    continue  # seen before the kill
                if done == n_steps:
                    break
                if has_dropout:  # the only user of MXNet's generator; seeded by step, so that a resumed run agrees
                    mx.random.seed(hash_seed(seed, done))
                x, y = mx.nd.array(x, ctx), mx.nd.array(y, ctx)
                with autograd.record():
                    loss = smoothed_loss(block(x), y, label_smoothing)
                loss.backward()
                opt.step(lr(done), batch)
                pending.append(loss.mean())
                done += 1
                bar.update(batch)
                if len(pending) == FLUSH or done == n_steps:
                    flush()
                    if checkpoint is not None and time.monotonic() - saved_at > CHECKPOINT_S and done < n_steps:
                        _save_checkpoint(checkpoint, block, opt, done, losses)
                        saved_at = time.monotonic()
    finally:
        bar.close()
    return from_block(net, block), float(np.mean(losses)) if losses else math.nan


def trained_block(net: Network, ctx: mx.Context, frozen_statistics: bool = False,
                  trainable: Optional[Set[str]] = None):
    """The network as a block to train: with batch norm and relu as one operator if a trial step on an image runs.

    Whether oneDNN has a backward for it depends on the widths and on the kernels that it picks for the machine. The
    results are the same bit by bit.
    """
    if _even_blocks(net):
        return to_block(net, ctx, frozen_statistics, trainable, fused=True)
    # The trial's block is thrown away: its running statistics have moved, its gradients are bound to their arrays.
    trial = to_block(net, ctx, frozen_statistics, trainable, fused=True)
    output = None
    try:
        with autograd.record():
            output = trial(mx.nd.zeros((1,) + tuple(net.input_shape), ctx))
        output.backward()
        mx.nd.waitall()
        works = True
    except mx.MXNetError:
        works = False
    del trial, output
    gc.collect()  # a block is full of cycles, and holds the memory of a whole step
    return to_block(net, ctx, frozen_statistics, trainable, fused=works)


def _even_blocks(net: Network) -> bool:
    """Whether all kernels lay out channels in blocks of 16: AVX-512, and every conv's width a multiple. No trial then.

    A trial leaves the heap in pieces: the peak memory of a ResNet-18 step was 1.2 times GluonCV's instead of 1.0.
    """
    cpu = Path("/proc/cpuinfo")
    return (all(net.shapes[i][0] % 16 == 0 for i, n in enumerate(net.nodes) if n.op == "Convolution")
            and cpu.exists() and "avx512f" in cpu.read_text())


def all_finite(arrays: List[mx.nd.NDArray]) -> bool:
    """Whether no array holds a NaN or an infinity. Waits for the device."""
    # MXNet's operator keeps 200 pointers and writes the others beyond its end: ResNet-50 has more arrays than that.
    parts = [arrays[i:i + FINITE_ARRAYS] for i in range(0, len(arrays), FINITE_ARRAYS)]
    found = [mx.nd.multi_all_finite(*part, num_arrays=len(part)) for part in parts]
    return bool(mx.nd.concat(*found, dim=0).asnumpy().all())


def values_of(block) -> List[mx.nd.NDArray]:
    """The block's parameters and running statistics."""
    return [p.data() for p in block.collect_params().values()]


def hash_seed(*parts: int) -> int:
    """One 31-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def _save_checkpoint(path: Path, block, opt: Optimiser, done: int, losses: List[float]) -> None:
    mx.nd.waitall()  # reading running statistics does not wait for the backward pass that updates them
    arrays = {f"net:{k}": p.data().asnumpy() for k, p in block.collect_params().items()}
    arrays.update({f"opt:{k}": v.asnumpy() for k, v in opt.state().items()})
    arrays["step"] = np.array([done], np.int64)
    arrays["losses"] = np.array([0.0] + losses, np.float64)  # MXNet's format has no empty arrays
    save_arrays(path, arrays)


def evaluate(net: Network, split, batch: int = 100) -> dict:
    """Accuracy and loss of a network on a split: see `evaluate_outputs`."""
    ctx = device()
    block = to_block(net, ctx, trainable=set())
    return evaluate_outputs(lambda x: block(mx.nd.array(x, ctx)).asnumpy(), split, batch)


def evaluate_outputs(outputs: Callable[[np.ndarray], np.ndarray], split, batch: int = 100) -> dict:
    """Top-1 and top-5 accuracy (fractions), mean cross entropy and the number of images of a split.

    `outputs` is any function from images (n, 3, H, W) to logits (n, classes). Correct and seen are summed and divided
    once: the last batch is short.
    """
    seen, top1, top5, loss = 0, 0, 0, 0.0
    for x, y, n in split.batches(batch):
        output = outputs(x)[:n].astype(np.float64)
        y = y[:n]
        top = output.max(1, keepdims=True)
        log_z = top[:, 0] + np.log(np.exp(output - top).sum(1))
        of_label = output[np.arange(n), y]
        # An image counts as right when fewer than k classes score above its label; ties go by class number, as argmax.
        above = ((output > of_label[:, None]).sum(1)
                 + ((output == of_label[:, None]) & (np.arange(output.shape[1]) < y[:, None])).sum(1))
        top1 += int((above < 1).sum())
        top5 += int((above < 5).sum())
        loss += float((log_z - of_label).sum())
        seen += n
    return {"top1": top1 / seen, "top5": top5 / seen, "loss": loss / seen if math.isfinite(loss) else None,
            "n_eval": seen}


def stage(prefix: Path, compute: Callable[[Path], Tuple[Network, dict]]) -> Tuple[Network, dict]:
    """Do a stage once: its network and its facts are saved under `prefix`, and read back the next time.

    `compute` gets the path of a checkpoint that it may use; the checkpoint goes when the stage is saved.
    """
    facts_path, checkpoint = Path(f"{prefix}.json"), Path(f"{prefix}.checkpoint")
    if facts_path.exists():
        return load(prefix), json.loads(facts_path.read_text())
    net, facts = compute(checkpoint)
    save(net, prefix)
    write_text(facts_path, json.dumps(facts))
    checkpoint.unlink(missing_ok=True)
    return net, json.loads(facts_path.read_text())
