"""Every notebook runs from top to bottom, on the real server."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from matrix_graph import VLLMServer

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


# A scene of the small model may fail: its cast, say, cannot be used twice.
@pytest.mark.flaky(reruns=3)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, server: VLLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_GRAPH_BASE_URL", server.base_url)
    monkeypatch.setenv("VLLM_API_KEY", server.api_key)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any("round 1" in output.get("text", "") for cell in cells for output in cell.outputs)
    assert all(cell.execution_count for cell in cells)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
