"""Everything that takes a batch: the one training loop, evaluation, stages that survive a kill.

The loop serves dense training, GCP's regularise and recover steps and fine-tuning alike; they differ in which
arrays are trainable, whether batch-norm statistics are frozen, and in the `Optimiser`.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Protocol, Sequence, Set, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd
from tqdm import tqdm

from gcp.backend.gluon import auxiliary, from_block, load, load_arrays, paths, save, save_arrays, to_block, write_text
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.train.distributed import device, workers

FLUSH = 25  # steps between looks at the loss; each look waits for the device
CHECKPOINT_S = 60.0
FINITE_ARRAYS = 200  # as many as `multi_all_finite` has room for


class DivergedError(UserError):
    """The loss was no longer a finite number."""


class Optimiser(Protocol):
    """Applies one step's gradients; its state is plain arrays, so that checkpoints need no pickle."""

    def step(self, lr: float, batch: int) -> None:
        """Update the parameters from their gradients, which are sums over `batch` images."""

    def gradients(self) -> List[mx.nd.NDArray]:
        """The arrays that `step` reads the gradients from: where there are other workers, sums over all take theirs."""

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """All that the next step depends on besides the parameters' values."""

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Take over what `state` gave."""


class SGD:
    """SGD with momentum, or Nesterov's; weight decay on weights only, not on scales, shifts, biases (He et al. 2019).

    One `sgd_mom_update` per array instead of Gluon's aggregated `multi_sgd_mom_update`, which took 3.5 times as
    long on a CPU (28 ms of a 104 ms step of ResNet-18 at 32 px, batch 64).
    """

    UPDATES = {False: mx.nd.sgd_mom_update, True: mx.nd.nag_mom_update}

    def __init__(
        self, block, momentum: float = 0.9, wd: float = 0.0, nesterov: bool = False, only: Optional[Set[str]] = None
    ) -> None:
        self._update = self.UPDATES[nesterov]
        self._params = {
            k: p for k, p in block.collect_params().items() if p.grad_req != "null" and (only is None or k in only)
        }
        self._momentum = momentum
        self._wd = {k: wd if k.endswith("weight") else 0.0 for k in self._params}
        self._velocity = {k: mx.nd.zeros(p.shape, p.list_ctx()[0]) for k, p in self._params.items()}

    def step(self, lr: float, batch: int) -> None:
        """One update of every array."""
        for name, p in self._params.items():
            w = p.data()
            self._update(
                w,
                p.grad(),
                self._velocity[name],
                out=w,
                lr=lr,
                momentum=self._momentum,
                wd=self._wd[name],
                rescale_grad=1.0 / batch,
            )

    def gradients(self) -> List[mx.nd.NDArray]:
        """Each parameter's own."""
        return [p.grad() for p in self._params.values()]

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """The velocities."""
        return self._velocity

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Take over velocities."""
        for name, value in self._velocity.items():
            value[:] = state[name]


class MixedSGD(SGD):
    """`SGD` on a block of dtype float16: updates float32 masters of its arrays (Micikevicius et al. 2018).

    Gradients come multiplied by `loss_scale`, so that small ones are not lost below float16's range. A step whose
    gradients have overflowed is left out and halves the scale; GROWTH steps without that double it.
    """

    GROWTH = 2000
    LEAST, MOST = 2.0**-10, 2.0**16
    MIXED_UPDATES = {False: mx.nd.mp_sgd_mom_update, True: mx.nd.mp_nag_mom_update}

    def __init__(self, block, momentum: float = 0.9, wd: float = 0.0, nesterov: bool = False) -> None:
        super().__init__(block, momentum, wd, nesterov)
        self._mixed_update = self.MIXED_UPDATES[nesterov]
        self.masters = {k: p.data().astype("float32") for k, p in self._params.items() if is_half(p)}
        self.loss_scale, self._n_good = 128.0, 0

    def take(self, net: Network) -> None:
        """Begin from the network's own values: the block's are rounded."""
        for name, value in self.masters.items():
            value[:] = net.arrays[name]

    def step(self, lr: float, batch: int) -> None:
        """One update of every array, or none. Waits for the gradients: whether they are finite decides what follows."""
        if not all_finite([p.grad() for p in self._params.values()]):
            self.loss_scale, self._n_good = self.loss_scale / 2, 0
            if self.loss_scale < self.LEAST:
                raise DivergedError(
                    f"gradients are beyond float16 at every loss scale down to {self.LEAST:g}; lower "
                    "the learning rate, or set dtype to float32"
                )
            return
        for name, p in self._params.items():
            w, master = p.data(), self.masters.get(name)
            how = dict(lr=lr, momentum=self._momentum, wd=self._wd[name], rescale_grad=1.0 / (batch * self.loss_scale))
            if master is None:
                self._update(w, p.grad(), self._velocity[name], out=w, **how)
            else:
                self._mixed_update(w, p.grad(), self._velocity[name], master, out=w, **how)
        self._n_good += 1
        if self._n_good >= self.GROWTH and self.loss_scale < self.MOST:
            self.loss_scale, self._n_good = self.loss_scale * 2, 0

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """Velocities and the loss scale; the masters are the network's own values."""
        return {**super().state(), "loss scale": mx.nd.array([self.loss_scale, self._n_good])}

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Take over what `state` gave."""
        super().restore(state)
        scale, n_good = state["loss scale"].asnumpy()
        self.loss_scale, self._n_good = float(scale), int(n_good)


def is_half(p) -> bool:
    """Whether a parameter of a block is of dtype float16."""
    return np.dtype(p.dtype) == np.float16


def all_finite(arrays: Sequence[mx.nd.NDArray]) -> bool:
    """Whether no array holds NaN or an infinity; waits for them."""
    by_dtype: Dict[np.dtype, List[mx.nd.NDArray]] = {}  # MXNet looks at arrays of one dtype together
    for a in arrays:
        by_dtype.setdefault(np.dtype(a.dtype), []).append(a)
    # MXNet's operator keeps 200 pointers and writes the others beyond its end: ResNet-50 has more arrays than that.
    parts = [same[i : i + FINITE_ARRAYS] for same in by_dtype.values() for i in range(0, len(same), FINITE_ARRAYS)]
    found = [mx.nd.multi_all_finite(*part, num_arrays=len(part)) for part in parts]
    return bool(mx.nd.concat(*found, dim=0).asnumpy().all())


def cosine(lr: float, n_steps: int, n_warmup: int = 0) -> Callable[[int], float]:
    """Learning rate of step i: linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017, no restarts)."""

    def at(i: int) -> float:
        if i < n_warmup:
            return lr * (i + 1) / n_warmup
        return lr * 0.5 * (1 + math.cos(math.pi * (i - n_warmup) / max(1, n_steps - n_warmup)))

    return at


def steps(lr: float, at: Sequence[int], factor: float, n_warmup: int = 0) -> Callable[[int], float]:
    """Learning rate of step i: linear warm-up, then `lr`, multiplied by `factor` from each step of `at` on."""

    def rate(i: int) -> float:
        return lr * (i + 1) / n_warmup if i < n_warmup else lr * factor ** sum(i >= step for step in at)

    return rate


def constant(lr: float) -> Callable[[int], float]:
    """The same learning rate at every step."""
    return lambda i: lr


def smoothed_loss(output: mx.nd.NDArray, labels: mx.nd.NDArray, smoothing: float) -> mx.nd.NDArray:
    """Cross entropy per image, shape (batch,), against labels smoothed towards the uniform distribution."""
    log_p = mx.nd.log_softmax(output)
    loss = -mx.nd.pick(log_p, labels)
    return loss if smoothing == 0 else (1 - smoothing) * loss - smoothing * log_p.mean(axis=1)


@dataclass(frozen=True)
class Teacher:
    """A network that another learns from: its part of the loss in (0, 1], and the temperature above 0."""

    net: Network
    weight: float = 0.5
    temperature: float = 1.0


class Objective:
    """The loss of a training step: cross entropy with smoothed labels, images mixed, a teacher beside the labels.

    Mixup is of Zhang et al. 2018 as GluonCV trains its networks with: one `lam` a step, from Beta(alpha, alpha), for
    the whole batch; an image is mixed with its neighbour (0 with 1, 2 with 3, ...), which are a random pair, so that
    a batch divided among devices is mixed as one. With a teacher (Hinton et al. 2015) the loss is
    `(1 - w) CE + w T^2 KL(softmax(teacher / T) || softmax(student / T))`; it sees the mixed images, and predicts.
    """

    def __init__(
        self,
        ctx: mx.Context,
        seed: int,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        teacher: Optional[Teacher] = None,
    ) -> None:
        self._seed, self._smoothing, self._mixup, self._teacher = seed, label_smoothing, mixup, teacher
        self._teacher_block = to_block(teacher.net, ctx, trainable=set()) if teacher is not None else None

    def __call__(self, block, x: mx.nd.NDArray, y: mx.nd.NDArray, step: int) -> mx.nd.NDArray:
        """The loss per image, shape (batch,), recorded; what is drawn depends on the seed and the step alone."""
        lam, other = mixup_share(self._mixup, self._seed, step), None
        if lam < 1:
            partner = neighbours(len(x), x.context)
            x, other = lam * x + (1 - lam) * x.take(partner), y.take(partner)
        taught = None if self._teacher is None else self._teacher_block(x)
        with autograd.record():
            output = block(x)
            loss = smoothed_loss(output, y, self._smoothing)
            if other is not None:
                loss = lam * loss + (1 - lam) * smoothed_loss(output, other, self._smoothing)
            if taught is not None:
                w = self._teacher.weight
                loss = (1 - w) * loss + w * distilled_loss(output, taught, self._teacher.temperature)
        return loss


def mixup_share(alpha: float, seed: int, step: int) -> float:
    """The weight of a step's images against their partners', from Beta(alpha, alpha); 1 without mixup."""
    # The third number keeps the draw apart from those of the batches, whose seeds are pairs.
    return float(np.random.default_rng((seed, step, 1)).beta(alpha, alpha)) if alpha else 1.0


def neighbours(n: int, ctx: mx.Context) -> mx.nd.NDArray:
    """Partners in a batch of n: 1, 0, 3, 2, ...; the last of an odd number is its own."""
    return mx.nd.array(np.minimum(np.arange(n) ^ 1, n - 1), ctx, dtype="int32")


def distilled_loss(output: mx.nd.NDArray, taught: mx.nd.NDArray, temperature: float) -> mx.nd.NDArray:
    """T^2 KL(softmax(taught / T) || softmax(output / T)) per image, shape (batch,) (Hinton et al. 2015, section 2)."""
    log_p = mx.nd.log_softmax(taught / temperature)
    log_q = mx.nd.log_softmax(output / temperature)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(axis=1)


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


def check_dtype(dtype: str) -> None:
    """UserError where the device cannot train in it."""
    if dtype == "float16" and device().device_type == "cpu":
        raise UserError(
            "dtype: float16 needs a GPU, and there is none here (for CPUs MXNet has no convolution and no "
            "dense layer in float16); set it to float32"
        )


def trained_block(
    net: Network,
    ctx: mx.Context,
    frozen_statistics: bool = False,
    trainable: Optional[Set[str]] = None,
    dtype: str = "float32",
):
    """The network as a block to train: with batch norm and relu as one operator if a trial step on an image runs.

    Whether oneDNN has a backward for it depends on the widths and on the kernels that it picks for the machine. The
    results are the same bit by bit.
    """
    if dtype != "float32":
        return to_block(net, ctx, frozen_statistics, trainable, dtype=dtype)
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
    return (
        all(net.shapes[i][0] % 16 == 0 for i, n in enumerate(net.nodes) if n.op == "Convolution")
        and cpu.exists()
        and "avx512f" in cpu.read_text()
    )


def random_step(net: Network, batch: int) -> Callable[[], None]:
    """A function that makes one ordinary training step, on all weights, on the same random images each time."""
    ctx, rng = device(), np.random.default_rng(0)
    x = mx.nd.array(rng.standard_normal((batch, *net.input_shape)), ctx)
    y = mx.nd.array(rng.integers(0, net.n_classes, batch), ctx)
    block = trained_block(net, ctx)
    optimiser = SGD(block, 0.9, 1e-4)

    def step() -> None:
        with autograd.record():
            loss = smoothed_loss(block(x), y, 0.0)
        loss.backward()
        optimiser.step(0.1, batch)

    return step


def values_of(block) -> List[mx.nd.NDArray]:
    """The block's parameters and running statistics."""
    return [p.data() for p in block.collect_params().values()]


