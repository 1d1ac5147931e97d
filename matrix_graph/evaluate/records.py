"""What an evaluation leaves behind: questions, answers, scores and verdicts, one JSON object a line each.

Why: tables, plots and intervals are made of these records alone, so that they can be made again at any time. What
always holds: a record is written once and never changed; (candidate, question_id) names an answer, (candidate,
question_id, text) a score; text from models is stored to the letter. `seconds` differ from run to run by nature, all
else does not where the model's output is the same.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from matrix_graph.records import Message, Problem

SCHEMA_VERSION = 1

ScoredText = Literal["chosen", "rejected", "reference"]
Winner = Literal["first", "second", "tie"]
Order = Literal["first_then_second", "second_then_first"]


class _Record(BaseModel):
    """A line on disk; a later release may add keys."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def to_line(self) -> bytes:
        """One line of JSON in UTF-8, without the newline."""
        return self.model_dump_json().encode()


class Question(_Record):
    """One question, and what is known about good and bad answers to it."""

    id: str = Field(description="Tells it from all others of the evaluation.")
    question: str = Field(description="The last turn of the person who asks.")
    history: list[Message] = Field(default=[], description="Earlier turns, user and assistant; empty for most.")
    chosen: str | None = Field(default=None, description="The answer that people preferred; null if there is no pair.")
    rejected: str | None = Field(default=None, description="The answer that people liked less; null likewise.")
    reference: str | None = Field(default=None, description="An answer known to be good; null if there is none.")
    harmful: bool | None = Field(
        default=None, description="Whether a good answer refuses it; null: nobody said, and it counts as neither."
    )
    answered: bool = Field(default=True, description="Whether candidates answer it; else its texts are scored alone.")
    source: str = Field(default="", description="The file or hub name that it came from.")
    category: str | None = Field(default=None, description="As its source names it; null if it does not.")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages, the question last."""
        turns = [{"role": str(turn.role), "content": turn.content} for turn in self.history]
        return [*turns, {"role": "user", "content": self.question}]

    @property
    def text(self) -> str:
        """The conversation as one text, for prompts that quote it."""
        if not self.history:
            return self.question
        names = {"user": "User", "assistant": "Assistant", "system": "System"}
        return "\n".join(f"{names[turn['role']]}: {turn['content']}" for turn in self.messages)


class Exchange(_Record):
    """One model call of a candidate."""

    step: str = Field(description='What the call was for, such as "critique".')
    messages: list[Message] = Field(description="Exactly as sent.")
    completion: str = Field(description="Exactly as received; empty if the call brought none.")
    finish_reason: str | None = None
    model: str = ""
    sampling: dict[str, Any] = {}
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    error: Problem | None = Field(default=None, description="Why the completion could not be used; null if it was.")


class AnswerRecord(_Record):
    """One candidate's answer to one question, and what it cost."""

    schema_version: int = SCHEMA_VERSION
    candidate: str
    question_id: str
    question: str = Field(description="As `Question.text`.")
    answer: str | None = Field(description="Null if the candidate failed; then `error` says why.")
    calls: int = Field(description="Model calls, repeats included.")
    input_tokens: int = Field(description="Over all calls, as the server counts them.")
    output_tokens: int = Field(description="Likewise.")
    seconds: float = Field(description="Wall time from question to answer, beside everything else that ran.")
    error: Problem | None = None
    settings: dict[str, Any] = Field(description="All that decides how the candidate answers: method, model, sampling.")
    exchanges: list[Exchange] = Field(
        default=[], description="The model calls, in the order in which they began; a rehearsal's are in its trace."
    )
    trace_id: str | None = Field(default=None, description="Of the scene in `traces.jsonl`; null without a scene.")


class ScoreRecord(_Record):
    """How likely a model finds one given text as the answer to a question."""

    schema_version: int = SCHEMA_VERSION
    candidate: str
    question_id: str
    text: ScoredText
    logprob: float | None = Field(description="Sum over the answer's tokens, in nats; null if it failed.")
    tokens: int = Field(description="The answer's tokens that the sum is over, the end-of-turn token left out.")
    prompt_tokens: int = Field(description="Tokens before the answer.")
    error: Problem | None = None
    settings: dict[str, Any] = {}

    @property
    def mean(self) -> float | None:
        """Log-probability per token, in nats; None if it failed or there is no token."""
        return None if self.logprob is None or not self.tokens else self.logprob / self.tokens


class Verdict(_Record):
    """One judgement of two answers to one question, in one of the two orders in which they can be shown."""

    schema_version: int = SCHEMA_VERSION
    question_id: str
    first: str = Field(description="A candidate; `first` and `second` are the same in both orders.")
    second: str
    order: Order = Field(description="Which of the two the judge saw first.")
    winner: Winner | None = Field(description="In terms of `first` and `second`; null if the reply could not be read.")
    raw: str = Field(description="The judge's reply exactly as received.")
    judge: str = Field(default="", description="The judging model, or a person's name in a ratings file.")
    repeat: int = Field(default=0, description="From 0; the same judgement asked again, for self-agreement.")
    messages: list[Message] = Field(default=[], description="The prompt exactly as sent.")
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    error: Problem | None = None
    settings: dict[str, Any] = {}


class Plan(_Record):
    """What an evaluation set out to do; `evaluation.json`."""

    schema_version: int = SCHEMA_VERSION
    candidates: dict[str, dict[str, Any]] = Field(description="Settings by candidate name, in the order given.")
    judge: dict[str, Any] | None = Field(default=None, description="The judge's settings; null without a judge.")
    questions: int = Field(description="How many there are in `questions.jsonl`.")
    version: str = Field(description="Of this package.")
