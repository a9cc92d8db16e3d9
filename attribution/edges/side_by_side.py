"""Many small pieces of work on one CPU: a thread each, where one piece is too small for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def side_by_side(
    run: Callable[[Job], Result], jobs: Iterable[Job], n_threads: int
) -> Iterator[Result]:
    """`run` of each job, in their order, up to `n_threads` at a time.

    Each computes with one thread of torch, which releases Python's lock meanwhile; so does the
    thread that takes the results, as long as there are more: threads that wait for one another
    would spin. Not more than twice as many results wait as there are threads.
    """
    if n_threads == 1:
        yield from map(run, jobs)
        return
    before = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
    torch.set_num_threads(1)
    try:
        for job in jobs:
            waiting.append(pool.submit(run, job))
            if len(waiting) == 2 * n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
