"""Whether the name of a thing is that of a person.

Why: small models name people among the things of a scene, where they would be changed like a door. What always holds: a
list of customers is a list; a customer is a person, whatever the cast.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from matrix_graph.records import Role
from matrix_graph.scene.copying import words_of

_PEOPLE = """
    person people man men woman women boy girl child children kid baby adult teenager husband wife partner boyfriend
    girlfriend father mother dad mom mum parent son daughter brother sister uncle aunt grandfather grandmother
    grandparent family families friend neighbour neighbor roommate flatmate boss bosses manager employer employee worker
    staff colleague coworker customer client owner landlord landlady tenant teacher student pupil professor classmate
    doctor nurse patient therapist police policeman policewoman officer detective guard lawyer judge victim witness
    witnesses suspect thief burglar hacker stranger passer bystander audience crowd team guest visitor user
"""
_PERSON_WORDS = frozenset(_PEOPLE.split())
"""English nouns that name people whatever the cast; a plural with s counts, too."""
_BEFORE_HEAD = re.compile(r"\s(?:of|for|with|in|at|on|from|to|about|who|that)\s|[,(:]")
"""What ends the noun that names a thing: "list of customers" is a list."""
_POSSESSIVE = re.compile(r"^.*?['’]s?\s+")
_ARTICLES = frozenset({"the", "a", "an", "his", "her", "their", "my"})


def is_person(thing: str, roles: Sequence[Role]) -> bool:
    """Whether a thing's name is that of a person of the cast, of who that person is, or a general word for people.

    Args:
        thing: an object's name, such as "landlord".
        roles: the cast, such as somebody who is "the asker's landlord".

    Example:
        >>> is_person("list of customers", []), is_person("angry customers", [])
        (False, True)
    """
    words = words_of(thing)
    while words and words[0] in _ARTICLES:
        words = words[1:]
    if not words:
        return False
    head = words_of(_BEFORE_HEAD.split(thing)[0])[-1:]
    if any(word in _PERSON_WORDS or word.removesuffix("s") in _PERSON_WORDS for word in head):
        return True
    for role in roles:
        who = _POSSESSIVE.sub("", role.who).split(" of ")[0].split(",")[0].split(" who ")[0]
        name, whose = words_of(role.name), words_of(who)
        if words in (name, whose) or (len(words) == 1 and words[0] in name[-1:] + whose[-1:]):
            return True
    return False
