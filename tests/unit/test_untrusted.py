"""What comes from a server is bounded and cleaned where it enters: numbers, strings, nesting, sizes."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from matrix_graph.models.client import wire
from matrix_graph.models.client.messages import EventReader, decode_reply
from matrix_graph.models.client.server_numbers import LONGEST_WAIT, count, error_status, seconds
from matrix_graph.models.client.strings import MOST_DEEP, check_depth, clean_name, cleaned, name_in, strict_json
from matrix_graph.models.client.wire import TooLongError, decode, lines, read_beginning, read_body
from matrix_graph.models.complete import read_completion


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("nan", None), ("NaN", None), ("inf", None), ("-inf", None), ("Infinity", None), ("1e400", None),
        ("1_0", None), ("0x10", None), ("\u0661", None), ("soon", None), ("", None), (None, None),
        ("Mon, 01 Foo", None), ("Mon, 41 Jan 2026 00:00:00", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -99999999999", None),
        ("-5", 0.0), ("0", 0.0), (" 7 ", 7.0), ("2.5", 2.5), ("100000000000000000000", LONGEST_WAIT),
        ("9" * 5000, LONGEST_WAIT), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_WAIT),
    ],
)  # fmt: skip
def test_a_wait_is_bounded(header: str | None, expected: float | None) -> None:
    assert seconds(header) == expected


@given(st.text() | st.from_regex(r"(Mon|Fri), \d{1,3} (Jan|Dec) \d{1,30} \d\d:\d\d:\d\d [+-]?\d{1,12}", fullmatch=True))
def test_whatever_the_header_a_wait_is_bounded(header: str) -> None:
    found = seconds(header)
    assert found is None or (math.isfinite(found) and 0 <= found <= LONGEST_WAIT)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0), (7, 7), (7.0, 7), (2**53, 2**53), (-1, None), (2**53 + 1, None), (10**4000, None), (3.5, None),
        (True, None), (False, None), ("3", None), (None, None), ([], None), (math.nan, None), (math.inf, None),
        (1e300, None),
    ],
)  # fmt: skip
def test_counts(value: Any, expected: int | None) -> None:
    assert count(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(400, 400), (503, 503), (200, 500), (-1, 500), (10**30, 500), (True, 500), ("400", 500)]
)
def test_statuses_of_errors_in_streams(value: Any, expected: int) -> None:
    assert error_status(value) == expected


def test_strings_are_cleaned_where_they_enter() -> None:
    raw = rb'{"model": "m\ud800", "\udfff": [{"text": "a\ud83d\ude00b\udc00"}], "n": 1, "kept": "\u0000\u001b[31m"}'
    assert decode(raw) == {"model": "m\ufffd", "\ufffd": [{"text": "a\U0001f600b\ufffd"}], "n": 1, "kept": "\0\x1b[31m"}
    assert decode(b"\xef\xbb\xbf{}") == {}
    with pytest.raises(ValueError, match="not a JSON object"):
        decode(b'{"a": "\xed\xa0\x80"}')  # a surrogate as bytes
    assert clean_name("a\0b\ud800") == "a\ufffdb\ufffd" and name_in(7) is None and name_in("x") == "x"


def nested(deep: int) -> Any:
    value: Any = 1
    for _ in range(deep):
        value = {"a": [value]}
    return value


def test_nesting_has_a_bound() -> None:
    check_depth(nested(MOST_DEEP // 2))
    assert decode(json.dumps(nested(MOST_DEEP // 2)).encode()) == nested(MOST_DEEP // 2)
    for deep in (MOST_DEEP // 2 + 1, 200, 400):
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            decode(json.dumps(nested(deep)).encode())
    for text in ("[" * 100_000, "[" * 900 + "]" * 900):
        with pytest.raises(ValueError, match=r"JSON|deep"):
            decode(b'{"x": ' + text.encode() + b"}")
    with pytest.raises(ValueError, match="not a JSON object"):
        decode(b'{"x": [' + b"[]," * 2_000_001 + b"0]}")


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "1e999", "-1e999", "9" * 30, "[" * 5000, "{", '{"a": -Infinity}']
)
def test_strict_json_refuses_what_no_other_program_reads(text: str) -> None:
    with pytest.raises(ValueError):
        strict_json(text)


def test_strict_json_cleans_its_strings() -> None:
    assert strict_json('{"a": "\\ud800", "n": [9223372036854775807, -1.5]}') == {"a": "\ufffd", "n": [2**63 - 1, -1.5]}
    assert cleaned(("a", None)) == ("a", None)


async def blocks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def test_bodies_lines_and_streams_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(*parts: bytes) -> list[bytes]:
        return [line async for line in lines(blocks(*parts))]

    async def run() -> None:
        assert await read_body(blocks(b"abc", b"def"), 6) == b"abcdef"
        with pytest.raises(TooLongError, match="longer than 5 bytes"):
            await read_body(blocks(b"abc", b"def"), 5)
        assert await read_beginning(blocks(b"abc", b"def", b"ghi"), 4) == b"abcdef"
        monkeypatch.setattr(wire, "MOST_LINE", 4)
        monkeypatch.setattr(wire, "MOST_STREAM", 20)
        assert await read(b"abcd", b"\nab", b"cd\n") == [b"abcd", b"abcd"]
        with pytest.raises(TooLongError, match="line"):
            await read(b"ab", b"cd", b"e")
        with pytest.raises(TooLongError, match="stream"):
            await read(*[b"ab\n"] * 7)

    asyncio.run(run())


def reply(message: Any = None, **fields: Any) -> dict[str, Any]:
    choice = {"message": {"content": "x"} if message is None else message, "finish_reason": "stop"}
    return {"choices": [choice], **fields}


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": math.nan}, {"prompt_tokens": math.inf, "completion_tokens": 1}, {"prompt_tokens": 10**400},
        {"prompt_tokens": "3"}, {"prompt_tokens": -3}, {"prompt_tokens": True}, {"prompt_tokens": None},
        {"prompt_tokens": 3.5}, {"prompt_tokens": 1, "completion_tokens": [2]},
    ],
)  # fmt: skip
def test_usage_that_cannot_be_is_unknown(usage: dict[str, Any]) -> None:
    message = decode_reply(reply(usage=usage)).generations[0].message
    assert isinstance(message, AIMessage) and message.usage_metadata is None
    completion = read_completion(reply(usage=usage))
    assert (completion.input_tokens, completion.output_tokens) in ((0, 0), (0, 1), (1, 0))
    assert EventReader().read({"choices": [], "usage": usage}) is None


@pytest.mark.parametrize("odd", [7, {"a": 1}, ["x"], True, 1.5])
def test_names_that_are_no_text_are_unknown(odd: Any) -> None:
    body = reply(id=odd, model=odd)
    body["choices"][0] |= {"finish_reason": odd, "logprobs": odd if not isinstance(odd, dict) else "abc"}
    message = decode_reply(body).generations[0].message
    assert message.id is None
    assert message.response_metadata == {"finish_reason": None, "model_name": None, "model_provider": "vllm"}
    completion = read_completion(body)
    assert completion.finish_reason is None and completion.model is None


@pytest.mark.parametrize(
    "arguments",
    ['{"a": ' + "[" * 100_000 + "}", "[" * 100_000, '{"a": NaN}', '{"a": 1e999}', '{"n": ' + "9" * 30 + "}"],
)
def test_arguments_that_no_one_else_can_read_make_an_invalid_tool_call(arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = decode_reply(reply({"content": None, "tool_calls": [call]})).generations[0].message
    assert isinstance(message, AIMessage) and not message.tool_calls
    assert [invalid["args"] for invalid in message.invalid_tool_calls] == [arguments]


def test_surrogates_in_arguments_are_mended() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    message = decode_reply(reply({"content": None, "tool_calls": [call]})).generations[0].message
    assert isinstance(message, AIMessage) and message.tool_calls[0]["args"] == {"a": "\ufffd"}
