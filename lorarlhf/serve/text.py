"""The text of an answer while it is written: stop texts end it, and nothing is sent too early."""

from collections.abc import Callable, Sequence

from lorarlhf.backbone.generation import REPLACEMENT

Decode = Callable[[Sequence[int]], str]


class AnswerText:
    """The text of one answer, without blanks at its ends, as `generation.completion` has it.

    Held back while the answer goes on: blanks at the end, bytes of a character that is not whole,
    and what may be the beginning of a stop text. So the pieces together are the final text.

    Args:
        decode: tokens as text.
        stops: texts that end the answer.

    Attributes:
        stopped: whether a stop text has ended it.
        text: the final text, once `end` was called.
    """

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, stops
        self._sent = 0
        self.stopped = False
        self.text = ""

    def more(self, ids: Sequence[int]) -> str:
        """What can be sent now of an answer with these tokens, the stop token not included."""
        written = self._decode(ids).rstrip(REPLACEMENT)
        at = self._stop_in(written)
        if at is not None:
            self.stopped = True
            return self._piece(written[:at].strip())
        written = written[: len(written) - self._maybe_stop(written)]
        return self._piece(written.strip())

    def end(self, ids: Sequence[int]) -> str:
        """The rest of the text, once no token comes any more."""
        written = self._decode(ids)
        at = self._stop_in(written)
        self.stopped = at is not None
        self.text = written[:at].strip()
        return self._piece(self.text)

    def _piece(self, text: str) -> str:
        piece, self._sent = text[self._sent :], max(self._sent, len(text))
        return piece

    def _stop_in(self, written: str) -> int | None:
        """Where the first stop text begins."""
        places = [written.find(stop) for stop in self._stops]
        return min((place for place in places if place >= 0), default=None)

    def _maybe_stop(self, written: str) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(written)), longest, -1):
                if written.endswith(stop[:length]):
                    longest = length
                    break
        return longest
