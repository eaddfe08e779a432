"""The rooms keep their doors: who may import whom, held for every module of the project."""

import ast
import graphlib
from pathlib import Path

import pytest

import rbee

PACKAGE = Path(rbee.__file__).parent
MAY_IMPORT = {
    "queen": {"queen", "wire", "host"},
    "hive": {"hive", "wire", "host"},
    "worker": {"worker", "wire", "host"},
    "keeper": {"keeper", "wire", "host"},
    "host": {"host", "wire"},
    "wire": {"wire"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_rooms(module: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports name the whole path"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("rbee.")}
    return found & set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may(module: Path) -> None:
    room = module.relative_to(PACKAGE).parts[0]
    assert imported_rooms(module) <= MAY_IMPORT.get(room, set())


def test_no_module_of_the_worker_imports_itself_by_way_of_others() -> None:
    names = {".".join(["rbee", *path.relative_to(PACKAGE).with_suffix("").parts]): path for path in MODULES}
    circles = graphlib.TopologicalSorter(
        {name: imported_modules(path) & names.keys() for name, path in names.items() if ".worker." in name}
    )
    circles.prepare()


def imported_modules(module: Path) -> set[str]:
    found = [each for each in ast.walk(ast.parse(module.read_text())) if isinstance(each, ast.ImportFrom)]
    return {name for each in found for name in (str(each.module), *[f"{each.module}.{one.name}" for one in each.names])}


def test_every_folder_is_a_known_room() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_opens_with_a_sentence(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text())), f"{module} says nothing of itself"
