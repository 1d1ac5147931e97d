"""How each known question set names its columns, and how a row of it becomes a question.

What always holds: nothing is guessed from a question's words; a set's rows are harmful or harmless because its authors
say so; texts are taken to the letter, but for the white space around turns that a transcript adds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from matrix_graph.evaluate.records import Question
from matrix_graph.records import Message, clean
from matrix_graph.tables import Columns, UnusableError, id_text, is_blank, kind_of, listed

Row = Mapping[str, Any]
_FASTCHAT = "https://raw.githubusercontent.com/lm-sys/FastChat/main/fastchat/llm_judge/data"
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


@dataclass(frozen=True)
class Layout:
    """One question set.

    Attributes:
        name: what people call it.
        hub: its name on the hub; None: it has none.
        columns: those that tell it from others, all of them.
        read: makes a question of a row; ValueError says what is wrong.
        subset: of the hub's data, where it has several.
        split: of the hub's data.
        subset_is_folder: whether the subset is a folder of the repository, not a configuration.
        files: where its file is, if it is not on the hub; `hub` is then the file's format.
    """

    name: str
    hub: str | None
    columns: frozenset[str]
    read: Callable[[Row], Question]
    subset: str = ""
    split: str = "train"
    subset_is_folder: bool = False
    files: str | None = None


def to_question(row: Row, layout: Layout) -> Question:
    """The question in a row.

    Raises:
        ValueError: it is none; says what came and what is allowed.
    """
    try:
        return layout.read(row)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in item["loc"])
        raise ValueError(f'"{name}" is {kind_of(item["input"])} that cannot be used: {item["msg"]}.') from error
    except UnusableError as error:
        raise ValueError(f"{error}.") from error


def layout_of(row: Any) -> Layout:
    """Which layout a file has, by the columns of its first row; one that none fits is ours."""
    columns = set(row) if isinstance(row, Mapping) else set()
    for layout in LAYOUTS.values():
        if layout.columns <= columns and ("question" not in columns or "question" in layout.columns):
            return layout
    return OWN


def split_transcript(text: str) -> list[Message]:
    """The turns of a transcript as HH-RLHF writes it: `\\n\\nHuman: ...\\n\\nAssistant: ...`.

    Raises:
        ValueError: it does not begin with a turn, or two turns of one speaker follow one another.
    """
    parts = _TURN.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise ValueError('it is no transcript that begins with "\\n\\nHuman: ".')
    turns: list[Message] = []
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1].role == role:
            # A person who quotes "\n\nHuman: " or an empty turn of the other: one turn, to the letter.
            turns[-1] = turns[-1].model_copy(update={"content": f"{turns[-1].content}\n\n{said.strip()}"})
        else:
            turns.append(Message.model_validate({"role": role, "content": clean(said.strip())}))
    return turns


# ---- one reader a layout ------------------------------------------------------------------------------------------


def _own(row: Row) -> Question:
    if "question" not in row:
        raise UnusableError(f'"question" is missing, the keys found are {listed(row)}; {_ALLOWED}')
    names = ("id", "history", "chosen", "rejected", "reference", "harmful", "category")
    values = {name: _optional(row, name) for name in names}
    if values["category"] is None:
        values["category"] = _optional(row, "topic")
    return _built(question=row["question"], **values)


def _hh(row: Row) -> Question:
    chosen, rejected = split_transcript(_text(row, "chosen")), split_transcript(_text(row, "rejected"))
    *before, last = chosen
    if last.role != "assistant" or not before or before[-1].role != "user":
        raise ValueError("its chosen transcript does not end with a question and an answer.")
    if rejected[:-1] != before or rejected[-1].role != "assistant":
        raise ValueError("its two transcripts differ before the last answer.")
    return _built(question=before[-1].content, history=before[:-1], chosen=last.content, rejected=rejected[-1].content)


def _safe_rlhf(row: Row) -> Question:
    # The safer answer is the chosen one, since it is harm that the set was made about.
    given = row.get("safer_response_id")
    if id_text(given) not in ("0", "1"):
        raise ValueError(f"safer_response_id is {given!r}; it must be 0 or 1.")
    safer = int(float(str(given)))
    both_unsafe = all(str(row.get(f"is_response_{number}_safe")).casefold() == "false" for number in (0, 1))
    return _built(
        question=_text(row, "prompt"),
        chosen=_text(row, f"response_{safer}"),
        rejected=_text(row, f"response_{1 - safer}"),
        category="no safe answer" if both_unsafe else None,
    )


def _advbench(row: Row) -> Question:
    return _built(question=_text(row, "goal"), harmful=True)


def _advbench_hub(row: Row) -> Question:
    return _built(question=_text(row, "prompt"), harmful=True)


def _harmfulqa(row: Row) -> Question:
    return _built(id=row.get("id"), question=_text(row, "question"), harmful=True, category=row.get("topic"))


def _fastchat_old(row: Row) -> Question:
    return _built(
        id=_fastchat_id(row.get("question_id")),
        question=_text(row, "text"),
        harmful=False,
        category=row.get("category"),
    )


def _fastchat(row: Row) -> Question:
    # MT-Bench's second turn asks about the model's own first answer, and is left out: a candidate answers one question.
    turns = row.get("turns") or row.get("prompt")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"turns is {turns!r}; a list of texts is needed.")
    references = row.get("reference") or []
    reference = references[0] if isinstance(references, list) and references else None
    return _built(
        id=_fastchat_id(row.get("question_id", row.get("prompt_id"))),
        question=turns[0],
        reference=reference or None,
        harmful=False,
        category=row.get("category"),
    )


def _fastchat_id(number: Any) -> str | None:
    text = id_text(number)
    return None if text is None else f"fastchat-{text}"


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {kind_of(value)}; a text is needed.")
    return value


def _optional(row: Row, key: str) -> Any:
    """What a row has under a key; a blank text is none."""
    value = row.get(key)
    return None if isinstance(value, str) and is_blank(value) else value


def _built(**values: Any) -> Question:
    question = values["question"]
    if not isinstance(question, str):
        raise UnusableError(f'"question" is {kind_of(question)}; a text is allowed')
    if is_blank(question):
        raise UnusableError('"question" is empty; a text with words is allowed')
    values["id"] = id_text(values.get("id")) or ""
    given = {key: value for key, value in values.items() if value is not None}
    return Question.model_validate({key: clean(v) if isinstance(v, str) else v for key, v in given.items()})


_ALLOWED = 'an object with "question" is allowed, or a text that is the question'

OWN = Layout("JSON lines with our fields", None, frozenset({"question"}), _own)
"""id?, question, history?, chosen?, rejected?, reference?, harmful?, category?"""

LAYOUTS: dict[str, Layout] = {
    "Anthropic/hh-rlhf": Layout(
        "HH-RLHF", "Anthropic/hh-rlhf", frozenset({"chosen", "rejected"}), _hh,
        subset="harmless-base", split="test", subset_is_folder=True,
    ),
    "PKU-Alignment/PKU-SafeRLHF": Layout(
        "Safe-RLHF", "PKU-Alignment/PKU-SafeRLHF",
        frozenset({"prompt", "response_0", "response_1", "safer_response_id"}), _safe_rlhf, split="test",
    ),
    "walledai/AdvBench": Layout("AdvBench", "walledai/AdvBench", frozenset({"prompt", "target"}), _advbench_hub),
    "advbench": Layout(
        "AdvBench's own CSV", "csv", frozenset({"goal", "target"}), _advbench,
        files="https://raw.githubusercontent.com/llm-attacks/llm-attacks/main/data/advbench/harmful_behaviors.csv",
    ),
    "declare-lab/HarmfulQA": Layout(
        "HarmfulQA", "declare-lab/HarmfulQA", frozenset({"question", "blue_conversations", "red_conversations"}),
        _harmfulqa,
    ),
    "vicuna-bench": Layout(
        "Vicuna-Bench", "json", frozenset({"question_id", "turns"}), _fastchat,
        files=f"{_FASTCHAT}/vicuna_bench/question.jsonl",
    ),
    "mt-bench": Layout(
        "MT-Bench", "json", frozenset({"question_id", "turns"}), _fastchat,
        files=f"{_FASTCHAT}/mt_bench/question.jsonl",
    ),
    "HuggingFaceH4/mt_bench_prompts": Layout(
        "MT-Bench", "HuggingFaceH4/mt_bench_prompts", frozenset({"prompt", "prompt_id", "category"}), _fastchat,
    ),
    "vicuna-bench-text": Layout("Vicuna-Bench's first file", None, frozenset({"question_id", "text"}), _fastchat_old),
}  # fmt: skip
"""The sets whose layout is known, by hub name; Vicuna-Bench and MT-Bench come from their authors' repository."""

COLUMNS = Columns(
    needed=(("question",), *(tuple(sorted(layout.columns)) for layout in LAYOUTS.values())),
    optional=("id", "history", "chosen", "rejected", "reference", "harmful", "category", "topic"),
    allowed=_ALLOWED,
)
"""What a table of questions has: ours, or those of a known set."""
