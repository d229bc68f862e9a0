"""How much of something there may be at once."""

import contextlib
from collections.abc import Iterator


class FullError(Exception):
    """There is no room for more at the moment; the message says of what."""


class Allowance:
    """So much of something at once and no more; for one thread.

    Args:
        what: it is, for people.
        most: of it, at any time.

    Attributes:
        used: how much of it there is now.
    """

    def __init__(self, what: str, most: int) -> None:
        self._what, self._most = what, most
        self.used = 0

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Use some of it inside of the block.

        Raises:
            FullError: that is more than there is left.
        """
        if self.used + amount > self._most:
            raise FullError(self._what)
        self.used += amount
        try:
            yield
        finally:
            self.used -= amount
