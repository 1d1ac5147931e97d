"""Random replies that keep to whatever a chat request demands: the imagination of the fake model server.

A reply depends on the request and the seed alone, never on the order of requests. Every generated string that has room
for it holds a word such as `tok004237591` that stands in no other request's reply.
"""

import hashlib
import json
import random
import re
from dataclasses import dataclass, field
from typing import Any

try:
    from re import _parser as regex_parser  # type: ignore[attr-defined]
except ImportError:  # pragma: no cover
    import sre_parse as regex_parser

JSON = dict[str, Any]

_PLAIN = """
the a lamp door key quiet loud money vault friend neighbour asks tells waits leaves keeps gives takes early late never
often river street paper letter plan doubt thanks worry help harm fair open closed red
"""
WORDS = [*_PLAIN.split(), "灯", "ночь", "café", "naïve", "שלום", "مرحبا", "🙂"]


@dataclass(frozen=True)
class Reply:
    """A reply in full. `usage` overrides single counts; `tool_calls` is a list of (name, arguments as JSON text);
    `reasoning` goes before the text, in a field of its own, as servers with a reasoning parser have it."""

    text: str = ""
    finish_reason: str = "stop"
    tool_calls: tuple[tuple[str, str], ...] = ()
    usage: JSON = field(default_factory=dict)
    reasoning: str = ""


# ---- tokens ---------------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*$|\s*\S+", text)


def prompt_tokens(body: JSON) -> int:
    """The words of all messages, and four for the template of each."""
    total = 0
    for message in body.get("messages", ()):
        content = message.get("content") or ""
        texts = [content] if isinstance(content, str) else [str(part.get("text", "")) for part in content]
        total += 4 + sum(len(words(text)) for text in texts)
    return total


def cut(reply: Reply, longest: int | None) -> Reply:
    """The reply as `max_tokens` leaves it."""
    tokens, thoughts = words(reply.text), words(reply.reasoning)
    if longest is None or len(thoughts) + len(tokens) <= longest:
        return reply
    text = "".join(tokens[: max(0, longest - len(thoughts))])
    return Reply(text, "length", reply.tool_calls, reply.usage, "".join(thoughts[:longest]))


