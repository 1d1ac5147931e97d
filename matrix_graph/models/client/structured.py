"""Structured output: a schema for vLLM's constrained decoding, and a parser that trusts no reply.

What always holds: the value is exactly what the model wrote, parsed as strict JSON. LangChain's own JSON parser repairs
truncated text, which would pass half an object off as a whole one; here a cut-off reply is an error.
"""

import json
from operator import itemgetter
from typing import Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseCumulativeTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, ValidationError
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import ValidationError as ValidationErrorV1
from pydantic_core import from_json

from matrix_graph.errors import ConfigError, ReplyError

JSON = dict[str, Any]
Schema = JSON | type
Method = Literal["json_schema", "json_mode", "function_calling"]


class StructuredReplyError(ReplyError, OutputParserException):
    """A reply that does not fit the schema asked for; LangChain's parsing error and this package's in one."""

    def __init__(self, message: str, *, llm_output: str) -> None:
        """Args: what is wrong, and the reply as it came."""
        OutputParserException.__init__(self, message, llm_output=llm_output)


def json_schema(schema: Schema, *, strict: bool | None = None) -> JSON:
    """The JSON schema to constrain decoding with.

    Args:
        schema: a pydantic class, a TypedDict class, a JSON schema, or a function in OpenAI's tool format.
        strict: True forbids properties that the schema does not name and requires all that it does.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(schema, dict) and not strict and not {"function", "parameters", "input_schema"} & schema.keys():
        return schema
    if not strict and isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    try:
        return convert_to_json_schema(schema, strict=strict)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"No JSON schema can be made of {schema!r}: {error}. Pass a pydantic class, a TypedDict class or a JSON "
            "schema (with a `title`, where strict=True)."
        ) from error


def structured_options(schema: Schema, method: str, strict: bool | None) -> JSON:
    """The per-call options of a request whose reply shall fit `schema`.

    Raises:
        ConfigError: an unknown method, or no JSON schema can be made of `schema`.
    """
    if method == "json_schema":
        options: JSON = {"structured_outputs": {"json": json_schema(schema, strict=strict)}}
    elif method == "json_mode":
        options = {"response_format": {"type": "json_object"}}
    else:
        raise ConfigError(f"method is {method!r}; it must be json_schema, json_mode or function_calling")
    try:
        # For LangChain's tracers. Converted here once: they convert it at each call, and a class takes far longer.
        shown = convert_to_json_schema(schema)
    except (ValueError, TypeError):
        return options
    return options | {"ls_structured_output_format": {"kwargs": {"method": method}, "schema": shown}}


def structured(
    llm: Runnable[LanguageModelInput, AIMessage], schema: Schema, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """`llm` followed by the parser of `schema`; see `ChatVLLM.with_structured_output`."""
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    parser = StructuredReplyParser(target=schema if is_class else None)
    if not include_raw:
        return llm | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    unparsed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")


class StructuredReplyParser(BaseCumulativeTransformOutputParser[Any]):
    """Reads the JSON of a reply: an instance of `target` where that is a pydantic class, else what the JSON holds.

    While a reply streams in, incomplete objects come out for a schema without class, and whole ones only for a class.
    """

    target: Any = None
    """A pydantic class, or None."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse the first generation.

        Args:
            result: one chat generation.
            partial: the reply is still coming in; None means nothing to show yet.

        Raises:
            StructuredReplyError: the reply was cut off, is no JSON, or does not validate.
        """
        text = result[0].text
        finish = None
        if isinstance(result[0], ChatGeneration) and isinstance(result[0].message, AIMessage):
            finish = result[0].message.response_metadata.get("finish_reason")
        if partial and finish is None:
            return self._so_far(text)
        if finish == "length":
            raise StructuredReplyError(
                f"The reply was cut off after {len(text)} characters (finish_reason 'length'); it must be a whole JSON "
                "value. Raise max_tokens, or ask for less.",
                llm_output=text,
            )
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError) as error:
            shown = text if len(text) <= 200 else f"{text[:200]} [...]"
            raise StructuredReplyError(
                f"The reply is {shown!r}, which is no JSON ({error}); it must be one JSON value. "
                "Does the server honour structured_outputs?",
                llm_output=text,
            ) from error
        return self._validated(value, text)

    async def aparse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """As `parse_result`; at once, since LangChain's default pays for a thread each time."""
        return self.parse_result(result, partial=partial)

    def parse(self, text: str) -> Any:
        """Parse a whole reply's text; raises as `parse_result` does."""
        return self.parse_result([Generation(text=text)])

    def _so_far(self, text: str) -> Any:
        if self.target is not None or not text.strip():
            return None
        try:
            # Not LangChain's parse_partial_json: half a minute for 100 kB of garbage, as it drops one letter at a time.
            return from_json(text, allow_partial="trailing-strings")
        except ValueError:
            return None

    def _validated(self, value: Any, text: str) -> Any:
        try:
            if isinstance(self.target, type) and issubclass(self.target, BaseModel):
                return self.target.model_validate(value)
            if isinstance(self.target, type) and issubclass(self.target, BaseModelV1):
                return self.target.parse_obj(value)
        except (ValidationError, ValidationErrorV1) as error:
            raise StructuredReplyError(f"The reply is JSON, but: {error}", llm_output=text) from error
        return value

    @property
    def _type(self) -> str:
        return "matrix-graph-structured-reply"
