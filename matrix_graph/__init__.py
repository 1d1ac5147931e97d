"""A LangGraph plugin that rehearses an answer in a social scene before giving it."""

__version__ = "0.1.0"
