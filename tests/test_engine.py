"""The processor's memory of an array, as numpy sees it."""

import numpy as np
import pytest
from networks import random_network

from gcp.backend.blocks import to_block
from gcp.backend.engine import autograd, memory, mx


def test_memory_is_no_copy():
    array = mx.nd.array(np.arange(6.0).reshape(2, 3))
    array.wait_to_read()
    memory(array)[1, 1:] += 10
    assert array.asnumpy().tolist() == [[0, 1, 2], [3, 14, 15]]
    assert (array + 1).asnumpy().tolist() == [[1, 2, 3], [4, 15, 16]], "operators see it too"
    assert memory(mx.nd.zeros((3,))).shape == (3,)


def test_gradients_that_lie_in_blocks_of_channels_come_in_rows():
    """What oneDNN's backward leaves is laid out for its kernels."""
    net = random_network("mobilenet0.25", (3, 32, 32), 4)
    block = to_block(net)
    with autograd.record():
        loss = block(mx.nd.array(np.random.default_rng(0).normal(size=(4, 3, 32, 32)))).sum()
    loss.backward()
    mx.nd.waitall()
    for p in block.collect_params().values():
        if p.grad_req != "null":
            seen = memory(p.grad()).copy()
            assert np.array_equal(seen, p.grad().asnumpy()), p.name


@pytest.mark.parametrize("kind", ["int32", "float16", "float64"])
def test_other_types_are_refused(kind):
    with pytest.raises(ValueError, match=kind):
        memory(mx.nd.zeros((2, 2), dtype=kind))
