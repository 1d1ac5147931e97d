"""Log-probabilities: the boundary between prompt and answer, for tokenizers and templates of every habit."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from matrix_graph.errors import ModelRequestError, ReplyError
from matrix_graph.evaluate.records import Question
from matrix_graph.evaluate.scoring import Scorer
from matrix_graph.models.chat_vllm import ChatVLLM

JSON = dict[str, Any]
QUESTION = Question(id="q", question="Tea?", chosen="Yes please", rejected="No", reference="")


class Served:
    """A server that tokenizes as it is told and gives each token its number as log-probability, negative.

    Args:
        tokenize: the tokens of a text.
        render: the text of a conversation, with or without an answer that goes on.
    """

    def __init__(self, tokenize: Callable[[str], list[int]], render: Callable[[JSON], str]) -> None:
        self.tokenize, self.render = tokenize, render
        self.posts: list[tuple[str, JSON]] = []

    async def post(self, path: str, body: JSON, read: Callable[[JSON], Any]) -> Any:
        self.posts.append((path, body))
        if path == "/tokenize":
            text = body["prompt"] if "prompt" in body else self.render(body)
            return read({"tokens": self.tokenize(text)})
        entries: list[Any] = [None]
        entries += [{str(token): {"logprob": -float(token)}, "99999": {"logprob": 5.0}} for token in body["prompt"][1:]]
        return read({"choices": [{"prompt_logprobs": entries}]})


def rendered(body: JSON) -> str:
    *turns, last = body["messages"]
    text = "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)
    if body.get("continue_final_message"):
        return f"{text}<{last['role']}>{last['content']}"
    return f"{text}<{last['role']}>{last['content']}" + ("<assistant>" if body["add_generation_prompt"] else "")


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def scorer(served: Any) -> Scorer:
    made = Scorer(ChatVLLM(model="served", base_url="http://127.0.0.1:9/v1"), "base")
    made._client = served
    return made


async def test_sum_is_over_the_answers_tokens_alone() -> None:
    served = Served(letters, rendered)
    record = await scorer(served).score(QUESTION, "chosen")
    assert record.logprob == -math.fsum(letters("Yes please"))
    assert record.tokens == len("Yes please") and record.prompt_tokens == len("<user>Tea?<assistant>")
    assert record.mean == pytest.approx(-math.fsum(letters("Yes please")) / 10)
    path, body = served.posts[-1]
    assert path == "completions" and body["prompt"] == letters("<user>Tea?<assistant>Yes please")
    assert body["prompt_logprobs"] == 0 and "seed" not in body


async def test_an_answer_is_taken_in_place_where_standing_alone_changes_its_beginning() -> None:
    # As SentencePiece: a text that stands alone gets a space in front.
    def pieces(text: str) -> list[int]:
        return letters(text) if text.startswith("<") else letters(" " + text)

    served = Served(pieces, rendered)
    record = await scorer(served).score(QUESTION, "chosen")
    assert record.tokens == len("Yes please") and record.logprob == -math.fsum(letters("Yes please"))


async def test_no_token_spans_the_boundary() -> None:
    # ">Y" is one token where both meet, so that the joined text has another prompt.
    def merging(text: str) -> list[int]:
        return letters(text.replace(">Y", "\u00e6"))

    served = Served(merging, rendered)
    record = await scorer(served).score(QUESTION, "chosen")
    assert record.prompt_tokens == len("<user>Tea?<assistant>")
    assert record.logprob == -math.fsum(letters("Yes please"))


async def test_a_template_that_rewrites_answers_does_not_change_them() -> None:
    def rewriting(body: JSON) -> str:
        text = rendered(body)
        return text.replace("<assistant>Yes please", "<assistant><think></think>Yes") if "Yes" in text else text

    record = await scorer(Served(letters, rewriting)).score(QUESTION, "chosen")
    assert record.logprob == -math.fsum(letters("Yes please"))


@pytest.mark.parametrize("answer", [" Yes", "Yes\n", "\n\nYes  "])
async def test_white_space_around_an_answer_counts(answer: str) -> None:
    def trimming(body: JSON) -> str:
        return rendered(
            {**body, "messages": [{**turn, "content": turn["content"].strip()} for turn in body["messages"]]}
        )

    question = QUESTION.model_copy(update={"chosen": answer})
    record = await scorer(Served(letters, trimming)).score(question, "chosen")
    assert record.logprob == -math.fsum(letters(answer)) and record.tokens == len(answer)


async def test_a_template_that_cannot_continue_an_answer() -> None:
    class Refusing(Served):
        async def post(self, path: str, body: JSON, read: Callable[[JSON], Any]) -> Any:
            if body.get("continue_final_message"):
                raise ModelRequestError("continue_final_message is set but ...", status=400)
            return await super().post(path, body, read)

    record = await scorer(Refusing(letters, rendered)).score(QUESTION, "rejected")
    assert record.logprob == -math.fsum(letters("No"))


async def test_an_empty_answer_is_certain_and_costs_no_completion() -> None:
    served = Served(letters, rendered)
    record = await scorer(served).score(QUESTION, "reference")
    assert (record.logprob, record.tokens, record.mean) == (0.0, 0, None)
    assert [path for path, _ in served.posts] == ["/tokenize"]


@pytest.mark.parametrize(
    ("listed", "error"),
    [
        (None, ModelRequestError),
        ([None], ReplyError),
        ([None, *[{"1": {"logprob": -1.0}}] * 30], ReplyError),
        ([None, *[{"1": {"rank": 1}}] * 22], ReplyError),
        ([None, *[{str(n): {"logprob": float("nan")} for n in range(200)}] * 22], ReplyError),
    ],
)
async def test_what_does_not_fit_is_refused(listed: Any, error: type[Exception]) -> None:
    class Odd(Served):
        async def post(self, path: str, body: JSON, read: Callable[[JSON], Any]) -> Any:
            if path == "completions":
                return read({"choices": [{"prompt_logprobs": listed}]})
            return await super().post(path, body, read)

    assert len("<user>Tea?<assistant>No") == 23
    with pytest.raises(error):
        await scorer(Odd(letters, rendered)).score(QUESTION, "rejected")


async def test_a_server_without_tokenize_says_what_is_needed() -> None:
    class Other(Served):
        async def post(self, path: str, body: JSON, read: Callable[[JSON], Any]) -> Any:
            raise ModelRequestError("Not Found.", status=404)

    with pytest.raises(ModelRequestError, match="vLLM's own /tokenize"):
        await scorer(Other(letters, rendered)).score(QUESTION, "chosen")
