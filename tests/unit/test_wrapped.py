"""Chat models in LangChain's wrappers play scenes, with the wrappers in effect; the rest is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from pydantic import Field

from matrix_graph import ChatVLLM, Rehearsal, RehearsalMiddleware, create_scene, rehearsal_tool
from matrix_graph.batch.runner import Batch
from matrix_graph.compose.studio import studio_agent, studio_scene
from matrix_graph.config import SceneConfig
from matrix_graph.errors import ConfigError, UnfinishedThoughtError
from matrix_graph.evaluate.candidates.plain import Plain
from matrix_graph.evaluate.records import Question
from matrix_graph.evaluate.runner import Evaluation
from matrix_graph.models.complete import Completion, name_of, request_settings, require_answer, sampling_of
from matrix_graph.models.wrapped import WrappedChatModel, chat_model, leaves
from tests.unit.scripted import ScriptedModel

QUESTION = "How do I say no?"


class Noting(ScriptedModel):
    """Notes the options of each call; fails the first so many."""

    seen: list[dict[str, Any]] = Field(default=[])
    failures: int = 0
    setting: str = "first"
    settings: ClassVar[list[str]] = []

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        given = {name: value for name, value in kwargs.items() if name != "schema"}
        self.settings.append(self.setting)
        self.seen.append({**given, "stop": stop, "setting": self.setting, "structured": "schema" in kwargs})
        if len(self.seen) <= self.failures:
            raise ConnectionError("scripted connection loss")
        return await super()._agenerate(messages, stop, run_manager, **kwargs)


def played(model: Any, config: Any = None) -> Any:
    result = Rehearsal(model, config=SceneConfig(roles=1, steps=1)).invoke(QUESTION, config)
    assert result["status"] in ("finished", "blocked"), result["error"]
    return result["trace"]


def test_a_retry_is_in_effect() -> None:
    model = Noting(seed=1, failures=2)
    trace = played(model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False))
    assert len(model.seen) == len(trace.calls) + 2
    assert trace.error is None and all(call.error is None for call in trace.calls[:1])


def test_a_retry_that_is_not_for_this_error_lets_it_through() -> None:
    model = Noting(seed=1, failures=1)
    wrapped = model.with_retry(retry_if_exception_type=(TimeoutError,), wait_exponential_jitter=False)
    result = Rehearsal(wrapped).invoke(QUESTION)
    assert result["error"] == {"type": "ConnectionError", "message": "scripted connection loss"}
    assert len(model.seen) == 1


def test_a_fallback_is_in_effect_for_structured_and_free_calls() -> None:
    broken, second = Noting(seed=1, failures=10_000), Noting(seed=1, setting="second")
    trace = played(broken.with_fallbacks([second]))
    assert len(broken.seen) == len(second.seen) == len(trace.calls)
    assert {call["structured"] for call in second.seen} == {True, False}


def test_bound_options_reach_every_call_of_every_kind() -> None:
    model = Noting(seed=1)
    trace = played(model.bind(stop=["zz"], extra="x").bind(extra="outer"))
    assert {(call["stop"][0], call["extra"]) for call in model.seen} == {("zz", "outer")}
    assert {call["structured"] for call in model.seen} == {True, False}
    assert all(call.sampling["bound"] == {"stop": ["zz"]} for call in trace.calls)


def test_wrappers_stand_inside_each_other() -> None:
    first, second = Noting(seed=1, failures=10_000), Noting(seed=1)
    wrapped = (
        first.bind(stop=["a"])
        .with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
        .with_fallbacks([second.bind(stop=["b"]).with_config(tags=["t"])])
        .with_config(metadata={"m": 1})
    )
    trace = played(wrapped)
    assert len(first.seen) == 2 * len(trace.calls) and len(second.seen) == len(trace.calls)
    assert {call["stop"][0] for call in first.seen} == {"a"} and {call["stop"][0] for call in second.seen} == {"b"}


def test_the_runs_config_configures_the_model() -> None:
    fields = Noting(seed=1).configurable_fields(setting=ConfigurableField(id="setting"))
    Noting.settings.clear()
    played(fields, {"configurable": {"setting": "chosen"}})
    assert set(Noting.settings) == {"chosen"}
    Noting.settings.clear()
    played(fields.with_config(configurable={"setting": "bound"}).with_retry())
    assert set(Noting.settings) == {"bound"}


def test_the_runs_config_chooses_among_alternatives() -> None:
    first, second = Noting(seed=1), Noting(seed=1, setting="second")
    either: Runnable[Any, Any] = first.configurable_alternatives(ConfigurableField(id="which"), second=second)
    played(either)
    assert first.seen and not second.seen
    count = len(first.seen)
    played(either.with_retry(), {"configurable": {"which": "second"}})
    assert second.seen and len(first.seen) == count


def test_a_wrapped_model_plays_the_scene_that_it_would_play_without() -> None:
    plain, wrapped = played(ScriptedModel(seed=4)), played(ScriptedModel(seed=4).with_retry())
    assert [call.completion for call in plain.calls] == [call.completion for call in wrapped.calls]


def test_listeners_of_wrappers_and_runs_hear_every_call_once() -> None:
    class Heard(BaseCallbackHandler):
        def __init__(self) -> None:
            self.calls = 0

        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            self.calls += 1

    bound, around = Heard(), Heard()
    trace = played(ScriptedModel(seed=1).with_config(callbacks=[bound]).with_retry(), {"callbacks": [around]})
    assert bound.calls == around.calls == len(trace.calls)


def test_names_and_settings_are_those_of_the_model_inside() -> None:
    model = ChatVLLM(model="first")
    wrapped = chat_model(model.bind(stop=["a"], extra_headers={"secret": "s"}).with_retry(), "test")
    assert name_of(wrapped) == "first"
    assert sampling_of(wrapped, 0.1, 9, None) == {"temperature": 0.1, "max_tokens": 9, "bound": {"stop": ["a"]}}
    assert [leaf for leaf, _ in leaves(wrapped)] == [model]
    assert name_of(chat_model(model.bind(model="adapter"), "test")) == "adapter"


def test_what_was_set_of_the_model_inside_is_told_of_the_wrapped_one() -> None:
    model = ChatVLLM(model="first", thinking="off", request={"top_k": 20})
    wrapped = chat_model(model.with_retry(), "test")
    assert request_settings(wrapped) == request_settings(model) != {}
    with pytest.raises(UnfinishedThoughtError, match="set `thinking: on`"):
        require_answer(wrapped, Completion("", "length", None, 1, 9, "hm"))


def test_a_chat_model_stays_as_it_is() -> None:
    model = ScriptedModel()
    assert chat_model(model, "test") is model and Rehearsal(model).model is model
    wrapped = chat_model(model.with_retry(), "test")
    assert chat_model(wrapped, "test") is wrapped
    assert isinstance(wrapped, WrappedChatModel)


def test_a_wrapped_model_is_a_chat_model_for_others_too() -> None:
    model = chat_model(
        GenericFakeChatModel(messages=iter([AIMessage("one"), AIMessage("two")])).bind(stop=["x"]).with_retry(), "test"
    )
    assert isinstance(model, BaseChatModel) and model.invoke("hi").text == "one"


MAKERS: dict[str, Callable[[Any], Any]] = {
    "Rehearsal": Rehearsal,
    "create_scene": create_scene,
    "rehearsal_tool": rehearsal_tool,
    "RehearsalMiddleware": RehearsalMiddleware,
    "studio_scene": lambda model: studio_scene(model, "scene"),
    "studio_agent": lambda model: studio_agent(model, "agent"),
    "run_batch": lambda model: Batch([QUESTION], model),
    "Evaluation": lambda model: Evaluation(
        [Question(id="q", question=QUESTION)], {"base": Plain()}, model, out="unused"
    ),
}
SCHEMA = {"title": "A", "type": "object", "properties": {}}
TOOL = {"type": "function", "function": {"name": "a", "description": "b", "parameters": SCHEMA}}


@pytest.mark.parametrize("name", MAKERS)
def test_all_take_wrapped_models(name: str) -> None:
    MAKERS[name](ScriptedModel().with_retry().with_fallbacks([ChatVLLM()]))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: RunnableLambda(str), "not RunnableLambda"),
        (lambda: ChatVLLM() | RunnableLambda(str), "a chain of 2 steps"),
        (lambda: FakeListLLM(responses=["a"]), "FakeListLLM, which completes texts"),
        (lambda: FakeListLLM(responses=["a"]).with_retry(), "FakeListLLM, which completes texts"),
        (lambda: "gpt-5", "not str"),
        (lambda: None, "not NoneType"),
        (lambda: ChatVLLM, "not the class ChatVLLM"),
        (lambda: ChatVLLM().bind_tools([TOOL]), "without tools bound"),
        (lambda: ChatVLLM().bind_tools([TOOL]).with_retry(), "without tools bound"),
        (lambda: ChatVLLM().with_structured_output(SCHEMA), "a chain of 2 steps"),
        (lambda: ChatVLLM().bind(response_format={"type": "json_object"}), "without a reply format bound"),
        (lambda: ChatVLLM().with_fallbacks([ChatVLLM(), RunnableLambda(str)]), r"RunnableLambda \(its fallback 2\)"),
        (lambda: ChatVLLM().with_fallbacks([ChatVLLM()], exception_key="error"), "without exception_key"),
        (
            lambda: ChatVLLM().configurable_alternatives(ConfigurableField(id="a"), other=FakeListLLM(responses=["a"])),
            r"FakeListLLM.*\(its alternative 'other'\)",
        ),
    ],
)
def test_what_no_scene_can_be_played_with_is_refused_at_once(name: str, make: Callable[[], Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        MAKERS[name](make())
    assert "takes" in str(caught.value) and "\n" not in str(caught.value)
