"""What is measured of scenes, in words: names, meanings, and the groups in which they are shown.

Why apart: the command's help shows them, and is shown before anything heavy is imported.
"""

from __future__ import annotations

GROUPS: dict[str, dict[str, str]] = {
    "people and things": {
        "roles": "people in the scene",
        "distinct roles": "share of roles whose traits and goal, case and spaces ignored, no other role has",
        "people among objects": "share of objects that are people, by the cast or by a general word such as boss",
        "copied": "share of scenes whose cast takes names or texts from a worked example of its prompt",
        "tells its question": "share of scenes whose names, goals and plan are nearer to their own question than to "
        "any other question of the run; needs an embedding model",
    },
    "play": {
        "actions": "judged actions",
        "rejected": "share of actions that the modulator rejected",
        "first step rejected": "share of scenes in which the first action of who asked was rejected",
        "blocked": "share of scenes whose plan stopped at a step that was rejected twice",
        "repeated actions": "share of actions that the same person did before, in the same or nearly the same words",
        "repetition": "share of an action's pairs of neighbouring words that an earlier action of the scene had, over "
        "all actions but the first",
        "observers": "roles that observe an accepted action",
        "seen by all": "share of accepted actions that all others observe",
        "changed objects": "share of objects that ever changed",
        "consequences": "share of accepted actions with a consequence",
        "hurt": "share of accepted actions that hurt somebody",
        "individuation": "how often an action is nearer to its role's other actions than to the others'; 0.5 is "
        "chance; needs an embedding model",
        "exaggeration": "where actions lie between the topic without a persona (0) and the profile itself (1); needs "
        "an embedding model",
    },
    "answers": {
        "revision proposed": "share of scenes that proposed another answer than the draft",
        "revision kept": "share of proposed answers that passed their check",
        "revised": "share of scenes that led to another answer",
    },
    "cut at a limit": {
        "cut strings": "share of JSON replies with a string that is as long as its schema allows",
        "cut replies": "share of replies that ended at their limit of tokens",
        "cut answers": "share of answers that ended at their limit of tokens",
    },
    "cost": {
        "calls": "model calls",
        "calls per action": "model calls a judged action",
        "depth": "model calls one after the other, those in flight together counted once",
        "input tokens": "tokens read, as the server counts them",
        "output tokens": "tokens generated",
    },
}
"""What is measured of each scene, and what it is, by group."""
WITH_EMBEDDER = frozenset({"tells its question", "individuation", "exaggeration"})
"""Measures that only an embedding model can make."""
MEASURES: dict[str, str] = {
    name: words for group in GROUPS.values() for name, words in group.items() if name not in WITH_EMBEDDER
}
"""What is measured of each scene without an embedding model."""
SHARES = frozenset(
    {
        "distinct roles",
        "people among objects",
        "copied",
        "tells its question",
        "rejected",
        "first step rejected",
        "blocked",
        "repeated actions",
        "repetition",
        "seen by all",
        "changed objects",
        "consequences",
        "hurt",
        "revision proposed",
        "revision kept",
        "revised",
        "cut strings",
        "cut replies",
        "cut answers",
    }
)
"""Measures from 0 to 1."""
FATES: dict[str, str] = {
    "declines, kept": "the draft declines, and is the answer",
    "declines, kinder": "the draft declines, and so does the revision",
    "declines, then helps": "the draft declines, and the revision helps",
    "helps, kept": "the draft helps, and is the answer",
    "helps, improved": "the draft helps, and so does the revision",
    "helps, then declines": "the draft helps, and the revision declines",
}
"""What becomes of drafts, by what they do with their question."""
TURNED = ("declines, then helps", "helps, then declines")
"""Fates of drafts whose revision does the opposite; such scenes are named, for people to read."""
