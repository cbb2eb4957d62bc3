"""The process group of a job: all-reduce, broadcast, equality checks, and the device of each rank.

Every rank runs the same program on its part of each batch and makes the same updates from the same sums. Whatever
depends on a clock or a file is decided by rank 0 alone, whose folder is the job's. The sums go through MXNet's KVStore
`dist_sync`. Its servers run an optimiser by default; ours only assigns, so that a push followed by a pull is an
all-reduce. `scripts/launch.py` starts the processes and passes each its rank in the environment; a single process sends
nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from gcp.backend.engine import mx
from gcp.errors import UserError
from gcp.train.launch import job

CHUNK = 2**19  # numbers per message: below MXNET_KVSTORE_BIGARRAY_BOUND, so that no message is split between servers
BLOCK = 8  # chunks of a file sent at once, so that the size of a file does not determine the servers' memory
STAMPS = 1024  # sums are numbered modulo this; its product with the world size must be exact in float32


class UnequalError(UserError):
    """The ranks no longer agree. This is not the user's mistake: the job can resume from its last checkpoint."""

    exit_status = 1


@mx.optimizer.register
class Assign(mx.optimizer.Optimizer):
    """The servers' optimiser, which replaces the stored value by the sum of what the ranks pushed.

    Without any optimiser, servers copy the sum themselves, but that is the mode (`update_on_kvstore=False`) in which
    ranks were seen to diverge. MXNet sends this object to the servers of the job, which import this module for it.
    """

    def create_state(self, index, weight) -> None:
        """No state is needed."""

    def update(self, index, weight, grad, state) -> None:
        """Store the sum unchanged."""
        weight[:] = grad


def device() -> mx.Context:
    """This process's first GPU if its MXNet has one, else the CPU. `runtime.use_gpu` determines which GPU is first."""
    return mx.gpu(0) if mx.context.num_gpus() else mx.cpu()


def check_gpus(gpus: Sequence[int]) -> None:
    """Raise a UserError if GPUs are requested and this MXNet sees none."""
    if gpus and not mx.context.num_gpus():
        raise UserError(
            f"gpus: {list(gpus)} are requested, but this MXNet sees none; install the MXNet build for "
            "the machine's CUDA version (such as mxnet-cu112), or set gpus to []"
        )


@lru_cache(maxsize=None)
def process_group() -> ProcessGroup | SingleProcess:
    """The process group of this process's job, joined at the first call."""
    return SingleProcess() if job().world_size == 1 else ProcessGroup(job().rank, job().world_size)


def digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The SHA-256 digest of the arrays' names and values."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha.digest()


class SingleProcess:
    """A group of one process, with the methods of `ProcessGroup`: sums are the values themselves, nothing is sent."""

    rank, world_size = 0, 1
    part = (0, 1)

    def all_reducer(self, arrays: Sequence[mx.nd.NDArray]) -> Callable[[], None]:
        """A function that does nothing."""
        return lambda: None

    def averager(self, arrays: Sequence[mx.nd.NDArray]) -> Callable[[], None]:
        """A function that does nothing."""
        return lambda: None

    def all_reduce_floats(self, values: Sequence[float]) -> np.ndarray:
        """The values themselves."""
        return np.asarray(values, np.float64)

    def broadcast(self, decide: Callable[[], Any]) -> Any:
        """What `decide` returns."""
        return decide()

    def broadcast_file(self, path: Path) -> bool:
        """Whether the file exists."""
        return path.exists()

    def check(self, where: str, arrays: Optional[Callable[[], Mapping[str, np.ndarray]]] = None) -> None:
        """Do nothing: there are no other ranks to differ from."""

    @contextlib.contextmanager
    def output(self, folder: str) -> Iterator[str]:
        """The folder itself."""
        yield folder


