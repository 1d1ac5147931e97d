"""Traces of schema version 1, as earlier releases wrote them: they load, are shown and are exported."""

from __future__ import annotations

import json
from pathlib import Path

from matrix_graph.records import Trace
from matrix_graph.traces.diagram import to_markdown, to_mermaid
from matrix_graph.traces.export import rows
from matrix_graph.traces.store import append_trace, read_traces

GOLDEN = Path(__file__).parent / "golden" / "trace_v1.jsonl"


def old() -> Trace:
    return Trace.model_validate_json(GOLDEN.read_text(encoding="utf-8"))


def test_what_version_1_lacks_is_empty() -> None:
    trace = old()
    assert trace.schema_version == 1 and trace.revised and trace.cast is not None
    assert trace.reflection is None and trace.check is None and not trace.cut
    assert trace.cast.stance is None and trace.cast.situation == ""
    assert all(role.who == "" for role in trace.cast.roles)
    assert all(event.seen is None and event.hurt == [] for event in trace.events)
    assert all(call.cut == [] and call.reasoning is None for call in trace.calls)


def test_observers_were_told_the_action_itself() -> None:
    for event in old().events:
        assert event.told == f"{event.role}: {event.action}"


def test_it_keeps_what_it_held(tmp_path: Path) -> None:
    trace = old()
    written = json.loads(trace.to_json_line())
    for name, value in json.loads(GOLDEN.read_text(encoding="utf-8")).items():
        if name not in ("cast", "events", "calls"):
            assert written[name] == value, name
    append_trace(tmp_path, trace)
    assert list(read_traces(tmp_path)) == [trace]
    assert trace.object_states == {"alarm": "rings"}


def test_it_is_shown() -> None:
    trace = old()
    for shown in (to_markdown(trace), to_mermaid(trace)):
        assert "Teller" in shown and "presses the alarm" in shown
    assert "Ask for a loan." in to_markdown(trace)


def test_it_is_exported() -> None:
    exported = list(rows([old()], scene=True))
    first = exported[0]["messages"]
    assert [message["content"] for message in first] == ["How do I get money?", "Ask for a loan."]
