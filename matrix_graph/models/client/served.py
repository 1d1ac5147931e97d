"""What a server serves: names, adapters, context lengths. Asked once, then kept until it proves stale."""

from typing import Any

from matrix_graph.errors import ModelRequestError
from matrix_graph.models.client.dialect import note_cards
from matrix_graph.models.client.http import HTTPClient
from matrix_graph.models.client.server_numbers import count
from matrix_graph.models.client.strings import clean_name

JSON = dict[str, Any]


class Served:
    """The models behind one client."""

    def __init__(self, client: HTTPClient) -> None:
        """Args: the server; nothing is asked yet."""
        self.client = client
        self._cards: list[JSON] | None = None
        self._no_list: str | None = None

    @property
    def known_name(self) -> str | None:
        """The first served name, if the server was asked already."""
        return str(self._cards[0]["id"]) if self._cards else None

    async def first_name(self) -> str:
        """The first served name.

        Raises:
            ModelRequestError: the server has none.
            ModelError: as `HTTPClient.get`.
        """
        if (name := self.known_name) is not None:
            return name
        cards = await self._asked()
        if not cards:
            self.forget()
            where = self.client.url("models")
            raise ModelRequestError(f"{where} lists no model. Start the server with one, or set `model`.", status=404)
        return str(cards[0]["id"])

    async def names(self) -> list[str]:
        """All served names.

        Raises:
            ModelError: as `HTTPClient.get`.
        """
        return [str(card["id"]) for card in await self._asked()]

    async def context_length(self, name: str | None) -> int | None:
        """The longest prompt plus reply of model `name` in tokens (None: the first); None if the server does not tell.

        Raises:
            ModelError: as `HTTPClient.get`.
        """
        if self._no_list is not None:  # every call of a model that thinks may want to know
            raise ModelRequestError(self._no_list, status=404)
        try:
            cards = await self._asked()
        except ModelRequestError as error:
            if error.status == 404:
                self._no_list = str(error)
            raise
        lengths = {str(card["id"]): count(card.get("max_model_len")) for card in cards}
        # An adapter's card has no length of its own: it runs in its base model's.
        return lengths.get(name or "") or next((length for length in lengths.values() if length), None)

    def forget(self) -> None:
        """Ask again next time."""
        self._cards = self._no_list = None

    async def _asked(self) -> list[JSON]:
        cards = self._cards
        if cards is None:
            cards = await self.client.get("models", _cards_in)
            note_cards(self.client.base_url, cards)
            self._cards = cards
        return cards


def _cards_in(body: JSON) -> list[JSON]:
    cards = [dict(card) for card in body["data"]]
    for card in cards:
        if not isinstance(card["id"], str) or not card["id"]:
            raise TypeError("a model's id is no text")
        card["id"] = clean_name(card["id"])
    return cards
