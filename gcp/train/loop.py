"""The only training loop: dense training, GCP's steps and fine-tuning differ only in their `Step`."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Tuple

import numpy as np
from tqdm import tqdm

from gcp.backend.engine import mx
from gcp.backend.files import first_line, load_arrays, save_arrays
from gcp.errors import UserError
from gcp.train.distributed import device, process_group
from gcp.train.optimisers import DivergedError, all_finite
from gcp.train.schedules import Schedule
from gcp.train.steps import Step

FLUSH = 25  # steps between reads of the loss, each of which waits for the device
CHECKPOINT_S = 60.0


@dataclass(frozen=True)
class Batches:
    """Training images as an endless sequence of batches: batch i depends only on the seed and i."""

    split: object  # a `gcp.data.base.Split`
    size: int
    seed: int
    augment: str = "none"

    @property
    def per_epoch(self) -> int:
        """The number of batches in one pass over the images."""
        return self.split.n_batches(self.size)

    def since(self, first: int) -> Iterator[Tuple[mx.nd.NDArray, mx.nd.NDArray]]:
        """Images and labels from batch `first` on, on the device; with several ranks, this rank's part of each."""
        epoch, skip = divmod(first, self.per_epoch)
        while True:
            how = dict(seed=(self.seed, epoch), augment=self.augment, part=process_group().part, first=skip)
            for x, y, _ in self.split.batches(self.size, **how):
                yield mx.nd.array(x, device()), mx.nd.array(y, device())
            epoch, skip = epoch + 1, 0


def fit(
    step: Step,
    batches: Batches,
    schedule: Schedule,
    *,
    name: str = "training",
    checkpoint: Optional[Path] = None,
    log: Optional[Callable[..., None]] = None,
) -> float:
    """Make the schedule's steps on the batches and return the mean training loss of the last epoch.

    The trained network is `step.network()`; the step determines what is trained, and how. A step's random draws and its
    batch depend only on seeds and on its number, and `checkpoint` (written every minute; to be deleted by the caller
    once the result is saved) holds the step's whole state, so a killed run resumes bit-identically. `log` receives the
    facts of each epoch, and of a final partial epoch, before any checkpoint beyond it is written: a resumed run can log
    an epoch again but omits none. `name` is what messages and the progress bar call the training. With several ranks,
    each takes its part of every batch; every `FLUSH` steps and at the end of each epoch they average their running
    statistics, before anything reads them, and at the end of an epoch their states must be bit-identical. Raises
    DivergedError, naming the step, when the loss or the state is no longer finite; the last checkpoint is kept.
    """
    group, n_steps, per_epoch = process_group(), schedule.n_steps, batches.per_epoch
    done, losses = 0, []
    if checkpoint is not None and group.broadcast_file(checkpoint):
        try:
            saved = load_arrays(checkpoint)
            step.restore(saved)
            done, losses = int(saved["step"][0]), saved["losses"][1:].tolist()
        except (UserError, KeyError) as error:  # damaged, or of another version of the step
            why = f"'{checkpoint}' is not a checkpoint of this training ({first_line(error)})"
            raise UserError(f"{why}; remove it, and {name} begins again", "train.checkpoint") from error
    bar = tqdm(
        total=n_steps * batches.size,
        initial=done * batches.size,
        desc=name,
        unit="img",
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 20,
        leave=False,
        disable=group.rank > 0,
    )
    saved_at = epoch_began = time.monotonic()
    epoch_from, pending = done, []
    with bar:
        for x, y in islice(batches.since(done), n_steps - done):
            try:
                pending.append(step(x, y, done, schedule(done)).mean())
            except DivergedError as error:  # an optimiser does not know how often it was asked
                error.steps = done + 1
                raise
            done += 1
            bar.update(batches.size)
            ends = done % per_epoch == 0 or done == n_steps
            if len(pending) < FLUSH and not ends:
                continue
            where = f"{name}, step {done} of {n_steps}"
            step.synchronise()
            losses.extend(_finite_losses(pending, done, name, n_steps))
            if not all_finite(list(step.state().values())):  # relu turns NaN into 0: the loss can stay finite
                raise _diverged(f"{name}: weights are no longer finite after step {done} of {n_steps}", done)
            group.check(where, (lambda: {k: v.asnumpy() for k, v in step.state().items()}) if ends else None)
            del losses[:-per_epoch]
            pending.clear()
            lr = schedule(done - 1)
            shown = f"{np.mean(losses[-FLUSH:]):.3f}"
            bar.set_postfix(epoch=f"{done / per_epoch:.2f}", loss=shown, lr=f"{lr:.2g}", refresh=False)
            if ends and log is not None:
                seconds, n = time.monotonic() - epoch_began, done % per_epoch or per_epoch
                log(
                    epoch=done // per_epoch if done % per_epoch == 0 else done / per_epoch,
                    step=done,
                    training_loss=float(np.mean(losses[-n:])),
                    lr=lr,
                    seconds=seconds,
                    images_per_second=(done - epoch_from) * batches.size / seconds,
                )
                epoch_began, epoch_from = time.monotonic(), done
            is_time = group.rank == 0 and time.monotonic() - saved_at > CHECKPOINT_S
            if checkpoint is not None and is_time and done < n_steps:
                _save_checkpoint(checkpoint, step, done, losses)
                saved_at = time.monotonic()
    return float(np.mean(losses)) if losses else math.nan


def _finite_losses(pending: List[mx.nd.NDArray], done: int, name: str, n_steps: int) -> List[float]:
    """The losses of the last steps, averaged over all ranks. DivergedError: one is not finite."""
    values = mx.nd.concat(*pending, dim=0)
    process_group().averager([values])()
    values = values.asnumpy().astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        n = done - len(pending) + int(bad[0]) + 1
        raise _diverged(f"{name}: the loss is {values[bad[0]]} at step {n} of {n_steps}", done)
    return values.tolist()


def _diverged(what: str, done: int) -> DivergedError:
    error = DivergedError(
        f"{what}; lower its learning rate or penalty, or check the images (the last checkpoint is kept)"
    )
    error.steps = done
    return error


def _save_checkpoint(path: Path, step: Step, done: int, losses: List[float]) -> None:
    mx.nd.waitall()  # a static graph's backward writes the running statistics; reading them does not wait for it
    arrays = {k: v.asnumpy() for k, v in step.state().items()}
    arrays["step"] = np.array([done], np.int64)
    arrays["losses"] = np.array([0.0] + losses, np.float64)  # MXNet's format has no empty arrays
    save_arrays(path, arrays)
