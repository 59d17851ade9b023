"""Place of a batch within a larger one, which decides what is drawn for its examples."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from keras import ops

from zoo.validation import MAX_COUNT, whole

Tensor = Any

_COUNT = whole(0, MAX_COUNT)


class Rows(NamedTuple):
    """Examples `start` to `start + count` of a batch of `total` examples.

    Attributes:
        start: Number of examples before these, an integer or integer scalar tensor.
        count: Number of these examples, likewise.
        total: Number of examples of the whole batch, likewise.
    """

    start: Any
    count: Any
    total: Any

    @property
    def is_host(self) -> bool:
        """Whether all numbers are integers of Python."""
        return all(isinstance(number, int) for number in self)

    def per_example(self, size: Any) -> Any:
        """Number of rows of each example on an axis of this size, such as T for (B·T, width).

        Raises:
            ValueError: If the size is no multiple of the number of examples.
        """
        if not (isinstance(size, int) and isinstance(self.count, int)):
            return ops.floor_divide(size, ops.maximum(self.count, 1))
        if size % self.count if self.count else size:
            raise ValueError(
                "The batch axis of a random draw must be a multiple of the number of examples, "
                f"{self.count}, since a part of a batch draws the numbers of its examples alone. "
                f"Received: size={size}"
            )
        return size // self.count if self.count else 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager in which the batch is these rows, within whatever other context."""
        token = _rows.set(self)
        try:
            yield
        finally:
            _rows.reset(token)


_rows: ContextVar[Rows | None] = ContextVar("_rows", default=None)


def current_rows() -> Rows | None:
    """The place of the batch that is being computed; None if it is a whole batch."""
    return _rows.get()


@contextmanager
def rows(start: Any, count: Any, total: Any) -> Iterator[None]:
    """Context manager in which a batch is part of a larger one.

    Draws with a `batch_axis` give the examples the numbers that they have in the draw for the whole
    batch. Within another such context `total` is the `count` of the outer one. Examples beyond
    `total` are padding, with arbitrary numbers.

    The context belongs to the thread that enters it, and to what is traced within it: a compiled
    function keeps the numbers of its trace, unless they are tensors.

    Args:
        start: Number of examples before the first of these, an integer or integer scalar tensor.
        count: Number of these examples, an integer or integer scalar tensor.
        total: Number of examples of the whole batch, an integer or integer scalar tensor.

    Raises:
        ValueError: If a number is no tensor and no whole number of at least 0.
    """
    place = Rows(_checked("start", start), _checked("count", count), _checked("total", total))
    outer = current_rows()
    if outer is not None:
        place = Rows(outer.start + place.start, place.count, outer.total)
    with place.applied():
        yield


def _checked(name: str, number: Any) -> Any:
    return number if ops.is_tensor(number) else _COUNT.require(name, number)
