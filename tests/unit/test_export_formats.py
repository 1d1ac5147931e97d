"""The forms of a row: golden files, and every text of every row stands in the trace, character by character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_graph.errors import ConfigError
from matrix_graph.records import Trace
from matrix_graph.traces.export import ExportFormat, ExportOptions, Include, export_runs
from matrix_graph.traces.export.options import SIMULATION
from matrix_graph.traces.export.pieces import Dropped, Piece, pieces
from matrix_graph.traces.export.scenes import scene_of
from matrix_graph.traces.export.shapes import columns, shaped
from matrix_graph.traces.store import append_trace
from tests.unit.test_records import a_call, a_trace

GOLDEN = Path(__file__).parent / "golden" / "export"
EVERYTHING = frozenset({Include.answers, *SIMULATION})


def said(*texts: str, system: str = "") -> list[dict[str, str]]:
    """A chat whose sides take turns, the user first."""
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def a_scene(**fields: Any) -> Trace:
    """A revised scene with a call of every purpose; the Robber takes a plan step, then acts on what he saw."""
    step = '{"action": "walks in"}'
    robber = said("You want: walk in.", step, "You see: Teller screams.", system="You are Robber.")
    judge = said("Judge: walks in", system="You judge.")
    calls = [
        a_call(messages=said("How?")),
        a_call(purpose="cast", messages=said("Example?", "{example}", "How?", system="You cast."), completion="{cast}"),
        a_call(purpose="judge", role="Robber", round=1, messages=judge, completion="{yes}"),
        a_call(
            purpose="act",
            role="Teller",
            round=2,
            messages=said("You see: x", system="You are Teller."),
            completion="{a}",
        ),
        a_call(purpose="act", role="Robber", round=2, messages=robber, completion='{"action": "runs\\u2028 好"}'),
        a_call(
            purpose="judge",
            role="Robber",
            round=2,
            messages=[
                *judge,
                *said("Judge: runs", "")[:0],
                {"role": "assistant", "content": "{yes}"},
                {"role": "user", "content": "Judge: runs"},
            ],
            completion="{no}",
        ),
        a_call(
            purpose="reflect", messages=said("What does it show?", system="You reflect."), completion='{"lesson": "…"}'
        ),
        a_call(purpose="revise", messages=said("Better?", system="You revise."), completion="Ask for a loan."),
    ]
    return a_trace(**{"calls": calls, **fields})


def texts_of(row: dict[str, Any], format: ExportFormat) -> list[str]:
    """All texts of a row in the order in which they are said."""
    if format is ExportFormat.messages:
        return [message["content"] for message in row["messages"]]
    if format is ExportFormat.prompt_completion:
        return [message["content"] for message in row["prompt"] + row["completion"]]
    if format is ExportFormat.sharegpt:
        return [*([row["system"]] if row["system"] else []), *(turn["value"] for turn in row["conversations"])]
    if format is ExportFormat.alpaca:
        before = [text for pair in row["history"] for text in pair]
        return [*([row["system"]] if row["system"] else []), *before, row["instruction"], row["output"]]
    return [message["content"] for message in row["prompt"] + row["chosen"] + row["rejected"]]


@pytest.mark.parametrize("format", list(ExportFormat))
def test_golden(tmp_path: Path, format: ExportFormat) -> None:
    run = tmp_path / "run"
    append_trace(run, a_scene())
    parts = None if format is ExportFormat.preference else EVERYTHING
    summary = export_runs([run], tmp_path / "rows.jsonl", ExportOptions(format=format, parts=parts))
    golden = GOLDEN / f"{format}.jsonl"
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == golden.read_text(encoding="utf-8")
    assert summary.rows == len(golden.read_bytes().splitlines())


def test_golden_card(tmp_path: Path) -> None:
    from matrix_graph import __version__

    append_trace(tmp_path / "run", a_scene())
    export_runs([tmp_path / "run"], tmp_path / "rows.jsonl", ExportOptions(parts=EVERYTHING, validation=0.001))
    card = (tmp_path / "README.md").read_text(encoding="utf-8").replace(f"matrix-graph {__version__}", "matrix-graph V")
    digest = export_runs([tmp_path / "run"], tmp_path / "again.jsonl").sources[0].sha256
    assert card.replace(digest, "DIGEST") == (GOLDEN / "card.md").read_text(encoding="utf-8")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_rows_equal_the_traces_character_by_character(data: st.DataObject) -> None:
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
    draw = lambda: data.draw(text)  # noqa: E731
    calls, dialogues = [], {name: [{"role": "system", "content": draw()}] for name in ("Robber", "Teller", "")}
    for _ in range(data.draw(st.integers(0, 8))):
        name = data.draw(st.sampled_from(sorted(dialogues)))
        dialogues[name].append({"role": "user", "content": draw()})
        completion, error = draw(), data.draw(st.sampled_from([None, None, {"type": "E", "message": "m"}]))
        purpose = "act" if name else "judge"
        calls.append(
            a_call(
                purpose=purpose,
                role=name or "Robber",
                round=1,
                messages=list(dialogues[name]),
                completion=completion,
                error=error,
            )
        )
        if error is None:
            dialogues[name].append({"role": "assistant", "content": completion})
        else:
            dialogues[name].pop()
    trace = a_trace(question=draw(), answer=draw(), draft=draw(), calls=calls)
    sent = [
        [*(message.content for message in call.messages), call.completion] for call in trace.calls if not call.error
    ]
    for format in ExportFormat:
        options = ExportOptions(format=format, parts=None if format is ExportFormat.preference else EVERYTHING)
        made = list(
            pieces(
                scene_of(trace),
                options.chosen_parts,
                Dropped(),
                by_call=options.by_call,
                pairs=bool(format is ExportFormat.preference),
            )
        )
        made_rows = [shaped(piece, format, dialogue=True) for piece in made]
        found = [json.loads(json.dumps(texts_of(row, format))) for row in made_rows]
        if format is ExportFormat.preference:
            wanted = [[trace.question, trace.answer, trace.draft]] if trace.draft != trace.answer else []
            assert found == wanted
            continue
        assert found[0] == [trace.question, trace.answer]
        assert all(texts in sent for texts in found[1:])
        if options.by_call:
            assert found[1:] == sent
        else:
            assert all(any(texts[: len(one)] == one for texts in found[1:]) for one in sent), "a completion is lost"


@pytest.mark.parametrize("format", [f for f in ExportFormat if f is not ExportFormat.preference])
def test_rows_have_the_columns_they_should(format: ExportFormat) -> None:
    options = ExportOptions(format=format, parts=EVERYTHING)
    for piece in pieces(scene_of(a_scene()), EVERYTHING, Dropped(), by_call=options.by_call):
        row = shaped(piece, format, dialogue=True)
        assert list(row) == list(columns(format, EVERYTHING))
        assert None not in row.values()


def test_sharegpt_is_as_fastchat_wants_it() -> None:
    """Turns of human and gpt in alternation, the human first: https://github.com/lm-sys/FastChat, docs/training.md."""
    for piece in pieces(scene_of(a_scene()), EVERYTHING, Dropped()):
        row = shaped(piece, ExportFormat.sharegpt)
        speakers = [turn["from"] for turn in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2) and speakers
        assert all(speakers[at] == "gpt" for at in row["taught"]) and isinstance(row["id"], str)
        assert all(set(turn) == {"from", "value"} for turn in row["conversations"])


