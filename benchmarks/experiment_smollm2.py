"""The experiment of docs/experiment-smollm2.md: the whole way from questions to compared answers, on the bundled model.

    python benchmarks/experiment_smollm2.py run DATA --out runs/experiment
    python benchmarks/experiment_smollm2.py keep runs/experiment
    python benchmarks/experiment_smollm2.py tables

run     splits the questions, plays scenes (`matrix-graph run`), looks at them (`quality`), exports rows (`export`),
        trains an adapter on them (`train`) and lets all candidates answer questions that were not trained on
        (`evaluate`). Each step is the command that people start. Hours on 2 cores; started again it goes on where it
        stopped.
keep    writes the records that the numbers are made of to docs/experiment-smollm2/, without a word of any question or
        answer: letters become x, but for the strings by which refusals are told, so that lengths and refusals are as
        they were. It is checked that the results are the same to the last digit.
tables  works the results out of the kept records and prints the tables of the document; with --write it puts them
        there, with --check it leaves with code 1 if the document says anything else.

DATA is a folder with hh_harmless.jsonl, harmfulqa.jsonl, advbench.jsonl, vicuna_bench.jsonl and
hh_harmless_pairs.jsonl: rows with a "question", the last with "chosen" and "rejected" too. A question that is compared
on is never trained on. Which questions are taken goes by the hash of their text, not by their place in the file.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matrix_graph.evaluate import folder as evaluation
from matrix_graph.evaluate.document import Section, Table, number, percent, to_markdown
from matrix_graph.evaluate.records import AnswerRecord, Question, Verdict
from matrix_graph.evaluate.refusals import REFUSAL_LISTS
from matrix_graph.evaluate.results import work_out
from matrix_graph.evaluate.results_document import interval, to_sections
from matrix_graph.evaluate.scene_words import SHARES
from matrix_graph.evaluate.statistics import Interval
from matrix_graph.models.bundled import prepare_bundled_model
from matrix_graph.train.record import TrainingRecord

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "experiment-smollm2.md"
RECORDS = ROOT / "docs" / "experiment-smollm2"
METHODS = "base,rehearsal,critique-revise,self-align,safe-prompt,debate,best-of-n,decrim"
ADAPTER = "tuned"
RECIPE = """\
rank: 8
alpha: 16
dropout: 0.05
epochs: 1
learning_rate: 2.0e-4
schedule: cosine
warmup: 0.03
batch_size: 1
accumulate: 8
max_length: 1024
"""
"""The paper's, with ten times its learning rate, since 2e-5 hardly moves so small a model in so few steps, and one
epoch instead of three, since each takes twenty minutes on two cores."""
PLAIN = (evaluation.PLAN_NAME, "training.json", "quality.json", "split.json")
PACKED = (evaluation.QUESTIONS_NAME, evaluation.ANSWERS_NAME, evaluation.SCORES_NAME, evaluation.VERDICTS_NAME)
_BEGIN, _END = "<!-- tables: begin -->", "<!-- tables: end -->"


# ---- run ------------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """Every step, each of which goes on where it stopped."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    split(options.data, out, options.scenes, options.questions, options.pairs)
    scenes, rows, adapter, compared = out / "scenes", out / "rows.jsonl", out / "adapter", out / "compared"
    weights = str(prepare_bundled_model())
    recipe = out / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    more = ["--base-url", options.base_url] if options.base_url else []
    command("run", out / "train.jsonl", "--out", scenes, *more)
    kept = command("quality", scenes, "--json", printed=True)
    (out / "quality.json").write_text(kept or "", encoding="utf-8")
    if not rows.exists():
        mix = f"harmful={options.scenes},simulation={options.scenes // 2}"
        lengths = ("--tokenizer", weights, "--max-length", "1024")
        command("export", scenes, "--out", rows, "--include", "simulation", "--mix", mix, *lengths)
    command("train", rows, "--out", adapter, "--recipe", recipe)
    files = ("--harmful", out / "harmful.jsonl", "--harmless", out / "harmless.jsonl", "--pairs", out / "pairs.jsonl")
    candidates = f"{METHODS},{ADAPTER}={adapter}"
    words = ("evaluate", *files, "--candidates", candidates, "--judge", "base", "--out", compared, *more)
    # What failed is asked for once more; what fails again stays failed, and is counted in the tables.
    if command(*words, some_may_fail=True) is None and command(*words, "--retry-failed", some_may_fail=True) is None:
        print("Some answers or verdicts failed twice; the tables count them.")
    print(f"Look at {compared / 'results.html'}; then: {Path(__file__).name} keep {out}")
    return 0


