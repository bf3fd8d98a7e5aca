"""Batches in processes of their own. No torch here: the processes load this file."""

from __future__ import annotations

import os

import pytest

from tools.parallel import in_parallel


def die(batch: list[int]) -> int:
    if 3 in batch:
        os._exit(9)
    return sum(batch)


def fail(batch: list[int]) -> int:
    raise KeyError(batch[0])


def double(batch: list[int]) -> list[int]:
    return [2 * number for number in batch]


def test_batches_are_taken_as_processes_come_free():
    taken = []

    def batches():
        for number in range(50):
            taken.append(number)
            yield [number]

    done = 0
    for count, (result,) in in_parallel(double, batches(), 2):
        done += count
        assert result % 2 == 0
        assert len(taken) - done <= 2
    assert done == 50


def test_a_process_that_dies_is_an_error():
    with pytest.raises(ValueError, match="a process died between 3 and 4"):
        list(in_parallel(die, iter([[1, 2], [3, 4]]), 1))


def test_an_exception_in_a_process_is_raised_here():
    with pytest.raises(KeyError):
        list(in_parallel(fail, iter([[1]]), 1))
