from __future__ import annotations

import copy
import hashlib
import math
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtri
from torch import Tensor

from diffproof.checks import (
    check_at_least,
    check_pixels,
    check_positive,
    check_probability,
    check_shape,
    renamed,
    unknown_name,
)
from diffproof.errors import ArgumentError
from diffproof.noise import (
    MAX_DRAW,
    MAX_IMAGE_INDEX,
    MAX_STEP,
    MAX_VOTE,
    Noise,
    Stream,
)
from diffproof.philox import normal_from_bits, philox4x32


def philox_in_plain_integers(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 written from Salmon et al. 2011, in Python's unbounded integers."""
    x = list(counter)
    k = list(key)
    for _ in range(10):
        high0, low0 = divmod(x[0] * 0xD2511F53, 1 << 32)
        high1, low1 = divmod(x[2] * 0xCD9E8D57, 1 << 32)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % (1 << 32), (k[1] + 0xBB67AE85) % (1 << 32)]
    return x


def as_words(counter: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c0, c1, c2, c3 = (torch.tensor([word], dtype=torch.int64) for word in counter)
    return c0, c1, c2, c3


def some_rows() -> Noise:
    """23 rows with all indices different, the largest among them."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, MAX_IMAGE_INDEX + 1, (23,), generator=generator)
    draw = torch.randint(0, MAX_DRAW + 1, (23,), generator=generator)
    vote = torch.randint(0, MAX_VOTE + 1, (23,), generator=generator)
    image[0], draw[1], vote[2] = MAX_IMAGE_INDEX, MAX_DRAW, MAX_VOTE
    return Noise(2**64 - 5, Stream.PREDICTION, image, draw, vote)


ONES = (1 << 32) - 1
# The vectors that Random123 publishes for philox4x32-10 (its kat_vectors file).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox4x32(as_words(counter), key)
    assert tuple(int(word) for word in words) == expected
    assert tuple(philox_in_plain_integers(counter, key)) == expected


def test_philox_random_counters() -> None:
    source = random.Random(1)
    counters = [tuple(source.getrandbits(32) for _ in range(4)) for _ in range(500)]
    key = (source.getrandbits(32), source.getrandbits(32))
    c0, c1, c2, c3 = torch.tensor(counters, dtype=torch.int64).unbind(1)
    got = torch.stack(philox4x32((c0, c1, c2, c3), key), 1)
    assert got.tolist() == [philox_in_plain_integers(counter, key) for counter in counters]
    arrays = np.stack(philox4x32((c0.numpy(), c1.numpy(), c2.numpy(), c3.numpy()), key), 1)
    assert arrays.tolist() == got.tolist()


def test_philox_broadcasts() -> None:
    block = torch.arange(6, dtype=torch.int64)[None]
    row = torch.tensor([[5], [1 << 31]], dtype=torch.int64)
    constant = torch.tensor([[7]], dtype=torch.int64)
    words = torch.stack(philox4x32((block, row, constant, row), (3, 4)), -1)
    assert words.shape == (2, 6, 4)
    for i in range(2):
        for j in range(6):
            counter = (j, int(row[i]), 7, int(row[i]))
            assert words[i, j].tolist() == philox_in_plain_integers(counter, (3, 4))


def exact_normal(bits: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The inverse of the normal distribution function, by scipy, with the top bit as the sign."""
    word = bits.numpy()
    tail = ((word & 0x7FFFFFFF) + 0.5) / 2.0**32
    value: np.ndarray[Any, np.dtype[np.float64]] = np.where(word >> 31 == 1, ndtri(tail), -ndtri(tail))
    return value


@pytest.mark.slow
def test_normal_from_bits_is_the_inverse_of_the_distribution_function() -> None:
    generator = torch.Generator().manual_seed(0)
    anywhere = torch.randint(0, 1 << 32, (1_000_000,), generator=generator)
    # Tails of all magnitudes: uniform words alone would hardly visit the outer octaves.
    octave = torch.randint(0, 32, (300_000,), generator=generator)
    tails = torch.randint(0, 1 << 31, (300_000,), generator=generator) >> octave
    ends = torch.tensor([0, 1, 2, 3, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, ONES])
    bits = torch.cat([anywhere, tails, tails | 1 << 31, ends])
    error = np.abs(normal_from_bits(bits).numpy() - exact_normal(bits))
    assert error.max() < 1e-7
    # An array's are the same bits as a tensor's.
    np.testing.assert_array_equal(normal_from_bits(bits.numpy()), normal_from_bits(bits).numpy())


def test_normal_from_bits_is_symmetric_monotone_and_bounded() -> None:
    generator = torch.Generator().manual_seed(1)
    low = torch.cat(
        [torch.tensor([0, (1 << 31) - 1]), torch.randint(0, 1 << 31, (100_000,), generator=generator)]
    )
    low = low.sort().values
    value = normal_from_bits(low)
    assert torch.equal(normal_from_bits(low | 1 << 31), -value)
    assert bool((value > 0).all())
    # A larger tail probability is a smaller value; neighbouring quadratics may overlap by their error.
    assert float(value.diff().max()) < 2e-7
    assert 6.2 < float(value.max()) < 6.4


@pytest.mark.parametrize("step", [0, 1, 77, MAX_STEP])
def test_noise_is_philox_of_its_coordinates(step: int) -> None:
    noise = some_rows()
    got = noise.normal((3, 2, 3), step, torch.float64).flatten(1)
    key = (noise.seed & ONES, noise.seed >> 32)
    for i in range(len(noise)):
        words: list[int] = []
        for block in range(5):
            counter = (
                block,
                int(noise.vote[i]) << 16 | step,
                int(noise.draw[i]),
                int(noise.image_index[i]) << 4 | int(noise.stream),
            )
            words += philox_in_plain_integers(counter, key)
        expected = exact_normal(torch.tensor(words[:18]))
        assert np.abs(got[i].numpy() - expected).max() < 1e-7


# Any change of code or platform that moves a single bit of the noise changes old certificates' counts.
TABLE_HASH = "1e2a4117bd95f98fd274a70dbb535483487edd284e6f8a88783b0680759ecd6a"
BLOCK_HASH = "25e85c9882b10291961f22767d0fb31ddf1782cb1ecf0e3ceddb3937bb3cfdf3"


def test_pinned_bits() -> None:
    # The lowest word of every segment of the table that a word can reach.
    segment = torch.arange(64, 2048)
    octave, part = segment >> 6, segment & 63
    bits = ((64 + part).double() * 2.0 ** (octave - 7).double()).long()
    assert hashlib.sha256(normal_from_bits(bits).numpy().tobytes()).hexdigest() == TABLE_HASH
    noise = Noise.for_draws(0, Stream.ESTIMATION, 5, 100, 164)
    block = torch.stack([noise.normal((1, 8, 8), step, torch.float64) for step in range(3)])
    assert hashlib.sha256(block.numpy().tobytes()).hexdigest() == BLOCK_HASH


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_are_float64_rounded(dtype: torch.dtype) -> None:
    noise = some_rows()
    exact = noise.normal((2, 5, 5), 1, torch.float64)
    got = noise.normal((2, 5, 5), 1, dtype)
    assert got.dtype == dtype
    assert torch.equal(got, exact.to(dtype))


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_batch_split_does_not_matter(batch: int) -> None:
    whole = Noise.for_draws(9, Stream.ESTIMATION, 2, 40, 340).normal((1, 8, 8), 0, torch.float32)
    parts = [
        Noise.for_draws(9, Stream.ESTIMATION, 2, start, min(start + batch, 340)).normal(
            (1, 8, 8), 0, torch.float32
        )
        for start in range(40, 340, batch)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_rows_are_independent_of_their_order_and_company() -> None:
    noise = some_rows()
    whole = noise.normal((1, 5, 5), 2, torch.float64)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))[:17].repeat(2)
    assert torch.equal(noise.rows(order, noise.vote[order]).normal((1, 5, 5), 2, torch.float64), whole[order])