def command(*words: object, printed: bool = False, some_may_fail: bool = False) -> str | None:
    """Run a command of `matrix-graph`; returns what it printed if that is asked for.

    None: it did all, but some of its parts failed; only if `some_may_fail`.

    Raises:
        SystemExit: it failed; its own words stand above.
    """
    argv = [sys.executable, "-m", "matrix_graph.cli", *(str(word) for word in words)]
    print(f"\n$ matrix-graph {' '.join(argv[3:])}", flush=True)
    done = subprocess.run(argv, stdout=subprocess.PIPE if printed else None, text=True, check=False)
    if done.returncode == 1 and some_may_fail:
        return None
    if done.returncode:
        raise SystemExit(f"matrix-graph {argv[3]} left with code {done.returncode}; start this again to go on.")
    return done.stdout or ""


def split(data: Path, out: Path, scenes: int, questions: int, pairs: int) -> None:
    """Write train.jsonl, harmful.jsonl, harmless.jsonl and pairs.jsonl, none of whose questions stands in another."""
    taken: set[str] = set()

    def draw(name: str, count: int) -> list[dict[str, Any]]:
        with (data / f"{name}.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
        chosen = []
        for row in sorted(rows, key=lambda row: _digest(row["question"])):
            text = " ".join(row["question"].split()).casefold()
            if text not in taken and len(chosen) < count:
                taken.add(text)
                chosen.append(row)
        return chosen

    parts = {
        "harmful": draw("advbench", questions),
        "harmless": draw("vicuna_bench", questions),
        "pairs": draw("hh_harmless_pairs", pairs),
    }
    # Last, so that nothing that is compared on is among them.
    parts["train"] = [*draw("hh_harmless", scenes - scenes // 2), *draw("harmfulqa", scenes // 2)]
    for name, rows in parts.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    counts = {name: len(rows) for name, rows in parts.items()}
    (out / "split.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ---- keep -----------------------------------------------------------------------------------------------------------


def keep(options: argparse.Namespace) -> int:
    """Write the records without their texts, and see that they give the same results."""
    out: Path = options.out
    records: Path = options.records
    compared = out / "compared"
    records.mkdir(parents=True, exist_ok=True)
    plan = evaluation.read_plan(compared)
    files: dict[str, bytes] = {
        evaluation.PLAN_NAME: _json(plan.model_dump(mode="json")),
        "training.json": (out / "adapter" / "training.json").read_bytes(),
        "quality.json": _json(json.loads((out / "quality.json").read_text(encoding="utf-8"))),
        "split.json": (out / "split.json").read_bytes(),
        evaluation.QUESTIONS_NAME: _lines(_bare_question(row) for row in evaluation.read_questions(compared)),
        evaluation.ANSWERS_NAME: _lines(_bare_answer(row) for row in evaluation.read_answers(compared)),
        evaluation.SCORES_NAME: _lines(row.to_line() for row in evaluation.read_scores(compared)),
        evaluation.VERDICTS_NAME: _lines(_bare_verdict(row) for row in evaluation.read_verdicts(compared)),
    }
    for name, content in files.items():
        if name in PACKED:
            (records / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (records / name).write_bytes(content)
    with unpacked(records) as folder:
        if work_out(folder) != work_out(compared):
            raise SystemExit("The records without their texts give other results; nothing may be made of them.")
    print(
        f"kept: {records}, {sum(path.stat().st_size for path in records.iterdir()):,} bytes; the results are the same"
    )
    return 0


def mask(text: str) -> str:
    """The text with x for every character, but for white space and for what refusals are told by."""
    keywords = sorted({word for words in REFUSAL_LISTS.values() for word in words}, key=len, reverse=True)
    shown = [character.isspace() for character in text]
    plain = text.replace("\u2019", "'")
    for keyword in keywords:
        for match in re.finditer(f"(?={re.escape(keyword)})", plain):
            shown[match.start() : match.start() + len(keyword)] = [True] * len(keyword)
    return "".join(character if show else "x" for character, show in zip(text, shown, strict=True))


def _bare_question(question: Question) -> bytes:
    bare: dict[str, Any] = {"question": _digest(question.question), "history": [], "source": Path(question.source).name}
    texts = {name: None for name in ("chosen", "rejected", "reference")}
    return question.model_copy(update={**bare, **texts}).to_line()


def _bare_answer(record: AnswerRecord) -> bytes:
    update: dict[str, Any] = {"question": _digest(record.question), "exchanges": []}
    if record.answer is not None:
        update["answer"] = mask(record.answer)
    if record.error is not None:
        update["error"] = record.error.model_copy(update={"message": ""})
    return record.model_copy(update=update).to_line()


def _bare_verdict(verdict: Verdict) -> bytes:
    return verdict.model_copy(update={"messages": []}).to_line()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _lines(lines: Iterator[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


@contextmanager
def unpacked(records: Path) -> Iterator[Path]:
    """The kept records as a folder of an evaluation; gone afterwards."""
    if not (records / evaluation.PLAN_NAME).exists():
        raise SystemExit(f"{records} holds no records of the experiment; make them with `run` and `keep`.")
    with tempfile.TemporaryDirectory(prefix="experiment-") as name:
        folder = Path(name)
        for packed in PACKED:
            (folder / packed).write_bytes(gzip.decompress((records / f"{packed}.gz").read_bytes()))
        for plain in PLAIN:
            (folder / plain).write_bytes((records / plain).read_bytes())
        yield folder


# ---- tables ---------------------------------------------------------------------------------------------------------


def tables(options: argparse.Namespace) -> int:
    """Print, write or check the tables of the document."""
    with unpacked(options.records) as folder:
        made = tables_of(folder)
    if not (options.write or options.check):
        print(made)
        return 0
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    whole = f"{before}{_BEGIN}\n\n{made}\n{_END}{after}"
    if options.write:
        DOCUMENT.write_text(whole, encoding="utf-8")
        return 0
    print("the document says what the records give" if whole == text else f"{DOCUMENT} says something else")
    return int(whole != text)


def tables_of(folder: Path) -> str:
    """The tables, from a folder of records."""
    results, seconds = work_out(folder)
    sections = [*_made_of(folder), *to_sections(results), _wall_times(seconds)]
    note = (
        f"{results.questions} questions, {len(results.candidates)} candidates, compared with {results.baseline}. "
        "Brackets hold 95% intervals, resampled by question; one that contains 0 shows no difference."
    )
    return to_markdown("", note, sections).lstrip("# \n")


def _made_of(folder: Path) -> list[Section]:
    counts = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    quality = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    training = TrainingRecord.model_validate_json((folder / "training.json").read_bytes())
    scenes = [["scenes", str(quality["scenes"])], ["failed", str(quality["failed"])], ["leaks", str(quality["leaks"])]]
    for name, value in quality["measures"].items():
        if value is not None:
            share = name in SHARES
            found = Interval.model_validate(value["interval"]) if value["interval"] else None
            plain = percent(value["mean"]) if share else number(value["mean"], 2)
            scenes.append([name, interval(found, share=share, digits=2) if found else plain])
    learnt = [
        ["rows", f"{training.data.examples:,}"],
        ["steps", str(training.steps)],
        ["loss of the first steps, nats a token", number(training.first_loss, 3)],
        ["loss of the last steps", number(training.last_loss, 3)],
        ["learning rate", str(training.recipe.learning_rate)],
        ["device", training.device],
    ]
    asked = {
        "trained on": counts["train"],
        "harmful, answered": counts["harmful"],
        "harmless, answered": counts["harmless"],
        "pairs, scored": counts["pairs"],
    }
    return [
        Section("Questions", tables=[Table(["what for", "questions"], [[k, str(v)] for k, v in asked.items()])]),
        Section(
            "The scenes",
            "Means over scenes with 95% intervals.",
            [Table(["measure", "of the scenes trained on"], scenes)],
        ),
        Section("The adapter", tables=[Table(["training", ADAPTER], learnt)]),
    ]


def _wall_times(seconds: dict[str, float | None]) -> Section:
    rows = [[name, number(value, 1)] for name, value in seconds.items()]
    note = (
        "From question to answer beside all others that ran; on two shared cores, so only their order means something."
    )
    return Section("Wall times", note, [Table(["candidate", "seconds an answer"], rows)])


def main() -> int:
    """Do what is asked for; returns the exit code."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = made.add_subparsers(required=True, metavar="run|keep|tables")
    one = steps.add_parser("run", help="play, train and compare")
    one.add_argument("data", type=Path, metavar="DATA", help="folder of the questions")
    one.add_argument("--out", type=Path, required=True, help="folder of the experiment; the same again goes on there")
    one.add_argument("--scenes", type=int, default=200, help="questions to train on (default: 200)")
    one.add_argument(
        "--questions", type=int, default=20, help="harmful ones, and as many harmless ones, to compare on (default: 20)"
    )
    one.add_argument("--pairs", type=int, default=100, help="pairs to score (default: 100)")
    one.add_argument("--base-url", metavar="URL", help="a vLLM server that already runs; its key is in VLLM_API_KEY")
    one.set_defaults(do=run)
    two = steps.add_parser("keep", help="keep the records without their texts")
    two.add_argument("out", type=Path, help="folder of the experiment")
    two.add_argument("--records", type=Path, default=RECORDS)
    two.set_defaults(do=keep)
    three = steps.add_parser("tables", help="work the results out again")
    three.add_argument("--records", type=Path, default=RECORDS)
    three.add_argument("--write", action="store_true", help="put them into the document")
    three.add_argument("--check", action="store_true", help="see whether the document has them")
    three.set_defaults(do=tables)
    options = made.parse_args()
    do: Callable[[argparse.Namespace], int] = options.do
    return do(options)


if __name__ == "__main__":
    sys.exit(main())