class ProcessGroup:
    """`world_size` processes in step, of which this is number `rank`; all must make the same calls in the same order.

    Everything is sent in messages of `CHUNK` numbers, so that the servers need no more memory than the largest sum,
    however many networks of other sizes a job trains. All sums use the same message buffers: KVStore keeps pushes and
    pulls of the same buffer in order, but not those of the same key.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.part = (rank, world_size)
        self._store = mx.kv.create("dist_sync")
        # A rank that fails must exit at once instead of waiting for ranks that are waiting for it.
        mx.base.check_call(mx.base._LIB.MXKVStoreSetBarrierBeforeExit(self._store.handle, ctypes.c_int(0)))
        atexit.register(self._leave)
        if self._store.num_workers != world_size:
            raise UserError(
                f"worker {rank} of {world_size}: the scheduler knows of {self._store.num_workers} workers; start them "
                "with scripts/launch.py"
            )
        if rank == 0:
            self._store.set_optimizer(Assign())
        self._store._barrier()
        self._device = device()
        self._chunks: List[mx.nd.NDArray] = []
        self._n_sums = 0
        self._stamps: List[Tuple[mx.nd.NDArray, int]] = []

    def all_reducer(self, arrays: Sequence[mx.nd.NDArray]) -> Callable[[], None]:
        """A function that replaces each of these float32 or float16 arrays by its sum over all ranks.

        With three or more ranks, the last bits of a sum depend on the order of arrival; they are the same on all ranks.
        """
        if not arrays:
            return lambda: None
        own = [a if a.dtype == np.float32 else mx.nd.zeros(a.shape, self._device) for a in arrays]
        cast = [(a, o) for a, o in zip(arrays, own) if a is not o]
        size = CHUNK - 1  # the last entry of a message is the number of the sum
        n_all = sum(a.size for a in own)
        self._make_chunks(-(-n_all // size))
        chunks = self._chunks[: -(-n_all // size)]
        pairs, at = [], 0  # pairs of a piece of an array and its place in a message
        for flat in (a.reshape(-1) for a in own):
            start = 0
            while start < flat.size:
                k, first = divmod(at, size)
                n = min(flat.size - start, size - first)
                pairs.append((flat[start : start + n], chunks[k][first : first + n]))
                start, at = start + n, at + n
        rest, ends = chunks[-1][at - (len(chunks) - 1) * size :], [chunk[size:] for chunk in chunks]
        keys = list(range(len(chunks)))

        def run() -> None:
            self._n_sums += 1
            for array, copy in cast:
                array.copyto(copy)
            rest[:] = 0
            for piece, place in pairs:  # operators that join and split arrays take 30 times as long as copies
                piece.copyto(place)
            for end in ends:
                end[:] = self._n_sums % STAMPS
            self._store.push(keys, chunks)
            self._store.pull(keys, out=chunks)
            for piece, place in pairs:
                place.copyto(piece)
            for array, copy in cast:
                copy.copyto(array)
            self._stamps.append((mx.nd.concat(*ends, dim=0), self._n_sums % STAMPS * self.world_size))

        return run

    def averager(self, arrays: Sequence[mx.nd.NDArray]) -> Callable[[], None]:
        """A function that replaces each of these arrays by its mean over all ranks."""
        run = self.all_reducer(arrays)

        def average() -> None:
            mx.nd.waitall()  # reading running statistics does not wait for the backward pass that updates them
            run()
            for array in arrays:
                array /= self.world_size

        return average

    def all_reduce_floats(self, values: Sequence[float]) -> np.ndarray:
        """Sums of numbers over all ranks, in float64 and in the order of the ranks: the same in every run."""
        return self._gathered(np.asarray(values, np.float64)).sum(0)

    def broadcast(self, decide: Callable[[], Any]) -> Any:
        """What `decide` returns on rank 0, sent as JSON; the other ranks wait for it and do not call `decide`."""
        text = json.dumps(decide()).encode() if self.rank == 0 else None
        return json.loads(self._broadcast_bytes(text))

    def broadcast_file(self, path: Path) -> bool:
        """Copy rank 0's file at `path` to every rank, at the rank's own `path`; False if rank 0 has no such file."""
        there = self.broadcast(path.exists)
        if there:
            content = self._broadcast_bytes(path.read_bytes() if self.rank == 0 else None)
            if self.rank:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return there

    def check(self, where: str, arrays: Optional[Callable[[], Mapping[str, np.ndarray]]] = None) -> None:
        """Raise an UnequalError, naming `where`, if any sum since the last check mixed steps or missed a rank.

        With `arrays`, also raise it if the arrays of any rank are not bit-identical to rank 0's.
        """
        for stamps, expected in self._stamps:
            if (stamps.asnumpy() != expected).any():
                raise UnequalError(
                    f"{where}: worker {self.rank} of {self.world_size} received a sum from another step, or one "
                    "that lacks some workers; run again to resume from the last checkpoint"
                )
        self._stamps.clear()
        if arrays is not None:
            hashes = self._gathered(np.frombuffer(digest(arrays()), np.uint8).astype(np.float64))
            unequal = [str(r) for r in range(self.world_size) if (hashes[r] != hashes[0]).any()]
            if unequal:
                raise UnequalError(
                    f"{where}: the parameters of worker {', '.join(unequal)} of {self.world_size} differ from "
                    "those of worker 0; run again to resume from the last checkpoint (all workers need processors "
                    "of the same kind)"
                )

    @contextlib.contextmanager
    def output(self, folder: str) -> Iterator[str]:
        """The folder that this rank writes to: `folder` on rank 0, a temporary one on the others."""
        if self.rank == 0:
            yield folder
        else:
            with tempfile.TemporaryDirectory() as temporary:
                yield temporary

    def _leave(self) -> None:
        """Free the store while its threads can still be joined; at interpreter exit they would abort the process."""
        del self._store

    def _make_chunks(self, n: int) -> None:
        for key in range(len(self._chunks), n):
            self._chunks.append(mx.nd.zeros(CHUNK, self._device))
            self._store.init(key, self._chunks[-1])

    def _gathered(self, values: np.ndarray) -> np.ndarray:
        """Every rank's float64 values, bit by bit, shape (world_size, len(values))."""
        words = np.zeros((self.world_size, 4 * len(values)), np.float32)
        words[self.rank] = values.view(np.uint16)
        return self._summed(words).astype(np.uint16).view(np.float64)

    def _broadcast_bytes(self, content: Optional[bytes]) -> bytes:
        """Rank 0's bytes, on every rank."""
        size = int(self._gathered(np.array([len(content or b"")], np.float64))[0, 0])
        words = np.zeros(-(-size // 2), np.float32)
        if content is not None:
            words[:] = np.frombuffer(content + b"\0" * (size % 2), np.uint16)
        step = BLOCK * (CHUNK - 1)
        parts = [self._summed(words[start : start + step]) for start in range(0, len(words), step)]
        return b"".join(part.astype(np.uint16).tobytes() for part in parts)[:size]

    def _summed(self, words: np.ndarray) -> np.ndarray:
        """The sum over the ranks of whole numbers below 2^16, each of which is zero on all ranks but one."""
        array = mx.nd.array(words, self._device)
        self.all_reducer([array])()
        return array.asnumpy()
