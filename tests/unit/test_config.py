"""Settings: which source wins, and that every wrong one is named with what is allowed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from matrix_graph.align.options import of_one_template
from matrix_graph.config import ENV_PREFIX, UNKNOWN_CONTEXT_LENGTH, SceneConfig, Settings, load_settings
from matrix_graph.errors import ConfigError
from matrix_graph.models.server import ServerConfig
from matrix_graph.options import request_from
from matrix_graph.scene import stage
from matrix_graph.train.recipe import load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "my.yaml"


def test_defaults() -> None:
    settings = load_settings()
    assert settings.model_dump() == Settings.model_construct().model_dump()
    assert settings.scene == SceneConfig() and settings.server == ServerConfig()
    assert settings.model is None and settings.base_url is None and settings.api_key is None


def test_the_context_that_is_assumed_is_the_one_that_is_told() -> None:
    assert stage.UNKNOWN_CONTEXT_LENGTH == UNKNOWN_CONTEXT_LENGTH == 32_768
    assert "else assumes 32,768." in str(SceneConfig.model_fields["context_length"].description)


def test_a_file_keeps_the_defaults_of_what_it_does_not_name(file: Path) -> None:
    file.write_text("model: 模型\nscene:\n  roles: 5\n", encoding="utf-8")
    settings = load_settings(file)
    assert settings.model == "模型"
    assert settings.scene == SceneConfig(roles=5)


def test_options_over_environment_over_file_over_defaults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("{model: from-file, base_url: 'http://file/v1', scene: {roles: 5, steps: 5, temperature: 0.5}}")
    monkeypatch.setenv("MATRIX_GRAPH_MODEL", "from-env")
    monkeypatch.setenv("MATRIX_GRAPH_SCENE__ROLES", "6")
    monkeypatch.setenv("MATRIX_GRAPH_SCENE__STEPS", "6")
    settings = load_settings(file, scene={"roles": 7})
    assert (settings.scene.roles, settings.scene.steps, settings.scene.temperature) == (7, 6, 0.5)
    assert settings.scene.max_calls == SceneConfig().max_calls
    assert (settings.model, settings.base_url) == ("from-env", "http://file/v1")
    assert load_settings(file, model="from-option").model == "from-option"


def test_nested_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_GRAPH_SCENE", '{"steps": 2, "roles": 2}')
    monkeypatch.setenv("MATRIX_GRAPH_SCENE__ROLES", "9")
    monkeypatch.setenv("MATRIX_GRAPH_SERVER__PORT", "8123")
    settings = load_settings()
    assert (settings.scene.roles, settings.scene.steps, settings.server.port) == (9, 2, 8123)


def test_what_is_not_given_does_not_count(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text("# nothing\n")
    monkeypatch.setenv("MATRIX_GRAPH_MODEL", "")
    monkeypatch.setenv("MATRIX_GRAPH_BASE_URL", "http://env/v1")
    assert load_settings(file, model=None, base_url=None).base_url == "http://env/v1"
    assert load_settings(file).model is None


def test_one_call_does_not_leak_into_the_next(file: Path) -> None:
    file.write_text("scene: {roles: 5}")
    assert load_settings(file).scene.roles == 5
    assert load_settings().scene.roles == SceneConfig().roles


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("MATRIX_GRAPH_API_KEY", "hush")
    settings = load_settings()
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "hush"
    assert "hush" not in repr(settings) and "hush" not in settings.model_dump_json()
    monkeypatch.setenv("MATRIX_GRAPH_SCENE__ROLES", "x")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "api_key",
        pytest.param("API_KEY"),
    ],
)
def test_a_key_in_a_file_is_refused(file: Path, key: str) -> None:
    file.write_text(f"{key}: hush")
    with pytest.raises(ConfigError, match=r"api_key.*MATRIX_GRAPH_API_KEY alone") as caught:
        load_settings(file)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("scne: 1", "scne: no such setting"),
        ("scene: {rolls: 1}", r"scene\.rolls: no such setting"),
        ("server: {api_key: x}", r"server\.api_key: no such setting"),
        ("scene: {roles: many}", r"scene\.roles: .*valid integer.*\(got 'many'\)"),
        ("scene: {roles: 0}", r"scene\.roles: .*greater than or equal to 1 \(got 0\)"),
        ("scene: {temperature: 3, steps: 99}", r"(?s)scene\.steps: .*50 \(got 99\).*scene\.temperature: .*2 \(got 3\)"),
        ("scene: 3", r"scene: .*\(got 3\)"),
        ("scene:", r"scene: .*\(got None\)"),
        ("server: {port: 99999}", r"server\.port: .*65535 \(got 99999\)"),
        ("[1, 2]", "holds a list; it must be a mapping"),
        ("hello", "holds a str; it must be a mapping"),
        ("a: [1", "cannot be read"),
        ("a: 1\n---\nb: 2", "cannot be read"),
        ("model: a\x00b", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        (pytest.param("1: 2", "settings have names")),
    ],
)
def test_a_wrong_file_is_named_with_what_is_allowed(file: Path, content: str, said: str) -> None:
    file.write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_settings(file)
    assert str(file) in str(caught.value)


def test_unreadable_files(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"model: \xff\xfe")
    for path in (file, tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            load_settings(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MATRIX_GRAPH_SCENE__ROLES", "x", r"scene\.roles: .*\(got 'x'\)"),
        ("MATRIX_GRAPH_SCENE__ROLLS", "1", r"scene\.rolls: no such setting"),
        ("MATRIX_GRAPH_SCENE", "{bad", '"scene"'),
        ("MATRIX_GRAPH_SERVER__DTYPE", "int3", r"server\.dtype: .*'bfloat16'"),
    ],
)
def test_wrong_variables(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said) as caught:
        load_settings()
    assert "MATRIX_GRAPH_* variables" in str(caught.value)


@pytest.mark.parametrize("options", [{"foo": 1}, {"scene": {"rolls": 1}}, {"scene": 3}, {"model": 3}])
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="from options"):
        load_settings(**options)


def test_errors_name_each_setting_on_a_line_of_its_own() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(foo=1, scene={"roles": 0})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == ["  foo", "  scene.roles"] or [
        line.split(":")[0] for line in str(caught.value).splitlines()[1:]
    ] == ["  scene.roles", "  foo"]


@pytest.mark.parametrize("name", [name for name in SceneConfig.model_fields if name != "modulator"])
def test_scene_limits(name: str) -> None:
    """Each number takes its bounds, and nothing beyond them."""
    bounds = {type(bound).__name__: bound for bound in SceneConfig.model_fields[name].metadata}
    if name in ("max_rounds", "context_length"):
        assert getattr(SceneConfig(**{name: None}), name) is None
    schema = SceneConfig.model_json_schema()["properties"][name]
    limits = {key: value for part in [schema, *schema.get("anyOf", [])] for key, value in part.items()}
    low, high = limits.get("minimum", limits.get("exclusiveMinimum")), limits.get("maximum")
    assert low is not None, f"{name} has no lower limit ({bounds})"
    if "minimum" in limits:
        assert getattr(SceneConfig(**{name: low}), name) == low
    wrong = [low - 1, "x", [], *([high + 1] if high is not None else []), *([low] if "minimum" not in limits else [])]
    for value in wrong:
        with pytest.raises(ValidationError):
            SceneConfig.model_validate({name: value})
    if high is not None:
        assert getattr(SceneConfig(**{name: high}), name) == high


@pytest.mark.parametrize("part", ["full", "plausible_all", "everyone_sees", "off"])
def test_parts_of_the_modulator(part: str) -> None:
    assert SceneConfig().modulator == "full"
    assert SceneConfig.model_validate({"modulator": part}).modulator == part
    with pytest.raises(ValidationError):
        SceneConfig.model_validate({"modulator": part.upper()})


def test_scene_config_is_frozen_and_described() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SceneConfig().roles = 4
    with pytest.raises(ValidationError, match="Extra inputs"):
        SceneConfig.model_validate({"rolls": 1})
    for kind in (SceneConfig, ServerConfig, Settings):
        for name, field in kind.model_fields.items():
            assert field.description or name in ("scene", "server"), name


def test_rounds_and_room_for_the_cast() -> None:
    assert SceneConfig(steps=4).rounds == 6
    assert SceneConfig(steps=4, max_rounds=2).rounds == 2
    assert SceneConfig(roles=5, steps=6).max_cast_tokens > SceneConfig().max_cast_tokens > 0


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the sources' configs are not here")
def test_the_default_file_holds_the_defaults() -> None:
    settings = load_settings(CONFIGS / "default.yaml")
    assert settings.model_dump() == load_settings().model_dump()


@pytest.mark.parametrize(("written", "thinking"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'off'", "off")])
def test_how_a_model_is_asked_comes_from_the_file_and_options(tmp_path: Path, written: str, thinking: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"thinking: {written}\nrequest: {{top_p: 0.8, chat_template_kwargs: {{a: 1}}}}\n")
    settings = load_settings(file, request={"top_k": 20}, max_thinking_tokens=9)
    assert settings.of_the_model == {
        "thinking": thinking,
        "max_thinking_tokens": 9,
        "request": {"top_p": 0.8, "chat_template_kwargs": {"a": 1}, "top_k": 20},
    }
    switch = {} if thinking == "auto" else {"enable_thinking": thinking == "on"}
    assert settings.fixed_request["chat_template_kwargs"] == {**switch, "a": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("request: {messages: []}", "messages cannot be set as a field of the request"),
        ("request: {chat_template_kwargs: 1}", "chat_template_kwargs must be a mapping"),
        (
            "chat_template_kwargs: {enable_thinking: false}",
            "kwargs: no such setting; fields of the request",
        ),
        ("scene: {top_k: 3}", "scene.top_k: no such setting; fields of the request stand under `request`"),
        ("scene: {thinking: off}", "`thinking` stands beside `scene`"),
        ("thinking: maybe", "thinking"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_what_can(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError) as error:
        load_settings(tmp_path / "c.yaml")
    assert said in str(error.value)


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the sources' configs are not here")
def test_the_files_for_models_that_think() -> None:
    assert load_settings(CONFIGS / "qwen3.yaml").fixed_request["chat_template_kwargs"] == {"enable_thinking": False}
    assert load_settings(CONFIGS / "thinking.yaml").fixed_request["chat_template_kwargs"] == {"enable_thinking": True}


def test_fields_of_the_request_are_options() -> None:
    assert request_from(["top_k=20", "chat_template_kwargs={a: [1]}"]) == {
        "top_k": 20,
        "chat_template_kwargs": {"a": [1]},
    }
    with pytest.raises(ConfigError, match="not of the form FIELD=VALUE"):
        request_from(["top_k"])


def test_scenes_are_played_as_the_recipe_trains() -> None:
    settings, recipe = of_one_template(load_settings(), load_recipe("8b"))
    assert settings.fixed_request["chat_template_kwargs"] == {"enable_thinking": False}
    settings, recipe = of_one_template(load_settings(thinking="off"), load_recipe("paper"))
    assert recipe.chat_template_kwargs == {"enable_thinking": False}
    settings, recipe = of_one_template(load_settings(), load_recipe("paper"))
    assert settings.request == {} and recipe == load_recipe("paper")
    with pytest.raises(ConfigError, match="the setting is `thinking`"):
        of_one_template(load_settings(thinking="on"), load_recipe("8b"))
