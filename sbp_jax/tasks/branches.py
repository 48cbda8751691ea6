"""Many continuations of few contexts as rows: a context stands in a row once, and each continuation branches off it.

A question with four answers is read once and not four times. Rows hold several such groups; no group sees another, and
no continuation sees the others of its group. The last token of a continuation predicts nothing and is left out, so that
answers of one token ("A", "B") take no place at all.

Legend: B rows, T positions of a row, K places of a row for targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHORTEST = 128  # tokens of a row at least
PLACES = 32  # targets of a row at least
BRANCHES = 1 << 14  # of a group, which is also cut where it outgrows a row


@dataclass(frozen=True)
class Batch:
    """Rows to compute together.

    Attributes:
      tokens: int32 [B, T].
      branches: int32 [B, T]; group times BRANCHES, from 1, plus the branch, 0 for the context; 0 in padding.
      positions: int32 [B, T]; place in the text that context and branch are together, for RoPE.
      places: int32 [B, K]; the position whose prediction counts.
      targets: int32 [B, K]; the token predicted there.
      owners: int64 [B, K]; the request that the target is of, -1 for none.
    """

    tokens: np.ndarray
    branches: np.ndarray
    positions: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    owners: np.ndarray


@dataclass(frozen=True)
class _Group:
    """A context and the continuations (request, tokens) of it that stand in one row."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def tokens(self) -> int:
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.continuations)

    @property
    def targets(self) -> int:
        return sum(len(tokens) for _, tokens in self.continuations)


def fitted(context: Sequence[int], continuation: Sequence[int], length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A context cut from the left so that at most `length` tokens are read, as the harness's backends do it."""
    spared = len(context) + len(continuation) - (length + 1)
    return tuple(context[max(0, spared) :]), tuple(continuation)


def batches(
    requests: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], length: int, batch_tokens: int, shards: int
) -> Iterator[Batch]:
    """The rows of all requests, the longest groups first, and short ones in what these leave free.

    Args:
      requests: contexts and continuations, each of one token at least, which fit `length`.
      length: most tokens of a row.
      batch_tokens: positions of a batch, about.
      shards: a number that the rows of a batch are a multiple of.
    """
    groups = sorted(_groups(requests, length), key=lambda group: (-group.tokens, group.context))
    sizes = [group.tokens for group in groups]
    total, first, last = sum(sizes), 0, len(groups) - 1
    while first <= last:
        width = _power(sizes[first], SHORTEST)
        count = min(batch_tokens // width, -(-total // width))
        count = max(1, _power(count, 1) if count < batch_tokens // width else count)
        rows: list[list[_Group]] = []
        for _ in range(-(-count // shards) * shards):
            row, room = [], width
            while first <= last and sizes[first] <= room:
                row.append(groups[first])
                room, first = room - sizes[first], first + 1
            while first <= last and sizes[last] <= room:
                row.append(groups[last])
                room, last = room - sizes[last], last - 1
            rows.append(row)
        yield _batch(rows, width)


def _groups(requests: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], length: int) -> Iterator[_Group]:
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, (context, _) in enumerate(requests):
        by_context.setdefault(context, []).append(index)
    for context, indices in by_context.items():
        taken: list[tuple[int, tuple[int, ...]]] = []
        room = length - len(context)
        for index in indices:
            continuation = requests[index][1]
            if taken and (len(continuation) - 1 > room or len(taken) == BRANCHES - 1):
                yield _Group(context, tuple(taken))
                taken, room = [], length - len(context)
            taken.append((index, continuation))
            room -= len(continuation) - 1
        yield _Group(context, tuple(taken))


def _batch(rows: list[list[_Group]], width: int) -> Batch:
    places = _power(max(sum(group.targets for group in row) for row in rows), PLACES)
    tokens, branches, positions = (np.zeros((len(rows), width), np.int32) for _ in range(3))
    at, targets = (np.zeros((len(rows), places), np.int32) for _ in range(2))
    owners = np.full((len(rows), places), -1, np.int64)
    for number, row in enumerate(rows):
        end, target = 0, 0
        for name, group in enumerate(row, start=1):
            context = len(group.context)
            last = end + context - 1  # where every continuation's first token is predicted

            def put(read: tuple[int, ...], branch: int, position: int, number: int = number, name: int = name) -> None:
                nonlocal end
                here = slice(end, end + len(read))
                tokens[number, here], branches[number, here] = read, name * BRANCHES + branch
                positions[number, here] = np.arange(position, position + len(read))
                end += len(read)

            put(group.context, 0, 0)
            for branch, (index, continuation) in enumerate(group.continuations, start=1):
                here = slice(target, target + len(continuation))
                at[number, here] = [last, *range(end, end + len(continuation) - 1)]
                targets[number, here], owners[number, here] = continuation, index
                target += len(continuation)
                put(continuation[:-1], branch, context)
    return Batch(tokens, branches, positions, at, targets, owners)


def _power(size: int, least: int) -> int:
    """The least power of two that is at least `size` and at least `least`: few shapes, few compilations."""
    return max(least, 1 << max(0, size - 1).bit_length())
