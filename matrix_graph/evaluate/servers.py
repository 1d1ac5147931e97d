"""The model servers of an evaluation: one for the candidates, perhaps another for the judge.

What always holds: two models on one server share its traffic, so that together they never ask it for more than it has
room for; a server's absences are the traffic's business, and no call fails of them.
"""

from __future__ import annotations

from collections.abc import Callable

from langchain_core.language_models import BaseChatModel

from matrix_graph.batch import lookout
from matrix_graph.batch.process import most_open_connections
from matrix_graph.errors import ConfigError
from matrix_graph.models.chat_vllm import ChatVLLM
from matrix_graph.models.traffic import Traffic

_BLIP_SECONDS = 60.0
"""How long a call is tried again whose server is well."""
_CALL_SECONDS = 1800.0
"""How long a call may take, from request to reply, on a server that is full."""


class Servers:
    """Traffic by server.

    Args:
        most: calls in flight on each; None: what its cache has room for.
        give_up_after: seconds that one may be away.
        on_status: gets a line when something happens.
        on_absence: gets True when one is away, False when all goes on.
        on_call: gets input and output tokens of every call that brought a reply.
    """

    def __init__(
        self,
        most: int | None,
        *,
        give_up_after: float,
        on_status: Callable[[str], object],
        on_absence: Callable[[bool], object],
        on_call: Callable[[int, int], object],
    ) -> None:
        self._most, self._give_up_after = most, give_up_after
        self._on_status, self._on_absence, self._on_call = on_status, on_absence, on_call
        self._known: list[tuple[BaseChatModel, Traffic]] = []

    async def traffic_of(self, model: BaseChatModel) -> Traffic:
        """The traffic of a model's server.

        Raises:
            ConfigError: more calls are asked for than this process may open connections.
        """
        for other, traffic in self._known:
            if _one_server(model, other):
                return traffic
        traffic = Traffic(
            await self._most_of(model),
            probe=lookout.probe_of(model),
            give_up_after=self._give_up_after,
            on_status=self._on_status,
            on_absence=self._on_absence,
            on_call=self._on_call,
        )
        self._known.append((model, traffic))
        return traffic

    async def close(self) -> None:
        """Stop looking for servers."""
        for _, traffic in self._known:
            await traffic.close()

    async def _most_of(self, model: BaseChatModel) -> int:
        allowed = most_open_connections()
        if self._most is not None and self._most > allowed:
            raise ConfigError(
                f"--max-requests is {self._most}, and this process may open {allowed} connections only. "
                "Raise that (ulimit -n), or lower --max-requests."
            )
        return self._most or min(allowed, await lookout.requests_for(model))


def patient(model: BaseChatModel, served: str, traffic: Traffic) -> BaseChatModel:
    """A model with the patience of a run.

    Args:
        model: as given; one that is no `ChatVLLM` is returned as it is.
        served: the name that it shall ask for.
        traffic: of its server.
    """
    if not isinstance(model, ChatVLLM):
        return model
    return model.model_copy(
        update={
            "model": served,
            "server": traffic,
            "give_up_after": min(_BLIP_SECONDS, model.give_up_after),
            "timeout": model.timeout if "timeout" in model.model_fields_set else _CALL_SECONDS,
        }
    )


def _one_server(one: BaseChatModel, other: BaseChatModel) -> bool:
    if isinstance(one, ChatVLLM) and isinstance(other, ChatVLLM):
        return one.base_url == other.base_url
    return one is other
