"""Does an evaluation keep a model server as busy as the same requests sent flat?

    python benchmarks/evaluate.py QUESTIONS.jsonl
    python benchmarks/evaluate.py QUESTIONS.jsonl --base-url http://127.0.0.1:8000/v1 --model NAME --questions-each 100
    python benchmarks/evaluate.py --fake 0.3

Six candidates (base, rehearsal, critique-revise, self-align, debate, best-of-n) answer the same questions on one
server; every request is recorded in the order in which it was sent. Then the same requests are sent again, byte for
byte, flat: as many in flight, no candidates, bare aiohttp. No program could get more out of the server with these
requests and this many in flight.

Two ratios are printed. Of the whole, from the first request to the last reply, the ending included, in which deep
candidates leave nothing to fill the places: flat seconds by the evaluation's. Of the steady state, from when the number
in flight first reached its limit until it last was at 95% of it: requests in flight on average by the limit.

With `--fake SECONDS` the server is a fake one that answers each request after so many seconds, any number at once: it
shows the runner's own share alone. A real server also needs `--questions`; each phase has a `cache_salt` of its own, so
that no phase profits from the cache that another one filled.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from _common import Report, add_model_options, heading, parser, questions_from, recorded, send_flat, topical_question
from _common import with_fields as changed
from pydantic import SecretStr

from matrix_graph import ChatVLLM, SceneConfig, VLLMServer
from matrix_graph.batch import lookout
from matrix_graph.errors import ModelRequestError
from matrix_graph.evaluate.candidates.roster import roster_from
from matrix_graph.evaluate.folder import read_answers
from matrix_graph.evaluate.records import Question
from matrix_graph.evaluate.runner import Evaluation

CANDIDATES = "base,rehearsal,critique-revise,self-align,debate,best-of-n"
_FAKE = Path(__file__).parent.parent / "tests" / "integration" / "model_server.py"


@contextmanager
def fake_server(seconds: float) -> Iterator[str]:
    """A server that takes so long for each request; gives its base URL."""
    command = [sys.executable, str(_FAKE), "--delay", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@asynccontextmanager
async def served(options: argparse.Namespace) -> AsyncIterator[ChatVLLM]:
    """The model that is measured."""
    if options.fake is not None:
        with fake_server(options.fake) as url:
            yield ChatVLLM(base_url=url, model="fake-model")
    elif options.base_url:
        yield ChatVLLM(base_url=options.base_url, model=options.model)
    else:
        async with VLLMServer(options.model, on_status=print) as server:
            key = SecretStr(server.api_key)
            yield ChatVLLM(base_url=server.base_url, api_key=key, model=server.model_name, server=server)


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Evaluate, send the same flat, and print both."""
    if options.questions is None:
        texts = [topical_question(number) for number in range(options.questions_each)]
    else:
        texts = questions_from(options.questions, options.questions_each)
    questions = [Question(id=str(number), question=text) for number, text in enumerate(texts)]
    async with served(options) as model:
        limit = options.requests or await lookout.requests_for(model)
        salted = await takes_salt(model)
        asked = model.model_copy(update={"extra_body": {"cache_salt": secrets.token_hex(4)}}) if salted else model
        roster = roster_from(options.candidates, SceneConfig(max_answer_tokens=options.max_answer_tokens))
        heading(f"{len(roster.candidates)} candidates, {len(questions)} questions, {limit} requests in flight")
        with tempfile.TemporaryDirectory(prefix="evaluate-") as folder, recorded() as recording:
            began, used = time.monotonic(), time.process_time()
            async with Evaluation(
                questions, roster.candidates, asked, out=folder, max_requests=limit, on_status=print
            ) as evaluation:
                await evaluation.run()
            seconds, used = time.monotonic() - began, time.process_time() - used
            answers = read_answers(Path(folder))
        bodies = [sent.body for sent in recording.sent if sent.failed is None]
        if salted:
            salt = secrets.token_hex(4)
            bodies = [changed(body, {"cache_salt": salt}) for body in bodies]
        began = time.monotonic()
        key = model.api_key.get_secret_value() if model.api_key else None
        flat = await send_flat(model.base_url, key, bodies, limit)
        flat_seconds = time.monotonic() - began
    report.say("answers", len(answers))
    report.say("failed", evaluation.failed)
    report.say("calls", len(bodies))
    report.say("evaluation: seconds", seconds)
    report.say("flat: seconds", flat_seconds)
    report.say("milliseconds of this program's processor time a call", 1000 * used / max(1, len(bodies)))
    window, flat_window = recording.steady(limit), flat.steady(limit)
    report.say("steady state of the evaluation: seconds", window[1] - window[0])
    report.say("flat: requests in flight by the limit, steady state", flat.busy(flat_window) / limit)
    report.check(
        "evaluation: requests in flight by the limit, steady state", recording.busy(window) / limit, at_least=0.9
    )
    report.check("flat / evaluation, first request to last reply", flat_seconds / seconds, at_least=0.9)


async def takes_salt(model: ChatVLLM) -> bool:
    """Whether the server takes `cache_salt`."""
    try:
        await model.ainvoke("Hello", max_tokens=1, extra_body={"cache_salt": secrets.token_hex(4)})
    except ModelRequestError as error:
        print(f"cache_salt is refused ({error}): the flat requests find prefixes in the cache")
        return False
    return True


def main() -> int:
    """Measure; returns the exit code."""
    made = parser(__doc__)
    made.add_argument("questions", type=Path, nargs="?", metavar="QUESTIONS.jsonl", help='rows with a "question"')
    made.add_argument("--questions-each", type=int, default=100, help="questions a candidate answers (default: 100)")
    made.add_argument("--candidates", default=CANDIDATES, help=f"default: {CANDIDATES}")
    made.add_argument("--requests", type=int, help="in flight (default: what `matrix-graph evaluate` would take)")
    made.add_argument(
        "--max-answer-tokens",
        type=int,
        default=SceneConfig().max_answer_tokens,
        help="the longest answer of any candidate; less is quicker, and harder for this program (default: %(default)s)",
    )
    made.add_argument("--fake", type=float, metavar="SECONDS", help="a fake server that takes so long for each request")
    add_model_options(made)
    options = made.parse_args()
    report = Report()
    asyncio.run(measure(options, report))
    return report.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
