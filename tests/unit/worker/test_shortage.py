"""Allocations that failed: whose memory was short, and by how much."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.behaviour.support import fake_gpu
from tests.behaviour.support.memory_models import expanding

from rbee.wire.errors import OutOfMemory, OutOfVram, RbeeError, VramFragmented
from rbee.wire.worker_spec import Backend
from rbee.worker.engine.sessions import DeviceSpec, create_session, run_session
from rbee.worker.engine.shortage import is_shortage, shortage

GB = 1 << 30
TOO_MUCH = (1 << 23, 1 << 22)
"""Floats of this shape take as many bytes as an address space has."""
ASKED = f"bfc_arena.cc:360 Failed to allocate memory for requested buffer of size {4 * GB}"
LIMITED = f"bfc_arena.cc:360 Available memory of {GB} is smaller than requested bytes of {4 * GB}"
NO_SIZE = "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size)"
ON_FAKE_GPU = """
import json, sys
from pathlib import Path
from rbee.host import machine
from rbee.worker.engine.shortage import shortage
machine.DRIVER_PATHS = (Path("/"),)
error = shortage(RuntimeError(sys.argv[1]), "the model", int(sys.argv[2]))
print(json.dumps([error.code, error.status, error.message, error.details]))
"""


def test_the_runtimes_own_refusal_has_its_amount() -> None:
    session = create_session(expanding(TOO_MUCH), DeviceSpec(Backend.CPU))
    with pytest.raises(OutOfMemory) as caught:
        run_session(session, ["sum"], {"x": np.ones(1, np.float32)})
    error = caught.value
    assert (error.code, error.status) == ("OUT_OF_MEMORY", 503)
    assert error.details["required_ram_mb"] == (1 << 47) >> 20
    assert 0 < error.details["available_ram_mb"] < error.details["required_ram_mb"]
    assert "this input needs 134217728 MB at once of the machine" in error.message


@pytest.mark.parametrize(
    ("words", "free", "kind", "required_mb", "available_mb"),
    [
        (ASKED, 4 * GB, VramFragmented, 4096, 4096),
        (ASKED, 4 * GB - 1, OutOfVram, 4096, 4095),
        (ASKED, None, OutOfVram, 4096, None),
        (NO_SIZE, 8 * GB, OutOfVram, None, 8192),
        (LIMITED, 8 * GB, OutOfVram, 4096, 1024),
    ],
)
def test_a_gpu_is_fragmented_where_as_much_was_free(
    words: str, free: int | None, kind: type[RbeeError], required_mb: int | None, available_mb: int | None
) -> None:
    asked: list[int] = []
    error = shortage(RuntimeError(words), "the model", 3, lambda device: asked.append(device) or free)
    assert type(error) is kind
    assert error.details["required_vram_mb"] == required_mb
    assert error.details["available_vram_mb"] == available_mb
    assert "on cuda:3" in error.message
    assert ("rbee worker restart" in error.message) == (kind is VramFragmented)
    assert asked == ([] if words == LIMITED else [3])


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to build the fake driver with")
def test_what_is_free_is_the_drivers_figure_of_that_gpu(tmp_path: Path) -> None:
    """The GPUs are the fake driver's: 8 GiB and 16 GiB, the second one all but 4 GiB in use."""
    fake_gpu.build(tmp_path)
    (tmp_path / "used").write_text(f"{7 * GB} {12 * GB}")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "FAKE_GPU_USED": str(tmp_path / "used")}
    found = []
    for device in "0", "1":
        command = [sys.executable, "-c", ON_FAKE_GPU, ASKED, device]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        code, status, _, details = json.loads(done.stdout)
        found.append((code, status, details["required_vram_mb"], details["available_vram_mb"]))
    assert found == [("VRAM_EXHAUSTED", 503, 4096, 1024), ("VRAM_FRAGMENTED", 503, 4096, 4096)]


def test_what_is_a_shortage() -> None:
    assert is_shortage(MemoryError())
    assert is_shortage(RuntimeError(LIMITED))
    assert not is_shortage(RuntimeError("CUDA failure 700: an illegal memory access was encountered"))
