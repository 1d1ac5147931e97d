"""Single calls of a scene, each asked as the scene asks it.

Why: whether a model is good enough for scenes shows in single calls whose right answers are known. What always holds:
prompts, schemas, parsers and the second try are the scene's own, so that a changed prompt changes both; nothing that
the model does raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel

from matrix_graph.config import SceneConfig
from matrix_graph.models.ask import Answer
from matrix_graph.records import Cast, Event
from matrix_graph.scene.cast import generate_cast
from matrix_graph.scene.modulator import Judgement, judge_alone
from matrix_graph.scene.revise import ask_reflection
from matrix_graph.scene.stage import Stage
from matrix_graph.scene.state import SceneState, plain


class SingleCalls:
    """Asks one model for single calls of a scene.

    Args:
        model: any LangChain chat model.
        config: settings of the scene.
    """

    def __init__(self, model: BaseChatModel, config: SceneConfig) -> None:
        self._stage = Stage(model, config, emit=lambda _: None)

    async def cast(self, question: str, draft: str) -> Answer[Cast]:
        """Ask who must be in the scene. The stance is not asked."""
        return await generate_cast(self._stage, {"question": question, "draft": draft})

    async def judge(
        self, cast: Cast, question: str, role: str, action: str, before: Sequence[tuple[str, str]] = ()
    ) -> Answer[Judgement]:
        """Ask the modulator about one action.

        Args:
            cast: with the things as they stand now, a situation and a stance.
            question: what the ego asked.
            role: who acts.
            action: what this person tries.
            before: (role, action) of what has happened so far. It is told as the summary of a long scene would be.
        """
        told = "\n".join(f"- {name}: {done}" for name, done in before)
        state = _state(cast, question)
        return await judge_alone(
            self._stage,
            state,
            {"round": 1, "role": role, "action": action, "step": role == cast.ego},
            f"\n{told}" if told else "",
        )

    async def reflect(self, cast: Cast, question: str, draft: str, events: Sequence[Event]) -> Answer[dict[str, Any]]:
        """Ask what became of the people in a scene that has ended.

        Args:
            cast: with a situation and a stance; its things as they stood in the end.
            question: what the ego asked.
            draft: the answer that was played.
            events: all that happened.

        Returns:
            An answer whose value has the fields of `records.Reflection`.
        """
        state = _state(cast, question)
        state["draft"] = draft
        state["events"] = [plain(event) for event in events]
        return await ask_reflection(self._stage, state)


def _state(cast: Cast, question: str) -> SceneState:
    return {
        "question": question,
        "cast": plain(cast),
        "objects": {thing.name: thing.state for thing in cast.objects},
        "events": [],
    }
