"""A fake vLLM as a process of its own, for `ServerConfig.command`: it answers as `ModelServer` does, and it dies.

    python engine.py --engine-folder DIR [--engine-delay S] --model M --served-model-name N --host H --port P [...]

In DIR it writes `pid` (its process), `starts` and `deaths` (a line each). It dies when it is told to (POST /die, or a
signal), and, as an engine with a bug, of certain words in a prompt: of "deadly to draft" when a draft is asked for, of
"deadly to act" and of "deadly to judge" when a role acts and when an action is judged. A cast whose question holds such
words has them as its plan, so that they travel. What vLLM takes besides is ignored.
"""

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path

from aiohttp import web

if __name__ == "__main__":  # this folder is on the path, not the repository
    from model_server import ModelServer
    from random_reply import JSON
else:
    from tests.integration.model_server import ModelServer
    from tests.integration.random_reply import JSON

DEADLY = {purpose: f"deadly to {purpose}" for purpose in ("draft", "act", "judge")}
PURPOSES = {"plan": "cast", "action": "act", "plausible": "judge", "lesson": "reflect"}
PURPOSES |= dict.fromkeys(("stance", "again", "better"), "check")


class Engine(ModelServer):
    """The server of one process.

    Args:
        folder: where it tells of its life.
        port: the TCP port.
        model: the served name.
        delay: seconds each chat call takes.
    """

    def __init__(self, folder: Path, port: int, model: str, delay: float) -> None:
        super().__init__(port=port, models=(model,), delay=delay, api_key=os.environ["VLLM_API_KEY"])
        self.folder = folder
        self.reply = self.act_or_die

    def act_or_die(self, body: JSON) -> str | None:
        """Called when a reply is due: others that came with a deadly request were answered or are still waiting."""
        asked = "\n".join(str(message["content"]) for message in body["messages"])
        fields = ((body.get("structured_outputs") or {}).get("json") or {}).get("properties", {})
        purpose = next((name for field, name in PURPOSES.items() if field in fields), "draft")
        if DEADLY.get(purpose, "\0") in asked:
            self.die(purpose)
        if purpose == "cast":
            step = next((words for words in DEADLY.values() if words in asked), "goes there")
            return json.dumps(
                {
                    "people": ["asker", "other"],
                    "situation": "Somebody asks",
                    "roles": [{"who": "one of two", "traits": "calm", "goal": "peace"}] * 2,
                    "objects": [{"name": "door", "state": "closed"}],
                    "plan": [step],
                }
            )
        if "stance" in fields:
            return json.dumps({"stance": "helps"})
        if purpose == "judge":
            seen = dict.fromkeys(fields["notices"]["properties"], "sees")
            return json.dumps(
                {
                    "reason": "why not",
                    "plausible": True,
                    "notices": seen,
                    "seen": "somebody moves",
                    "changes": [],
                    "consequence": None,
                    "hurt": [],
                }
            )
        return None

    def die(self, why: str) -> None:
        """Die as a process whose engine has crashed: at once, without a word to those who wait."""
        note(self.folder / "deaths", why)
        os.kill(os.getpid(), signal.SIGKILL)

    async def die_on_demand(self, _: web.Request) -> web.Response:
        self.die("told to")
        return web.Response()


def note(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--engine-folder", type=Path, required=True)
    parser.add_argument("--engine-delay", type=float, default=0.02)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--port", type=int, required=True)
    options, _ = parser.parse_known_args()
    folder: Path = options.engine_folder
    engine = Engine(folder, options.port, options.served_model_name, options.engine_delay)
    engine.routes.append(web.post("/die", engine.die_on_demand))

    def started() -> None:
        (folder / "pid.partial").write_text(str(os.getpid()))
        (folder / "pid.partial").rename(folder / "pid")
        note(folder / "starts", str(os.getpid()))
        print("INFO:     Application startup complete.", flush=True)

    asyncio.run(engine.serve(started))


if __name__ == "__main__":
    main()
