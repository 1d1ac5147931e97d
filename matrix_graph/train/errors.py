"""The error of this boundary: training that cannot begin, go on, or be kept."""

from __future__ import annotations

from matrix_graph.errors import MatrixGraphError


class TrainingError(MatrixGraphError):
    """Rows, a model or a folder that nothing can be trained with, or a training that broke off."""
