"""A run's folder: however a run ends, what it kept is whole, known at the next start, and there once."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import stat
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_graph import files
from matrix_graph.batch import folder as folder_module
from matrix_graph.batch.folder import (
    FAILED_NAME,
    REJECTED_NAME,
    SETTINGS_NAME,
    SUMMARY_NAME,
    RunFolder,
    identity,
    read_summary,
)
from matrix_graph.batch.lock import is_locked
from matrix_graph.errors import ConfigError, MatrixGraphError, RunLockedError, SettingsChangedError, TraceError
from matrix_graph.records import Trace
from matrix_graph.traces.store import FILE_NAME, append_trace, read_traces, trace_line
from tests.unit.test_records import a_trace

SETTINGS: dict[str, Any] = {"model": "m", "scene": {"roles": 3, "limits": {"calls": 500}}, "stop": ["a", "b"]}

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
plain_settings = st.dictionaries(st.text(), plain, max_size=4)


def key(number: int) -> str:
    return identity(f"question {number}", None, SETTINGS)


def scene(number: int, **fields: Any) -> Trace:
    return a_trace(id=key(number), question=f"question {number}", **fields)


def failed(number: int) -> Trace:
    return scene(number, status="failed", error={"type": "ModelError", "message": "gone"})


def opened(directory: Path, **options: Any) -> RunFolder:
    return RunFolder(directory, SETTINGS, **options)


def ids(directory: Path) -> list[str]:
    return [trace.id for trace in read_traces(directory)]


def whole_lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def in_child(work: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    """Another process that does the work; forked, so that it begins at once."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


# identity


def test_an_identity_is_the_same_everywhere() -> None:
    """This one was computed by `sha256sum`: changing it would make every old folder forget what is done."""
    assert identity("How?", None, {"b": 1, "a": {"ä": "é"}}) == GOLDEN
    assert identity("How?", None, {"a": {"ä": "é"}, "b": 1}) == GOLDEN


GOLDEN = "569075108f033d0655765dc198f3d8e2"


@settings(max_examples=30, deadline=None)
@given(question=st.text(), draft=st.none() | st.text(), settings=plain_settings)
def test_an_identity_survives_the_disk_and_any_order(question: str, draft: str | None, settings: Any) -> None:
    made = identity(question, draft, settings)
    assert len(made) == 32 and int(made, 16) >= 0 and made == made.lower()
    again = json.loads(json.dumps(dict(reversed(settings.items()))))
    assert identity(question, draft, again) == made


one = st.tuples(st.text(), st.none() | st.text(), plain_settings)


@settings(max_examples=30, deadline=None)
@given(one=one, other=one)
def test_identities_differ_when_anything_differs(one: Any, other: Any) -> None:
    def told(content: Any) -> str:
        return json.dumps(content, sort_keys=True)

    assert (identity(*one) == identity(*other)) == (told(one) == told(other))


def test_what_must_not_pass_for_the_same_question() -> None:
    cases: list[tuple[str, str | None, dict[str, Any]]] = [
        ("q", None, {}),
        ("q", "", {}),
        ("q", "null", {}),
        ("q ", None, {}),
        ("", "q", {}),
        ("q", None, {"a": None}),
        ("q", None, {"a": 1}),
        ("q", None, {"a": 1.0}),
        ("q", None, {"a": True}),
        ("q", None, {"a": "1"}),
        ("q", None, {"a": [1]}),
        ("q", None, {"a": {"b": 1}}),
        ("q", None, {"a.b": 1}),
        ("q", None, {"a": float("inf")}),
    ]
    assert len({identity(*case) for case in cases}) == len(cases)


def test_lone_surrogates_are_replaced_as_in_traces() -> None:
    assert identity("\ud83d\ude42", "\udc00", {"a": "\ud800"}) == identity("��", "�", {"a": "�"})
    assert identity("\ud83d\ude42", None, {}) != identity("🙂", None, {})


# what is done


