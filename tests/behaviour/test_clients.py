"""The clients of others, unchanged, against a real queen with real workers; and what she says of each request."""

import asyncio
import http.client
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
import tritonclient.http
from pytest_bdd import given, parsers, scenarios, then, when
from tritonclient.utils import InferenceServerException

from rbee.keeper.demo.corpus import TOPICS
from tests.behaviour.support.daemons import TENSOR
from tests.behaviour.support.http import Answer, until
from tests.behaviour.support.person import Person
from tests.behaviour.support.stack import Stack

scenarios("features/clients.feature")

TALK, TENSORS, VECTORS = "bee-talk", "tiny-tensor", "all-minilm-l6-v2"
CHAT = "/v1/chat/completions"
QUESTION, ANSWER = TOPICS[4].questions[0], TOPICS[4].answer
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
X = np.arange(4, dtype=np.float32).reshape(1, 4)
SHIFT = np.array([[7]], dtype=np.int64)


@dataclass
class Seen:
    answers: list[Answer] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    usages: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    took_s: float = 0.0


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Stack]:
    stack = Stack(models)
    stack.queen_config = {"requests": {"max_body_mb": 2}}
    try:
        stack.start()
        for model in (TALK, VECTORS, TENSORS):
            stack.run_worker(model, model, slots=8, idle_limit_s=0)
        yield stack
    finally:
        stack.close()


@given("a queen with a talking, an embedding and a tensor model")
def queen(served: Stack) -> None:
    assert {model["id"] for model in served.client.get("/v1/models").json["data"]} >= {TALK, VECTORS, TENSORS}


@when(parsers.parse("{count:d} of OpenAI's asynchronous clients ask at once, half of them for streams with usage"))
def ask_at_once(served: Stack, seen: Seen, count: int) -> None:
    async def whole(client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model=TALK, messages=MESSAGES, temperature=0)
        seen.texts.append(answer.choices[0].message.content or "")

    async def streamed(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model=TALK, messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        text = ""
        async for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            if chunk.usage is not None:
                seen.usages.append(chunk.usage)
        seen.texts.append(text)

    async def all_of_them() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{served.queen_url}/v1", api_key=served.tokens["api_token"], max_retries=0
        ) as client:
            await asyncio.gather(*((streamed if number % 2 else whole)(client) for number in range(count)))

    asyncio.run(all_of_them())


@then("each gets the same text, and the streams end with their token counts")
def same_text(seen: Seen) -> None:
    assert seen.texts == [ANSWER] * 12
    assert len(seen.usages) == 6
    assert all(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 10 for usage in seen.usages)


@then("OpenAI's client gets vectors as base64 and as numbers, and they are the same")
def vectors(served: Stack) -> None:
    with openai.OpenAI(base_url=f"{served.queen_url}/v1", api_key=served.tokens["api_token"], max_retries=0) as client:
        packed = client.embeddings.create(model=VECTORS, input=["a bee", "a hive"])
        plain = client.embeddings.create(model=VECTORS, input=["a bee", "a hive"], encoding_format="float")
    for left, right in zip(packed.data, plain.data, strict=True):
        np.testing.assert_allclose(left.embedding, right.embedding, rtol=1e-6)


