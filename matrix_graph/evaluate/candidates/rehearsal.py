"""The scene at inference time: what this package is for, as one candidate among others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.language_models import BaseChatModel
from pydantic import Field, PrivateAttr

from matrix_graph.config import SceneConfig
from matrix_graph.errors import SceneError
from matrix_graph.evaluate.asking import Asker
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.records import Question

if TYPE_CHECKING:
    from matrix_graph.compose.rehearsal import Rehearsal


class RehearsalCandidate(Candidate):
    """A draft is rehearsed in a social scene, and revised by what happens there.

    MATRIX, Pang et al., "Self-Alignment of Large Language Models via Monopolylogue-based Social Scene Simulation",
    arXiv 2402.05699. Sampling follows the scene's settings.
    """

    method: ClassVar[str] = "rehearsal"

    scene: SceneConfig = Field(default=SceneConfig(), description="How the scene is played.")

    _played_by: tuple[BaseChatModel, Rehearsal] | None = PrivateAttr(default=None)

    @property
    def depth(self) -> int:
        """A draft, a cast beside its stance, two calls a round less one, reflection, revision and its check.

        The ego's first step needs no call of its own. With P steps and two rounds more that is 2P + 8.
        """
        return 2 * self.scene.rounds + 4

    @property
    def settings(self) -> dict[str, Any]:
        """The scene's settings, and which model plays it."""
        return {"method": self.method, "model": self.model, "scene": self.scene.model_dump(mode="json")}

    async def answer(self, question: Question, asker: Asker) -> str:
        """As many calls as the scene takes; they are in its trace."""
        rehearsal = self._rehearsal(asker.model)
        result = await rehearsal.ainvoke({"messages": question.messages} if question.history else question.question)
        asker.scene = trace = result["trace"]
        if trace.status == "failed" or trace.answer is None:
            why = f"{trace.error.type}: {trace.error.message}" if trace.error else "it gave no reason"
            raise SceneError(f"The scene failed ({why}); a draft is not passed off as its answer.")
        return trace.answer

    def _rehearsal(self, model: BaseChatModel) -> Rehearsal:
        # Built once: compiling the scene's graph costs more than a call.
        if self._played_by is None or self._played_by[0] is not model:
            from matrix_graph.compose.rehearsal import Rehearsal

            self._played_by = model, Rehearsal(model, config=self.scene)
        return self._played_by[1]
