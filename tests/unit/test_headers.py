"""Keys and headers: what HTTP cannot carry is refused when it is set, and no value is shown anywhere."""

from __future__ import annotations

import pickle
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumps
from pydantic import SecretStr

from matrix_graph.batch.workers import WorkerPlayer
from matrix_graph.config import SceneConfig, load_settings
from matrix_graph.errors import ConfigError
from matrix_graph.evaluate.carry_out import judge_from
from matrix_graph.evaluate.embedding import ServerEmbedder
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client.headers import (
    HEADERS_VARIABLE,
    checked_key,
    parsed_headers,
    plain_headers,
    request_headers,
    without_login,
)
from matrix_graph.models.client.http import HTTPClient
from matrix_graph.models.traffic import Traffic

SECRET = "tenant-5f2a91c7"


@pytest.mark.parametrize(
    "given",
    [
        {"X-Tenant": "a b", "api-key": "c:d"},
        {"X-Tenant": SecretStr("a b"), "api-key": SecretStr("c:d")},
        "X-Tenant: a b\napi-key: c:d",
        "X-Tenant:a b\r\n\r\n  api-key :   c:d  \n",
        '{"X-Tenant": "a b", "api-key": "c:d"}',
        ' \n{"X-Tenant": "a b",\n"api-key": "c:d"}\n',
    ],
)
def test_headers_come_as_a_mapping_as_json_or_as_lines(given: object) -> None:
    assert plain_headers(parsed_headers(given)) == {"X-Tenant": "a b", "api-key": "c:d"}


@pytest.mark.parametrize("given", [None, "", " \n", {}])
def test_no_headers(given: object) -> None:
    assert parsed_headers(given) == {}


@pytest.mark.parametrize(
    "given",
    [
        {"X-Tenant": f"{SECRET}\n"},
        {"X-Tenant": f"{SECRET}\r\nX-Other: 1"},
        {"X-Tenant": f"{SECRET}\x00"},
        {"X-Tenant": f"{SECRET}é"},
        {"X Tenant": SECRET},
        {"": SECRET},
        {"X-Tenant": [SECRET]},
        {"Content-Length": SECRET},
        {"transfer-encoding": SECRET},
        {7: SECRET},
        [SECRET],
        SECRET,
        f'{{"X-Tenant": "{SECRET}"',
        f'{{"X-Tenant": {{"a": "{SECRET}"}}}}',
    ],
)
def test_what_no_request_can_carry_is_refused_when_it_is_set_and_not_shown(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as caught:
        ChatVLLM(default_headers=given)
    shown = "".join(str(error) for error in (caught.value, caught.value.__cause__) if error is not None)
    assert SECRET not in shown
    if isinstance(given, str):
        monkeypatch.setenv(HEADERS_VARIABLE, given)
        with pytest.raises(ConfigError, match=HEADERS_VARIABLE) as caught:
            load_settings()
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("sk-1234\n", "line end, as character 8 of 8"),
        ("\rsk-1234", "line end, as character 1 of 8"),
        ("sk 1234", "white space"),
        ("sk-1234\x00", "control character"),
        ("sk-12ключ", "not ASCII"),
        ("sk-12\u201334", "not ASCII"),
    ],
)
def test_a_key_that_no_header_can_carry(key: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (
        lambda: ChatVLLM(api_key=key),  # type: ignore[arg-type]
        lambda: load_settings(api_key=key),
        lambda: HTTPClient("http://127.0.0.1:1/v1", key=key),
        lambda: ServerEmbedder("http://127.0.0.1:1/v1", "m", api_key=SecretStr(key)),
    ):
        with pytest.raises(ConfigError, match=what) as caught:
            make()
        assert key.strip() not in str(caught.value) and "1234" not in str(caught.value)
    if "\x00" not in key:
        for variable, make in (
            ("VLLM_API_KEY", ChatVLLM),
            ("MATRIX_GRAPH_API_KEY", load_settings),
            ("MATRIX_GRAPH_JUDGE_API_KEY", lambda: judge_from("http://127.0.0.1:1/v1:m", ChatVLLM(api_key=None))),
        ):
            monkeypatch.setenv(variable, key)
            with pytest.raises(ConfigError, match=f"{variable}.*{what}"):
                make()
            monkeypatch.delenv(variable)


def test_a_plain_key_passes() -> None:
    assert checked_key("sk-proj_A.b~c/d+e=", "api_key") == "sk-proj_A.b~c/d+e="


def test_a_given_authorization_goes_before_the_key() -> None:
    assert request_headers("k", {"authorization": "Basic abc"}, "http://me:pw@there/v1") == {
        "Content-Type": "application/json",
        "authorization": "Basic abc",
    }
    assert request_headers("k", {}, "http://there/v1")["Authorization"] == "Bearer k"


def test_a_login_in_the_address_is_sent_as_a_header_and_shown_nowhere() -> None:
    url = "https://me:p%40ss-word@there.example:8443/v1"
    assert request_headers("k", {}, url)["Authorization"] == f"Basic {b64encode(b'me:p@ss-word').decode()}"
    client = HTTPClient(url, key="k")
    assert client.shown_url == "https://there.example:8443/v1" == without_login(url)
    assert str(client.url("models")) == "https://there.example:8443/v1/models"


@pytest.mark.parametrize("url", ["http://[half/v1", "http://there:port/v1", "http://there:99999/v1", "ftp://there"])
def test_what_is_no_address_is_refused_when_it_is_set(url: str) -> None:
    with pytest.raises(ConfigError, match="it must be an http"):
        HTTPClient(url)
    with pytest.raises(ConfigError, match="it must be an http"):
        ChatVLLM(base_url=url)


def test_values_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HEADERS_VARIABLE, f"X-Tenant: {SECRET}")
    model = ChatVLLM()
    assert plain_headers(model.default_headers) == {"X-Tenant": SECRET}
    settings = load_settings(base_url="http://127.0.0.1:1/v1")
    embedder = ServerEmbedder("http://127.0.0.1:1/v1", "m")
    for shown in (
        repr(model), str(model), dumps(model), model.model_dump_json(), str(model._identifying_params), repr(settings),
        settings.model_dump_json(), repr(model._get_ls_params()), repr(embedder), repr(embedder.__dict__),
    ):  # fmt: skip
        assert SECRET not in shown
    assert plain_headers(pickle.loads(pickle.dumps(model)).default_headers) == {"X-Tenant": SECRET}
    assert embedder._client._headers["X-Tenant"] == SECRET


