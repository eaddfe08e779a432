"""Sessions and models on the real runtime, without HTTP."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.unit.worker import graphs

from rbee.host.machine import DRIVER_ADVICE
from rbee.wire.errors import (
    ConfigError,
    DeviceBroken,
    Draining,
    InferenceError,
    InternalError,
    InvalidRequest,
    OutOfMemory,
    RbeeError,
)
from rbee.wire.worker_spec import Backend
from rbee.worker.engine.batch.build import BatchSettings, build_batch, build_decoder
from rbee.worker.engine.batch.growing import GrowingDecoder
from rbee.worker.engine.chat import Conversation
from rbee.worker.engine.cuda_advice import advise
from rbee.worker.engine.decoder import read_layout
from rbee.worker.engine.folder import read_folder
from rbee.worker.engine.generate import BatchGenerator
from rbee.worker.engine.generation import Finished, FinishReason, GenerateRequest, Piece
from rbee.worker.engine.recognise import recognise
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.runtime import thread_count
from rbee.worker.engine.sampling import SamplingParams, default_sampling
from rbee.worker.engine.sessions import (
    MOST_SPIN_US,
    DeviceSpec,
    create_session,
    cuda_options,
    run_failure,
    run_session,
    session_options,
)
from rbee.worker.engine.text_model import TextModel
from rbee.worker.engine.tokenise import load_tokenizer

CPU = DeviceSpec(Backend.CPU, threads=1)
LIMIT_S = 20.0
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    found = Runner(2)
    yield found
    found.close()


@pytest.fixture
def generator(models: Path, runner: Runner) -> Iterator[BatchGenerator]:
    folder = read_folder(models / "bee-talk")
    facts = recognise(folder.facts)
    settings = BatchSettings(rows=4, context=facts.context_length or 0, kv_bytes=None, prefix_bytes=64 << 20)
    session, layout = create_session(folder.model_file, CPU), read_layout(folder.facts)
    batch = build_batch(build_decoder(session, layout, None, CPU, settings), facts.eos_ids, settings)
    tokenizer, _ = load_tokenizer(folder.path)
    text = TextModel(tokenizer, eos_ids=facts.eos_ids, context_length=facts.context_length)
    found = BatchGenerator(batch, text, runner)
    found.warm_up()
    yield found
    found.close()


async def text_of(generator: BatchGenerator, request: GenerateRequest) -> tuple[str, Finished]:
    items = [item async for item in generator.stream(request)]
    assert isinstance(items[-1], Finished)
    return "".join(item.text for item in items if isinstance(item, Piece)), items[-1]


async def test_greedy_text_is_the_models_own_and_ends_where_it_ends(generator: BatchGenerator) -> None:
    prompt = generator.text.encode("<|user|>\nWhat is a hive?<|end|>\n<|assistant|>\n")
    text, finished = await text_of(generator, GenerateRequest(prompt, 200, GREEDY))
    assert text.startswith("The hive reports the facts of its machine and does what the queen tells it.")
    assert finished.reason is FinishReason.STOP
    cut, finished = await text_of(generator, GenerateRequest(prompt, 5, GREEDY))
    assert text.startswith(cut)
    assert finished == Finished(FinishReason.LENGTH, 5)


async def test_a_stop_string_ends_the_text_before_it(generator: BatchGenerator) -> None:
    prompt = generator.text.encode("What is a hive?")
    text, finished = await text_of(generator, GenerateRequest(prompt, 100, GREEDY, (" machine and",)))
    assert text == "The hive reports the facts of its"
    assert finished.reason is FinishReason.STOP


async def test_a_seed_repeats_and_texts_may_run_side_by_side(generator: BatchGenerator) -> None:
    prompt = generator.text.encode("What is a hive?")
    wild = [SamplingParams(temperature=8.0, seed=seed) for seed in (1, 1, 2)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(text_of(generator, GenerateRequest(prompt, 20, params))) for params in wild]
    first, again, other = (task.result()[0] for task in tasks)
    assert first == again != other


async def test_a_reader_that_stops_frees_its_row(generator: BatchGenerator) -> None:
    prompt = generator.text.encode("What is a hive?")
    endless = GenerateRequest(prompt, 1000, SamplingParams(temperature=0.0, ignore_eos=True))
    async with asyncio.timeout(60):
        for _ in range(6):  # more than there are rows
            async with contextlib.aclosing(generator.stream(endless)) as items:
                assert isinstance(await anext(items), Piece)
        text, _ = await text_of(generator, GenerateRequest(prompt, 100, GREEDY))
    assert text.startswith("The hive reports")


async def test_an_engine_that_cannot_go_on_says_so_to_everybody(
    generator: BatchGenerator, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> object:
        raise MemoryError("the engine's own fault")

    monkeypatch.setattr(GrowingDecoder, "read", breaks)
    request = GenerateRequest(generator.text.encode("What is a hive?"), 10, GREEDY)
    async with asyncio.timeout(60):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_error_of(generator, request)) for _ in range(3)]
        await _error_of(generator, request)
    assert all("try again" in task.result().message for task in tasks)
    assert isinstance(runner.failure.exception(timeout=60), InternalError)


async def _error_of(generator: BatchGenerator, request: GenerateRequest) -> InferenceError:
    with pytest.raises(InferenceError) as raised:
        await text_of(generator, request)
    return raised.value


async def test_prompts_that_cannot_be_read_are_refused(generator: BatchGenerator) -> None:
    for prompt, sentence in (
        ([], "empty"),
        ([10**6], "outside the vocabulary"),
        ([-1], "outside the vocabulary"),
        ([5] * 5000, "the model's context is"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            generator.text.encode(prompt)
    with pytest.raises(InvalidRequest, match="no chat template"):
        generator.text.encode_chat(Conversation([{"role": "user", "content": "hi"}]))


async def test_a_cancelled_step_ends_soon_and_its_age_is_known(tmp_path: Path, runner: Runner) -> None:
    session = create_session(graphs.endless(tmp_path / "model.onnx"), CPU)
    feeds = {"count": np.array([10**9])}
    task = asyncio.create_task(runner.step(lambda options: run_session(session, ["y"], feeds, options)))
    await asyncio.sleep(0.2)
    assert 0.1 < runner.longest_step_s() < 2
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 1
    assert runner.longest_step_s() == 0


async def test_a_step_that_ends_as_its_task_is_cancelled_leaves_nothing_to_wait_for(runner: Runner) -> None:
    task = asyncio.create_task(runner.step(lambda _: None))
    await asyncio.sleep(0)
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        pass  # the loop is held up: the step ends meanwhile, and its end and what comes next are seen in one turn
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(LIMIT_S):
            await task
    assert runner.longest_step_s() == 0


async def test_steps_beyond_the_threads_wait_and_a_panic_of_a_library_ends_no_thread(runner: Runner) -> None:
    class Panic(BaseException):
        """As the tokenizer's library raises it."""

    def panics(_: object) -> None:
        raise Panic

    async with asyncio.timeout(LIMIT_S):
        for _ in range(3):
            with pytest.raises(Panic):
                await runner.step(panics)
        names = await asyncio.gather(*(runner.step(lambda _: threading.current_thread().name) for _ in range(9)))
    assert len(names) == 9
    assert len(set(names)) <= 2


