"""What is compiled for the packages is there, can be compiled, and by the mypy that checks it."""

import re
import subprocess
import sys
from pathlib import Path

from tests.machines.testbed.packages import CHECKOUT, LOCKS, blocks

NATIVE = CHECKOUT / "packaging/native.py"
SOURCE = CHECKOUT / "daemons"


def modules() -> list[str]:
    return re.findall(r'^    "(rbee/\S+\.py)",$', NATIVE.read_text(), re.M)


def test_every_module_is_there_and_the_way_of_a_request_is_among_them() -> None:
    assert [name for name in modules() if not (SOURCE / name).is_file()] == []
    assert {"rbee/queen/express/lane.py", "rbee/queen/routing/pool.py"} <= set(modules())


def test_no_module_has_a_struct_which_a_compiled_class_cannot_be() -> None:
    found = [name for name in modules() if re.search(r"\((msgspec\.)?Struct\b", (SOURCE / name).read_text())]
    assert found == []


def test_what_compiles_is_locked_as_what_checks() -> None:
    checks = blocks(LOCKS / "test.txt")
    compiles = blocks(LOCKS / "compile.txt")
    assert "mypy" in {name.split("==")[0] for name in compiles}
    assert {name: block for name, block in compiles.items() if checks.get(name, "").strip() != block.strip()} == {}


def test_a_module_that_cannot_be_compiled_fails_the_build(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", NATIVE, tmp_path], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "rbee/queen/" in done.stdout + done.stderr
    assert list(tmp_path.rglob("*.so")) == []
