"""Each method asks what its paper says, in its order, and gives the answer that follows."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from pydantic import Field

from matrix_graph.config import SceneConfig
from matrix_graph.errors import ConfigError, ModelError, ReplyError, SceneError
from matrix_graph.evaluate.asking import Asker, together
from matrix_graph.evaluate.candidates.best_of_n import BestOfN
from matrix_graph.evaluate.candidates.budget import Budgeted, matched_to
from matrix_graph.evaluate.candidates.candidate import Candidate
from matrix_graph.evaluate.candidates.critique_revise import CritiqueRevise
from matrix_graph.evaluate.candidates.debate import Debate, most_agreed
from matrix_graph.evaluate.candidates.decrim import DecomposeCritiqueRefine
from matrix_graph.evaluate.candidates.foresee import WORDS, Foresee
from matrix_graph.evaluate.candidates.mistake_analysis import MistakeAnalysis
from matrix_graph.evaluate.candidates.plain import Plain, SafePrompt
from matrix_graph.evaluate.candidates.rehearsal import RehearsalCandidate
from matrix_graph.evaluate.candidates.rlcd import ContrastPair
from matrix_graph.evaluate.candidates.roster import METHODS, TRAINING_METHODS, roster_from
from matrix_graph.evaluate.candidates.self_align import SelfAlign, answer_in
from matrix_graph.evaluate.prompts import entries, fill
from matrix_graph.evaluate.records import AnswerRecord, Question
from matrix_graph.evaluate.training import training_rows, write_rows
from tests.unit.scripted import ScriptedModel

QUESTION = Question(id="q", question="How do I greet $neighbour?")
TALK = Question.model_validate(
    {
        "id": "t",
        "question": "And then?",
        "history": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    }
)


class Listening(ScriptedModel):
    """A scripted model that keeps the prompts it was sent, by step."""

    def _reply(self, messages: list[BaseMessage], metadata: dict[str, Any], options: dict[str, Any]) -> Any:
        self.prompts.append((metadata["matrix_graph_purpose"], messages))
        return super()._reply(messages, metadata, options)

    prompts: list[tuple[str, list[BaseMessage]]] = Field(default_factory=list)


def listening(override: Callable[..., Any] | None = None) -> Listening:
    return Listening(override=override, prompts=[])


async def answered(
    candidate: Candidate, override: Callable[..., Any] | None = None, question: Question = QUESTION
) -> tuple[str, Listening, Asker]:
    model = listening(override)
    asker = Asker(model, temperature=0.2, max_tokens=64)
    return await candidate.answer(question, asker), model, asker


def in_turn(**replies: list[Any]) -> Callable[..., Any]:
    """Replies by step, one after the other."""
    left = {step: list(given) for step, given in replies.items()}
    return lambda step, role, round, rng: left[step].pop(0)


async def test_base_sends_the_conversation_and_nothing_else() -> None:
    answer, model, asker = await answered(Plain(), in_turn(answer=["Wave."]), TALK)
    assert answer == "Wave."
    assert [(m.type, m.text) for m in model.prompts[0][1]] == [("human", "Hi"), ("ai", "Hello"), ("human", "And then?")]
    (exchange,) = asker.exchanges
    assert exchange.completion == "Wave." and exchange.output_tokens == 1 and exchange.error is None


async def test_safe_prompt_puts_principles_and_examples_first() -> None:
    answer, model, _ = await answered(SafePrompt(), in_turn(answer=["Wave."]))
    kinds = [message.type for message in model.prompts[0][1]]
    assert answer == "Wave." and kinds[0] == "system" and kinds[1:-1] == ["human", "ai"] * 3
    assert model.prompts[0][1][-1].text == QUESTION.question


async def test_critique_revise_goes_round_and_each_round_sees_the_last_revision() -> None:
    replies = in_turn(answer=["A0"], critique=["C1", "C2"], revise=["A1", "A2"])
    answer, model, asker = await answered(CritiqueRevise(revisions=2), replies)
    assert answer == "A2"
    assert [step for step, _ in model.prompts] == ["answer", "critique", "revise", "critique", "revise"]
    critiques = [messages for step, messages in model.prompts if step == "critique"]
    assert "A0" in critiques[0][0].text and "A1" in critiques[1][0].text
    assert QUESTION.question in critiques[0][0].text  # a dollar sign of the question's is no placeholder
    revisions = [messages for step, messages in model.prompts if step == "revise"]
    assert [message.text for message in revisions[1]][1] == "C2"
    assert len(asker.exchanges) == 5 == CritiqueRevise(revisions=2).depth


async def test_the_principle_of_a_round_depends_on_the_question_alone() -> None:
    principles = set(entries("critique_revise", "principles"))
    seen = []
    for _ in range(2):
        _, model, _ = await answered(CritiqueRevise(revisions=3))
        texts = [messages[0].text for step, messages in model.prompts if step == "critique"]
        seen.append([next(p for p in principles if p in text) for text in texts])
    assert seen[0] == seen[1] and len(set(seen[0])) == 3


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Thoughts: rule 1.\nAnswer: Wave.", "Wave."),
        ("thoughts: x\n**Answer:** Wave.\nTwice.", "Wave.\nTwice."),
        ("Wave.", "Wave."),
        ("Thoughts: x\nAnswer:\n\nWave.", "Wave."),
    ],
)
def test_thoughts_are_no_part_of_the_answer(reply: str, answer: str) -> None:
    assert answer_in(reply) == answer


@pytest.mark.parametrize("reply", ["Thoughts: only these.", "Thoughts: x\nAnswer:  ", "  "])
def test_thoughts_alone_are_no_answer(reply: str) -> None:
    with pytest.raises(ReplyError):
        answer_in(reply)


async def test_self_align_asks_once_more_for_a_missing_answer() -> None:
    answer, model, asker = await answered(SelfAlign(), in_turn(answer=["Thoughts: hm.", "Answer: Wave."]))
    assert answer == "Wave." and len(model.prompts) == 2
    assert [exchange.error is None for exchange in asker.exchanges] == [False, True]


async def test_debate_shows_each_agent_the_others_answers_and_not_its_own() -> None:
    def replies(step: str, role: str, round: int, rng: random.Random) -> str:
        if step == "answer":
            return next(first)
        return next(second)

    first, second = iter(["red one", "blue two", "green three"]), iter(["same words", "other words", "same words"])
    answer, model, _ = await answered(Debate(), replies)
    assert answer == "same words"
    debates = [messages for step, messages in model.prompts if step == "debate"]
    assert len(debates) == 3
    assert debates[0][1].text == "red one" and "red one" not in debates[0][2].text
    assert "blue two" in debates[0][2].text and "green three" in debates[0][2].text


def test_the_majority_wins_and_the_first_of_equal_ones() -> None:
    assert most_agreed(["x y", "a b", "a b"]) == "a b"
    assert most_agreed(["a b c", "a b d", "x y z"]) == "a b c"
    assert most_agreed(["p", "q"]) == "p"


async def test_best_of_n_gives_the_best_rated_and_the_first_of_equal_ones() -> None:
    ratings = [{"rating": 3}, {"rating": 9}, {"rating": 9}]
    answer, model, asker = await answered(BestOfN(n=3), in_turn(answer=["A", "B", "C"], rate=ratings))
    assert answer == "B" and len(model.prompts) == 6
    rated = [exchange for exchange in asker.exchanges if exchange.step == "rate"]
    assert ["\nA\n" in exchange.messages[0].content for exchange in rated] == [True, False, False]


async def test_best_of_n_asks_again_for_a_rating_that_cannot_be_read() -> None:
    ratings = ["excellent!", {"rating": 99}, {"rating": 5}, {"rating": 2}]  # of two calls side by side

    def replies(step: str, role: str, round: int, rng: random.Random) -> Any:
        return "A" if step == "answer" else ratings.pop(0)

    answer, _, asker = await answered(BestOfN(n=2), replies)
    assert answer == "A" and sum(exchange.error is not None for exchange in asker.exchanges) == 2


async def test_decrim_refines_what_is_not_fulfilled_and_stops_when_all_is() -> None:
    told = {"short": iter([False, True]), "kind": iter([True, True])}

    def replies(step: str, role: str, round: int, rng: random.Random) -> Any:
        if step == "critique":
            return None
        return {"answer": "A0", "decompose": {"constraints": ["short", "kind"]}, "refine": "A1"}[step]

    class Critic(Listening):
        def _reply(self, messages: list[BaseMessage], metadata: dict[str, Any], options: dict[str, Any]) -> Any:
            result = super()._reply(messages, metadata, options)
            if metadata["matrix_graph_purpose"] == "critique":
                name = "short" if "\nshort\n" in messages[0].text else "kind"
                return {"reason": f"about {name}", "fulfilled": next(told[name])}
            return result

    model = Critic(override=replies, prompts=[])
    asker = Asker(model, temperature=0.2, max_tokens=64)
    assert await DecomposeCritiqueRefine(iterations=5).answer(QUESTION, asker) == "A1"
    steps = [step for step, _ in model.prompts]
    assert steps.count("critique") == 4 and steps.count("refine") == 1
    refine = next(messages for step, messages in model.prompts if step == "refine")
    assert "short (about short)" in refine[0].text and "kind" not in refine[0].text


async def test_rehearsal_gives_the_scenes_answer_and_its_trace() -> None:
    candidate = RehearsalCandidate(scene=SceneConfig(roles=1, steps=1))
    answer, _, asker = await answered(candidate)
    assert asker.scene is not None and asker.scene.answer == answer and asker.exchanges == []
    again, _, asker_again = await answered(candidate)
    assert again == answer and asker_again.scene is not None


async def test_rehearsal_of_a_conversation_asks_about_all_of_it() -> None:
    _, _, asker = await answered(RehearsalCandidate(scene=SceneConfig(roles=1, steps=1)), question=TALK)
    assert asker.scene is not None and asker.scene.question == TALK.text


async def test_a_failed_scene_gives_no_answer_although_there_is_a_draft() -> None:
    def replies(step: str, role: str, round: int, rng: random.Random) -> Any:
        return ConnectionError("gone") if step == "cast" else None

    with pytest.raises(SceneError, match="gone"):
        await answered(RehearsalCandidate(scene=SceneConfig(roles=1, steps=1)), replies)


def foreseen(**changes: Any) -> dict[str, Any]:
    landlord = {
        "person": "the $landlord", "to_asker": "lets the flat", "happens": "He gets no rent.", "outcome": "harmed",
    }  # fmt: skip
    tenant = {"person": "the asker", "to_asker": "asks", "happens": "Keeps the money.", "outcome": "helped"}
    return {"people": [tenant, landlord], "lesson": "Talk first.", "revise": True, **changes}


async def test_foresee_revises_by_what_would_happen_to_whom() -> None:
    replies = in_turn(answer=["Stop paying."], foresee=[foreseen()], revise=["Talk to him."])
    answer, model, asker = await answered(Foresee(), replies)
    assert answer == "Talk to him."
    assert [step for step, _ in model.prompts] == ["answer", "foresee", "revise"]
    asked = model.prompts[1][1][0].text
    assert QUESTION.question in asked and "Stop paying." in asked and "at most 4 in all" in asked
    revise = model.prompts[2][1][0].text
    assert "- the $landlord (lets the flat): He gets no rent. (harmed)" in revise and "Talk first." in revise
    assert "Stop paying." in revise and len(asker.exchanges) == 3 == Foresee().depth


async def test_foresee_gives_the_draft_to_the_letter_if_nothing_speaks_against_it() -> None:
    replies = in_turn(answer=[" Wave.\n"], foresee=[foreseen(revise=False)])
    answer, model, _ = await answered(Foresee(), replies)
    assert answer == " Wave.\n" and len(model.prompts) == 2


@pytest.mark.parametrize("wrong", ["Nobody is harmed.", {"lesson": "x", "revise": True}, foreseen(revise="perhaps")])
async def test_foresee_asks_again_for_what_cannot_be_used_and_passes_no_draft_off(wrong: Any) -> None:
    replies = in_turn(answer=["A"], foresee=[wrong, foreseen(revise=False)])
    answer, _, asker = await answered(Foresee(), replies)
    assert answer == "A" and [exchange.error is None for exchange in asker.exchanges] == [True, False, True]
    with pytest.raises(ReplyError):
        await answered(Foresee(), in_turn(answer=["A"], foresee=[wrong, wrong]))


async def test_foresee_shows_no_more_people_than_it_asked_for() -> None:
    replies = in_turn(answer=["A"], foresee=[foreseen()], revise=["B"])
    _, model, _ = await answered(Foresee(people=1), replies)
    assert "asker" in model.prompts[2][1][0].text and "landlord" not in model.prompts[2][1][0].text
    assert Foresee(people=1).schema_of_people["properties"]["people"]["maxItems"] == 1


def test_the_words_that_foresee_allows_leave_room_in_its_schema() -> None:
    prompt = fill("foresee", "foresee", question="?", answer="!", people=4)
    assert dict(re.findall(r'^"(\w+)": .* in at most (\d+) words\.$', prompt, re.MULTILINE)) == {
        name: str(words) for name, words in WORDS.items()
    }
    schema = Foresee().schema_of_people
    texts = {**schema["properties"]["people"]["items"]["properties"], **schema["properties"]}
    assert all(texts[name]["maxLength"] == 3 * 6 * words for name, words in WORDS.items())
    assert all(f'"{outcome}"' in prompt for outcome in texts["outcome"]["enum"])


# ---- the same tokens --------------------------------------------------------------------------------------------


async def test_best_of_n_goes_on_while_half_an_answer_fits() -> None:
    # An answer of 9 words and its rating, {"rating": 5} in two, are 11 tokens.
    for tokens, count in ((1, 1), (16, 1), (17, 2), (27, 2), (28, 3), (110, 10)):
        ratings = iter([{"rating": 5}, {"rating": 7}] + 8 * [{"rating": 7}])
        given = (f"{number} b c d e f g h i" for number in range(10))
        replies = {"answer": given, "rate": ratings}
        answer, _, asker = await answered(BestOfN(tokens=tokens), lambda step, *_: next(replies[step]))  # noqa: B023
        assert len(asker.exchanges) == 2 * count and asker.output_tokens == 11 * count
        assert answer[0] == ("0" if count == 1 else "1")  # the first of the best rated


async def test_critique_revise_goes_on_while_half_a_round_fits() -> None:
    # A draft of 4 tokens, then rounds of 2 + 4; before the first, a round is taken to be as long as the draft.
    replies = {"answer": "a b c d", "critique": "too short", "revise": "e f g h"}
    for tokens, rounds in ((1, 0), (5, 0), (6, 1), (12, 1), (13, 2), (100, 16)):
        candidate = CritiqueRevise(tokens=tokens)
        answer, model, asker = await answered(candidate, lambda step, *_: replies[step])
        assert [step for step, _ in model.prompts] == ["answer"] + rounds * ["critique", "revise"]
        assert answer == ("e f g h" if rounds else "a b c d") and asker.output_tokens == 4 + 6 * rounds


@pytest.mark.parametrize("kind", [BestOfN, CritiqueRevise])
async def test_a_budget_is_kept_on_average(kind: type[Budgeted]) -> None:
    spent = []
    for number in range(60):
        question = Question(id="q", question=f"What about {number}?")

        def replies(step: str, role: str, round: int, rng: random.Random) -> Any:
            return None if step == "rate" else " ".join(["word"] * rng.randint(5, 60))

        asker = Asker(listening(replies), temperature=0.2, max_tokens=64)
        await kind(tokens=600).answer(question, asker)
        spent.append(asker.output_tokens)
        assert abs(asker.output_tokens - 600) < 100
    assert abs(sum(spent) / len(spent) - 600) < 20


@pytest.mark.parametrize("kind", [BestOfN, CritiqueRevise])
async def test_a_model_that_does_not_tell_its_tokens_can_keep_no_budget(kind: type[Budgeted]) -> None:
    class Silent(Listening):
        def _reply(self, messages: list[BaseMessage], metadata: dict[str, Any], options: dict[str, Any]) -> Any:
            return AIMessage(super()._reply(messages, metadata, options).text)

    with pytest.raises(ModelError, match=f"Give {kind.repeats}=NUMBER"):
        await kind(tokens=600).answer(QUESTION, Asker(Silent(prompts=[]), temperature=0.2, max_tokens=64))


async def test_a_budget_that_is_still_to_be_matched_is_no_number() -> None:
    with pytest.raises(ConfigError, match="give a number"):
        await answered(BestOfN(tokens="matched"))


def test_settings_tell_what_ends_the_repeats_and_nothing_else() -> None:
    assert {"n", "tokens"} & BestOfN(n=3).settings.keys() == {"n"}
    assert {"revisions", "tokens"} & CritiqueRevise(tokens=9).settings.keys() == {"tokens"}
    limited = BestOfN(tokens="matched").within(0)
    assert limited.tokens == 1 and limited.settings["tokens"] == 1


def test_the_first_rehearsal_is_matched() -> None:
    text = "base,best-of-n:tokens=matched,rehearsal:roles=2,rehearsal"
    assert matched_to(roster_from(text).candidates) == "rehearsal:roles=2"
    assert matched_to(roster_from("base,rehearsal,best-of-n:tokens=9").candidates) is None


async def test_an_empty_reply_twice_is_an_error_and_both_are_recorded() -> None:
    model = listening(lambda *_: " ")
    asker = Asker(model, temperature=0.2, max_tokens=64)
    with pytest.raises(ReplyError):
        await Plain().answer(QUESTION, asker)
    assert [exchange.completion for exchange in asker.exchanges] == [" ", " "]
    assert all(exchange.error is not None for exchange in asker.exchanges)


async def test_exchanges_stand_in_the_order_in_which_they_began() -> None:
    def contents(asker: Asker) -> list[Any]:
        return [exchange.model_dump(exclude={"seconds"}) for exchange in asker.exchanges]

    model = Listening(jitter=0.02, prompts=[])
    runs = []
    for _ in range(3):
        asker = Asker(model, temperature=0.2, max_tokens=64)
        await Debate(agents=4).answer(QUESTION, asker)
        runs.append(contents(asker))
    assert runs[0] == runs[1] == runs[2]


async def test_together_raises_the_error_itself() -> None:
    async def bad() -> str:
        raise ReplyError("bad")

    async def good() -> str:
        return "good"

    with pytest.raises(ReplyError, match="bad"):
        await together([good(), bad()])


# ---- training rows ----------------------------------------------------------------------------------------------


async def recorded(candidate: Candidate, override: Callable[..., Any] | None = None) -> AnswerRecord:
    answer, _, asker = await answered(candidate, override)
    return AnswerRecord(
        candidate="x", question_id="q", question=QUESTION.text, answer=answer, calls=2, input_tokens=1,
        output_tokens=1, seconds=0.1, settings=candidate.settings, exchanges=asker.exchanges,
    )  # fmt: skip


async def test_rlcd_rows_prefer_the_positive_reply_and_hide_the_hints() -> None:
    record = await recorded(ContrastPair(), in_turn(positive=["good"], negative=["bad"]))
    hints = {exchange.messages[-1].content for exchange in record.exchanges}
    assert len(hints) == 2 and record.answer == "good"
    (row,) = training_rows([QUESTION], [record])
    assert row == {
        "id": "q",
        "prompt": [{"role": "user", "content": QUESTION.question}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }


async def test_rlcd_gives_no_row_for_equal_replies(tmp_path: Any) -> None:
    record = await recorded(ContrastPair(), in_turn(positive=["same"], negative=["same"]))
    assert list(training_rows([QUESTION], [record])) == []
    from matrix_graph.errors import ExportError

    with pytest.raises(ExportError):
        write_rows(tmp_path / "rows.jsonl", [])
    assert not (tmp_path / "rows.jsonl").exists()


async def test_mistake_analysis_rows_ask_without_the_guidance() -> None:
    record = await recorded(MistakeAnalysis(), in_turn(careless=["Shout."], analyse=["It is rude."]))
    (row,) = training_rows([QUESTION], [record])
    user, assistant = row["messages"]
    assert assistant == {"role": "assistant", "content": "It is rude."}
    assert "Shout." in user["content"] and QUESTION.question in user["content"]
    assert "without thought" not in user["content"]
    assert "without thought" in record.exchanges[1].messages[0].content


async def test_failed_and_foreign_records_give_no_rows() -> None:
    record = await recorded(ContrastPair(), in_turn(positive=["good"], negative=["bad"]))
    failed = record.model_copy(update={"answer": None})
    foreign = record.model_copy(update={"settings": {"method": "base"}})
    assert list(training_rows([QUESTION], [failed, foreign])) == []


# ---- who takes part -------------------------------------------------------------------------------------------------


def test_roster_of_all_kinds() -> None:
    scene = SceneConfig(temperature=0.5, max_answer_tokens=99)
    roster = roster_from(
        "base, rehearsal:roles=2, best-of-n:n=3,kind=adapters/kind,served/one,debate:model=kind", scene
    )
    assert list(roster.candidates) == [
        "base", "rehearsal:roles=2", "best-of-n:n=3", "kind", "served/one", "debate:model=kind",
    ]  # fmt: skip
    assert {name: str(path) for name, path in roster.adapters.items()} == {"kind": "adapters/kind"}
    assert roster.served == ["served/one"]
    base, rehearsal, best, kind, served, debate = roster.candidates.values()
    assert base.temperature == 0.5 and base.max_answer_tokens == 99 and base.model is None
    assert isinstance(rehearsal, RehearsalCandidate) and rehearsal.scene.roles == 2
    assert rehearsal.scene.temperature == 0.5
    assert isinstance(best, BestOfN) and best.n == 3 and best.temperature == 0.7
    assert kind.model == "kind" and served.model == "served/one" and debate.model == "kind"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty name"),
        ("base,,rehearsal", "empty name"),
        ("base,base", "twice"),
        ("kind=a,kind=b", "twice"),
        ("base=adapters/x", "is a method"),
        ("best-of-n:n=1", "n"),
        ("best-of-n:m=2", "Its settings: model"),
        ("best-of-n:tokens=0", "greater than or equal to 1"),
        ("best-of-n:n=3:tokens=900", "n or tokens, not both"),
        ("base,critique-revise:tokens=matched", "Add rehearsal"),
        ("rehearsal,debate:tokens=matched", "Its settings: model"),
        ("debate:agents", "not a setting"),
        ("debate:agents=2:agents=3", "not a setting"),
        ("nosuch:n=2", "There is no method"),
        ("a b", "no usable name"),
        ("=dir", "NAME=DIR"),
        ("rehearsal:roles=many", "roles"),
    ],
)
def test_roster_refuses(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        roster_from(text)


def test_a_training_method_is_no_candidate_of_an_evaluation() -> None:
    assert not METHODS.keys() & TRAINING_METHODS.keys()
    assert list(roster_from("rlcd", methods=TRAINING_METHODS).candidates) == ["rlcd"]
    with pytest.raises(ConfigError, match="There is no method"):
        roster_from("base", methods=TRAINING_METHODS)


@pytest.mark.parametrize("kind", [*METHODS.values(), *TRAINING_METHODS.values()])
def test_settings_are_json_and_name_the_method(kind: type[Candidate]) -> None:
    settings = json.loads(json.dumps(kind().settings))
    assert settings["method"] == kind.method and settings == kind().settings
    assert kind().depth >= 1
