"""What people see of an evaluation while it runs."""

import io
import subprocess
import sys

from rich.console import Console

from matrix_graph.evaluate.progress import Progress, ProgressView


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_counts_and_the_time_that_is_left() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.begin("answers", 10, 2)
    assert progress.line == "answers: 2 of 10, 0 calls"
    clock.now = 20.0
    for failed in (False, True):
        progress.call_ended(5, 7)
        progress.begun()
        progress.job_ended(failed=failed)
    assert progress.line == "answers: 4 of 10, 1 failed, 2 calls, about 60 s left"
    clock.now = 400.0
    assert progress.line.endswith("about 20 min left") and progress.output_tokens == 14
    progress.away = True
    assert progress.line.endswith("waiting for the server")
    progress.away = False
    progress.begin("verdicts", 0, 0)
    assert progress.line == "verdicts: 0 of 0, 1 failed, 2 calls"


def test_jobs_in_flight_count_half_for_the_time_that_is_left() -> None:
    # 100 jobs of 60 s each, 40 at a time, take 150 s; that only one ended in 40 s must not make it look like an hour.
    clock = Clock()
    progress = Progress(clock)
    progress.begin("answers", 100, 0)
    for _ in range(40):
        progress.begun()
    clock.now = 40.0
    progress.job_ended(failed=False)
    progress.begun()
    assert progress.line == "answers: 1 of 100, 0 calls, about 3 min left"
    progress.put_back()
    assert progress.in_flight == 39


def test_a_pipe_gets_the_first_and_the_last_line_and_no_control_characters() -> None:
    out = io.StringIO()
    view, progress = ProgressView(Console(file=out)), Progress()
    with view:
        view.status("[bold]not markup\x1b[2J")
        progress.begin("answers", 3, 0)
        view.show(progress)
        for _ in range(3):
            progress.begun()
            progress.job_ended(failed=False)
            view.show(progress)
        view.show(progress)
    assert out.getvalue().splitlines() == [
        "[bold]not markup\ufffd[2J",
        "answers: 0 of 3, 0 calls",
        "answers: 3 of 3, 0 calls",
    ]


def test_the_commands_are_light_to_import() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'langgraph', 'numpy', 'matplotlib'}"
    program = (
        "import sys; import matrix_graph.commands.evaluate, matrix_graph.commands.contrast; "
        f"print(sorted({heavy} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
