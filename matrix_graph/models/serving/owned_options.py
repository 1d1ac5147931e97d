"""Which of vLLM's options are the server's own, and are therefore refused where further ones are given.

Why: a key on a command line can be read by every user of the machine, and a server that listens elsewhere, or asks for
another key, is never found. What always holds: an option is recognised in every spelling that vLLM takes: underscores,
`--name=value`, `--name.field`, the abbreviations of argparse, and a YAML file that `--config` names.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

_KEY = (
    "would show a key to every user of the machine; the server makes its own key: read `api_key` of `VLLMServer`, or "
    "the key file that `matrix-graph serve` names"
)
_ADDRESS = "is set by the server's own setting `{0}`; set that instead"
_OWN = {
    "--api-key": _KEY,
    "--hf-token": "would show the token to every user of the machine; set the environment variable HF_TOKEN instead",
    "--host": _ADDRESS.format("host"),
    "--port": _ADDRESS.format("port"),
    "--uds": "would have the server listen where nobody looks for it; set `host` and `port` instead",
    "--grpc": "would replace the server's HTTP; start such a server yourself and set `base_url`",
    "--headless": "would leave the server without HTTP; start such a server yourself and set `base_url`",
    "--root-path": "would move the server's paths; put a proxy before it instead",
    "--middleware": "is used by the server itself to ask for its key; put a proxy before it instead",
    "--disable-fastapi-docs": "is set by the server itself",
    "--no-disable-fastapi-docs": "would show the server's documentation to anybody; leave it out",
    "--ssl-keyfile": "would have the server speak TLS, which nobody here expects; put a proxy before it instead",
    "--ssl-certfile": "would have the server speak TLS, which nobody here expects; put a proxy before it instead",
    "--model": "is what `model` is for; set that instead",
    "--served-model-name": "is chosen by the server itself, after the model; leave it out",
}
"""Option -> why it is refused, and what to do instead."""
_ALONE_IS_FINE = ("--hf-token",)
"""Options that show nothing if no value follows."""
_CONFIG = "--config"
_SHORTEST = len("--x")


def check_extra_args(words: Sequence[str]) -> None:
    """Checks further options for vLLM.

    Args:
        words: one word of the command line an item.

    Raises:
        ValueError: one of them is the server's own, or a file of options cannot be read; never holds a value that was
            given.
    """
    for place, word in enumerate(words):
        option = _option_of(word)
        following = words[place + 1 : place + 2]
        if option in _ALONE_IS_FINE and "=" not in word and not (following and not following[0].startswith("-")):
            continue
        if option is not None:
            raise ValueError(f"{_name_in(word)} in extra_args {_OWN[option]}")
    for file in _config_files(words):
        for name in _names_in(file):
            option = _option_of(f"--{name}")
            if option is not None:
                raise ValueError(f"{name!r} in {file}, which extra_args name, {_OWN[option]}")


def _name_in(word: str) -> str:
    """The name of an option, without a value, as vLLM reads it: dashes for underscores."""
    name = word.split("=", 1)[0].split(".", 1)[0].rstrip("+")
    return f"--{name[2:].replace('_', '-')}" if name.startswith("--") else name


def _option_of(word: str) -> str | None:
    """The option of the server's own that a word stands for, if only as an abbreviation; None: another, or a value."""
    name = _name_in(word)
    if name in _OWN:
        return name
    if not name.startswith("--") or len(name) < _SHORTEST:
        return None
    return next((option for option in _OWN if option.startswith(name)), None)


def _config_files(words: Sequence[str]) -> Iterator[Path]:
    for place, word in enumerate(words):
        name = _name_in(word)
        if name.startswith("--c") and _CONFIG.startswith(name):
            value = word.split("=", 1)[1:] or list(words[place + 1 : place + 2])
            yield from map(Path, value)


def _names_in(file: Path) -> list[str]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        kind = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise ValueError(f"{file}, a file of options that extra_args name, cannot be read ({kind})") from None
    return [str(name) for name in content] if isinstance(content, dict) else []
