"""What a rehearsal takes, and what it gives."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda

from matrix_graph import Cast, Rehearsal, SceneConfig, Trace
from matrix_graph.compose.rehearsal import to_scene_input
from tests.unit.scripted import ScriptedModel

CAST: dict[str, Any] = {
    "ego": "Asker",
    "roles": [{"name": "Asker", "traits": "tired", "goal": "sleep"}],
    "objects": [],
    "plan": ["waits"],
}


@pytest.mark.parametrize(
    ("given", "question", "draft"),
    [
        ("Why?", "Why?", None),
        ("  Why? \n", "  Why? \n", None),
        ({"question": "Why?"}, "Why?", None),
        ({"question": "Why?", "draft": "So."}, "Why?", "So."),
        ({"question": "Why?", "draft": None, "more": 1}, "Why?", None),
        (UserDict({"question": "Why?"}), "Why?", None),
        ([HumanMessage("Why?")], "Why?", None),
        ((HumanMessage("Why?"),), "Why?", None),
        ([("user", "Why?")], "Why?", None),
        ([("human", "Why?"), ("ai", "So.")], "Why?", "So."),
        ([{"role": "user", "content": "Why?"}], "Why?", None),
        ([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], "Why?", "So."),
        ({"messages": [HumanMessage("Why?"), AIMessage("So.")]}, "Why?", "So."),
        ([SystemMessage("Be brief."), HumanMessage("Why?")], "Why?", None),
        ([HumanMessage([{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}])], "Why?", None),
        ([HumanMessage("Why?"), AIMessage([{"type": "text", "text": "So."}])], "Why?", "So."),
        (ChatPromptTemplate([("user", "{q}")]).invoke({"q": "Why?"}).to_messages(), "Why?", None),
        (ChatPromptTemplate([("user", "{q}"), ("ai", "So.")]).invoke({"q": "Why?"}), "Why?", "So."),
        (PromptTemplate.from_template("{q}").invoke({"q": "Why?"}), "Why?", None),
        (HumanMessage("Why?"), "Why?", None),
    ],
)
def test_question_and_draft(given: Any, question: str, draft: str | None) -> None:
    found = to_scene_input(given)
    assert (found["question"], found.get("draft")) == (question, draft)


def test_earlier_turns_are_part_of_the_question() -> None:
    chat = [
        ("system", "Be brief."),
        ("user", "It barks."),
        ("assistant", "Who?"),
        ToolMessage("a dog", tool_call_id="1"),
        ("user", "The dog. What now?"),
    ]
    question = "User: It barks.\nAssistant: Who?\nUser: The dog. What now?"
    found = to_scene_input(chat)
    assert (found["question"], found.get("draft")) == (question, None)
    found = to_scene_input([*chat, ("assistant", "Talk to it.")])
    assert (found["question"], found.get("draft")) == (question, "Talk to it.")


@pytest.mark.parametrize("cast", [CAST, Cast.model_validate(CAST)])
def test_a_cast_becomes_plain_data(cast: Any) -> None:
    found = to_scene_input({"question": "Why?", "cast": cast})["cast"]
    assert type(found) is dict and Cast.model_validate(found) == Cast.model_validate(CAST)


@pytest.mark.parametrize(
    ("given", "help"),
    [
        (None, "takes a question, a mapping or messages, not NoneType"),
        (7, "not int"),
        ({}, r'has the keys \[\]; it needs "question"'),
        ({"query": "Why?", "draft": "So."}, r"\['draft', 'query'\]; it needs \"question\" \(or \"messages\"\)"),
        ([], "no human message"),
        ([AIMessage("So.")], "no human message"),
        ([SystemMessage("Be brief.")], "no human message"),
        ({"messages": []}, "no human message"),
    ],
)
def test_what_cannot_be_rehearsed(given: Any, help: str) -> None:
    with pytest.raises(TypeError, match=help):
        to_scene_input(given)
    with pytest.raises(TypeError, match=help):
        Rehearsal(ScriptedModel()).invoke(given)


@pytest.mark.parametrize("given", ["Why?", {"question": "Why?", "draft": "So."}, [("user", "Why?")]])
async def test_the_result_has_the_same_shape_everywhere(given: Any) -> None:
    rehearsal = Rehearsal(ScriptedModel(seed=3), cast=Cast.model_validate(CAST), config=SceneConfig(steps=2))
    results: list[Any] = [
        rehearsal.invoke(given),
        await rehearsal.ainvoke(given),
        list(rehearsal.stream(given))[-1],
        [event async for event in rehearsal.astream(given)][-1],
        *rehearsal.batch([given]),
        (RunnableLambda(lambda x: x) | rehearsal).invoke(given),
    ]
    for result in results:
        assert result.pop("type", "result") == "result"
        assert list(result) == ["answer", "revised", "status", "error", "trace"]
        trace = result["trace"]
        assert isinstance(trace, Trace)
        assert trace.question == "Why?"
        assert (result["answer"], result["revised"], result["status"]) == (trace.answer, trace.revised, trace.status)
        assert result["error"] is None and result["status"] in ("finished", "blocked")
        assert (result["answer"] == trace.draft) is not result["revised"]
    assert len({result["answer"] for result in results}) == 1
    assert len({result["trace"].id for result in results}) == len(results)


def test_the_result_of_a_failed_scene() -> None:
    result = Rehearsal(ScriptedModel(override=lambda *_: ConnectionError("gone"))).invoke("Why?")
    assert result["status"] == "failed" and not result["revised"] and result["answer"] is None
    assert result["error"] == {"type": "ConnectionError", "message": "gone"}
    later = Rehearsal(ScriptedModel(override=lambda *_: ConnectionError("gone")))
    assert later.invoke({"question": "Why?", "draft": "So."})["answer"] == "So."


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_fails_the_scene(question: str) -> None:
    result = Rehearsal(ScriptedModel()).invoke(question)
    assert result["status"] == "failed"
    assert result["error"] is not None and "question is empty" in result["error"]["message"]


@pytest.mark.parametrize(
    "value", [[1, 2], b"Why?", [("bogus", "x")], [{"content": "x"}], {1: 2, "a": 3}, {"messages": None}]
)
def test_what_is_no_question_says_what_is(value: Any) -> None:
    with pytest.raises(TypeError, match="question"):
        to_scene_input(value)


def test_a_text_in_the_place_of_messages_is_the_question() -> None:
    assert to_scene_input({"messages": "Why?"})["question"] == "Why?"
