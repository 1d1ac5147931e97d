"""What is told of a run at one moment: `summary.json`, which whoever watches reads.

Why apart: it is written by one program and read by others, earlier and later releases among them. What always holds: a
summary does not change; questions are counted over all starts of a run, the rest over this start; a number that is not
known is None.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from matrix_graph.records import clean

State = Literal["starting", "running", "waiting", "draining", "done", "stopped", "failed"]

ENDED: frozenset[State] = frozenset({"done", "stopped", "failed"})
"""The states that a run does not leave."""


class _Part(BaseModel):
    """A file of a later release may hold more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Questions(_Part):
    """The questions of the input, over all starts of the run."""

    total: int | None = Field(
        default=None, description="Questions in the input, without rejected and duplicate rows; null: not known."
    )
    done: int = Field(default=0, description="finished + blocked + failed.")
    finished: int = Field(default=0, description="Scenes that were played to their end.")
    blocked: int = Field(default=0, description="Scenes whose ego was rejected twice at one step.")
    failed: int = Field(default=0, description="Scenes that could not go on; their traces say why.")
    in_flight: int = Field(default=0, description="Scenes that are being played at this moment.")
    set_aside: int = Field(default=0, description="Questions put off to the very end, as the engine died of them.")
    rejected: int = Field(default=0, description="Rows of the input that are no questions.")
    duplicates: int = Field(default=0, description="Rows that ask what an earlier row asks.")
    left: int | None = Field(
        default=None, description="total - done - set_aside, scenes in flight included; null: total is not known."
    )


class ThisStart(_Part):
    """What was done since the command was last started."""

    seconds: float = Field(default=0.0, description="Seconds since it was started, until it ended.")
    seconds_away: float = Field(default=0.0, description="Seconds of these in which the model server was away.")
    scenes: int = Field(default=0, description="Scenes that ended, whatever their status.")
    cut: int = Field(default=0, description="Scenes of these whose answer ended at its limit of tokens.")
    calls: int = Field(default=0, description="Model calls that ended, those of scenes in flight included.")
    input_tokens: int = Field(default=0, description="Tokens of their prompts.")
    output_tokens: int = Field(default=0, description="Tokens that were generated.")
    restarts: int = Field(default=0, description="How often the engine was restarted.")


class Rates(_Part):
    """How fast it goes: over the last minute and a half or ten scenes, and over this start once the run has ended.

    Time counts from when the model server was ready.
    """

    scenes_per_hour: float | None = Field(default=None, description="Scenes that end an hour; null: none has ended.")
    output_tokens_per_second: float | None = Field(
        default=None, description="Tokens generated per second; null: no call has ended."
    )
    calls_per_scene: float | None = Field(
        default=None, description="Mean model calls of a scene that ended in this start; null: none has ended."
    )
    seconds_per_scene: float | None = Field(
        default=None, description="Mean seconds that a scene took that ended in this start; null: none has ended."
    )
    prefix_cache_hit_rate: float | None = Field(
        default=None,
        description="Share of prompt tokens, 0 to 1, found in vLLM's prefix cache; null: it does not tell.",
    )
    seconds_left: float | None = Field(
        default=None,
        description="Seconds until nothing is left, while draining until nothing is in flight; null: not known, as "
        "while the server is away.",
    )


class Limits(_Part):
    """How much is done side by side."""

    scenes: int | None = Field(
        default=None, description="The most scenes in flight; null: not known, or nothing was played."
    )
    requests: int | None = Field(
        default=None, description="The most requests in flight; null: not known, or nothing was played."
    )


class Summary(_Part):
    """The state of a run at one moment: `summary.json`."""

    state: State = Field(
        description="starting: no scene yet; running; waiting: the model server is away, scenes wait for it; draining: "
        "no new scene begins; done: nothing is left; stopped: ended before that, on request; failed: ended by an error."
    )
    message: str | None = Field(default=None, description="Why it is in this state; null: nothing to say.")
    folder: str = Field(description="The run's folder, as it was given; empty: nothing is kept.")
    source: str = Field(description="Where the questions come from.")
    model: str = Field(default="", description="The served model's name; empty: not known yet.")
    base_url: str = Field(default="", description="The model server's address, without secrets; empty: none is known.")
    pid: int = Field(description="The run's process.")
    host: str = Field(description="The machine that it runs on.")
    started_at: datetime = Field(description="When the command was last started, UTC.")
    updated_at: datetime = Field(description="When all this was so, UTC.")
    questions: Questions = Questions()
    this_start: ThisStart = ThisStart()
    rates: Rates = Rates()
    limits: Limits = Limits()

    @field_validator("message", "folder", "source", "model", "base_url", "host", mode="before")
    @classmethod
    def _encodable(cls, value: Any) -> Any:
        # Names of files may hold what UTF-8 has no form for.
        return clean(value) if isinstance(value, str) else value