def test_headers_from_the_config_file_reach_the_model_and_a_judge_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"base_url: http://127.0.0.1:1/v1\nheaders:\n  X-Tenant: {SECRET}\n")
    settings = load_settings(file)
    model = ChatVLLM(base_url=settings.base_url or "", **settings.connection)
    assert model.request_headers == {"X-Tenant": SECRET}
    judge = judge_from("http://127.0.0.1:2/v1:judge", model, settings.headers)
    assert judge.request_headers == {"X-Tenant": SECRET}
    monkeypatch.setenv(HEADERS_VARIABLE, '{"X-Tenant": "other"}')
    assert plain_headers(load_settings(file).headers) == {"X-Tenant": "other"}


def test_wrong_headers_in_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"headers:\n  X-Tenant:\n    - {SECRET}\n")
    with pytest.raises(ConfigError, match=r"X-Tenant in headers .*list") as caught:
        load_settings(file)
    assert SECRET not in str(caught.value)


def test_workers_get_the_headers_over_their_pipe() -> None:
    model = ChatVLLM(default_headers={"X-Tenant": SECRET})  # type: ignore[arg-type]
    player = WorkerPlayer(
        model,
        count=1,
        name="m",
        traffic=Traffic(1),
        cast=None,
        config=SceneConfig(),
        on_status=lambda line: None,
    )
    assert player._task["headers"] == {"X-Tenant": SECRET}
    assert SECRET not in str(player._task["model"])


def test_changed_headers_take_effect() -> None:
    model = ChatVLLM(default_headers={"X-Tenant": "one1"})  # type: ignore[arg-type]
    assert model._served().client._headers["X-Tenant"] == "one1"
    model.default_headers = parsed_headers({"X-Tenant": "two2"})
    assert model._served().client._headers["X-Tenant"] == "two2"
