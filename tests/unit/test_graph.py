"""The map of the scene, as LangGraph draws it: every way that exists, and none that does not."""

from __future__ import annotations

from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.graph import END, START

from matrix_graph import Cast, Rehearsal, Role, SceneConfig, create_scene
from matrix_graph.records import NAME_LENGTH
from matrix_graph.scene.graph import node_names, recursion_limit
from matrix_graph.scene.state import SceneState
from tests.unit import invariants
from tests.unit.scripted import ScriptedModel

GENERATED = """
__start__ --> draft
cast -.-> __end__
cast -.-> reflect
cast -.-> role
draft -.-> __end__
draft -.-> cast
modulator -.-> reflect
modulator -.-> role
reflect -.-> __end__
reflect -.-> revise
revise --> __end__
role --> modulator
"""
NAMES = ["draft", "modulator:x", "A|B: c", "张三", "draft 2", "__end__", "revise", "???", "Dr. O'Neil, (MD)-x"]
GIVEN = """
A_B_\\20c --> modulator
Dr\\2e\\20O\\27Neil\\2c\\20_MD_-x --> modulator
\\3f\\3f\\3f --> modulator
__start__ --> draft
cast -.-> A_B_\\20c
cast -.-> Dr\\2e\\20O\\27Neil\\2c\\20_MD_-x
cast -.-> \\3f\\3f\\3f
cast -.-> __end__
cast -.-> draft\\202
cast -.-> draft\\202\\202
cast -.-> end__\\202
cast -.-> modulator_x
cast -.-> reflect
cast -.-> revise\\202
cast -.-> \\5f20\\4e09
draft -.-> __end__
draft -.-> cast
draft\\202 --> modulator
draft\\202\\202 --> modulator
end__\\202 --> modulator
modulator -.-> A_B_\\20c
modulator -.-> Dr\\2e\\20O\\27Neil\\2c\\20_MD_-x
modulator -.-> \\3f\\3f\\3f
modulator -.-> draft\\202
modulator -.-> draft\\202\\202
modulator -.-> end__\\202
modulator -.-> modulator_x
modulator -.-> reflect
modulator -.-> revise\\202
modulator -.-> \\5f20\\4e09
modulator_x --> modulator
reflect -.-> __end__
reflect -.-> revise
revise --> __end__
revise\\202 --> modulator
\\5f20\\4e09 --> modulator
"""


def cast_of(names: list[str]) -> Cast:
    return Cast(ego=names[0], roles=[Role(name=name) for name in names], plan=["walks in tok0", "walks out tok1"])


def ways(cast: Cast | None) -> list[str]:
    drawn = create_scene(ScriptedModel(), cast=cast).compile().get_graph().draw_mermaid()
    return sorted(line.strip().rstrip(";") for line in drawn.splitlines() if "->" in line)


def test_map_with_a_generated_cast() -> None:
    assert ways(None) == sorted(GENERATED.split("\n")[1:-1])


def test_map_with_a_given_cast_has_a_node_for_each_role() -> None:
    assert ways(cast_of(NAMES)) == sorted(GIVEN.split("\n")[1:-1])


def test_names_in_the_map_are_readable() -> None:
    graph = create_scene(ScriptedModel(), cast=cast_of(["Robber", "张三", "Dr. O'Neil"])).compile().get_graph()
    assert {"Robber", "张三", "Dr. O'Neil"} <= set(graph.nodes)


def test_only_these_lead_to_the_end() -> None:
    for cast in (None, cast_of(NAMES)):
        graph = create_scene(ScriptedModel(), cast=cast).compile().get_graph()
        assert {edge.source for edge in graph.edges if edge.target == END} == {"draft", "cast", "reflect", "revise"}
        assert {edge.source for edge in graph.edges if edge.target == "modulator"} == set(graph.nodes) - {
            *(START, END, "draft", "cast", "modulator", "reflect", "revise")
        }


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        [name for name in get_type_hints(SceneState) if name != "modulator"],
        [
            "A|B",
            "A:B",
            "A_B 2",
            "__",
            "___",
            "_",
            "a/b",
            "branch:to:x",
            "__start__",
            "__pregel_tasks",
            "x" * NAME_LENGTH,
        ],
        ["é", "e\u0301", "أحمد", "\u202eAnn", "🙂", "🙃"],
    ],
)
def test_scenes_with_any_names_are_played(names: list[str]) -> None:
    trace = Rehearsal(ScriptedModel(plausible=1), cast=cast_of(names)).invoke("Why?")["trace"]
    invariants.check_all(trace)
    assert trace.status == "finished" and {event.role for event in trace.events} <= set(names)


@given(st.lists(st.text(min_size=1, max_size=8) | st.sampled_from([*NAMES, "role", "A_B", START]), unique=True))
def test_node_names_are_distinct_and_allowed(names: list[str]) -> None:
    made = node_names(names)
    assert list(made) == names and len(set(made.values())) == len(names)
    for name in made.values():
        assert name.strip() and not name.startswith("__") and not set(name) & set("|:")
        assert name not in ("draft", "cast", "role", "modulator", "reflect", "revise")


def test_names_mean_nothing_in_a_diagram() -> None:
    names = ["end", "Class", "a(b)", "a[b]", 'say "no"', "x;y", "#1", "a\nb", "\u202eAnn"]
    assert list(node_names(names).values()) == [
        *("end 2", "Class 2", "a_b_", "a_b_ 2", "say _no_", "x_y", "_1", "a_b", "_Ann"),
    ]
    drawn = create_scene(ScriptedModel(), cast=cast_of(names)).compile().get_graph().draw_mermaid()
    for line in drawn.splitlines():
        if "(" in line and not line.lstrip().startswith(("classDef", "__", "%%", "---")):
            assert line.count("(") == 1 and line.count(")") == 1, line


def test_plain_names_stay_as_they_are() -> None:
    names = ["Ann", "Police officer", "Dr. O'Neil, MD-x", "张三", "Žofie", "अमित कुमार", "สมชาย", "علی‌رضا", "???", "🙂"]
    assert node_names(names) == {name: name for name in names}


def test_the_longest_scene_fits_the_recursion_limit() -> None:
    config = SceneConfig(steps=3, max_rounds=4, roles=2)
    reflected = {"lesson": "l", "verdict": "improve"}

    def override(purpose: str, role: str, round: int, rng: object) -> object:
        if purpose != "judge":
            return reflected if purpose == "reflect" else None
        return {"plausible": True, "observers": ["B"], "seen": f"{role} {round}", "consequence": "fear"}

    cast = Cast(ego="A", roles=[Role(name="A"), Role(name="B"), Role(name="C")], plan=["go", "on", "and", "on"])
    app = create_scene(ScriptedModel(override=override), cast=cast, config=config).compile()
    steps = list(app.stream({"question": "Why?"}, {"recursion_limit": recursion_limit(config)}, stream_mode="updates"))
    assert "revise" in steps[-1]