def tool_calls(reply: Reply) -> list[JSON]:
    return [
        {"id": f"call-{digest(reply.text, index, arguments):012d}", "type": "function",
         "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(reply.tool_calls)
    ]  # fmt: skip


def digest(*parts: Any) -> int:
    """A number below 10**9 that is the same for the same parts, in every process."""
    raw = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big") % 10**9


# ---- random replies -------------------------------------------------------------------------------------------------


def random_reply(body: JSON, seed: int = 0, true: float = 0.5) -> Reply:
    """A random reply that keeps to the request's `structured_outputs`, `response_format` or `tools`."""
    asked = {key: body.get(key) for key in ("messages", "structured_outputs", "response_format", "tools", "model")}
    key = digest(asked, seed)
    rng = random.Random(key)
    constraint = dict(body.get("structured_outputs") or {})
    response_format = body.get("response_format") or {}
    if response_format.get("type") == "json_schema":
        constraint = {"json": response_format["json_schema"]["schema"]}
    elif response_format.get("type") == "json_object":
        constraint = {"json": {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}}
    if constraint.get("json") is not None:
        schema = constraint["json"]
        return Reply(random_json(json.loads(schema) if isinstance(schema, str) else schema, rng, key=key, true=true))
    if constraint.get("choice"):
        return Reply(rng.choice(constraint["choice"]))
    if constraint.get("regex"):
        return Reply(random_match(constraint["regex"], rng))
    tools, choice = body.get("tools") or [], body.get("tool_choice") or "none"
    answering = bool(body.get("messages")) and body["messages"][-1].get("role") == "tool"
    if tools and choice != "none" and not (choice == "auto" and answering):
        wanted = choice["function"]["name"] if isinstance(choice, dict) else None
        fitting = [tool["function"] for tool in tools if wanted in (None, tool["function"]["name"])]
        function = rng.choice(fitting)
        arguments = random_json(function.get("parameters") or {"type": "object"}, rng, key=key, true=true)
        return Reply("", "tool_calls", ((function["name"], arguments),))
    return Reply(_text(rng, key, 0, 3, 14))


def random_json(schema: JSON, rng: random.Random, *, key: int = 0, true: float = 0.5) -> str:
    """JSON text that fits the schema: enum, const, anyOf, oneOf, allOf, $ref, type lists, and the usual limits."""
    return json.dumps(_Filler(schema, rng, key, true).value(schema, 0), ensure_ascii=False)


def _text(rng: random.Random, key: int, position: int, least: int, most: int) -> str:
    chosen = rng.choices(WORDS, k=rng.randint(least, most))
    chosen.insert(rng.randrange(len(chosen) + 1), f"tok{digest(key, position):09d}")
    return " ".join(chosen)


class _Filler:
    def __init__(self, root: JSON, rng: random.Random, key: int, true: float) -> None:
        self.root, self.rng, self.key, self.true = root, rng, key, true
        self.position = 0

    def value(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict):
            schema = {}
        if "$ref" in schema:
            return self.value(self.resolve(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self.rng.choice(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                branches = schema[key]
                flat = [branch for branch in branches if not self.deep(branch)]
                return self.value(self.rng.choice(flat if depth > 8 and flat else branches), depth + 1)
        if "allOf" in schema:
            merged: JSON = {name: value for name, value in schema.items() if name != "allOf"}
            for part in schema["allOf"]:
                part = self.resolve(part["$ref"]) if "$ref" in part else part
                properties = {**merged.get("properties", {}), **part.get("properties", {})}
                required = [*merged.get("required", []), *part.get("required", [])]
                merged |= part | ({"properties": properties, "required": required} if properties else {})
            return self.value(merged, depth + 1)
        kind = schema.get("type") or (
            "object" if "properties" in schema else "array" if "items" in schema else "string"
        )
        if isinstance(kind, list):
            kind = self.rng.choice(kind)
        return getattr(self, f"_{kind}")(schema, depth)

    def resolve(self, ref: str) -> Any:
        found: Any = self.root
        for part in ref.removeprefix("#").strip("/").split("/"):
            if part:
                found = found[part.replace("~1", "/").replace("~0", "~")]
        return found

    def deep(self, schema: Any) -> bool:
        return "$ref" in json.dumps(schema)

    def _null(self, schema: JSON, depth: int) -> None:
        return None

    def _boolean(self, schema: JSON, depth: int) -> bool:
        return self.rng.random() < self.true

    def _integer(self, schema: JSON, depth: int) -> int:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 101) - 1)
        step = schema.get("multipleOf", 1)
        return int(self.rng.randint(-(-low // step), high // step) * step)

    def _number(self, schema: JSON, depth: int) -> float:
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 1))
        return round(self.rng.uniform(low, high), 3)

    def _string(self, schema: JSON, depth: int) -> str:
        self.position += 1
        if "pattern" in schema:
            return random_match(schema["pattern"], self.rng)
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        text = _text(self.rng, self.key, self.position, 0, 8)
        while len(text) < least:
            text += " " + self.rng.choice(WORDS)
        if most is not None and len(text) > most:
            text = f"tok{digest(self.key, self.position):09d}"[:most].ljust(least, "x")
        return text

    def _array(self, schema: JSON, depth: int) -> list[Any]:
        fixed = [self.value(item, depth + 1) for item in schema.get("prefixItems", ())]
        items = schema.get("items", {} if not fixed else False)
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", max(least, len(fixed)) + 3)
        if items is False or (depth > 8 and self.deep(items)):
            most = least
        wanted = self.rng.randint(least, max(least, most)) - len(fixed)
        found: list[Any] = []
        seen: set[str] = set()
        for _ in range(50 * max(wanted, 0)):
            if len(found) == wanted:
                break
            item = self.value(items, depth + 1)
            shown = json.dumps(item, sort_keys=True)
            if schema.get("uniqueItems") and shown in seen:
                continue
            seen.add(shown)
            found.append(item)
        return fixed + found

    def _object(self, schema: JSON, depth: int) -> JSON:
        required = schema.get("required", [])
        filled: JSON = {}
        for name, sub in schema.get("properties", {}).items():
            if name in required or (depth < 8 and self.rng.random() < 0.7):
                filled[name] = self.value(sub, depth + 1)
        more = schema.get("additionalProperties")
        if isinstance(more, dict) and depth < 8:
            for _ in range(self.rng.randint(0 if filled else 1, 3)):
                self.position += 1
                filled[f"key{digest(self.key, self.position):09d}"] = self.value(more, depth + 1)
        return filled


def random_match(pattern: str, rng: random.Random) -> str:
    """A text that matches a regular expression (no look-around, no back-references)."""
    return _match(regex_parser.parse(pattern), rng)


def _match(parsed: Any, rng: random.Random) -> str:
    out: list[str] = []
    for operation, argument in parsed:
        name = str(operation)
        if name == "LITERAL":
            out.append(chr(argument))
        elif name in ("ANY", "NOT_LITERAL"):
            out.append(rng.choice([c for c in "abcxyz 019" if name == "ANY" or ord(c) != argument]))
        elif name == "IN":
            out.append(_member(argument, rng))
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inner = argument
            count = rng.randint(least, min(int(most), least + 8))
            out.extend(_match(inner, rng) for _ in range(count))
        elif name == "SUBPATTERN":
            out.append(_match(argument[3], rng))
        elif name == "ATOMIC_GROUP":
            out.append(_match(argument, rng))
        elif name == "BRANCH":
            out.append(_match(rng.choice(argument[1]), rng))
        elif name != "AT":
            raise ValueError(f"the fake server cannot generate {name} of a pattern")
    return "".join(out)


def _member(items: Any, rng: random.Random) -> str:
    negated = str(items[0][0]) == "NEGATE"
    classes = {"CATEGORY_DIGIT": r"\d", "CATEGORY_WORD": r"\w", "CATEGORY_SPACE": r"[ ]",
               "CATEGORY_NOT_DIGIT": r"\D", "CATEGORY_NOT_WORD": r"\W", "CATEGORY_NOT_SPACE": r"\S"}  # fmt: skip
    fitting: set[str] = set()
    for kind, argument in items:
        if str(kind) == "LITERAL":
            fitting.add(chr(argument))
        elif str(kind) == "RANGE":
            fitting |= {chr(code) for code in range(argument[0], min(argument[1], argument[0] + 200) + 1)}
        elif str(kind) == "CATEGORY":
            fitting |= {c for c in map(chr, range(32, 127)) if re.fullmatch(classes[str(argument)], c)}
    pool = [c for c in map(chr, range(32, 127)) if c not in fitting] if negated else sorted(fitting)
    return rng.choice(pool)
