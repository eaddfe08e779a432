"""Names and values of systemd turned into facts."""

import pytest
from dbus_fast import Variant
from hypothesis import given
from hypothesis import strategies as st

from rbee.host.units import bus_names
from rbee.host.units.properties import complete, facts_from, path_of_worker, wanted, worker_of_path

IDS = st.from_regex(r"[A-Za-z0-9-]{1,64}", fullmatch=True)


@given(IDS)
def test_the_path_of_a_worker_leads_back_to_it(worker: str) -> None:
    assert worker_of_path(path_of_worker(worker)) == worker


def test_the_path_is_systemds_own() -> None:
    expected = "/org/freedesktop/systemd1/unit/rbee_2dworker_40a_2d1_2eservice"
    assert path_of_worker("a-1") == expected
    assert expected.startswith(bus_names.WORKER_PATH_PREFIX)


@pytest.mark.parametrize(
    "path",
    [
        "/org/freedesktop/systemd1/unit/rbee_2dhive_2eservice",
        "/org/freedesktop/systemd1/unit/rbee_2dworker_40_2e_2e_2detc_2eservice",
        "/org/freedesktop/systemd1/unit/rbee_2dworker_40a_5cx2d_2eservice",
        "/org/freedesktop/systemd1/unit/rbee_2dworker_40_2eservice",
        "/",
        "",
    ],
)
def test_other_units_are_nobodys(path: str) -> None:
    assert worker_of_path(path) is None


def test_what_is_not_needed_or_of_another_type_is_left_out() -> None:
    changed = {
        "ActiveState": Variant("s", "active"),
        "MainPID": Variant("u", 7),
        "InvocationID": Variant("ay", b"\x01" * 16),
        "Job": Variant("(uo)", [0, "/"]),
        "Result": Variant("as", ["odd"]),
    }
    assert wanted(changed) == {"ActiveState": "active", "MainPID": 7, "InvocationID": b"\x01" * 16}


def test_facts_have_defaults_for_what_is_unknown() -> None:
    facts = facts_from("w", {"ActiveState": "active", "SubState": "running", "InvocationID": b"\xab" * 16})
    assert facts.running
    assert facts.invocation_id == "ab" * 16
    assert (facts.main_pid, facts.result, facts.status_text) == (0, "success", "")
    assert not complete({"ActiveState": "active"})
    assert complete({name: "" for _, name in bus_names.READ_PROPERTIES if name != "LoadState"})


@given(
    st.dictionaries(
        st.sampled_from([name for _, name in bus_names.READ_PROPERTIES]),
        st.one_of(st.text(), st.integers(min_value=0), st.binary(max_size=20)),
    )
)
def test_values_of_any_type_make_facts(properties: dict[str, str | int | bytes]) -> None:
    facts_from("w", properties)


def test_an_unloaded_unit_keeps_what_its_last_life_left() -> None:
    facts = facts_from("w", {"ActiveState": "failed", "Result": "timeout", "ExecMainStatus": 9, "MainPID": 5})
    gone = facts.unloaded("")
    assert (gone.active_state, gone.load_state, gone.main_pid) == ("inactive", "not-loaded", 0)
    assert (gone.result, gone.exec_status) == ("timeout", 9)