def test_what_was_kept_is_done_now_and_at_the_next_start(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "folder"
    with opened(directory) as folder:
        assert folder.counts == {"finished": 0, "blocked": 0, "failed": 0}
        folder.keep(scene(0))
        folder.keep(failed(1))
        folder.keep_line(key(2), trace_line(scene(2, status="blocked")), "blocked")
        assert [key(number) in folder for number in range(4)] == [True, True, True, False]
        assert folder.counts == {"finished": 0, "blocked": 0, "failed": 0}, "at the start"
    with opened(directory) as folder:
        assert [key(number) in folder for number in range(4)] == [True, True, True, False]
        assert folder.counts == {"finished": 1, "blocked": 1, "failed": 1}
    assert ids(directory) == [key(0), key(1), key(2)]


def test_nothing_is_kept_twice_or_under_another_name(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.keep(scene(0))
        with pytest.raises(ValueError, match=f"trace {key(0)} is done already"):
            folder.keep(scene(0, answer="another"))
        with pytest.raises(ValueError, match="'t1' is no identity"):
            folder.keep(a_trace())
        with pytest.raises(ValueError, match=f"the line holds a finished trace {key(2)}"):
            folder.keep_line(key(1), trace_line(scene(2)), "finished")
        with pytest.raises(ValueError, match=r"A failed trace .* was expected, but the line holds a finished"):
            folder.keep_line(key(1), trace_line(scene(1)), "failed")
        for line in (b"{}", b"", b"[1]", trace_line(scene(1))[:-1], trace_line(scene(1)) + b"\n" + b"{}"):
            with pytest.raises(ValueError):
                folder.keep_line(key(1), line, "finished")
        assert key(1) not in folder and key(2) not in folder
    assert ids(tmp_path) == [key(0)]


@pytest.mark.parametrize("other", ["t1", "", "A" * 32, "a" * 31, "a" * 33, "+" + "a" * 31, "a_" * 16, "é" * 32])
def test_other_ids_are_counted_but_nothing_is_done_by_them(tmp_path: Path, other: str) -> None:
    append_trace(tmp_path, a_trace(id=other))
    with opened(tmp_path) as folder:
        assert folder.counts["finished"] == 1
        assert other not in folder and None not in folder


def test_an_open_folder_is_needed(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with folder:
        folder.keep(scene(0))
    for use in (lambda: folder.keep(scene(1)), lambda: folder.reject("f", 1, "why", "")):
        with pytest.raises(ValueError, match="not open"):
            use()
    with folder:
        folder.keep(scene(1))
        folder.reject("f", 1, "why", "")
    assert ids(tmp_path) == [key(0), key(1)]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_wherever_the_file_was_cut_the_whole_lines_before_are_done(data: st.DataObject) -> None:
    lines = [trace_line(scene(number, answer="é\n" * number)) + b"\n" for number in range(4)]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    whole = content[:cut].count(b"\n") + any(content[:cut].endswith(line[:-1]) for line in lines)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / FILE_NAME).write_bytes(content[:cut])
        with opened(directory) as folder:
            assert [key(number) in folder for number in range(4)] == [number < whole for number in range(4)]
            for number in range(whole, 4):
                folder.keep(scene(number))
        assert ids(directory) == [key(number) for number in range(4)]


def test_broken_lines_are_named_and_the_folder_is_free_again(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(trace_line(scene(0)) + b"\n{oops}\n")
    with pytest.raises(TraceError, match="line 2: "), opened(tmp_path):
        pass
    assert not is_locked(tmp_path)


def test_a_million_questions_fit_into_little_memory(tmp_path: Path) -> None:
    line = trace_line(scene(0))
    names = (f"{number + (1 << 127):032x}" for number in range(4_500))
    (tmp_path / FILE_NAME).write_bytes(b"".join(line.replace(key(0).encode(), name.encode()) + b"\n" for name in names))
    folder = opened(tmp_path)
    with folder:
        tracemalloc.start()
        try:
            folder._scan()
            assert tracemalloc.get_traced_memory()[0] / 4_500 < 120, "bytes each"
        finally:
            tracemalloc.stop()


def test_several_threads_may_use_it(tmp_path: Path) -> None:
    def work(first: int) -> None:
        for number in range(first, 24, 4):
            folder.keep(scene(number))
            folder.reject("f", number % 8, "why", "")
            assert folder.write_summary({"done": number})

    with opened(tmp_path) as folder:
        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(ids(tmp_path)) == sorted(key(number) for number in range(24))
    assert sorted(row["line"] for row in whole_lines(tmp_path / REJECTED_NAME)) == list(range(8))
    assert read_summary(tmp_path) is not None


# killed, and full disks


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME

    def run() -> None:
        with opened(tmp_path) as folder:
            for number in range(100_000):
                if key(number) not in folder:
                    folder.keep(scene(number, answer="x" * 50_000))

    pauses = random.Random()
    for _ in range(3):
        before = path.stat().st_size if path.exists() else 0
        child = in_child(run)
        deadline = time.monotonic() + 20
        while (not path.exists() or path.stat().st_size <= before) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(pauses.random() * 0.02)
        child.kill()
        child.join()
        assert child.exitcode == -9
    assert path.stat().st_size > 0
    with opened(tmp_path) as folder:
        found = [row["id"] for row in whole_lines(path)]
        assert len(found) == folder.counts["finished"] >= 3
        assert found == [key(number) for number in range(len(found))], "every one once, none left out"


def test_a_full_disk_stops_the_run_and_leaves_whole_lines(tmp_path: Path) -> None:
    """The limit on a file's size gives what a full disk gives: a part of the line, then an error."""
    line = len(trace_line(scene(0))) + 1

    def run() -> None:
        with opened(tmp_path) as folder:
            folder.reject("f", 0, "why", "")
            resource.setrlimit(resource.RLIMIT_FSIZE, (line * 5 // 2, resource.RLIM_INFINITY))
            folder.keep(scene(0))
            folder.keep(scene(1))
            with pytest.raises(TraceError, match=r"cannot be written.*File too large.*Nothing of it was kept"):
                folder.keep(scene(2))
            assert key(2) not in folder
            with pytest.raises(TraceError, match="cannot be written"):
                folder.reject("f", 1, "why", "x" * line * 3)
            assert folder.write_summary({"done": 2})
            assert not folder.write_summary({"done": "x" * line * 3})
            assert read_summary(tmp_path) == {"done": 2}
            assert [row["id"] for row in whole_lines(tmp_path / FILE_NAME)] == [key(0), key(1)]
            assert [row["line"] for row in whole_lines(tmp_path / REJECTED_NAME)] == [0]
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            folder.keep(scene(2))

    child = in_child(run)
    child.join()
    assert child.exitcode == 0
    assert ids(tmp_path) == [key(0), key(1), key(2)]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


# the lock


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    refused = tmp_path / "refused"

    def second() -> None:
        try:
            with opened(tmp_path):
                pass
        except RunLockedError as error:
            refused.write_text(str(error))

    with opened(tmp_path) as folder:
        folder.keep(scene(0))
        child = in_child(second)
        child.join()
        assert child.exitcode == 0
        folder.keep(scene(1))
    told = refused.read_text()
    assert told.startswith(f"Another run (pid {os.getpid()} on ") and ", since 20" in told
    assert told.endswith(f" writes to {tmp_path}. Wait for it, stop it, or name another --out.")
    assert ids(tmp_path) == [key(0), key(1)]
    with opened(tmp_path):
        pass


def test_nor_do_two_runs_of_one_process(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(RunLockedError), opened(tmp_path):
            pass
        (tmp_path / ".lock-owner").write_text("[]")
        with pytest.raises(RunLockedError, match=r"^Another run writes to "), opened(tmp_path):
            pass
    with opened(tmp_path):
        pass


def test_the_lock_can_be_seen_from_outside(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "none") and not is_locked(tmp_path)
    assert not list(tmp_path.iterdir())
    with opened(tmp_path) as folder:
        assert is_locked(tmp_path) and is_locked(tmp_path)
        folder.keep(scene(0))
    assert not is_locked(tmp_path)
    assert not (tmp_path / ".lock-owner").exists()


def test_a_lock_that_may_not_be_touched_is_judged_by_its_owner(tmp_path: Path) -> None:
    """A link is refused for everybody, as the lock of a folder that may only be read is for all but root."""
    (tmp_path / "target").touch()
    (tmp_path / ".lock").symlink_to(tmp_path / "target")
    assert not is_locked(tmp_path)
    (tmp_path / ".lock-owner").touch()
    assert is_locked(tmp_path)


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    def run() -> None:
        with opened(tmp_path):
            time.sleep(60)

    child = in_child(run)
    deadline = time.monotonic() + 20
    while not is_locked(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(RunLockedError, match=f"pid {child.pid} "), opened(tmp_path):
        pass
    child.kill()
    child.join()
    assert not is_locked(tmp_path)
    with opened(tmp_path):
        pass


def test_being_looked_at_keeps_no_run_from_starting(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            is_locked(tmp_path)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(5):
            with opened(tmp_path):
                pass
    finally:
        ended.set()
        thread.join()


# settings


def test_the_same_settings_go_on_in_any_order(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    before = (tmp_path / SETTINGS_NAME).stat()
    assert json.loads((tmp_path / SETTINGS_NAME).read_text()) == SETTINGS
    with RunFolder(tmp_path, dict(reversed(SETTINGS.items()))):
        pass
    assert (tmp_path / SETTINGS_NAME).stat() == before


def test_changed_settings_are_refused_and_listed(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.keep(scene(0))
    changed = {
        "scene": {"roles": 3.0, "limits": {"calls": 9, "tokens": 7}},
        "stop": ["a"],
        "prompt": "é" * 1000,
        "empty": {},
    }
    with pytest.raises(SettingsChangedError) as caught, RunFolder(tmp_path, changed):
        pass
    assert str(caught.value).splitlines() == [
        f"The run in {tmp_path} was begun under other settings:",
        "  empty: not set -> {}",
        '  model: "m" -> not set',
        '  prompt: not set -> "' + "é" * 79 + "... (1002 characters)",
        "  scene.limits.calls: 500 -> 9",
        "  scene.limits.tokens: not set -> 7",
        "  scene.roles: 3 -> 3.0",
        '  stop: ["a", "b"] -> ["a"]',
        "Use another --out, or --force-new-settings to go on here "
        "(questions done under the old settings will be done again under the new ones).",
    ]
    assert isinstance(caught.value, ConfigError)
    assert not is_locked(tmp_path)
    with opened(tmp_path) as folder:
        assert key(0) in folder


@settings(max_examples=30, deadline=None)
@given(old=plain_settings, new=plain_settings)
def test_settings_are_the_same_exactly_if_they_give_the_same_identity(old: Any, new: Any) -> None:
    before, after = (json.loads(folder_module._canonical(settings)) for settings in (old, new))
    same = identity("q", None, old) == identity("q", None, new)
    assert (not folder_module.setting_changes(before, after)) == same


def test_new_settings_can_be_forced(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.keep(scene(0))
    changed = {**SETTINGS, "model": "n"}
    with RunFolder(tmp_path, changed, force_new_settings=True) as folder:
        assert key(0) in folder and folder.counts["finished"] == 1
        new = identity("question 0", None, changed)
        assert new not in folder
        folder.keep(a_trace(id=new))
    with RunFolder(tmp_path, changed) as folder:
        assert new in folder
    with pytest.raises(SettingsChangedError, match='model: "n" -> "m"'), opened(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_settings_that_cannot_be_read_are_refused_unless_forced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SETTINGS_NAME).write_bytes(content)
    with pytest.raises(ConfigError, match=r"settings\.json cannot be read: .*--force-new-settings"), opened(tmp_path):
        pass
    with opened(tmp_path, force_new_settings=True):
        pass
    with opened(tmp_path):
        pass


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir" / ".lock").mkdir(parents=True)
    for directory in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "dir", Path("/proc/none")):
        with pytest.raises(ConfigError, match=r"cannot be made or written: .*name another --out"), opened(directory):
            pass


# failed scenes, tried again


def test_failed_scenes_are_moved_aside_to_be_done_again(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        for number in range(6):
            folder.keep(failed(number) if number in (0, 3, 5) else scene(number))
    path = tmp_path / FILE_NAME
    path.chmod(0o640)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"\n".join(lines) + b'{"torn')
    with opened(tmp_path, retry_failed=True) as folder:
        assert folder.counts == {"finished": 3, "blocked": 0, "failed": 0}
        assert [key(number) in folder for number in range(6)] == [False, True, True, False, True, False]
        folder.keep(scene(0))
        folder.keep(failed(3))
    assert ids(tmp_path) == [key(number) for number in (1, 2, 4, 0, 3)]
    assert (tmp_path / FAILED_NAME).read_bytes() == lines[0] + lines[3] + lines[5]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with opened(tmp_path, retry_failed=True) as folder:
        folder.keep(scene(3))
    assert [row["id"] for row in whole_lines(tmp_path / FAILED_NAME)] == [key(number) for number in (0, 3, 5, 3)]
    assert ids(tmp_path) == [key(number) for number in (1, 2, 4, 0, 3)]


def test_nothing_is_rewritten_where_nothing_failed(tmp_path: Path) -> None:
    with opened(tmp_path, retry_failed=True) as folder:
        folder.keep(scene(0))
    before = (tmp_path / FILE_NAME).stat()
    with opened(tmp_path, retry_failed=True):
        pass
    assert (tmp_path / FILE_NAME).stat().st_ino == before.st_ino
    assert not (tmp_path / FAILED_NAME).exists()


def test_a_link_to_another_disk_stays_a_link(tmp_path: Path) -> None:
    disk, directory = tmp_path / "disk", tmp_path / "run"
    disk.mkdir()
    directory.mkdir()
    (directory / FILE_NAME).symlink_to(disk / "all.jsonl")
    with opened(directory) as folder:
        folder.keep(failed(0))
        folder.keep(scene(1))
    with opened(directory, retry_failed=True):
        pass
    assert (directory / FILE_NAME).is_symlink()
    assert ids(disk / "all.jsonl") == [key(1)]


@pytest.mark.parametrize("name", ["fsync", "replace", "copymode"])
def test_wherever_moving_ends_no_trace_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with opened(tmp_path) as folder:
        for number in range(6):
            folder.keep(failed(number) if number % 2 else scene(number))
    everything = (tmp_path / FILE_NAME).read_bytes()

    class Killed(BaseException):
        pass

    for stop in (Killed(), OSError(28, "No space left on device")):
        for calls in range(4):
            left = iter(range(calls))

            def ends(*arguments: Any, stop: BaseException = stop, left: Any = left) -> None:
                if next(left, None) is None:
                    raise stop

            with monkeypatch.context() as patch, suppress(Killed, MatrixGraphError):
                if name == "replace":
                    patch.setattr(Path, "replace", ends)
                else:
                    patch.setattr(os if name == "fsync" else shutil, name, ends)
                folder_module._set_failed_aside(tmp_path)
            if (tmp_path / FILE_NAME).read_bytes() != everything:
                assert ids(tmp_path) == [key(0), key(2), key(4)]
            kept = {*ids(tmp_path)}
            if (tmp_path / FAILED_NAME).exists():
                kept |= {row["id"] for row in whole_lines(tmp_path / FAILED_NAME)}
            assert kept == {key(number) for number in range(6)}


def test_a_full_disk_moves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        for number in range(6):
            folder.keep(scene(number) if number else failed(number))
    before = (tmp_path / FILE_NAME).read_bytes()

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))
        with pytest.raises(TraceError, match=r"cannot be set aside: .*all still there"):
            folder_module._set_failed_aside(tmp_path)

    child = in_child(run)
    child.join()
    assert child.exitcode == 0
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


# rejected rows


def test_a_rejection_is_noted_once(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        assert not (tmp_path / REJECTED_NAME).exists()
        assert folder.reject("q.jsonl", 3, "no question", '{"quest')
        assert not folder.reject("q.jsonl", 3, "no question", '{"quest')
        assert folder.reject("q.jsonl", 4, "no question", "\ud800\n\u2028é")
    with opened(tmp_path) as folder:
        assert not folder.reject("q.jsonl", 4, "no question", "")
        assert folder.reject("q.jsonl", 4, "no JSON", "")
        assert folder.reject("r.jsonl", 4, "no JSON", "")
    assert [tuple(row.values()) for row in rejected(tmp_path)] == [
        ("q.jsonl", 3, "no question", '{"quest'),
        ("q.jsonl", 4, "no question", "�\n\u2028é"),
        ("q.jsonl", 4, "no JSON", ""),
        ("r.jsonl", 4, "no JSON", ""),
    ]
    assert list(rejected(tmp_path)[0]) == ["source", "line", "reason", "excerpt"]


def rejected(directory: Path) -> list[dict[str, Any]]:
    content = (directory / REJECTED_NAME).read_bytes()
    assert content.endswith(b"\n")
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def test_torn_and_foreign_rejections_are_survived(tmp_path: Path) -> None:
    row = b'{"source": "f", "line": 1, "reason": "why", "excerpt": ""}\n'
    (tmp_path / REJECTED_NAME).write_bytes(b"mine\n[]\n{}\n\n" + row + row[:20])
    with opened(tmp_path) as folder:
        assert not folder.reject("f", 1, "why", "")
        assert folder.reject("f", 2, "why", "")
    assert (tmp_path / REJECTED_NAME).read_bytes().startswith(b"mine\n[]\n{}\n\n" + row + b'{"source": "f", "line": 2,')


# the summary


def test_the_summary_is_replaced_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_summary(tmp_path) is None and read_summary(tmp_path / "none") is None
    with opened(tmp_path) as folder:
        assert folder.write_summary({"done": 1, "model": "\ud800é"})
        assert read_summary(tmp_path) == {"done": 1, "model": "�é"}
        (tmp_path / SUMMARY_NAME).unlink()
        (tmp_path / SUMMARY_NAME).mkdir()
        assert not folder.write_summary({"done": 2}) and not folder.write_summary({"done": 3})
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "summary.json cannot be written: " in caplog.text
        (tmp_path / SUMMARY_NAME).rmdir()
        assert folder.write_summary({"done": 4})
    assert read_summary(tmp_path) == {"done": 4}
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_summary_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SUMMARY_NAME).write_bytes(content)
    assert read_summary(tmp_path) is None


def test_what_is_private_can_be_read_by_this_user_alone(tmp_path: Path) -> None:
    def rights(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    folder, log, key, shared = tmp_path / "keys", tmp_path / "log", tmp_path / "keys" / "1.key", tmp_path / "shared"
    old = os.umask(0o022)
    try:
        files.private_folder(folder)
        with files.open_private(log) as file:
            file.write("a")
        with files.open_private(log) as file:
            file.write("b")
        files.part_of(key).write_bytes(b"left behind, readable by all")
        files.replace_private_file(key, b"k")
        files.replace_private_file(key, b"l")
        files.replace_file(shared, b"asked for", sync=False)
        (tmp_path / "open").mkdir()
        files.private_folder(tmp_path / "open")
    finally:
        os.umask(old)
    assert [rights(path) for path in (folder, log, key, tmp_path / "open")] == [0o700, 0o600, 0o600, 0o700]
    assert rights(shared) == 0o644, "what a user asks for obeys their umask"
    assert (log.read_text(), key.read_bytes()) == ("ab", b"l") and len(list(folder.iterdir())) == 1