def test_large_rows_are_made_in_chunks_of_the_same_values() -> None:
    # One row is larger than a chunk; another generation puts several rows in a chunk.
    noise = Noise.for_draws(4, Stream.SELECTION, 0, 0, 3)
    large = noise.normal((3, 151, 151), 0, torch.float32).flatten(1)
    small = noise.normal((50,), 0, torch.float32)
    assert torch.equal(large[:, :50], small)
    assert len(large.unique()) > 0.99 * large.numel()
    assert float(large.std()) == pytest.approx(1.0, abs=0.01)


@pytest.fixture
def thread_count() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_thread_count_does_not_matter(thread_count: Callable[[int], None]) -> None:
    noise = Noise.for_draws(1, Stream.ESTIMATION, 0, 0, 300)
    thread_count(1)
    one = noise.normal((3, 32, 32), 0, torch.float64)
    thread_count(2)
    two = noise.normal((3, 32, 32), 0, torch.float64)
    assert torch.equal(one, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_does_not_matter() -> None:
    noise = some_rows()
    device = torch.device("cuda", 0)
    moved = noise.to(device)
    assert moved.vote.device == device
    assert torch.equal(
        moved.normal((3, 32, 32), 1, torch.float64).cpu(), noise.normal((3, 32, 32), 1, torch.float64)
    )


def test_to_the_same_device_is_the_same_noise() -> None:
    noise = some_rows()
    assert noise.to(torch.device("cpu")) is noise


@pytest.mark.slow
def test_distribution_is_standard_normal() -> None:
    values = Noise.for_draws(123, Stream.ESTIMATION, 7, 0, 16_000).normal((1, 8, 8), 0, torch.float64)
    flat = values.flatten().numpy()
    # Each of the checks below raises a false alarm at 1e-6 or less.
    assert stats.kstest(flat, "norm").pvalue > 1e-6
    n = flat.size
    assert abs(flat.mean()) * math.sqrt(n) < 4.9
    assert abs(flat.var() - 1) * math.sqrt(n / 2) < 4.9
    assert abs((flat**4).mean() - 3) * math.sqrt(n / 96) < 4.9
    # Every pixel by itself, over the draws: 64 tests at 1e-6/64.
    pixels = values.flatten(1).numpy()
    assert min(stats.kstest(pixels[:, j], "norm").pvalue for j in range(64)) > 1e-6 / 64


def block(
    seed: int = 11,
    stream: Stream = Stream.ESTIMATION,
    image: int = 3,
    draw: int = 1000,
    vote: int = 2,
    step: int = 4,
) -> Tensor:
    one = torch.tensor([1], dtype=torch.int64)
    return Noise(seed, stream, image * one, draw * one, vote * one).normal((100_000,), step, torch.float64)[0]


OTHERS: list[dict[str, Any]] = [
    {"seed": 12},
    {"seed": 11 + 2**32},
    {"stream": Stream.SELECTION},
    {"stream": Stream.PREDICTION},
    {"stream": Stream.FORWARD},
    {"image": 2},
    {"image": 3 + 2**27},
    {"draw": 1001},
    {"draw": 1000 + 2**31},
    {"vote": 3},
    {"vote": 2 + 2**15},
    {"step": 5},
    {"step": 4 + 2**15},
    {"vote": 4, "step": 2},
    {"image": 1000, "draw": 3},
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_every_coordinate_gives_independent_noise(other: dict[str, Any]) -> None:
    first, second = block(), block(**other)
    n = len(first)
    # Four tests of 15 pairs (60), each with a false-alarm rate of 6e-7: under 4e-5 in all.
    for a, b in ((first, second), (first.abs(), second.abs())):
        a, b = a - a.mean(), b - b.mean()
        for shift in (0, 1):
            correlation = float((a * b.roll(shift)).mean() / (a.std() * b.std()))
            assert abs(correlation) * math.sqrt(n) < 5.0


def test_neighbouring_elements_are_uncorrelated() -> None:
    values = block()
    n = len(values)
    # Eight lags, so within a block of four and across, each with a false-alarm rate of 6e-7.
    for lag in range(1, 9):
        assert abs(float((values * values.roll(lag)).mean())) * math.sqrt(n) < 5.0


INDEX = torch.arange(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise.for_draws(-1, Stream.FORWARD, 0, 0, 1), r"seed: expected 0 ≤ seed < 2\^64, got -1"),
        (lambda: Noise.for_rows(2**64, Stream.FORWARD, INDEX, INDEX), "seed: expected"),
        (lambda: Noise.for_draws(0, Stream.FORWARD, 0, 3, 3), "draws: expected .*, got 3 and 3"),
        (lambda: Noise.for_draws(0, Stream.FORWARD, 0, -1, 3), "draws: expected"),
        (lambda: Noise.for_draws(0, Stream.FORWARD, 0, 2**32, 2**32 + 1), "draws: expected"),
        (lambda: Noise.for_draws(0, Stream.FORWARD, 2**28, 0, 1), "image_index: expected 0 ≤ image_index"),
        (lambda: Noise.for_draws(0, Stream.FORWARD, -1, 0, 1), "image_index: expected"),
        (
            lambda: Noise.for_rows(0, Stream.FORWARD, INDEX[:2], INDEX),
            r"image_index: expected one index a row",
        ),
        (
            lambda: Noise.for_rows(0, Stream.FORWARD, INDEX[None], INDEX[None]),
            "image_index: expected one index",
        ),
        (lambda: Noise.for_rows(0, Stream.FORWARD, INDEX, INDEX + 2**32), "draw: expected 0 ≤ draw"),
        (lambda: Noise.for_rows(0, Stream.FORWARD, INDEX, INDEX - 1), "draw: expected 0 ≤ draw"),
        (lambda: some_rows().rows(INDEX, INDEX + 2**16), "vote: expected 0 ≤ vote ≤ 65535"),
        (lambda: some_rows().rows(INDEX, INDEX - 1), "vote: expected"),
        (lambda: some_rows().rows(INDEX, INDEX[:2]), "vote: expected one index a row"),
        (
            lambda: some_rows().normal((2,), 2**16, torch.float32),
            r"step: expected 0 ≤ step < 2\^16, got 65536",
        ),
        (lambda: some_rows().normal((2,), -1, torch.float32), "step: expected"),
    ],
)
def test_indices_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_largest_indices_are_taken() -> None:
    noise = Noise.for_draws(2**64 - 1, Stream.FORWARD, MAX_IMAGE_INDEX, MAX_DRAW, MAX_DRAW + 1)
    assert noise.rows(torch.tensor([0]), torch.tensor([MAX_VOTE])).normal(
        (2,), MAX_STEP, torch.float32
    ).shape == (1, 2)