def kinds(trace: Trace, *parts: Include, **options: Any) -> list[str]:
    return [piece.kind for piece in pieces(scene_of(trace), frozenset(parts), Dropped(), **options)]


def test_each_part_on_its_own() -> None:
    assert kinds(a_scene(), Include.answers) == ["answer"]
    assert kinds(a_scene(), Include.roles) == ["role", "role"]
    assert kinds(a_scene(), Include.modulator) == ["modulator"]
    assert kinds(a_scene(), Include.modulator, by_call=True) == ["modulator", "modulator"]
    assert kinds(a_scene(), Include.cast) == ["cast"]
    assert kinds(a_scene(), Include.consequences) == ["consequence", "consequence"]


def test_what_the_model_did_not_say_is_not_taught() -> None:
    made: list[Piece] = list(pieces(scene_of(a_scene()), EVERYTHING, Dropped()))
    robber = next(piece for piece in made if piece.speaker == "Robber")
    assert [message["role"] for message in robber.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert robber.taught == [4], "the plan step needed no call"
    cast = next(piece for piece in made if piece.kind == "cast")
    assert cast.taught == [len(cast.messages) - 1], "the worked example is ours"
    judged = next(piece for piece in made if piece.kind == "modulator")
    assert judged.taught == [2, 4]


@pytest.mark.parametrize("how", ["model", "author", "settings", "settings list"])
def test_a_persons_turns_are_never_taught(how: str) -> None:
    trace = a_scene()
    calls = [call.model_dump() for call in trace.calls]
    for call in calls:
        if call["role"] == "Robber" and call["purpose"] == "act":
            call.update({"model": "human"} if how == "model" else {"author": "human"} if how == "author" else {})
    players = {"settings": {"Robber": "human"}, "settings list": [{"role": "Robber"}]}.get(how)
    trace = a_scene(calls=calls, settings={"players": players} if players else {})
    for by_call in (False, True):
        dropped = Dropped()
        made = list(pieces(scene_of(trace), EVERYTHING, dropped, by_call=by_call))
        assert "Robber" not in [piece.speaker for piece in made] and "Teller" in [piece.speaker for piece in made]
        assert dropped.counts == {"a person's or an agent's turn": 1}


def test_a_dialogue_with_words_put_into_it_is_context_alone() -> None:
    """A what-if changes an action by hand: it is in no call, but in the prompts after it."""
    changed = said("You see: x", '{"action": "by hand"}', "You see: y", system="You are Teller.")
    calls = [a_call(purpose="act", role="Teller", round=2, messages=changed, completion="{mine}")]
    trace = a_scene(calls=calls)
    dropped = Dropped()
    assert not list(pieces(scene_of(trace), SIMULATION, dropped))
    assert dropped.counts == {"dialogue with somebody else's words": 1}
    (piece,) = pieces(scene_of(trace), SIMULATION, Dropped(), by_call=True)
    assert piece.taught == [4] and piece.messages[-1]["content"] == "{mine}"


def test_an_answer_says_where_its_words_come_from() -> None:
    given = a_trace(draft="Mine.", answer="Mine.", revised=False, calls=[])
    drafted = a_trace(draft="Rob it.", answer="Rob it.", revised=False)
    purposes = [
        next(pieces(scene_of(t), frozenset({Include.answers}), Dropped())).purpose for t in (given, drafted, a_scene())
    ]
    assert purposes == ["given", "draft", "revise"]


def test_a_chat_that_no_template_takes_is_left_out() -> None:
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    calls = [a_call(purpose="reflect", messages=chat) for chat in (twice, [], said("a", system="s")[:1])]
    dropped = Dropped()
    assert not list(pieces(scene_of(a_trace(calls=calls)), SIMULATION, dropped))
    assert dropped.counts == {"chat whose sides do not take turns": 3}


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--tokenizer MODEL"):
        ExportOptions.of(max_length=10)
    with pytest.raises(ConfigError, match="answers alone"):
        ExportOptions.of(format="preference", parts={"answers", "scene"})
    with pytest.raises(ConfigError, match="validation: Input should be less than 1"):
        ExportOptions.of(validation=1.5)
