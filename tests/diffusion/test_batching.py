"""Batches: they cover all tiles, follow the memory, shrink when it runs out, and belong to a session."""

from __future__ import annotations

import pytest
from antipure.methods.attacks.ensemble import CombinedDenoiser
from antipure.methods.diffusion.batching import DEFAULT_MEMORY_BYTES, Batching


@pytest.mark.parametrize("count", [1, 2, 7, 16])
@pytest.mark.parametrize("memory", [1, 4 * 100 * 64, 10**9])
def test_batches_cover_every_tile_once_within_the_memory(count, memory):
    batching = Batching(lambda: 100.0, memory)
    parts = list(batching.batches(count, 8, 8))
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    largest = max(part.stop - part.start for part in parts)
    assert largest == 1 or largest * 100 * 64 <= memory
    assert largest == count or (largest + 1) * 100 * 64 > memory, "no smaller than it must be"


def test_running_out_halves_the_batches_until_one_tile_is_left():
    batching, sizes = Batching(lambda: 1.0, 10**9), []
    while True:
        sizes.append(max(part.stop - part.start for part in batching.batches(9, 8, 8)))
        if not batching.shrink():
            break
    assert sizes == [9, 4, 2, 1]
    assert batching.limit == 1


def test_what_a_session_learned_is_forgotten_with_it(make_tiny):
    denoiser = make_tiny()
    with denoiser.session() as first:
        list(first.batches(9, 16, 16))
        assert first.shrink()
        assert denoiser.batching is first
        assert first.limit is not None
    with denoiser.session() as second:
        assert second is not first
        assert second.limit is None
    assert denoiser.batching.limit is None


def test_a_session_ends_however_it_is_left(make_tiny):
    denoiser = make_tiny()
    outside = denoiser.batching
    with pytest.raises(KeyboardInterrupt), denoiser.session():
        raise KeyboardInterrupt
    assert denoiser.batching is outside


def test_every_session_asks_anew_how_much_memory_there_is(make_tiny):
    denoiser, answers = make_tiny(), iter([1000.0, 2000.0])
    with denoiser.session() as batching:
        assert batching.memory_bytes == DEFAULT_MEMORY_BYTES
    denoiser.allowance = lambda asking: next(answers) if asking is denoiser else 0
    for expected in (1000.0, 2000.0):
        with denoiser.session() as batching:
            assert batching.memory_bytes == expected


def test_a_combined_session_tells_the_smallest_limit(make_tiny):
    pair = make_tiny(seed=1), make_tiny(seed=2)
    with CombinedDenoiser(pair).session() as both:
        assert both.limit is None
        pair[1].batching.limit = 3
        assert both.limit == 3
        pair[0].batching.limit = 5
        assert both.limit == 3
