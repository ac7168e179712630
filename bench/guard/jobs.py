"""Many simulated runs, one line of JSON each, in a file that a later start goes on with. For the scripts beside this one."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def run(work: Callable[[Any], Row], jobs: Sequence[Any], workers: int, out: Path | None, minutes: float) -> list[Row]:
    """Rows of all jobs, those already in `out` not done again; stops handing out work after `minutes` (0: never).

    A row must hold its job under "job", as JSON gives it back.
    """
    done = [json.loads(line) for line in out.read_text().splitlines()] if out is not None and out.exists() else []
    known = {json.dumps(row["job"]) for row in done}
    left = [job for job in jobs if json.dumps(job) not in known]
    ends = time.monotonic() + 60 * minutes if minutes else float("inf")
    with ProcessPoolExecutor(workers) as pool:
        waiting = iter(left)
        running = {pool.submit(work, job) for _, job in zip(range(2 * workers), waiting, strict=False)}
        while running:
            finished = next(as_completed(running))
            running.discard(finished)
            row = finished.result()
            done.append(row)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if time.monotonic() < ends and (job := next(waiting, None)) is not None:
                running.add(pool.submit(work, job))
            if len(done) % 50 == 0:
                print(f"{len(done)} of {len(jobs)} runs", file=sys.stderr, flush=True)
    wanted = {json.dumps(job) for job in jobs}
    return [row for row in done if json.dumps(row["job"]) in wanted]
