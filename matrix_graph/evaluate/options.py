"""Options that the commands of evaluations share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JUDGE_KEY_VARIABLE = "MATRIX_GRAPH_JUDGE_API_KEY"
"""Which environment variable holds the key of a judge on another server."""

OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the evaluation. The same folder again goes on there.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first so many rows of each file.")]
MaxRequestsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Model calls in flight at most. Default: what the server's cache has room for."),
]
GiveUpAfterOption = Annotated[
    float, typer.Option(min=0, help="Seconds that the server may be away; nothing fails meanwhile.")
]
RetryFailedOption = Annotated[bool, typer.Option("--retry-failed", help="Ask again for what failed in earlier starts.")]
ForceOption = Annotated[
    bool, typer.Option("--force-new-settings", help="Go on in a folder that was begun under other settings.")
]
