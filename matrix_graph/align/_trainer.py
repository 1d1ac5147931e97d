"""The process that trains. Why one of its own: what a training has taken of a GPU's memory is given back only when its
process ends, and the server that comes next needs it.

It reads its job from standard input as one line of JSON, and ends when that is closed: whatever ends the program that
started it, SIGKILL included, ends it too. An error goes out as one line of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from matrix_graph.errors import MatrixGraphError


def main() -> int:
    """Train, and say by the exit code how it went: 0 well, 1 not, with the error told."""
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    # What libraries print must not stand where the error is told.
    told, sys.stdout = sys.stdout, sys.stderr
    try:
        from matrix_graph.train.recipe import Recipe
        from matrix_graph.train.run import train_adapter

        train_adapter(
            Path(job["data"]),
            Path(job["out"]),
            model=job["model"],
            recipe=Recipe.model_validate(job["recipe"]),
            validation=Path(job["validation"]) if job["validation"] else None,
        )
    except MatrixGraphError as error:
        told.write(json.dumps({"type": type(error).__name__, "message": str(error)}) + "\n")
        told.flush()
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with_the_other() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
