"""A model whose scores are not numbers for one token: an error for that prompt, and nothing else breaks."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.unit.worker.process import serving

POISON = 700


@pytest.fixture(scope="module")
def poisoned(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The talking model with NaN for the embedding of one token."""
    folder = tmp_path_factory.mktemp("poisoned") / "bee-talk"
    shutil.copytree(models / "bee-talk", folder)
    model = onnx.load(str(folder / "model.onnx"))
    (tokens,) = [each for each in model.graph.initializer if each.name == "tokens"]
    table = numpy_helper.to_array(tokens).copy()
    table[POISON] = np.nan
    tokens.CopyFrom(numpy_helper.from_array(table, "tokens"))
    onnx.save(model, str(folder / "model.onnx"))
    return folder


@pytest.mark.parametrize("stream", [False, True])
async def test_nan_is_an_error_and_never_text(tmp_path: Path, poisoned: Path, stream: bool) -> None:
    async with serving(tmp_path, model=str(poisoned)) as worker, worker.session() as client:
        for more in ({"temperature": 0}, {"temperature": 1, "top_p": 0.5}, {"temperature": 0, "logprobs": 1}):
            body = {"prompt": [600, POISON, 601], "max_tokens": 4, "stream": stream, **more}
            answer = await client.post("/v1/completions", json=body)
            assert answer.status == 500
            error = (await answer.json())["error"]
            assert error["code"] == "INFERENCE_FAILED"
            assert "not numbers (NaN or infinite)" in error["message"]
        healthy = await client.post("/v1/completions", json={"prompt": [600, 601], "max_tokens": 4, "temperature": 0})
        assert healthy.status == 200
        assert json.loads(await healthy.read())["usage"]["completion_tokens"] > 0
