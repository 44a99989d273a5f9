"""Several things at a time on the threads of this process."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["side_by_side"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def side_by_side(
    work: Callable[[_In], _Out], things: Sequence[_In], *, device: torch.device, most: int = 64
) -> Generator[_Out]:
    """What ``work`` makes of things, in order; on the CPU, of a few at a time.

    Many small steps take one thread as long as several: things side by side keep all busy.

    Parameters
    ----------
    work : callable
        From a thing to what is made of it.
    things : sequence
        What there is to do.
    device : torch.device
        Where it is done; nothing is done side by side on another than the CPU.
    most : int
        At a time: each needs memory.
    """
    n_threads = torch.get_num_threads()
    n_workers = min(n_threads, len(things), most)
    if device.type != "cpu" or n_workers < 2:
        yield from map(work, things)
        return
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def alone(thing: _In) -> _Out:
        torch.set_num_threads(n_threads // n_workers)  # of this worker
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return work(thing)

    try:
        with ThreadPoolExecutor(n_workers) as pool:
            waiting: deque[Future[_Out]] = deque()
            for thing in things:  # no more than are worked on: memory
                waiting.append(pool.submit(alone, thing))
                if len(waiting) >= n_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(n_threads)