def hash_seed(*parts: int) -> int:
    """One 31-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def _save_checkpoint(path: Path, net: Network, opt: Optimiser, done: int, losses: List[float]) -> None:
    arrays = {f"net:{k}": v for k, v in net.arrays.items()}
    arrays.update({f"opt:{k}": v.asnumpy() for k, v in opt.state().items()})
    arrays["step"] = np.array([done], np.int64)
    arrays["losses"] = np.array([0.0] + losses, np.float64)  # MXNet's format has no empty arrays
    save_arrays(path, arrays)


def evaluate(net: Network, split, batch: int = 100) -> dict:
    """Accuracy and loss of a network on a split: see `evaluate_outputs`. Several workers each take a part."""
    ctx, team = device(), workers()
    block = to_block(net, ctx, trainable=set())
    return _averages(
        team.total(_sums(lambda x: block(mx.nd.array(x, ctx)).asnumpy(), split.batches(batch * team.n, part=team.part)))
    )


def evaluate_outputs(outputs: Callable[[np.ndarray], np.ndarray], split, batch: int = 100) -> dict:
    """Top-1 and top-5 accuracy (fractions), mean cross entropy and the number of images of a split.

    `outputs` is any function from images (n, 3, H, W) to logits (n, classes). Correct and seen are summed and divided
    once: the last batch is short.
    """
    return _averages(_sums(outputs, split.batches(batch)))


def _sums(outputs: Callable[[np.ndarray], np.ndarray], batches: Iterable) -> Tuple[int, int, int, float]:
    """Images, those right at first and within the first five, summed cross entropy."""
    seen, top1, top5, loss = 0, 0, 0, 0.0
    for x, y, n in batches:
        if n == 0:  # a part of a short batch that holds filling only
            continue
        output = outputs(x)[:n].astype(np.float64)
        y = y[:n]
        top = output.max(1, keepdims=True)
        log_z = top[:, 0] + np.log(np.exp(output - top).sum(1))
        of_label = output[np.arange(n), y]
        # An image counts as right when fewer than k classes score above its label; ties go by class number, as argmax.
        above = (output > of_label[:, None]).sum(1) + (
            (output == of_label[:, None]) & (np.arange(output.shape[1]) < y[:, None])
        ).sum(1)
        top1 += int((above < 1).sum())
        top5 += int((above < 5).sum())
        loss += float((log_z - of_label).sum())
        seen += n
    return seen, top1, top5, loss


def _averages(sums: Sequence[float]) -> dict:
    seen, top1, top5, loss = sums
    return {
        "top1": top1 / seen,
        "top5": top5 / seen,
        "loss": loss / seen if math.isfinite(loss) else None,
        "n_eval": int(seen),
    }


def stage(prefix: Path, compute: Callable[[Path], Tuple[Network, dict]]) -> Tuple[Network, dict]:
    """Do a stage once: its network and its facts are saved under `prefix`, and read back the next time.

    `compute` gets the path of a checkpoint that it may use; the checkpoint goes when the stage is saved. Of several
    workers, worker 0 says whether it is done, and has the files; what is not done all compute, with worker 0's facts.
    """
    facts_path, checkpoint, team = Path(f"{prefix}.json"), Path(f"{prefix}.checkpoint"), workers()
    if team.share_file(facts_path):
        for path in paths(prefix):
            team.share_file(path)
        return load(prefix), json.loads(facts_path.read_text())
    net, facts = compute(checkpoint)
    facts = team.first(lambda: facts)
    save(net, prefix)
    write_text(facts_path, json.dumps(facts))
    checkpoint.unlink(missing_ok=True)
    return net, json.loads(facts_path.read_text())


def same_network(make: Callable[[], Network]) -> Network:
    """The network that `make` gives worker 0; the other workers need not have the files that it comes from."""
    team = workers()
    if team.n == 1:
        return make()
    with tempfile.TemporaryDirectory() as folder:
        net = None
        if team.rank == 0:
            net = make()
            save(net, Path(folder) / "network")
        for path in paths(Path(folder) / "network"):
            team.share_file(path)
        return net or load(Path(folder) / "network")
