"""The public surface: complete, documented, light to import, and no import against the way of the data."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import matrix_graph

PACKAGE = Path(matrix_graph.__file__).parent
HEAVY = ("torch", "vllm", "transformers", "datasets", "langgraph", "langchain_core", "pydantic")
LIGHT = """
import json, sys, time
started = time.process_time()
import matrix_graph
seconds = time.process_time() - started
dir(matrix_graph)
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize("name", matrix_graph.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(matrix_graph, name)
    assert value.__name__ == name
    assert inspect.getdoc(value), f"{name} has no docstring"
    assert name in dir(matrix_graph)


def test_all_names_are_sorted_and_have_a_home() -> None:
    assert sorted(matrix_graph.__all__) == sorted(matrix_graph._HOMES)
    assert len(set(matrix_graph.__all__)) == len(matrix_graph.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'matrix_graph' has no attribute 'Rehersal'"):
        _ = matrix_graph.Rehersal
    with pytest.raises(ImportError, match="Rehersal"):
        exec("from matrix_graph import Rehersal")


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", matrix_graph.__version__)
    try:
        installed = importlib.metadata.version("matrix-graph")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package runs from its sources, uninstalled")
    assert installed == matrix_graph.__version__


def test_importing_the_package_is_light() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60, check=True)
    seconds, modules = json.loads(done.stdout)
    assert seconds < 0.5
    assert not set(HEAVY) & set(modules)


@pytest.mark.parametrize("module", ["records", "config", "traces.store", "traces.export", "traces.diagram"])
def test_reading_traces_needs_no_graph_and_no_model(module: str) -> None:
    script = f"import sys, matrix_graph.{module}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert not set(HEAVY) - {"pydantic"} & set(done.stdout.split())


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, also inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("matrix_graph.")}


SOURCES = {
    path.relative_to(PACKAGE).as_posix(): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__main__.py"  # a way into the command line
}


@pytest.mark.parametrize(
    ("rooms", "forbidden"),
    [
        (("errors",), ("",)),
        (("records",), ("models", "scene", "compose", "traces", "config", "batch", "evaluate", "commands", "cli")),
        (("config",), ("scene", "compose", "traces", "batch", "evaluate", "commands", "cli")),
        (("models/",), ("scene", "compose", "traces", "config", "batch", "evaluate", "commands", "cli")),
        (("traces/", "train/"), ("scene", "compose", "batch", "evaluate", "commands", "cli")),
        (("evaluate",), ("commands", "cli")),
        (("scene/",), ("compose", "traces", "batch", "evaluate", "commands", "cli")),
        (("compose/",), ("batch", "evaluate", "commands", "cli")),
    ],
)
def test_imports_run_one_way(rooms: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    files = [name for name in SOURCES if name.startswith(rooms)]
    for file in files:
        for name in imported(SOURCES[file]):
            wrong = [
                room for room in forbidden if f"{name}.".startswith(f"matrix_graph.{room}" + ("." if room else ""))
            ]
            assert not wrong, f"{file} imports {name}"


def test_modules_are_documented() -> None:
    for name, path in SOURCES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{name} has no docstring"
