"""Processes that are the ranks of one gloo group, and stay: a test sends them a function, each calls it at the same time."""

import multiprocessing as mp
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120.0
"""A test that waits longer has hung."""


class Ranks:
    """`ranks(function, *args)` returns what each rank returned; raises what the first one raised, as text."""

    def __init__(self, ranks: int, store: Path) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["tests.cluster.test_sharded"])  # PyTorch is read once, and not once per rank
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(ranks):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank, ranks, store), daemon=True)
            process.start()
            self._ends.append(here)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for end in self._ends:
            end.send((function, args))
        answers = []
        for rank, end in enumerate(self._ends):
            if not end.poll(SECONDS):
                raise TimeoutError(f"rank {rank} did not return from {function.__name__}")
            answers.append(end.recv())
        for rank, (failed, answer) in enumerate(answers):
            if failed:
                raise AssertionError(f"rank {rank}: {answer}")
        return [answer for _, answer in answers]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(end: Connection, rank: int, ranks: int, store: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), ranks), rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    while True:
        function, args = end.recv()
        try:
            end.send((False, function(*args)))
        except BaseException:
            end.send((True, traceback.format_exc()))
