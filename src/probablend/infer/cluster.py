"""The same function on many arguments, here or on a Dask cluster."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

__all__ = ["each"]


def each(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], dask: str | None
) -> Iterator[Any]:
    """Call a function on each of some arguments.

    Parameters
    ----------
    function : callable
        Of a module, so that another process finds it; calling it twice must do no harm.
    arguments : sequence of tuple
        One tuple per call.
    dask : str or None
        Address of a Dask scheduler, or ``local:N`` for N processes here; None = this process.

    Yields
    ------
    object
        What it returns: in the order of the arguments here, as they come on a cluster.

    Raises
    ------
    ValueError
        If Dask is not installed, or the cluster makes no sense.
    """
    if dask is None:
        for some in arguments:
            yield function(*some)
        return
    try:
        from dask.distributed import Client, LocalCluster, as_completed
    except ImportError as error:
        raise ValueError("more machines need dask: pip install 'probablend[dask]'") from error
    logging.getLogger("distributed").setLevel(logging.ERROR)  # what goes wrong in a task is raised
    cluster: AbstractContextManager[Any] = nullcontext(dask)
    if dask.startswith("local:"):
        n = dask.removeprefix("local:")
        if not n.isdigit() or int(n) < 1:
            raise ValueError(f"local:N needs a number of processes; got {dask}")
        cluster = LocalCluster(
            n_workers=int(n), threads_per_worker=1, processes=True, dashboard_address=None,
            silence_logs=logging.ERROR,
        )  # fmt: skip
    with cluster as where, Client(where) as client:
        futures = [client.submit(function, *some, pure=False, retries=3) for some in arguments]
        for future in as_completed(futures):
            yield future.result()
