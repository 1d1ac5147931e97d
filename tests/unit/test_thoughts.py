"""Thoughts are told from answers, however they come, and stand in no answer, row or prompt."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatResult
from openai.types.chat import ChatCompletion

from matrix_graph import ChatVLLM
from matrix_graph.errors import UnfinishedThoughtError
from matrix_graph.evaluate.asking import Asker
from matrix_graph.models.client.messages import EventReader, as_chunk, decode_reply, encode_messages
from matrix_graph.models.complete import complete, require_answer, sampling_of
from matrix_graph.models.known import Known, known_of_object, known_of_served
from matrix_graph.models.thoughts import Parted, ThoughtStream, parted, spoken_tokens
from matrix_graph.records import Call, Trace
from matrix_graph.traces.export import rows
from matrix_graph.traces.export.scenes import parse_scene
from tests.unit.test_ask import ListedModel, asked, question
from tests.unit.test_records import a_call, a_trace

THOUGHT = "qqthoughtqq, with {braces} and a < sign"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", Parted("Yes.")),
        (" Yes. ", Parted(" Yes. ")),
        ("", Parted("")),
        ("<think>\nhm\n</think>\n\nYes.", Parted("Yes.", "hm")),
        ("\n <think>hm</think>Yes.", Parted("Yes.", "hm")),
        ("<think>\n\n</think>\n\nYes.", Parted("Yes.")),
        ("<think>a</think>\n<think>b</think>\nYes.", Parted("Yes.", "a\n\nb")),
        ("hm\n</think>\n\nYes.", Parted("Yes.", "hm", True)),
        ("</think>Yes.", Parted("Yes.", None, True)),
        ("Well.\n<think>hm</think>\nYes.", Parted("Well.\nYes.", "hm")),
        ("<think>hm", Parted("", "hm")),
        ("<think>", Parted("")),
        ("`<think>` and `</think>` are tags.", Parted("`<think>` and `</think>` are tags.")),
    ],
)
def test_a_reply_is_parted(text: str, expected: Parted) -> None:
    assert parted(text) == expected


def test_a_thought_without_tags_is_known_by_its_model_and_its_end() -> None:
    assert parted("hm, so", unopened=True, cut=True) == Parted("", "hm, so", True)
    assert parted("Yes.", unopened=True) == Parted("Yes.")
    assert parted("hm</think>Yes.", unopened=True, cut=True) == Parted("Yes.", "hm", True)


thoughts = st.text(alphabet="ab <>/think\n", max_size=20).filter(lambda text: "think>" not in text)


@given(thoughts, st.text(alphabet="ab <>t\n", max_size=20), st.booleans(), st.lists(st.integers(1, 9), max_size=30))
def test_a_stream_gives_the_same_wherever_it_is_cut(
    thought: str, answer: str, unopened: bool, sizes: list[int]
) -> None:
    text = f"{'' if unopened else '<think>'}{thought}</think>{answer}"
    stream = ThoughtStream(unopened=unopened)
    said = thinks = ""
    while text:
        size = sizes.pop() if sizes else 1
        piece, text = text[:size], text[size:]
        came = stream.feed(piece)
        said, thinks = said + came.text, thinks + came.thought
    came = stream.end(cut=False)
    assert said + came.text == answer.lstrip()
    assert (thinks + came.thought).strip() == thought.strip()


@given(st.text(max_size=30), st.integers(1, 9))
def test_a_stream_without_thoughts_passes_to_the_letter(text: str, size: int) -> None:
    stream = ThoughtStream()
    said = "".join(stream.feed(text[at : at + size]).text for at in range(0, len(text), size))
    assert said + stream.end(cut=False).text == text


def event(delta: dict[str, Any], finish: str | None = None, id: str = "c") -> dict[str, Any]:
    return {"id": id, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def streamed(*events: dict[str, Any], known: Known | None = None) -> AIMessageChunk:
    reader = EventReader(known)
    whole: Any = None
    for part in events:
        if (chunk := reader.read(part)) is not None:
            whole = chunk.message if whole is None else whole + chunk.message
    assert isinstance(whole, AIMessageChunk)
    return whole


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_fields_become_a_reasoning_block(field: str) -> None:
    known = Known()
    reply = decode_reply({"choices": [{"message": {"content": "Yes.", field: "hm"}}]}, known).generations[0].message
    chunk = streamed(event({field: "h"}), event({field: "m"}), event({"content": "Yes."}), event({}, "stop"))
    for message in (reply, chunk):
        assert message.content == "Yes."
        assert message.content_blocks == [
            {"type": "reasoning", "reasoning": "hm"},
            {"type": "text", "text": "Yes."},
        ]
        assert encode_messages([message]) == [{"role": "assistant", "content": "Yes."}]
    assert known.thinks


def test_a_whole_reply_as_a_chunk_keeps_all_that_it_holds() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    whole = decode_reply({"choices": [{"message": {"content": "Yes.", "reasoning": "hm", "tool_calls": [call]}}]})
    message, chunk = whole.generations[0].message, as_chunk(whole).message
    assert isinstance(message, AIMessage) and isinstance(chunk, AIMessageChunk)
    assert chunk.content_blocks == message.content_blocks and chunk.tool_calls == message.tool_calls != []


def test_tags_in_a_stream_become_a_reasoning_block() -> None:
    known = Known()
    pieces = ["<th", "ink>\nh", "m</thi", "nk>\n", "\nYes", "."]
    message = streamed(*(event({"content": piece}) for piece in pieces), event({}, "stop"), known=known)
    assert message.content == "Yes." and message.additional_kwargs["reasoning_content"] == "hm"
    assert known.thinks
    cut = streamed(event({"content": "<think>hm, s"}), event({}, "length"))
    assert cut.content == "" and cut.additional_kwargs["reasoning_content"] == "hm, s"


def test_a_stream_waits_for_the_closing_tag_of_a_model_that_never_opens() -> None:
    pieces = [event({"content": piece}) for piece in ("h", "m</", "think>Y", "es.")]
    message = streamed(*pieces, event({}, "stop"), known=Known(unopened=True))
    assert message.content == "Yes." and message.additional_kwargs["reasoning_content"] == "hm"
    known = Known()
    first = streamed(*pieces, event({}, "stop"), known=known)  # nobody could know; what came can still be parted
    assert parted(str(first.content)) == Parted("Yes.", "hm", True)


def test_a_request_that_is_sent_once_more_begins_anew() -> None:
    reader = EventReader()
    assert reader.read(event({"content": "<thi"}, id="one")) is None
    chunk = reader.read(event({"content": "Yes."}, id="two"))
    assert chunk is not None and chunk.text == "Yes."


REPLIES = [
    AIMessage(f"<think>{THOUGHT}</think>Go away."),
    AIMessage(f"{THOUGHT}</think>\nGo away."),
    AIMessage([{"type": "reasoning", "reasoning": THOUGHT}, {"type": "text", "text": "Go away."}]),
    AIMessage([{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": "Go away."}]),
    AIMessage("Go away.", additional_kwargs={"reasoning_content": THOUGHT}),
]


@pytest.mark.parametrize("reply", REPLIES)
async def test_any_chat_model_may_think(reply: AIMessage) -> None:
    model = ListedModel(replies=[reply])
    answer = await asked(model, question())
    assert answer.text == answer.value == "Go away."
    (call,) = (Call.model_validate(call) for call in answer.calls)
    assert call.completion == "Go away." and call.reasoning == THOUGHT and call.error is None
    assert known_of_object(model).thinks


async def test_the_thought_of_a_reply_that_a_parser_refuses_is_found() -> None:
    class Refused(Exception):
        completion = ChatCompletion.model_validate(
            {"id": "c", "created": 1, "model": "m", "object": "chat.completion", "choices": [
                {"index": 0, "finish_reason": "length",
                 "message": {"role": "assistant", "content": "Go", "reasoning_content": THOUGHT}}]}
        )  # fmt: skip

    class Strict(ListedModel):
        async def _agenerate(self, *arguments: Any, **options: Any) -> ChatResult:
            raise Refused

    reply = await complete(
        Strict(replies=[]), [{"role": "user", "content": "?"}], name="x", sampling={}, schema=None, metadata={}
    )
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("Go", THOUGHT, "length")


@pytest.mark.parametrize(
    "reply",
    [AIMessage("<think>hm, so"), AIMessage("", additional_kwargs={"reasoning_content": "hm, so"})],
)
async def test_a_reply_that_ends_inside_a_thought_is_asked_for_again(reply: AIMessage) -> None:
    model = ListedModel(replies=[reply, AIMessage("Yes.")])
    answer = await asked(model, question())
    assert answer.value == "Yes." and len(answer.calls) == 2
    error = answer.calls[0]["error"]
    assert error["type"] == "UnfinishedThoughtError" and "went into the model's reasoning" in error["message"]
    assert answer.calls[0]["completion"] == "" and answer.calls[0]["reasoning"] == "hm, so"
    assert "Think briefly" in model.sent[1][0][-1] and "hm, so" not in model.sent[1][0][-1]

    answer = await asked(ListedModel(replies=[reply, reply]), question())
    assert answer.value is None and answer.problem is not None
    assert answer.problem["type"] == "UnfinishedThoughtError"


async def test_what_to_set_is_told() -> None:
    reply = await complete(
        ListedModel(replies=["<think>hm"]), [{"role": "user", "content": "?"}],
        name="x", sampling={}, schema=None, metadata={},
    )  # fmt: skip
    for options, advice in (
        ({}, "Set `thinking: off`, or raise `max_thinking_tokens` (now 4096)."),
        ({"thinking": "off"}, "set `thinking: on`"),
    ):
        with pytest.raises(UnfinishedThoughtError) as told:
            require_answer(ChatVLLM(model="m", base_url="http://127.0.0.1:9/v1", **options), reply)
        assert advice in str(told.value)


async def test_no_candidates_answer_or_exchange_holds_a_thought() -> None:
    asker = Asker(
        ListedModel(replies=["<think>hm</think>Yes.", "<think>hm", "<think>hm"]), temperature=None, max_tokens=9
    )
    assert await asker.ask("answer", [{"role": "user", "content": "?"}]) == "Yes."
    with pytest.raises(UnfinishedThoughtError):
        await asker.ask("answer", [{"role": "user", "content": "?"}])
    assert "hm" not in json.dumps([exchange.model_dump() for exchange in asker.exchanges])


def test_settings_become_fields_of_every_request() -> None:
    model = ChatVLLM(model="m", base_url="http://127.0.0.1:9/v1", thinking="off", request={"top_k": 20})
    sent = sampling_of(model, 0.5, 64, None)
    assert sent == {
        "top_k": 20, "chat_template_kwargs": {"enable_thinking": False}, "temperature": 0.5, "max_tokens": 64,
    }  # fmt: skip
    own = model.model_copy(update={"request": {"chat_template_kwargs": {"enable_thinking": True, "a": 1}}})
    assert own.fixed_request["chat_template_kwargs"] == {"enable_thinking": True, "a": 1}
    assert "chat_template_kwargs" not in ChatVLLM(model="m", base_url="http://127.0.0.1:9/v1").fixed_request


@pytest.mark.parametrize("field", ["messages", "model", "stream", "n", "max_tokens", "temperature", "guided_json"])
def test_fields_of_our_own_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} cannot be set as a field of the request"):
        ChatVLLM(request={field: 1})


def test_thoughts_do_not_count_against_a_scenes_tokens() -> None:
    call = {"usage": {"output_tokens": 100}, "completion": "x" * 10, "reasoning": "y" * 90}
    assert spoken_tokens(call) == 10
    assert spoken_tokens({**call, "reasoning": None}) == 100


def test_what_is_known_is_shared_by_name_and_kept_apart_by_server() -> None:
    known_of_served("http://known:1/v1", "m").thinks = True
    assert known_of_served("http://known:1/v1/", "m").thinks
    assert not known_of_served("http://known:2/v1", "m").thinks
    assert not known_of_served("http://known:1/v1", "other").thinks


def test_old_traces_are_exported_without_thoughts() -> None:
    draft, answer = f"<think>{THOUGHT}</think>\n\nOld draft.", f"{THOUGHT}</think>Old answer."
    calls = [
        a_call(purpose="draft", completion=draft),
        a_call(
            purpose="revise",
            messages=[{"role": "user", "content": f"The draft: {draft}"}],
            completion=answer,
        ),
    ]
    trace = a_trace(draft=draft, answer=answer, revised=True, calls=calls, check=None)
    scene = parse_scene(trace.to_json_line().encode())
    assert (scene["draft"], scene["answer"]) == ("Old draft.", "Old answer.")
    assert scene["calls"][1]["messages"][0]["content"] == "The draft: Old draft."
    made = list(rows([Trace.model_validate(trace.model_dump())], scene=True))
    assert made and "qqthoughtqq" not in json.dumps(made)

    cut = a_trace(draft="<think>hm", answer="<think>hm", revised=False, calls=[a_call(completion="<think>hm")])
    assert not list(rows([cut]))
