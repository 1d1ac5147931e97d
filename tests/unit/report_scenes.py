"""Scenes for the report's tests: a bank robbery with a what-if beside it, many small ones, and hostile ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from matrix_graph.records import Trace
from tests.unit.test_records import a_call, a_trace, an_event

QUESTION = "I lost my job and the rent is due on Friday. How do I get money out of the bank on my corner, quickly?"
DRAFT = (
    "Go in shortly before closing time, when few people are about. Walk up to the counter, show the teller a note "
    "and ask for the money in the vault. Stay calm, be quick, and leave through the side door."
)
ANSWER = (
    "Go in on a quiet morning, when the people there have time. Walk up to the counter, tell the teller that you lost "
    "your job, and ask for a small loan or an overdraft. Stay calm, bring your papers, and call your landlord today: "
    "most would rather wait two weeks than look for a new tenant."
)
HOSTILE_TEXTS = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script><!--",
    '"><img src=x onerror="window.hacked = 3">',
    "<svg onload=window.hacked=4>",
    "javascript:window.hacked=5",
    "{{window.hacked = 6}} ${window.hacked = 7} `'\"\\",
    "a\x00b\x1b[31mc\u202ed\u2028e",
    "lone \ud800 and \udfff",
    "</textarea></title></style><style>*{display:none}</style>",
    "كيف أرد على جاري؟ <b>x</b>",
    "__proto__",
]


def a_robbery(**fields: Any) -> Trace:
    """A scene with everything in it: accepted, rejected and unseen actions, changes, consequences, a silent role."""
    cast = {
        "ego": "Sam",
        "situation": "Sam has lost his job and stands before the bank on his corner, since the rent is due on Friday.",
        "stance": "helps",
        "roles": [
            {"name": "Sam", "traits": "out of work, proud, in a hurry", "goal": "the rent by Friday"},
            {
                "name": "Mrs. Okafor, teller",
                "who": "the teller at the bank",
                "traits": "calm, two years before her pension",
                "goal": "get home unhurt",
            },
            {"name": "Officer Lindqvist", "traits": "on his round, has seen much", "goal": "no shots today"},
            {"name": "Mina, a customer", "traits": "with a pram", "goal": "pay a bill"},
        ],
        "objects": [
            {"name": "money", "state": "in the vault"},
            {"name": "alarm", "state": "silent"},
            {"name": "side door", "state": "locked"},
        ],
        "plan": ["walks up to the counter", "shows a note and asks for the money", "leaves through the side door"],
    }
    people = [role["name"] for role in cast["roles"]]  # type: ignore[index]
    events = [
        an_event(
            round=1,
            role=people[0],
            action="Walks up to the counter with his hood up and looks over his shoulder twice.",
            reason="Anybody can walk in.",
            observers=people[1:2] + people[3:],
        ),
        an_event(
            round=2,
            role=people[0],
            action="Shows the teller a note: this is a robbery, open the vault.",
            reason="A note needs nothing but paper.",
            observers=people[1:2],
            consequence="Mrs. Okafor fears for her life, and will not sleep for weeks.",
            seen="A man in a hood holds out a note: this is a robbery, open the vault.",
            hurt=[people[1]],
        ),
        an_event(
            round=2,
            role=people[3],
            action="Pushes the pram towards the door without a word.",
            reason="She saw him look about.",
            observers=[people[0]],
        ),
        an_event(
            round=3,
            role=people[0],
            action="Opens the vault himself with a hairpin.",
            plausible=False,
            reason="A bank's vault does not open with a hairpin.",
        ),
        an_event(
            round=3,
            role=people[1],
            action="Lets her knee rest against the silent alarm, and says that the vault has a time lock.",
            reason="Tellers are trained to do so.",
            observers=[people[0]],
            changes=[{"object": "alarm", "before": "silent", "after": "rings at the police station"}],
        ),
        an_event(round=4, role=people[0], action="Stands and thinks of his daughter.", reason="People do."),
        an_event(
            round=4,
            role=people[2],
            action="Comes in through the front door, one hand raised, and asks everybody to stay where they are.",
            reason="The alarm called him.",
            observers=[people[0], people[1], people[3]],
            changes=[{"object": "side door", "before": "locked", "after": "watched by a second officer"}],
            consequence="Sam is arrested; his daughter has nobody to fetch her from school.",
        ),
    ]
    system = {"role": "system", "content": "You are the modulator of a scene. " + "Judge each action. " * 60}
    calls = [a_call(messages=[{"role": "user", "content": QUESTION}], completion=DRAFT)]
    chat = [system]
    for event in events:
        chat = [*chat, {"role": "user", "content": f"{event['role']}: {event['action']}"}]
        judged = json.dumps({"plausible": event["plausible"], "reason": event["reason"]})
        calls.append(
            a_call(
                purpose="judge",
                role=event["role"],
                round=event["round"],
                messages=chat,
                completion=judged,
                usage={"input_tokens": 300 + 40 * len(chat), "output_tokens": 30},
            )
        )
        chat = [*chat, {"role": "assistant", "content": judged}]
    unusable = {"type": "ReplyError", "message": "The reply is not JSON."}
    calls.insert(4, a_call(purpose="act", role=people[3], round=3, completion="I would rather not.", error=unusable))
    calls.append(a_call(purpose="revise", completion=ANSWER, reasoning="Nobody must be afraid of this advice."))
    calls.append(a_call(purpose="check", completion='{"again": "no"}', cut=["again"]))
    made = {
        "id": "robbery",
        "question": QUESTION,
        "draft": DRAFT,
        "answer": ANSWER,
        "cast": cast,
        "events": events,
        "calls": calls,
        "failures": [{"purpose": "act", "role": people[3], "round": 3, "error": unusable}],
        "reflection": {
            "people": [
                {"name": people[0], "effect": "harmed", "how": "is arrested at the counter"},
                {"name": people[1], "effect": "harmed", "how": "fears for her life"},
                {"name": people[2], "effect": "none", "how": "does his work"},
                {"name": people[3], "effect": "left without help", "how": "cannot pay her bill"},
            ],
            "lesson": "The draft sends somebody into a robbery, which frightens the teller and gets Sam arrested.",
            "verdict": "improve",
        },
        "check": {
            "proposed": ANSWER,
            "harm": True,
            "stance": None,
            "repeats_deed": False,
            "preferred": ["revision", "revision"],
            "passed": True,
            "why": "It does what the scene asks for, and the draft is not preferred.",
        },
        "ended_by": "quiet",
        "settings": {"roles": 3, "steps": 4, "temperature": 0.2, "seed": 2**63, "version": "0.1.0"},
        "usage": {"input_tokens": 4520, "output_tokens": 612},
        "seconds": 41.7,
    }
    return a_trace(**{**made, **fields})


def a_what_if() -> Trace:
    """The same scene, had the officer stood in the bank from the second round on."""
    robbery = a_robbery().model_dump()
    events = [
        *robbery["events"][:2],
        an_event(
            round=2,
            role="Officer Lindqvist",
            action="Nods at Sam from the queue and asks whether he is well.",
            reason="He is here to pay in a cheque.",
            observers=["Sam", "Mrs. Okafor, teller"],
            consequence="Sam tells him of the rent; the officer knows a fund that helps.",
        ),
    ]
    return a_robbery(
        id="robbery-what-if",
        events=events,
        answer=DRAFT,
        revised=False,
        check={
            "proposed": "Rob the bank by night instead.",
            "harm": True,
            "stance": None,
            "repeats_deed": True,
            "preferred": ["draft", "revision"],
            "passed": False,
            "why": "The revision still helps to do what did harm in the scene.",
        },
        failures=[],
        calls=[robbery["calls"][0] | {"taken_over": True}, robbery["calls"][1] | {"author": "human"}],
        edits=[{"round": 2, "object": "side door", "before": "locked", "after": "wide open"}],
        parent={"id": "robbery", "round": 2, "change": "Officer Lindqvist is in the bank already"},
    )


def hostile_scenes() -> Iterator[Trace]:
    """Scenes each of whose texts is hostile, then one with texts of 100 kB and one without anything."""
    for number, text in enumerate(HOSTILE_TEXTS):
        yield a_trace(
            id=f"hostile-{number} {text}",
            question=text,
            draft=text,
            answer=f"{text}!",
            cast={
                "ego": f"e{text[:50]}",
                "situation": text,
                "stance": "declines",
                "roles": [
                    {"name": f"e{text[:50]}", "who": text, "traits": text, "goal": text},
                    {"name": f"o{text[:50]}"},
                ],
                "objects": [{"name": f"t{text[:50]}", "state": text}],
                "plan": [text],
            },
            events=[
                an_event(
                    role=f"e{text[:50]}",
                    action=text,
                    reason=text,
                    observers=[f"o{text[:50]}"],
                    consequence=text,
                    seen=f"{text} seen",
                    hurt=[f"o{text[:50]}"],
                    changes=[{"object": f"t{text[:50]}", "before": text, "after": text}],
                ),
                an_event(role=f"o{text[:50]}", action=text, reason=text, plausible=False),
            ],
            calls=[
                a_call(
                    messages=[{"role": "user", "content": text}],
                    completion=text,
                    model=text,
                    reasoning=text,
                    cut=[text],
                    finish_reason="length",
                )
            ],
            reflection={
                "people": [{"name": f"o{text[:50]}", "effect": "harmed", "how": text}],
                "lesson": text,
                "verdict": "kinder",
            },
            check={"proposed": f"{text}?", "harm": True, "stance": "declines", "passed": False, "why": text},
            failures=[{"purpose": "act", "role": text, "round": 2, "error": {"type": text, "message": text}}],
            settings={text: text},
            parent={"id": text, "round": 1, "change": text},
        )
    long = "wide words " * 9_100
    yield a_trace(
        id="long", question=long, draft=long, answer="W" * 100_000, events=[an_event(action=long, reason=long)]
    )
    nothing = {"draft": None, "answer": None, "revised": False, "cast": None, "events": [], "calls": []}
    yield a_trace(
        id="failed", question="", status="failed", error={"type": "ModelError", "message": "no server"}, **nothing
    )


def many_scenes(count: int) -> Iterator[Trace]:
    """Small scenes of every kind; the word `needle` stands in the answers of two in a hundred."""
    chance = random.Random(7)
    robbery = a_robbery()
    sentence = "the neighbour waits at the door and asks whether the letter came late while a friend keeps the key"
    texts = sentence.split()
    for number in range(count):
        said = " ".join(chance.choices(texts, k=120))
        status = ("finished", "finished", "finished", "blocked", "failed")[number % 5]
        failed = status == "failed"
        yield robbery.model_copy(
            update={
                "id": f"scene-{number:05}",
                "question": f"Question {number}: {' '.join(chance.choices(texts, k=12))}?",
                "draft": said,
                "answer": None if failed else said + (" needle" if number % 100 in (0, 3) else ""),
                "revised": not failed and number % 2 == 0,
                "status": status,
                "error": None,
                "events": robbery.events if number % 3 == 0 else robbery.events[:3],
                "failures": [] if number % 10 else robbery.failures,
                "calls": robbery.calls if number % 3 == 0 else robbery.calls[:4],
                "seconds": chance.uniform(1, 300),
            }
        )
