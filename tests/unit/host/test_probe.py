"""The probe's process: what it is called with, what it sees of its caller's environment, and its real answer."""

import subprocess
from pathlib import Path

import msgspec
import pytest

from rbee.host.probe import CPU, CUDA, ProbeResult, probe_command, probe_environment


def test_the_environment_is_clean_and_has_the_cuda_folder_of_worker_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/own")
    monkeypatch.setenv("SOME_SECRET", "hush")
    (tmp_path / "worker.yaml").write_text("cuda_library_path: /opt/cuda-libraries\nlog_level: debug\n")
    environment = probe_environment(tmp_path)
    assert environment["LD_LIBRARY_PATH"] == "/opt/cuda-libraries:/opt/own"
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert "SOME_SECRET" not in environment


@pytest.mark.parametrize("content", [None, "cuda_library_path: [not, a, path]\n", ": {"])
def test_without_a_readable_worker_yaml_the_loader_finds_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    if content is not None:
        (tmp_path / "worker.yaml").write_text(content)
    assert "LD_LIBRARY_PATH" not in probe_environment(tmp_path)


def test_the_probe_answers_and_runs_nothing_of_the_folder_that_its_caller_is_in(tmp_path: Path) -> None:
    for name in ("msgspec", "numpy", "onnxruntime", "rbee"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code of the working folder ran')\n")
    done = subprocess.run(
        probe_command(), env=probe_environment(tmp_path), cwd=tmp_path, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answer = msgspec.json.decode(done.stdout, type=ProbeResult)
    assert answer.providers[CPU].ok
    assert answer.providers[CUDA].ok or answer.providers[CUDA].advice
