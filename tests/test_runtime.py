"""The machine that a process runs on: its number of threads in one place, and what tells two machines apart."""

import os
import sys
from types import ModuleType

import pytest

from gcp import runtime
from gcp.backend import clock


@pytest.mark.parametrize(
    "variable, configured, expected",
    [("3", 0, 3), ("3", 2, 2), ("", 0, 5), ("many", 0, 5), ("\u00b2", 0, 5), ("0", 0, 5)],
)
def test_the_number_of_threads_is_the_same_everywhere(monkeypatch, variable, configured, expected):
    """Zero threads mean OMP_NUM_THREADS, else a thread for each core, wherever the number is asked for."""
    monkeypatch.setattr(runtime, "physical_cores", lambda: 5)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert runtime.n_threads(configured) == expected
    monkeypatch.setenv("OMP_NUM_THREADS", str(expected))  # as scripts set it, before MXNet is imported
    assert clock.Setup().threads == runtime.environment()["device"]["threads"] == runtime.n_threads(0) == expected


def test_threads_and_gpus_cannot_be_chosen_once_mxnet_is_imported(monkeypatch):
    """MXNet reads both as it is imported: a later choice would be in the record and nowhere else."""
    monkeypatch.setitem(sys.modules, "mxnet", ModuleType("mxnet"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    for choose in (lambda: runtime.use_threads(2), lambda: runtime.use_gpu((1,))):
        with pytest.raises(RuntimeError):
            choose()
    runtime.use_threads(3)  # as it is
    runtime.use_gpu(())  # no choice
    assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("3", "5,7")
    monkeypatch.delitem(sys.modules, "mxnet")
    runtime.use_threads(2)
    runtime.use_gpu((1,))
    assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("2", "7")


CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel Xeon Processor
stepping\t: 7
flags\t\t: fpu sse sse4_1 avx avx2 fma f16c avx512f avx512vl avx512_vnni

processor\t: 1
"""


def test_processors_of_one_name_are_told_apart(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)

    def found(old="", new=""):
        monkeypatch.setattr(runtime, "Path", lambda path: tmp_path / path.rpartition("/")[2])
        (tmp_path / "cpuinfo").write_text(CPUINFO.replace(old, new))
        runtime._processor.cache_clear()
        return runtime._processor()

    try:
        first = found()
        assert first["name"] == "Intel Xeon Processor"
        assert first["model"].startswith("vendor GenuineIntel, family 6, model 85, stepping 7, ")
        assert first["model"].endswith(" with avx avx2 avx512_vnni avx512f avx512vl f16c fma sse4_1")
        for old, new in ((": 85", ": 106"), (": 7", ": 6"), (" avx512_vnni", "")):
            other = found(old, new)
            assert other["name"] == first["name"] and other["model"] != first["model"]
    finally:
        runtime._processor.cache_clear()


def test_a_gpu_is_named_by_what_the_process_sees(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n[ \"$4\" = 3 ] && echo 'Some GPU' || exit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runtime.hardware("cpu")["gpu"] is None
    assert runtime.hardware("gpu(3)")["gpu"] == "Some GPU" and runtime.hardware("gpu(0)")["gpu"] is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert runtime.hardware("gpu(1)")["gpu"] == "Some GPU" and runtime.hardware("gpu(0)")["gpu"] is None
    assert runtime.environment("gpu(1)")["device"]["name"] == "gpu(1)"
    tool.unlink()
    assert runtime.hardware("gpu(1)")["gpu"] is None
