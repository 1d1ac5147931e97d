"""One exception type per boundary, so that a caller can tell whose fault it was.

Each message says what came, what is allowed, and what to do. Inside a scene none of these escapes: they are recorded
in the trace (`Failure`). They do escape from the parts that people call directly: server, client, store, export.
"""


class MatrixGraphError(Exception):
    """Base of every error that this package raises on purpose; the command line prints it without a traceback."""


class ConfigError(MatrixGraphError):
    """A setting, file or option that cannot be used."""


class TableError(ConfigError):
    """A file of questions or rows that cannot be read, or a row of it that cannot be used."""


class SettingsChangedError(ConfigError):
    """A run's folder that was begun under other settings."""


class RunLockedError(MatrixGraphError):
    """Another run writes to the same folder."""


class PrerequisiteError(MatrixGraphError):
    """Something must be installed or prepared first; the message holds the exact command."""


class ServerError(MatrixGraphError):
    """The vLLM server did not start, died for good, or refused an adapter."""


class ModelError(MatrixGraphError):
    """The model could not be reached, or it refused the request."""


class ModelRequestError(ModelError):
    """The server refused this request (HTTP 4xx other than 429); sending it again cannot help.

    Attributes:
        status: the HTTP status code.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class ContextLengthError(ModelRequestError):
    """The prompt, or prompt plus reply, is longer than the model's context."""


class ModelUnavailableError(ModelError):
    """Connection loss, time-out, garbage, HTTP 429 or 5xx, until retrying was given up.

    Attributes:
        status: the HTTP status of the last answer (200 with garbage in it, too); None: there was no whole answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ModelAddressError(ModelError):
    """What answers at the address is not a model server that can be used: a web page, an untrusted certificate."""


class CrashingQuestionError(ModelError):
    """The model server died while it answered this question alone; in a batch run, the question is set aside."""


class ReplyError(MatrixGraphError):
    """The model's reply is not what was asked for: empty, cut off, not JSON, or of another shape."""


class UnfinishedThoughtError(ReplyError):
    """The model's reply ended while it was thinking, so that there is no answer."""


class CopiedError(ReplyError):
    """The model's reply takes something from a worked example of its prompt."""


class RepeatedError(ReplyError):
    """A person does once more, in the same words, what it has done before."""


class CastError(MatrixGraphError):
    """A given cast that no scene can be played with."""


class SceneError(MatrixGraphError):
    """A scene cannot go on: nothing to play, or one of its limits is reached."""


class BatchError(MatrixGraphError):
    """A run of many scenes cannot go on on this machine."""


class TraceError(MatrixGraphError):
    """A trace file that cannot be read or written."""


class ExportError(MatrixGraphError):
    """Traces that cannot be exported as asked."""
