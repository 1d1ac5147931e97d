"""ChatVLLM without a network: fields, serialisation, secrets, and what is done to bytes."""

import asyncio
import json
import logging
import pickle
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumpd, dumps, load
from pydantic import ValidationError

from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client.http import HTTPClient
from matrix_graph.models.client.server_numbers import seconds
from matrix_graph.models.client.wire import decode, encode, lines, message_in

KEY = "a-very-secret-key"
URL = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.delenv("MATRIX_GRAPH_BASE_URL", raising=False)


# ---- fields ---------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    model = ChatVLLM()
    assert (model.base_url, model.model, model.api_key) == ("http://127.0.0.1:8000/v1", None, None)
    assert (model.timeout, model.connect_timeout, model.give_up_after) == (300, 10, 30)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("MATRIX_GRAPH_BASE_URL", "http://10.0.0.1:8000/v1/")
    model = ChatVLLM()
    assert model.base_url == "http://10.0.0.1:8000/v1"
    assert model.api_key is not None and model.api_key.get_secret_value() == KEY


@pytest.mark.parametrize(
    "wrong",
    [{"temprature": 1}, {"temperature": -1}, {"top_p": 2}, {"max_tokens": 0}, {"timeout": 0}, {"give_up_after": -1}],
)
def test_wrong_fields_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatVLLM(**wrong)


def test_every_field_says_what_it_is() -> None:
    own = set(ChatVLLM.model_fields) - set(BaseChatModel.model_fields)
    assert all(ChatVLLM.model_fields[name].description for name in own)


def test_names_for_tracing() -> None:
    model = ChatVLLM(model="m", base_url=URL, temperature=0.5, max_tokens=7, stop=["x"])
    assert model._llm_type == "chat-vllm"
    assert model._get_ls_params() == {
        "ls_provider": "vllm", "ls_model_type": "chat", "ls_model_name": "m", "ls_temperature": 0.5, "ls_max_tokens": 7,
        "ls_stop": ["x"],
    }  # fmt: skip
    assert model._get_ls_params(model="adapter", temperature=0, stop=["y"])["ls_model_name"] == "adapter"
    params = model._get_invocation_params(stop=["y"], top_k=3)
    assert (params["_type"], params["model"], params["stop"], params["top_k"]) == ("chat-vllm", "m", ["y"], 3)


# ---- the key --------------------------------------------------------------------------------------------------------


def test_the_key_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    model = ChatVLLM(base_url=URL, api_key=KEY)
    shown = [repr(model), str(model), dumps(model), json.dumps(model._get_invocation_params()), repr(model._served())]
    shown += [repr(HTTPClient(URL, key=KEY)), model.model_dump_json(), repr(model.bind(x=1)), repr(model.asdict())]
    assert not [text for text in (*shown, caplog.text) if KEY in text]


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_round_trip_through_langchains_format(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ChatVLLM(model="m", base_url=URL, api_key=KEY, temperature=0.5, extra_body={"top_k": 3}, server=object())
    written = dumpd(model)
    assert written["kwargs"]["api_key"] == {"lc": 1, "type": "secret", "id": ["VLLM_API_KEY"]}
    assert "server" not in written["kwargs"]
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    back = load(written, allowed_objects=[ChatVLLM], valid_namespaces=["matrix_graph"], secrets_from_env=True)
    assert back.asdict() == model.asdict() and back.api_key == model.api_key and back.server is None


def test_pickling_leaves_the_server_behind() -> None:
    model = ChatVLLM(model="m", base_url=URL, api_key=KEY, server=(lambda: None))
    model._served()
    back = pickle.loads(pickle.dumps(model))
    assert back.server is None and back._connection is None
    assert (back.model, back.api_key, back.give_up_after) == ("m", model.api_key, 600)
    assert model.server is not None and model._connection is not None


def test_changed_fields_take_effect() -> None:
    model = ChatVLLM(base_url=URL)
    before = model._served()
    assert model._served() is before
    model.give_up_after = 1
    assert model._served() is not before
    assert model.model_copy(update={"temperature": 1.0}).temperature == 1.0


# ---- bytes ----------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_sent_is_valid_utf8_and_keeps_every_real_character(text: str) -> None:
    sent = json.loads(encode({"text": text}).decode("utf-8"))["text"]
    try:
        text.encode()
    except UnicodeEncodeError:
        assert sent == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    else:
        assert sent == text


def test_numbers_without_json_form_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode({"temperature": float("nan")})


@pytest.mark.parametrize("raw", [b"", b"[]", b"1", b"{", b"\xff", b"[" * 100_000, b'"x"'])
def test_only_json_objects_are_read(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a JSON object") as caught:
        decode(raw)
    assert len(str(caught.value)) < 600


@given(st.lists(st.binary(max_size=20)), st.integers(1, 7))
def test_lines_do_not_depend_on_how_the_bytes_arrive(parts: list[bytes], size: int) -> None:
    whole = b"".join(parts)

    async def blocks(step: int) -> AsyncIterator[bytes]:
        for start in range(0, len(whole), step):
            yield whole[start : start + step]

    async def read(step: int) -> list[bytes]:
        return [line async for line in lines(blocks(step))]

    raw = whole.split(b"\n")
    expected = [line.rstrip(b"\r") for line in (raw if raw[-1] else raw[:-1])]
    assert asyncio.run(read(size)) == asyncio.run(read(1000)) == expected


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"error": {"message": "too long", "code": 400}}', "too long"),
        (b'{"error": "Unauthorized"}', "Unauthorized"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"message": "old style"}', "old style"),
        (b"<html>Bad\n gateway</html>", "<html>Bad gateway</html>"),
        (b"", "(nothing)"),
        (b'{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]'),
        (b"x" * 9999, "x" * 500 + " [...]"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_error_bodies(raw: bytes, said: str) -> None:
    assert message_in(raw) == said


def test_retry_after() -> None:
    assert seconds(None) is None and seconds("") is None and seconds("soon") is None
    assert seconds("1.5") == 1.5 and seconds("-3") == 0
    later = seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True))
    assert later is not None and 28 < later <= 30
    assert seconds("Wed, 21 Oct 2015 07:28:00") == 0


def test_urls() -> None:
    client = HTTPClient("http://host:8000/v1/")
    assert str(client.url("chat/completions")) == "http://host:8000/v1/chat/completions"
    assert str(client.url("/tokenize")) == "http://host:8000/tokenize"
    assert str(HTTPClient("http://host/llm/v1").url("/tokenize")) == "http://host/llm/tokenize"
