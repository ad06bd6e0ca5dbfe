"""Chunks on their way through stages: order, room, waiting, and failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from composefs_async._aio.pipeline import Belt, Stage

LONG = 30.0


@dataclass(slots=True)
class Piece:
    number: int
    final: bool
    trace: list[str] = field(default_factory=list[str])


class Line:
    """A belt of three stages that note who was where, and when."""

    def __init__(self, pieces: int, room: int = 3, *, sourced: bool = True, pause: float = 0) -> None:
        self.pieces, self.pause = pieces, pause
        self.made = self.inside = self.most_inside = self.stored_at_once = self.most_stored_at_once = 0
        self.order: dict[str, list[int]] = {"split": [], "finish": []}
        self.lock = threading.Lock()
        stages = [
            Stage(self.noting("split"), in_order=True),
            Stage(self.store, in_order=False),
            Stage(self.finish, in_order=True),
        ]
        self.belt: Belt[Piece] = Belt(stages, room, self.source if sourced else None)

    def source(self) -> Piece:
        with self.lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        number, self.made = self.made, self.made + 1
        return Piece(number, number == self.pieces - 1)

    def noting(self, name: str) -> Callable[[Piece], None]:
        def work(piece: Piece) -> None:
            piece.trace.append(name)
            self.order[name].append(piece.number)

        return work

    def store(self, piece: Piece) -> None:
        with self.lock:
            self.stored_at_once += 1
            self.most_stored_at_once = max(self.most_stored_at_once, self.stored_at_once)
        time.sleep(self.pause * (piece.number % 3))
        piece.trace.append("store")
        with self.lock:
            self.stored_at_once -= 1

    def finish(self, piece: Piece) -> None:
        assert piece.trace == ["split", "store"]
        self.order["finish"].append(piece.number)
        with self.lock:
            self.inside -= 1

    def run(self, threads: int) -> None:
        workers = [threading.Thread(target=self.belt.work, args=(LONG,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(LONG)
            assert not worker.is_alive()


def test_as_many_chunks_are_made_ahead_as_there_is_room_for() -> None:
    line = Line(5, room=3)
    made_at_split: list[int] = []
    line.belt = Belt([Stage(lambda _: made_at_split.append(line.made), in_order=True)], 3, line.source)
    line.run(threads=1)
    assert made_at_split == [3, 4, 5, 5, 5]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("room", [1, 2, 4])
def test_chunks_go_through_in_order_and_within_the_room(threads: int, room: int) -> None:
    line = Line(40, room, pause=0.001)
    line.run(threads)
    assert line.belt.done
    assert line.order == {"split": list(range(40)), "finish": list(range(40))}
    assert line.most_inside <= room


def test_several_are_stored_at_once() -> None:
    line = Line(30, 4, pause=0.005)
    line.run(3)
    assert line.most_stored_at_once > 1


def test_work_ends_when_time_is_up_and_goes_on_where_it_was() -> None:
    line = Line(5)
    line.belt.work(0)
    assert line.made == 0
    line.belt.work(LONG)
    assert line.order["finish"] == [0, 1, 2, 3, 4]


def test_without_a_source_chunks_are_put() -> None:
    line = Line(2, room=1, sourced=False)
    belt = line.belt
    belt.work(LONG)  # nothing to do, and nobody to wait for
    assert not belt.done
    assert not belt.ready
    assert not belt.full
    belt.put(Piece(0, False))
    assert belt.ready
    assert belt.full
    belt.work(LONG)
    assert not belt.ready
    assert not belt.full
    assert not belt.done
    belt.put(Piece(1, True))
    belt.work(LONG)
    assert belt.done
    assert line.order["finish"] == [0, 1]


@pytest.mark.parametrize("place", ["source", "split", "store", "finish"])
def test_a_failure_ends_it_for_all(place: str) -> None:
    seen: list[int] = []

    def work(name: str) -> Callable[[Piece], None]:
        def step(piece: Piece) -> None:
            if name == place and piece.number == 3:
                raise OSError(name)
            if name == "finish":
                seen.append(piece.number)

        return step

    numbers = iter(range(100))

    def source() -> Piece:
        piece = Piece(next(numbers), False)
        work("source")(piece)
        return piece

    stages = [Stage(work(name), in_order=name != "store") for name in ("split", "store", "finish")]
    belt = Belt(stages, 4, source)
    errors: list[OSError] = []

    def worker() -> None:
        try:
            belt.work(LONG)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=worker) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert [str(error) for error in errors] == [place]
    assert belt.done
    assert seen == list(range(len(seen)))
    assert len(seen) <= 3
