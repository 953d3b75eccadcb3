"""The directions of imports: lower rooms never import higher ones, and no module imports itself by a detour."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# From the lowest to the highest. A room imports itself and what lies on the floors below it. `jaxdeblur/__init__.py`, which
# hands out the public names, belongs to no floor.
FLOORS = (
    {"errors", "version"},
    {"config", "runtime"},
    {"imaging", "operators", "presets"},
    {"classical", "networks"},
    {"evaluation", "optimise"},
    {"pipeline"},
    {"jobs"},
    {"app"},
    {"main"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules(package):
    """Every module of a package by its dotted name."""
    named = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


MODULES = modules("jaxdeblur") | modules("experiments")


def imports(text):
    """What a module imports, inside functions too; ``from package import name`` counts as the module of that name if any."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


EDGES = {
    name: {found for found in imports(path.read_text(encoding="utf-8")) if found.split(".")[0] in ("jaxdeblur", "experiments")}
    for name, path in MODULES.items()
}


def room(module):
    return module.split(".")[1]


def test_imports_inside_functions_and_of_submodules_are_seen():
    found = list(imports("import os\ndef f():\n    from jaxdeblur import pipeline\n    from jaxdeblur.config import Config"))
    assert found == ["os", "jaxdeblur.pipeline", "jaxdeblur.config"]


def test_every_room_has_its_floor():
    assert {room(module) for module in MODULES if module.startswith("jaxdeblur.")} <= set(FLOOR)


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("jaxdeblur.")])
def test_no_room_imports_a_higher_one(module):
    for imported in EDGES[module]:
        assert imported.startswith("jaxdeblur."), f"{module} imports {imported}"
        higher = FLOOR[room(imported)] >= FLOOR[room(module)]
        assert room(imported) == room(module) or not higher, f"{module} imports {imported}"


def test_the_tables_machinery_needs_no_single_script():
    allowed = ("jaxdeblur", "experiments.runner", "experiments.command_line", "experiments.files")
    for module in MODULES:
        if module.startswith("experiments.runner"):
            assert all(name.startswith(allowed) for name in EDGES[module]), module


def test_no_import_comes_back_to_where_it_started():
    graph = {module: edges & MODULES.keys() for module, edges in EDGES.items() if module != "jaxdeblur"}
    graphlib.TopologicalSorter(graph).prepare()
