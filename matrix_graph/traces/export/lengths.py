"""How long a row is, in tokens of the model that is to learn it, under its own chat template."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from matrix_graph.errors import ConfigError, ExportError, PrerequisiteError
from matrix_graph.models.bundled import bundled_model, prepare_bundled_model
from matrix_graph.models.system_role import folded, has_system
from matrix_graph.traces.export.pieces import Chat, Piece


class Tokenizer:
    """Counts tokens as a trainer will.

    Args:
        model: a model's folder, hub id, or a bundled model such as "bundled:1.5b"; nothing of it but the tokenizer is
            read, and no code of it is run.

    Raises:
        PrerequisiteError: transformers is not installed, or a bundled model cannot be prepared.
        ServerError: there is no such bundled model.
        ConfigError: there is no tokenizer there, or it has no chat template.
    """

    def __init__(self, model: str) -> None:
        bundled = bundled_model(model)
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise PrerequisiteError(
                "Lengths in tokens need transformers, which is not installed: `pip install 'matrix-graph[train]'`."
            ) from error
        folder = model if bundled is None else str(prepare_bundled_model(bundled.key))
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"No tokenizer can be read from {model!r}: {_first_line(error)}. Give a model's folder, a hub id, or a "
                "bundled model such as bundled:1.5b."
            ) from error
        if not getattr(self._tokenizer, "chat_template", None):
            raise ConfigError(
                f"The tokenizer of {model!r} has no chat template, so that nobody can say what a chat is in its "
                "tokens. Give the instruction-tuned model of the same family, or add a chat_template to its tokenizer."
            )
        self.model = model

    def length(self, piece: Piece) -> int:
        """The tokens of a row; of a preference pair, of the longer side.

        Raises:
            ExportError: the chat template refuses the chat, whose sides do not take turns, say.
        """
        whole = self._count(piece.messages)
        if not piece.rejected:
            return whole
        return max(whole, self._count([*piece.messages[:-1], {"role": "assistant", "content": piece.rejected}]))

    def _count(self, chat: Chat) -> int:
        try:
            return self._counted(chat)
        except Exception as error:  # a template raises what it likes, jinja2's own and Python's
            if has_system(chat):  # as the training has it where a template refuses a system message
                with suppress(Exception):
                    return self._counted(folded(chat))
            roles = ", ".join(message["role"] for message in chat[:4])
            raise ExportError(
                f"The chat template of {self.model!r} does not take a row ({roles}, ...): {_first_line(error)}. "
                "Export parts that it takes, such as --only answers, or use another model's tokenizer."
            ) from error

    def _counted(self, chat: Chat) -> int:
        # Rendered and tokenized apart, as the lists that come back differ between releases of transformers.
        text = self._tokenizer.apply_chat_template(chat, tokenize=False)
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