GREY = torch.full((1, 1, 2, 2), 0.5)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_at_least("votes", 0, 1), "votes: expected an integer ≥ 1, got 0"),
        (lambda: check_at_least("votes", True, 1), "votes: expected an integer ≥ 1, got True"),
        (lambda: check_at_least("votes", 2.0, 1), "votes: expected an integer"),  # type: ignore[arg-type]
        (lambda: check_probability("alpha", 0.0), r"alpha: expected a number in \(0, 1\), got 0.0"),
        (lambda: check_probability("alpha", 1.0), "alpha: expected"),
        (lambda: check_probability("alpha", math.nan), "alpha: expected"),
        (lambda: check_positive("sigma", 0.0), "sigma: expected a finite number > 0, got 0.0"),
        (lambda: check_positive("sigma", math.inf), "sigma: expected a finite number"),
        (lambda: check_positive("sigma", math.nan), "sigma: expected a finite number"),
        (
            lambda: check_pixels(torch.zeros(1, 1, 2, 2, dtype=torch.uint8)),
            "expected floats .* got torch.uint8",
        ),
        (lambda: check_pixels(GREY[0], "image"), "image: expected N×C×H×W, got shape"),
        (lambda: check_pixels(GREY[:0]), "images: expected at least one image"),
        (lambda: check_pixels(GREY * math.nan), "images: expected finite pixels"),
        (lambda: check_pixels(GREY * math.inf), "images: expected finite pixels"),
        (lambda: check_pixels(GREY + 0.6), r"images: expected pixels in \[0, 1\], got \[1.1, 1.1\]"),
        (lambda: check_pixels(GREY - 0.6), r"images: expected pixels in \[0, 1\], got \[-0.1, -0.1\]"),
        (lambda: check_shape(GREY[0], None, "model"), "images: expected N×C×H×W"),
        (lambda: check_shape(GREY, (3, 2, 2), "model"), "images: the model takes 3×2×2 .* got 1×2×2"),
    ],
)
def test_checks_refuse(check: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check()


def test_checks_pass_what_is_valid() -> None:
    assert check_at_least("votes", 1, 1) == 1
    assert check_probability("alpha", 0.001) == 0.001
    assert check_positive("sigma", 0.25) == 0.25
    ends = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    assert check_pixels(ends) is ends
    check_shape(GREY, None, "model")
    check_shape(GREY, (1, 2, 2), "model")


def test_an_argument_error_says_what_is_wrong_with_what() -> None:
    error = ArgumentError("sigma", "expected a finite number > 0, got nan")
    assert isinstance(error, ValueError)
    for same in (error, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(same) is ArgumentError
        assert (same.argument, same.problem) == ("sigma", "expected a finite number > 0, got nan")
        assert str(same) == "sigma: expected a finite number > 0, got nan"


def test_renamed_errors_have_the_name_that_the_caller_knows() -> None:
    with pytest.raises(ArgumentError, match=r"^flag: expected a: b$") as caught, renamed({"steps": "flag"}):
        raise ArgumentError("steps", "expected a: b")
    assert (caught.value.argument, caught.value.problem) == ("flag", "expected a: b")
    other = ArgumentError("sigma", "steps: too many")
    with pytest.raises(ArgumentError) as caught, renamed({"steps": "flag"}):
        raise other
    assert caught.value is other
    with pytest.raises(ValueError, match=r"^steps: not ours$") as plain, renamed({"steps": "flag"}):
        raise ValueError("steps: not ours")
    assert type(plain.value) is ValueError


def test_unknown_name_lists_the_nearest_or_all() -> None:
    known = {"digits": 1, "cifar10": 2}
    assert str(unknown_name("data", "digit", known)) == "data: unknown name 'digit'; did you mean digits?"
    assert str(unknown_name("data", "zzzz", known)) == "data: unknown name 'zzzz'; known: cifar10, digits"


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 22), st.integers(0, MAX_VOTE)), min_size=1, max_size=30),
    st.integers(1, 31),
)
def test_chosen_rows_in_portions_are_those_rows(chosen: list[tuple[int, int]], size: int) -> None:
    """Repeats, any order and any vote; the plain Philox of each row's own indices is the truth."""
    noise = some_rows()
    index, vote = (torch.tensor(column) for column in zip(*chosen, strict=True))
    portions = noise.rows(index, vote).split(size)
    assert [len(portion) for portion in portions[:-1]] == [size] * (len(portions) - 1)
    assert 1 <= len(portions[-1]) <= size
    drawn = torch.cat([portion.normal((3,), 7, torch.float64) for portion in portions])
    for row, (which, own) in zip(drawn, chosen, strict=True):
        counter = (
            0,
            own << 16 | 7,
            int(noise.draw[which]),
            int(noise.image_index[which]) << 4 | int(noise.stream),
        )
        words = philox_in_plain_integers(counter, (noise.seed % 2**32, noise.seed >> 32))
        assert torch.equal(row, normal_from_bits(torch.tensor(words[:3])))


@pytest.mark.parametrize("number", [-1, 8, 16, 17])
def test_streams_outside_the_enum_are_refused(number: int) -> None:
    """Stream 16 of image 0 would have the counter of stream 0 of image 1."""
    row = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"stream: expected 0 ≤ stream ≤ 7"):
        Noise(0, row + number, row, row, row)
    with pytest.raises(ValueError, match=r"stream: expected one index a row"):
        Noise(0, torch.zeros(2, dtype=torch.int64), row, row, row)


@pytest.mark.parametrize(
    "key",
    [
        torch.tensor([[1, 2]], dtype=torch.int32),
        torch.tensor([[1, 2]], dtype=torch.uint8),
        torch.tensor([[-1, 2]]),
        torch.tensor([[1, 2**32]]),
        torch.tensor([1, 2]),
        torch.tensor([[1, 2], [3, 4]]),
    ],
)
def test_keys_are_two_words_a_row(key: Tensor) -> None:
    row = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"key: expected "):
        Noise(0, Stream.SELECTION, row, row, row, key=key)
