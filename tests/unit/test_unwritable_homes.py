"""Homes and cache folders that cannot be written: one message that says what to do, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from matrix_graph.errors import PrerequisiteError
from matrix_graph.models.bundled import cache_directory, prepare_bundled_model
from matrix_graph.models.bundled.folders import writable_home
from matrix_graph.models.client.key_files import key_for, remove_key
from matrix_graph.models.serving.launch import new_log_path

TOLD = r"The cache folder .* cannot be made or written: .*MATRIX_GRAPH_CACHE\.$"


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A path below a file, which nobody can make, root included."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "home"


def test_a_cache_folder_that_cannot_be_made_is_told(no_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", str(no_folder))
    with pytest.raises(PrerequisiteError, match=TOLD) as caught:
        prepare_bundled_model()
    assert "\n" not in str(caught.value) and str(no_folder) in str(caught.value)
    assert new_log_path(no_folder / "logs").parent == no_folder / "logs"  # told when the log is opened


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MATRIX_GRAPH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(PrerequisiteError, match=r"no home folder.*MATRIX_GRAPH_CACHE"):
        cache_directory()
    # Who is only refused by a server is told of that, and not of the home.
    assert key_for("http://127.0.0.1:8000/v1") is None
    remove_key("http://127.0.0.1:8000/v1")


def test_a_server_whose_home_cannot_be_written_gets_one_in_the_cache(
    no_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", str(tmp_path / "cache"))
    assert writable_home({"HOME": str(tmp_path)}) == {} == writable_home({})
    assert writable_home({"HOME": str(no_folder)}) == {"HOME": str(tmp_path / "cache" / "home")}
    assert (tmp_path / "cache" / "home").is_dir()
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", str(no_folder))
    with pytest.raises(PrerequisiteError, match=TOLD):
        writable_home({"HOME": str(no_folder)})
