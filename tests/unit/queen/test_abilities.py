"""Which engines have which capability, and which words name one."""

import pytest

from rbee.queen.nodes.abilities import Capability, Device, Engine
from rbee.wire.errors import InvalidRequest
from rbee.wire.worker_spec import Backend

BARE = Engine(["cpu"], [])
TWO_GPUS = Engine(["cpu", "cuda"], [Device(0), Device(1)])
NO_LIBRARIES = Engine(["cpu"], [Device(0)])


@pytest.mark.parametrize(
    ("text", "bare", "two_gpus", "no_libraries"),
    [
        ("cpu", True, True, True),
        ("cpu:0", True, True, True),
        ("cpu:1", False, False, False),
        ("cuda", False, True, False),
        ("cuda:0", False, True, False),
        ("cuda:1", False, True, False),
        ("cuda:2", False, False, False),
    ],
)
def test_an_engine_has_what_starts_there_on_devices_that_are_there(
    text: str, bare: bool, two_gpus: bool, no_libraries: bool
) -> None:
    capability = Capability.parse(text)
    assert [capability.is_of(engine) for engine in (BARE, TWO_GPUS, NO_LIBRARIES)] == [bare, two_gpus, no_libraries]


def test_a_device_is_a_number() -> None:
    assert Capability.parse("cuda:17") == Capability(Backend.CUDA, 17)


@pytest.mark.parametrize(
    "text", ["", "metal", "cuda:", "cuda:x", "cuda:-1", "cuda:1 ", "CUDA", "cuda:12345", "cuda:\u0661"]
)
def test_other_words_are_refused_by_the_parameters_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Capability.parse(text)
    assert refused.value.details["field"] == "capability"
    assert not text or f"'{text}'" not in refused.value.message
