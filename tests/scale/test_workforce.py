"""How many workers there are for what is asked, on machines and clusters of any size."""

from __future__ import annotations

from typing import Any

import pytest

from diffproof.errors import ArgumentError
from diffproof.scale.workforce import Places, Workforce, places


@pytest.mark.parametrize(
    ("asked", "cpus", "gpus", "device", "expected"),
    [
        # This machine: its cores are shared out, and more workers than cores share these.
        ({"workers": 2}, 8, 0, "auto", Places(2, 0.0, 4)),
        ({"workers": 3}, 8, 0, "auto", Places(3, 0.0, 2)),
        ({"workers": 4}, 2, 0, "auto", Places(4, 0.0, 1)),
        ({"workers": 4, "cpus_per_worker": 2}, 2, 0, "cpu", Places(4, 0.0, 2)),
        ({}, 8, 0, "auto", Places(8, 0.0, 1)),
        ({"cpus_per_worker": 3}, 8, 0, "auto", Places(2, 0.0, 3)),
        # One a GPU, unless the device is the CPU or a share is asked for.
        ({}, 16, 4, "auto", Places(4, 1.0, 4)),
        ({}, 16, 4, "cuda", Places(4, 1.0, 4)),
        ({}, 16, 4, "cpu", Places(16, 0.0, 1)),
        ({"workers": 3}, 16, 4, "auto", Places(3, 1.0, 5)),
        ({"workers": 8, "gpus_per_worker": 0.5}, 16, 4, "auto", Places(8, 0.5, 2)),
        ({"gpus_per_worker": 0.5}, 16, 4, "auto", Places(8, 0.5, 2)),
        ({"gpus_per_worker": 2}, 16, 5, "auto", Places(2, 2.0, 8)),
        ({"workers": 2, "gpus_per_worker": 0}, 16, 4, "auto", Places(2, 0.0, 8)),
        # A cluster: one core each by default, and no more than there are.
        ({"ray": "auto"}, 64, 0, "auto", Places(64, 0.0, 1)),
        ({"ray": "auto", "cpus_per_worker": 8}, 64, 0, "auto", Places(8, 0.0, 8)),
        ({"ray": "auto"}, 64, 8, "auto", Places(8, 1.0, 1)),
        ({"ray": "auto", "cpus_per_worker": 16}, 64, 8, "auto", Places(4, 1.0, 16)),
        ({"ray": "auto", "workers": 5}, 64, 8, "auto", Places(5, 1.0, 1)),
    ],
)
def test_places(asked: dict[str, Any], cpus: int, gpus: int, device: str, expected: Places) -> None:
    assert places(Workforce(**asked), cpus, gpus, device=device) == expected


@pytest.mark.parametrize(
    ("asked", "cpus", "gpus", "device", "message"),
    [
        ({"workers": 5}, 16, 4, "auto", "workers: 5 with 1 GPUs each are more than there are: 4; "),
        ({"gpus_per_worker": 5}, 16, 4, "auto", "gpus_per_worker: there are 4 GPUs, got 5 for each worker"),
        ({"gpus_per_worker": 2}, 16, 1, "auto", "gpus_per_worker: there is 1 GPU, got 2 for each worker"),
        ({"gpus_per_worker": 1}, 16, 0, "auto", "gpus_per_worker: there are no GPUs, got 1 for each worker"),
        ({"gpus_per_worker": 1}, 16, 4, "cpu", "gpus_per_worker: the device is cpu, got 1"),
        ({"gpus_per_worker": 0}, 16, 4, "cuda", "device: workers without a GPU compute on cpu, got 'cuda'"),
        ({}, 16, 0, "mps", "device: workers without a GPU compute on cpu, got 'mps'"),
        ({"cpus_per_worker": 17}, 16, 0, "auto", "workers: 1 with 17 CPUs each are more than there are: 16"),
        (
            {"ray": "auto", "workers": 9},
            8,
            0,
            "auto",
            "workers: 9 with 1 CPUs each are more than",
        ),
        ({"ray": "auto", "cpus_per_worker": 9}, 8, 8, "auto", "workers: 1 with 9 CPUs each are more"),
    ],
)
def test_more_than_there_is(asked: dict[str, Any], cpus: int, gpus: int, device: str, message: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        places(Workforce(**asked), cpus, gpus, device=device)
    assert str(refused.value).startswith(message)


def test_a_share_that_fits_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"--gpus-per-worker 0.5 shares them"):
        places(Workforce(workers=8), 16, 4, device="auto")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"workers": 0}, "workers: expected an integer ≥ 1, got 0"),
        ({"workers": 10**9}, "workers: expected at most 100000, got 1000000000"),
        ({"cpus_per_worker": 0}, "cpus_per_worker: expected an integer ≥ 1, got 0"),
        (
            {"gpus_per_worker": -1.0},
            "gpus_per_worker: expected a whole number ≥ 0, or a",
        ),
        (
            {"gpus_per_worker": 1.5},
            "gpus_per_worker: expected a whole number ≥ 0, or a",
        ),
        ({"gpus_per_worker": float("nan")}, "gpus_per_worker: expected a whole number ≥ 0, or a share"),
        ({"gpus_per_worker": float("inf")}, "gpus_per_worker: expected a whole number ≥ 0, or a share"),
        *(
            ({"ray": address}, f"ray: expected HOST:PORT or auto, got {address!r}")
            for address in (
                "",
                "host",
                "host:",
                ":6379",
                "host:0",
                "host:65536",
                "ray://h:1",
                "a b:1",
                "h:1:2",
            )
        ),
    ],
)
def test_what_cannot_be_asked_for(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        Workforce(**asked)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("address", "parts"),
    [("host.domain:6379", ("host.domain", 6379)), ("[::1]:1", ("::1", 1)), ("auto", None)],
)
def test_addresses(address: str, parts: tuple[str, int] | None) -> None:
    assert Workforce(ray=address).host_and_port == parts
