"""How likely a served model finds a given answer: its summed log-probability, as the server computes it.

Why apart: preference accuracy and perplexity need no generation, only the log-probabilities of texts that exist. What
always holds: the prompt's tokens are exactly those that a chat request sends, and the answer's follow them, so that no
token spans the boundary and none is counted twice; the end-of-turn token is not part of the answer; sums are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matrix_graph.errors import ModelRequestError, ReplyError
from matrix_graph.evaluate.records import Question, ScoredText, ScoreRecord
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.client.http import HTTPClient
from matrix_graph.models.system_role import accepted, folded
from matrix_graph.models.thoughts import KWARGS
from matrix_graph.models.turn import Turn
from matrix_graph.records import clean

TOKENIZE, COMPLETIONS = "/tokenize", "completions"
_BEGINNING = 2
"""Tokens in which a text that stands alone may differ from the same text in place: a first word, and a space."""
_NEEDS = "Log-probabilities need vLLM's own /tokenize and prompt_logprobs."


class Scorer:
    """Scores given answers with one served model or adapter.

    Args:
        model: names the model or adapter, and its server.
        candidate: whose scores these are.
    """

    def __init__(self, model: ChatVLLM, candidate: str) -> None:
        self._model, self._candidate = model, candidate
        self._client = HTTPClient(
            model.base_url,
            key=model.request_key,
            headers=model.request_headers,
            timeout=model.timeout,
            connect_timeout=model.connect_timeout,
            give_up_after=model.give_up_after,
            max_retries=model.max_retries,
            server=model.server,
        )

    async def score(self, question: Question, text: ScoredText) -> ScoreRecord:
        """Score one of a question's known answers.

        Args:
            question: with that answer.
            text: which one.

        Raises:
            ModelError: as `ChatVLLM.ainvoke`; a server without `/tokenize` or `prompt_logprobs` refuses.
            ReplyError: the server's log-probabilities do not fit the tokens.
        """
        answer = getattr(question, text)
        assert isinstance(answer, str)  # the runner asks for texts that are there
        name = await self._model.aserved_name()
        async with Turn(None) as turn:
            prompt, tokens = await self.tokens(name, question.messages, answer)
            logprob = await self._logprob(name, prompt, tokens) if tokens else 0.0
            turn.count(len(prompt) + len(tokens), int(bool(tokens)))
        return ScoreRecord(
            candidate=self._candidate,
            question_id=question.id,
            text=text,
            logprob=logprob,
            tokens=len(tokens),
            prompt_tokens=len(prompt),
            settings={"model": name},
        )

    async def tokens(
        self, name: str, messages: Sequence[Mapping[str, str]], answer: str
    ) -> tuple[list[int], list[int]]:
        """The tokens of a conversation as a chat request sends it, and those of an answer that follows.

        The answer is taken in place, as the continuation of the conversation in the model's chat template, since some
        tokenizers write a text's beginning otherwise when it stands alone. Where that would change the prompt's own
        tokens (one token across the boundary) or the answer (a template that trims or rewrites it), the answer is
        tokenized alone: a model that generates cannot change its prompt either.
        """
        chat = [{"role": turn["role"], "content": clean(turn["content"])} for turn in messages]
        answer = clean(answer)
        kwargs = self._model.fixed_request.get(KWARGS)
        template = {"model": name, **({KWARGS: kwargs} if kwargs else {})}
        prompt = await accepted(
            self._model.known(name),
            chat,
            lambda taken: self._tokenized({**template, "messages": taken, "add_generation_prompt": True}),
        )
        if self._model.known(name).folds:
            chat = folded(chat)
        if not answer:
            return prompt, []
        alone = await self._tokenized({"model": name, "prompt": answer, "add_special_tokens": False})
        if answer != answer.strip():  # templates and servers may trim it
            return prompt, alone
        try:
            whole = await self._tokenized(
                {
                    **template,
                    "messages": [*chat, {"role": "assistant", "content": answer}],
                    "add_generation_prompt": False,
                    "continue_final_message": True,
                }
            )
        except ModelRequestError:  # some templates cannot continue an answer
            return prompt, alone
        in_place = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt or not _same_but_for_the_beginning(in_place, alone):
            return prompt, alone
        return prompt, in_place

    async def _tokenized(self, body: dict[str, Any]) -> list[int]:
        try:
            return await self._client.post(TOKENIZE, body, lambda got: [int(token) for token in got["tokens"]])
        except ModelRequestError as error:
            if error.status in (404, 405):
                raise ModelRequestError(f"{error} {_NEEDS}", status=error.status) from error
            raise

    async def _logprob(self, name: str, prompt: list[int], answer: list[int]) -> float:
        body = {
            "model": name,
            "prompt": [*prompt, *answer],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
        }
        listed: list[Any] = await self._client.post(COMPLETIONS, body, _listed)
        sent = len(prompt) + len(answer)
        if len(listed) != sent:
            raise ReplyError(f"The server gave log-probabilities of {len(listed)} tokens for a prompt of {sent}.")
        return math.fsum(_of(listed[at], token) for at, token in enumerate(answer, len(prompt)))


def _same_but_for_the_beginning(in_place: list[int], alone: list[int]) -> bool:
    """Whether it is the answer that stands in place, and not what a template made of it or put before it."""
    same = min(len(in_place), len(alone)) - _BEGINNING
    if not in_place or abs(len(in_place) - len(alone)) > _BEGINNING:
        return False
    return same <= 0 or in_place[-same:] == alone[-same:]


def _listed(body: dict[str, Any]) -> list[Any]:
    listed = body["choices"][0].get("prompt_logprobs")
    if not isinstance(listed, list):
        # Not garbage that may heal, so that it must not be tried again as such.
        raise ModelRequestError(f"The server gave no log-probabilities of the prompt. {_NEEDS}", status=200)
    return listed


def _of(entry: Any, token: int) -> float:
    try:
        value = float(entry[str(token)]["logprob"])
    except (LookupError, TypeError, ValueError) as error:
        raise ReplyError(f"The server gave no log-probability of the token {token}.") from error
    if not math.isfinite(value):
        raise ReplyError(f"The server gave {value} as the log-probability of the token {token}.")
    return value
