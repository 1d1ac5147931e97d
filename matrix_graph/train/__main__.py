"""The command as a module, for launchers that start a process for each GPU.

    accelerate launch --num_processes 4 -m matrix_graph.train rows.jsonl --model ... --out ...

Takes the arguments of `matrix-graph train`.
"""

from __future__ import annotations

import sys

import typer

from matrix_graph.commands.train import train
from matrix_graph.errors import ConfigError, MatrixGraphError


def main() -> None:
    """Run the command; errors of ours come out as one message, without a traceback."""
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command()(train)
    try:
        app()
    except MatrixGraphError as error:
        from matrix_graph.live import safe

        typer.echo(f"Error: {safe(str(error))}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
