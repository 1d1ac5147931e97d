"""Chat models in LangChain's wrappers: a retry, a fallback, bound options, a choice that the run's config makes.

Why: apps hand on `model.with_retry()`, `model.with_fallbacks([...])`, `model.bind(...)` and configurable models as
their model, and a scene needs the chat models inside: each is asked for a schema in a way of its own. What always
holds: the wrappers stay in effect for every call; what no scene can be played with is refused when it is handed over,
with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, BaseLLM, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence, RunnableWithFallbacks, ensure_config
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import DynamicRunnable, RunnableConfigurableAlternatives
from pydantic import ConfigDict

from matrix_graph.errors import ConfigError

Options = dict[str, Any]
MakeLeaf = Callable[[BaseChatModel, Options], Runnable[Any, Any]]
"""Makes of a chat model and the options bound around it what is run in its place."""

_TOOLS = ("tools", "functions", "tool_choice", "function_call")
_FORMATS = (
    "response_format",
    "structured_outputs",
    "format",
    "ls_structured_output_format",
    "structured_output_format",
)

_UNHEARD: RunnableConfig = {"callbacks": []}
"""Who listens hears of the wrapper's run; the one inside would count its tokens twice."""


class WrappedChatModel(BaseChatModel):
    """A wrapped chat model as a chat model, so that whatever takes one takes this; made by `chat_model`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    runnable: Any
    """The wrapper as it was given."""

    @property
    def _llm_type(self) -> str:
        return "wrapped-chat-model"

    @property
    def primary(self) -> BaseChatModel:
        """The chat model that is asked first."""
        return next(leaves(self))[0]

    def bind_tools(self, tools: Any, **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """The wrapper with tools bound to every chat model in it."""
        return arranged(self.runnable, lambda leaf, options: leaf.bind_tools(tools, **kwargs).bind(**options))

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """The wrapper with every chat model in it held to a schema."""
        return arranged(
            self.runnable,
            lambda leaf, options: bound_inside(
                leaf, leaf.with_structured_output(schema, include_raw=include_raw, **kwargs), options
            ),
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        given = kwargs if stop is None else {**kwargs, "stop": stop}
        return _result(self.runnable.invoke(messages, _UNHEARD, **given))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        given = kwargs if stop is None else {**kwargs, "stop": stop}
        return _result(await self.runnable.ainvoke(messages, _UNHEARD, **given))


def chat_model(given: object, who: str) -> BaseChatModel:
    """What a caller handed over as the model, as a chat model that scenes can be played with.

    Args:
        given: a chat model, or one in LangChain's wrappers, several of them inside each other too.
        who: what takes it, for the message.

    Returns:
        A chat model as it is, a wrapped one as a `WrappedChatModel`.

    Raises:
        ConfigError: it is something else, or one with tools or a reply format bound to it; says what.
    """
    if isinstance(given, BaseChatModel):
        return given
    _check(given, {}, who, "")
    return WrappedChatModel(runnable=given)


def leaves(model: BaseChatModel) -> Iterator[tuple[BaseChatModel, Options]]:
    """The chat models in a model, the one that is asked first before its fallbacks, each with the options bound to it.

    Args:
        model: as `chat_model` returns it; one without wrappers is its own only leaf.
    """
    if not isinstance(model, WrappedChatModel):
        yield model, {}
        return
    found: list[tuple[BaseChatModel, Options]] = []

    def note(leaf: BaseChatModel, options: Options) -> Runnable[Any, Any]:
        found.append((leaf, options))
        return leaf

    arranged(model.runnable, note)
    yield from found


def arranged(runnable: Any, make: MakeLeaf) -> Runnable[Any, Any]:
    """The same wrappers around something else: each chat model inside replaced by what `make` returns.

    What a run's config chooses is chosen now, by the config of the run that this is called in.
    """
    return _arranged(runnable, {}, ensure_config(), make)


def bound_inside(leaf: BaseChatModel, structured: Runnable[Any, Any], options: Options) -> Runnable[Any, Any]:
    """A chat model that is held to a schema, with more options bound to the chat model itself.

    Args:
        leaf: the chat model.
        structured: what its `with_structured_output` returned: the model, and what reads its reply.
        options: bound to the model; a chain would not hand them on.

    Raises:
        ConfigError: where in it the model stands cannot be seen.
    """
    if not options:
        return structured
    if isinstance(structured, RunnableSequence):
        first: Any = structured.first
        rest = structured.steps[1:]
        steps = getattr(first, "steps__", None)
        if isinstance(steps, Mapping) and isinstance(steps.get("raw"), Runnable):
            raw = steps["raw"].bind(**options)
            first = first.model_copy(update={"steps__": {**steps, "raw": raw}})
        else:
            first = first.bind(**options)
        return RunnableSequence(first, *rest)
    if isinstance(structured, RunnableBindingBase):
        return structured.bind(**options)
    raise ConfigError(
        f"{type(leaf).__name__} has {', '.join(sorted(options))} bound to it, and its with_structured_output leaves no "
        "way to say so too. Set that on the model itself."
    )


def _arranged(runnable: Any, options: Options, config: RunnableConfig, make: MakeLeaf) -> Runnable[Any, Any]:
    if isinstance(runnable, WrappedChatModel):
        return _arranged(runnable.runnable, options, config, make)
    if isinstance(runnable, BaseChatModel):
        return make(runnable, options)
    if isinstance(runnable, DynamicRunnable):
        chosen, config = runnable.prepare(config)
        return _arranged(chosen, options, config, make)
    if isinstance(runnable, RunnableWithFallbacks):
        return runnable.model_copy(
            update={
                "runnable": _arranged(runnable.runnable, options, config, make),
                "fallbacks": [_arranged(fallback, options, config, make) for fallback in runnable.fallbacks],
            }
        )
    if isinstance(runnable, RunnableBindingBase):
        # Options go to the chat model: with a schema, what stands in its place is a chain, which would lose them.
        inner = {**runnable.kwargs, **options}
        bound = _arranged(runnable.bound, inner, merge_configs(config, runnable.config), make)
        return runnable.model_copy(update={"bound": bound, "kwargs": {}})
    raise ConfigError(f"A configurable model turned out to be a {type(runnable).__name__}; it must be a chat model.")


def _check(given: object, options: Mapping[str, Any], who: str, where: str) -> None:
    """See that a scene can be played with a part of a model."""
    place = f" ({where})" if where else ""
    if isinstance(given, BaseChatModel):
        for names, what in ((_TOOLS, "tools"), (_FORMATS, "a reply format")):
            if any(options.get(name) is not None for name in names):
                raise ConfigError(
                    f"{who} takes a chat model without {what} bound to it{place}: a scene asks for replies of its own. "
                    "Give the model itself, such as ChatVLLM()."
                )
    elif isinstance(given, RunnableConfigurableAlternatives):
        _check(given.default, options, who, _inside(where, "its default"))
        for name, alternative in given.alternatives.items():
            if isinstance(alternative, Runnable):  # else a function that makes one when it is chosen
                _check(alternative, options, who, _inside(where, f"its alternative {name!r}"))
    elif isinstance(given, DynamicRunnable):
        _check(given.default, options, who, where)
    elif isinstance(given, RunnableWithFallbacks):
        if given.exception_key is not None:
            raise ConfigError(
                f"{who} takes fallbacks without exception_key{place}: a scene gives messages, not a dict."
            )
        _check(given.runnable, options, who, where)
        for number, fallback in enumerate(given.fallbacks, 1):
            _check(fallback, options, who, _inside(where, f"its fallback {number}"))
    elif isinstance(given, RunnableBindingBase):
        _check(given.bound, {**given.kwargs, **options}, who, where)
    else:
        raise ConfigError(f"{who} takes a chat model, not {_told(given)}{place}. {_ADVICE}")


_ADVICE = (
    "Give the model itself, such as ChatVLLM(), without tools bound to it; with_retry, with_fallbacks, bind and "
    "configurable_fields of chat models are taken as well."
)


def _told(given: object) -> str:
    name = type(given).__name__
    if isinstance(given, BaseLLM):
        return f"{name}, which completes texts and knows no messages"
    if isinstance(given, RunnableSequence):
        return f"{name}, a chain of {len(given.steps)} steps"
    if isinstance(given, type):
        return f"the class {given.__name__}"
    return name


def _inside(where: str, part: str) -> str:
    return f"{where}, {part}" if where else part


def _result(reply: Any) -> ChatResult:
    if not isinstance(reply, AIMessage):
        raise TypeError(f"a wrapped chat model returned a {type(reply).__name__}; an AIMessage is needed")
    return ChatResult(generations=[ChatGeneration(message=reply)])
