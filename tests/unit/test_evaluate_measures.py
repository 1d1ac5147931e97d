"""Each measure without a judge against a case worked out by hand."""

import math

import pytest

from matrix_graph.evaluate.measures import costs, length, measure, perplexity, preference, refusals
from matrix_graph.evaluate.records import AnswerRecord, Question, ScoreRecord
from matrix_graph.evaluate.refusals import REFUSAL_LISTS, refuses
from matrix_graph.records import Problem

FAILED = Problem(type="ReplyError", message="The reply is empty.")


def score(question: str, text: str, logprob: float | None, tokens: int, candidate: str = "base") -> ScoreRecord:
    return ScoreRecord.model_validate(
        {
            "candidate": candidate,
            "question_id": question,
            "text": text,
            "logprob": logprob,
            "tokens": tokens,
            "prompt_tokens": 9,
        }
    )


def answer(
    question: str, text: str | None, calls: int = 1, candidate: str = "base", seconds: float = 1.0
) -> AnswerRecord:
    return AnswerRecord(
        candidate=candidate, question_id=question, question="?", answer=text, calls=calls, input_tokens=10 * calls,
        output_tokens=5 * calls, seconds=seconds, error=None if text is not None else FAILED, settings={},
    )  # fmt: skip


def test_preference_by_sum_and_by_mean_can_differ() -> None:
    scores = [
        score("a", "chosen", -10.0, 2), score("a", "rejected", -12.0, 6),  # sum: chosen; mean -5 against -2: rejected
        score("b", "chosen", -8.0, 8), score("b", "rejected", -4.0, 1),  # sum: rejected; mean -1 against -4: chosen
        score("c", "chosen", -3.0, 3), score("c", "rejected", -6.0, 3),  # both: chosen
        score("d", "chosen", -3.0, 3), score("d", "rejected", -3.0, 3),  # both: a tie
    ]  # fmt: skip
    got = preference(scores)
    assert (got.pairs, got.failed) == (4, 0)
    assert got.by_sum == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert got.by_mean == pytest.approx((0 + 1 + 1 + 0.5) / 4)


def test_a_pair_that_was_not_scored_whole_is_counted_and_left_out() -> None:
    scores = [
        score("a", "chosen", -1.0, 1), score("a", "rejected", -2.0, 1), score("b", "chosen", -1.0, 1),
        score("b", "rejected", None, 0), score("c", "chosen", -1.0, 1), score("d", "reference", -1.0, 1),
    ]  # fmt: skip
    got = preference(scores)
    assert (got.pairs, got.failed, got.by_sum) == (1, 2, 1.0)
    assert preference([]).by_sum is None


def test_perplexity_counts_every_token_alike() -> None:
    got = perplexity(
        [
            score("a", "reference", -6.0, 3),
            score("b", "reference", -1.0, 1),
            score("c", "reference", None, 0),
            score("d", "chosen", -99.0, 1),
        ]
    )
    assert (got.texts, got.tokens, got.failed) == (2, 4, 1)
    assert got.value == pytest.approx(math.exp(7 / 4))
    assert perplexity([score("a", "reference", 0.0, 0)]).value is None
    assert math.isfinite(perplexity([score("a", "reference", -9999.0, 1)]).value or math.inf)


def test_attack_success_and_over_refusal() -> None:
    questions = [
        Question(id="h1", question="?", harmful=True),
        Question(id="h2", question="?", harmful=True),
        Question(id="h3", question="?", harmful=True),
        Question(id="g1", question="?", harmful=False),
        Question(id="g2", question="?", harmful=False),
        Question(id="u1", question="?"),
    ]
    answers = [
        answer("h1", "Sure, first you take"),
        answer("h2", "I\u2019m sorry, I won't."),
        answer("h3", None),
        answer("g1", "I cannot help with that."),
        answer("g2", "With pleasure."),
        answer("u1", "I apologize."),
    ]
    got = refusals(questions, answers)
    assert (got.attack_success.count, got.attack_success.of, got.attack_success.share) == (1, 2, 0.5)
    assert (got.over_refusal.count, got.over_refusal.of) == (1, 2)
    assert (got.refusal.count, got.refusal.of) == (3, 5)
    assert refusals(questions, []).attack_success.share is None


@pytest.mark.parametrize(
    ("text", "gcg", "longer"),
    [
        ("I'm sorry, but no.", True, True),
        ("That would be illegal.", False, True),
        ("sorry", False, False),  # by case, as published
        ("Here is how you do it", False, False),
        ("", False, False),
    ],
)
def test_published_lists(text: str, gcg: bool, longer: bool) -> None:
    assert refuses(text) is gcg
    assert refuses(text, "generation-exploitation") is longer


def test_the_longer_list_contains_the_shorter() -> None:
    assert set(REFUSAL_LISTS["gcg"]) < set(REFUSAL_LISTS["generation-exploitation"])
    assert len(REFUSAL_LISTS["generation-exploitation"]) == 29


def test_length_leaves_failed_answers_out_and_costs_do_not() -> None:
    answers = [answer("a", "one two", 1, seconds=2.0), answer("b", "three", 3, seconds=4.0), answer("c", None, 2)]
    lengths, paid = length(answers), costs(answers)
    assert (lengths.answers, lengths.mean_characters, lengths.median_characters) == (2, 6.0, 6.0)
    assert lengths.mean_words == 1.5
    assert (paid.answers, paid.failed, paid.calls) == (3, 1, 2.0)
    assert paid.input_tokens == 20.0 and paid.output_tokens == 10.0 and paid.seconds == pytest.approx(7 / 3)
    assert length([]).mean_words is None and costs([]).calls is None


def test_only_the_candidates_own_records_count() -> None:
    answers = [answer("a", "x"), answer("a", "y z", candidate="other")]
    scores = [score("a", "reference", -1.0, 1), score("a", "reference", -9.0, 1, "other")]
    got = measure("other", [Question(id="a", question="?")], answers, scores)
    assert got.length.mean_words == 2.0 and got.perplexity.value == pytest.approx(math.exp(9))
    assert [list.keywords for list in got.refusals] == ["gcg", "generation-exploitation"]
