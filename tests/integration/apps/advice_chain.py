"""A LangChain chain that gives advice: a prompt, a rehearsal, a parser; made for many questions at once."""

from operator import itemgetter

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from matrix_graph import Rehearsal, SceneConfig


def build(model: BaseChatModel) -> Runnable[dict[str, str], str]:
    prompt = ChatPromptTemplate([("system", "You give advice to people."), ("user", "{name} asks: {question}")])
    rehearsal = Rehearsal(model, config=SceneConfig(roles=1, steps=1))
    return prompt | rehearsal | itemgetter("answer") | StrOutputParser()