async def test_a_closed_runner_begins_no_step(runner: Runner) -> None:
    await runner.step(lambda _: None)
    runner.close()
    with pytest.raises(Draining):
        async with asyncio.timeout(LIMIT_S):
            await runner.step(lambda _: None)


async def test_the_loop_goes_on_while_a_model_runs(tmp_path: Path, runner: Runner) -> None:
    session = create_session(graphs.endless(tmp_path / "model.onnx"), CPU)
    feeds = {"count": np.array([10**9])}
    task = asyncio.create_task(runner.step(lambda options: run_session(session, ["y"], feeds, options)))
    worst = 0.0
    for _ in range(30):
        before = time.monotonic()
        await asyncio.sleep(0.01)
        worst = max(worst, time.monotonic() - before)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert worst < 0.2


async def test_a_model_the_runtime_refuses_is_a_config_error(models: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        create_session(models / "faulty-broken-file/model.onnx", CPU)
    assert str(models) not in refused.value.message


def test_threads_follow_the_cgroups_quota(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    assert thread_count(7, quota) == 7
    assert thread_count(0, quota) >= 1
    quota.write_text("100000 100000\n")
    assert thread_count(0, quota) == 1
    quota.write_text("max 100000\n")
    assert thread_count(0, quota) == thread_count(0, tmp_path / "none")


def test_telemetry_is_off_before_the_runtime_is_imported() -> None:
    program = (
        "import os, sys, importlib.abc\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from rbee.worker.engine.runtime import runtime\n"
        "runtime()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("words", "kind", "reason"),
    [
        ("Failed to allocate memory for requested buffer of size 94371840", OutOfMemory, "out_of_memory"),
        ("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size)", OutOfMemory, "out_of_memory"),
        ("std::bad_alloc", OutOfMemory, "out_of_memory"),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", DeviceBroken, None),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0", DeviceBroken, None),
        ("Non-zero status code returned while running MatMul node", InferenceError, "RuntimeError"),
    ],
)
def test_a_failed_run_ends_a_request_or_the_worker(words: str, kind: type[RbeeError], reason: str | None) -> None:
    failure = run_failure(RuntimeError(words), "this prompt", None)
    assert type(failure) is kind
    assert failure.details.get("reason") == reason


async def test_a_broken_device_fails_the_runner(runner: Runner) -> None:
    def breaks(_: object) -> None:
        raise DeviceBroken("the GPU's context is lost")

    for _ in range(2):
        with pytest.raises(DeviceBroken):
            await runner.step(breaks)
    assert isinstance(runner.failure.exception(timeout=60), DeviceBroken)


def test_no_plan_is_kept_for_each_shape_where_shapes_have_no_end() -> None:
    assert session_options(DeviceSpec(Backend.CPU)).enable_mem_pattern
    assert not session_options(DeviceSpec(Backend.CPU, varying=True)).enable_mem_pattern


def test_threads_wait_awake_within_a_run_and_sleep_behind_it(tmp_path: Path) -> None:
    spec = DeviceSpec(Backend.CPU, threads=2)
    assert session_options(spec).get_session_config_entry("session.intra_op.spin_duration_us") == str(MOST_SPIN_US)
    session = create_session(graphs.square(tmp_path / "model.onnx"), spec)
    values = np.ones((512, 512), np.float32)
    for _ in range(5):
        run_session(session, ["y"], {"x": values})
        began = time.process_time()
        time.sleep(0.1)
        assert time.process_time() - began < 0.01  # the runtime's own way is to spin for some 30 ms


def test_tf32_may_be_refused() -> None:
    assert cuda_options(DeviceSpec(Backend.CUDA, use_tf32=False))["use_tf32"] == "0"


def test_cuda_options_bound_the_arena() -> None:
    assert cuda_options(DeviceSpec(Backend.CUDA, device=1, gpu_mem_limit_mb=100)) == {
        "device_id": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "1",
        "gpu_mem_limit": str(100 << 20),
    }


@pytest.mark.parametrize(
    ("message", "library", "package"),
    [
        (
            "Failed to load library /opt/x/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open "
            "shared object file: No such file or directory",
            "libcublasLt.so.13",
            "libcublas-13-1",
        ),
        ("libcudnn.so.9: cannot open shared object file", "libcudnn.so.9", "libcudnn9-cuda-13"),
        ("[E:onnxruntime] CUDA failure 35: CUDA driver version is insufficient", None, DRIVER_ADVICE),
        ("CUDA failure 101: invalid device ordinal", None, None),
    ],
)
def test_what_is_missing_is_named_with_its_package(message: str, library: str | None, package: str | None) -> None:
    advice = advise(message, driver=True)
    assert (advice.library, advice.package) == (library, package)
    assert "/opt" not in advice.sentence
    if library is not None:
        assert library in advice.sentence


def test_without_a_driver_the_driver_is_named_before_the_library() -> None:
    sentence = advise("libcublasLt.so.13: cannot open shared object file", driver=False).sentence
    assert f"install {DRIVER_ADVICE}: this machine has no NVIDIA driver; then libcublas-13-1" in sentence
    old = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
    assert "the NVIDIA driver is too old for CUDA 13" in advise(old, driver=True).sentence
    assert "too old" not in advise(old, driver=False).sentence
    assert "has no NVIDIA driver" not in advise("CUDA failure 100: no CUDA-capable device", driver=False).sentence


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, SamplingParams()),
        ({"do_sample": False, "temperature": 0.7}, SamplingParams(temperature=0.0)),
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20}, SamplingParams(temperature=0.6, top_p=0.9, top_k=20)),
        ({"temperature": "hot", "top_p": 3, "top_k": -1}, SamplingParams()),
        ({"repetition_penalty": 1e-39}, SamplingParams()),
        ({"repetition_penalty": 11}, SamplingParams()),
        ({"repetition_penalty": 1.1}, SamplingParams(repetition_penalty=1.1)),
    ],
)
def test_a_model_says_how_it_wants_its_tokens_chosen(config: dict[str, object], expected: SamplingParams) -> None:
    assert default_sampling(config) == expected
