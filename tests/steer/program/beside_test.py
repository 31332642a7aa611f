"""Batches side by side."""

import threading

import pytest

from steer.program.beside import side_by_side


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_no_more_are_under_way_than_asked_for(workers: int) -> None:
    lock, under_way, most = threading.Lock(), 0, 0

    def work(part: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        with lock:
            under_way -= 1
        return part * part

    assert list(side_by_side(work, range(20), workers)) == [n * n for n in range(20)]
    assert most <= workers


def test_two_are_under_way_at_once() -> None:
    meeting = threading.Barrier(2, timeout=30)  # broken if one waits alone
    assert list(side_by_side(lambda part: (meeting.wait(), part)[1], range(4), 2)) == [0, 1, 2, 3]


def test_an_error_stops_it_at_its_place() -> None:
    begun: list[int] = []

    def work(part: int) -> int:
        begun.append(part)
        if part == 1:
            raise ValueError("broken")
        return part

    found = []
    with pytest.raises(ValueError, match="broken"):
        for result in side_by_side(work, range(50), 1):
            found.append(result)
    assert found == [0] and len(begun) < 5