class Bearer(tritonclient.http.InferenceServerClientPlugin):
    """Puts the token on each of the client's requests."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: object) -> None:
        request.headers["Authorization"] = f"Bearer {self._token}"  # type: ignore[attr-defined]


@pytest.fixture
def triton(served: Stack) -> Iterator[tritonclient.http.InferenceServerClient]:
    with tritonclient.http.InferenceServerClient(served.queen_url.removeprefix("http://")) as client:
        client.register_plugin(Bearer(served.tokens["api_token"]))
        yield client


@then("Triton's client finds the queen live and ready, and the model and its version ready")
def triton_ready(triton: tritonclient.http.InferenceServerClient) -> None:
    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.is_model_ready(TENSORS) and triton.is_model_ready(TENSORS, "1")
    assert not triton.is_model_ready(TENSORS, "2")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    assert triton.get_model_metadata(TENSORS)["inputs"]


@then("it gets the same tensors in binary, in JSON and with a version")
def triton_infers(triton: tritonclient.http.InferenceServerClient) -> None:
    found = []
    for binary, version in ((True, ""), (False, ""), (True, "1")):
        inputs = [
            tritonclient.http.InferInput("x", [1, 4], "FP32").set_data_from_numpy(X, binary_data=binary),
            tritonclient.http.InferInput("shift", [1, 1], "INT64").set_data_from_numpy(SHIFT, binary_data=binary),
        ]
        wanted = [tritonclient.http.InferRequestedOutput("y", binary_data=binary)]
        found.append(triton.infer(TENSORS, inputs, model_version=version, outputs=wanted).as_numpy("y"))
    assert found[0] is not None
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@then("it is told of an unknown model")
def triton_unknown(triton: tritonclient.http.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as unknown:
        triton.get_model_metadata("no-such-model")
    assert unknown.value.message()["code"] == "MODEL_NOT_FOUND"


@when(parsers.parse("a client sends {what} to the queen's chat route"))
def send(served: Stack, seen: Seen, what: str) -> None:
    body: dict[str, Any] = {"model": TALK, "messages": MESSAGES}
    client = served.client
    headers: dict[str, str] = {}
    given: object = body
    if what == "no token":
        client.token = None
    elif what == "an unknown model":
        given = body | {"model": "nobody"}
    elif what == "no JSON":
        given = b"{"
    elif what == "a body that is too big":
        given = body | {"user": "x" * (3 << 20)}
    elif what == "an odd parameter":
        given = body | {"beams": 4}
    else:
        headers = {"X-Request-Deadline": "1000"}
    seen.answers.append(client.call("POST", CHAT, given, headers))


@then(parsers.parse("it gets {status:d} with OpenAI's error {kind} and the code {code}"))
def openai_error(seen: Seen, status: int, kind: str, code: str) -> None:
    (answer,) = seen.answers
    error = answer.error
    assert (answer.status, error["type"], error["code"]) == (status, kind, code)
    assert error["message"] and "param" in error
    assert {"X-Rbee-Worker", "X-Rbee-Queue-Ms", "X-Rbee-Overhead-Ms"} <= set(answer.headers.keys())
    assert error["correlation_id"] == answer.headers["X-Correlation-Id"]


@when("a client asks for an answer and keeps its correlation id")
def ask_and_keep(served: Stack, seen: Seen) -> None:
    seen.answers.append(served.client.post(CHAT, {"model": TALK, "messages": MESSAGES, "temperature": 0}))
    assert seen.answers[0].status == 200


@then("its headers name the worker, the wait and the queen's own part")
def headers_name(seen: Seen) -> None:
    headers = seen.answers[0].headers
    assert headers["X-Rbee-Worker"] == f"bee/{TALK}"
    assert float(headers["X-Rbee-Queue-Ms"]) >= 0
    assert 0 < float(headers["X-Rbee-Overhead-Ms"]) < 1000


@pytest.fixture
def person(served: Stack, tmp_path: Path) -> Person:
    return Person(tmp_path, "--socket", served.run_dir / "queen.sock")


@then("rbee why tells the steps of that request, and why its worker gets requests")
def why(served: Stack, seen: Seen, person: Person) -> None:
    correlation = seen.answers[0].headers["X-Correlation-Id"]
    told = person.rbee("why", correlation)
    assert told.code == 0, told.err
    assert f"request {correlation}" in told.out and "ok" in told.out
    assert f"placed bee/{TALK}" in told.out and "answers" in told.out and "among" in told.out
    facts = json.loads(person.rbee("why", correlation, "--json").out)
    assert facts["caller"].startswith("token:") and served.tokens["api_token"] not in json.dumps(facts)
    worker = person.rbee("why", f"bee/{TALK}")
    assert "takes requests" in worker.out and correlation in worker.out


@then("rbee why of a name that nobody had exits with 1")
def why_nobody(person: Person) -> None:
    told = person.rbee("why", "no-such-name")
    assert told.code == 1
    assert "NOT_FOUND" in told.err


@when(parsers.parse("{clients:d} clients send {count:d} requests for tensors over kept connections"))
def thousand(served: Stack, seen: Seen, clients: int, count: int) -> None:
    parts = urlsplit(served.queen_url)
    body = json.dumps(TENSOR).encode()
    headers = {"Authorization": f"Bearer {served.tokens['api_token']}", "Content-Type": "application/json"}

    def some(number: int) -> list[float]:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        times = []
        for _ in range(number):
            began = time.perf_counter()
            connection.request("POST", f"/v2/models/{TENSORS}/infer", body, headers)
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            times.append(time.perf_counter() - began)
        connection.close()
        return times

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        seen.times = [each for times in pool.map(some, [count // clients] * clients) for each in times]
    seen.took_s = time.monotonic() - began


@then("all are answered within 60 s and the queen holds nothing of them")
def all_answered(served: Stack, seen: Seen) -> None:
    assert len(seen.times) == 1000
    assert seen.took_s < 60
    assert statistics.mean(seen.times) < 0.4  # 0.1 is the promise, and this machine may be busy
    assert statistics.quantiles(seen.times, n=100)[98] < 2.0
    until(lambda: served.admin.get("/health").json["in_flight"] == 0)
