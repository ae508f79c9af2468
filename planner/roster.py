"""The roster: the extensions as a dispatcher sees them. Which there are, how well each does, and which are healthy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from planner.cards import Card, ExtensionId
from planner.errors import ExtensionUnavailable
from planner.placed import Queue, Queues
from planner.plans import Step

CardOf = Callable[[ExtensionId], Card | None]


class Roster:
    """The extensions of one catalogue, as they are at the moment."""

    def __init__(
        self, queues: Queues, card_of: CardOf, is_healthy: Callable[[ExtensionId], bool] | None = None
    ) -> None:
        """`is_healthy` tells whether an extension is worth trying (None: always)."""
        self._queues = queues
        self._is_healthy = is_healthy
        self.card_of = card_of

    def queue(self, extension: ExtensionId) -> tuple[Card, Queue]:
        """The card of a deployed extension and its queue. Raises ExtensionUnavailable when it is gone."""
        card = self.card_of(extension)
        if card is None:
            raise ExtensionUnavailable(f"{extension} was removed while the request ran.", hint="Send it again.")
        return card, self._queues.of(card)

    def can_do(self, steps: Iterable[Step]) -> bool:
        """Whether each of the steps has an extension that is healthy."""
        healthy = self._is_healthy
        return healthy is None or all(healthy(step.extension) or any(map(healthy, step.fallbacks)) for step in steps)

    def is_ill(self, extension: ExtensionId) -> bool:
        """Whether the extension is not worth trying before others."""
        return self._is_healthy is not None and not self._is_healthy(extension)

    def is_worse(self, stand_in: ExtensionId, wanted: ExtensionId) -> bool:
        """Whether the stand-in is known to be less accurate."""
        card, better = self.card_of(stand_in), self.card_of(wanted)
        return card is not None and better is not None and card.accuracy.mean < better.accuracy.mean

    def crowded_ms(self, extension: ExtensionId, n_rows: float) -> float:
        """What a call of so many rows takes, or of as many as go into one."""
        card = self.card_of(extension)
        return 0.0 if card is None else card.profile.p50_ms(min(int(n_rows), card.resources.max_batch_rows))
