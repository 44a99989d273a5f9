"""What a training learns of sources from, if the network sees pixels as it did before.

Looking at scenes takes longer than learning from what is seen there. Where all that looks is
frozen, scenes are looked at once, and what is seen at their sources is learnt from again and again.
"""

import json
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probablend.banks import contents_of, farther, forget_bank, reach_of, training_bank, work_alone
from probablend.checkpoint import file_hash, load_model, load_tensors, save_tensors
from probablend.config import TrainConfig
from probablend.emulate.compose import draw_batch
from probablend.models.field import FieldNetwork
from probablend.models.field_loss import Lesson, study
from probablend.models.fit import Fits

__all__ = ["Lessons", "gather_lessons"]

log = logging.getLogger(__name__)

_FIT = "fit."  # before the names of what fits say


class Lessons:
    """The lessons of a training: each is made of positions drawn from all that were looked at.

    Parameters
    ----------
    positions : Lesson
        All of them.
    n_scenes : int
        In how many scenes they lie.
    batch_size : int
        A lesson has as many positions as this many scenes hold on average.
    seed : int
        Which these are is a function of it and of the number of the lesson.
    """

    def __init__(self, positions: Lesson, *, n_scenes: int, batch_size: int, seed: int) -> None:
        per_scene = len(positions) / n_scenes
        self.n = max(2, round(per_scene * batch_size))
        self.seed = seed
        # The sum over a lesson is what a scene has to say, on average.
        self.positions = replace(positions, weight=positions.weight * (per_scene / self.n))

    def __getitem__(self, index: int) -> Lesson:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        rows = torch.randint(len(self.positions), (self.n,), generator=generator)
        return self.positions.keep(rows.to(self.positions.seen.device))


def gather_lessons(
    config: TrainConfig,
    start: Path,
    directory: Path,
    *,
    device: torch.device,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Lessons, dict[str, float]]:
    """Look at the scenes of a training.

    Parameters
    ----------
    config : TrainConfig
        ``lessons`` says at how many batches of scenes.
    start : Path
        Weights of the network that looks.
    directory : Path
        Of the training: what was seen lies there, scenes of each bank in a file.
    device : torch.device
        Where to look, if there are no ``workers``.
    workers : int
        Processes that look at the scenes of a bank each, on the CPU; they change nothing.
    progress : callable, optional
        Told how many banks are done, and of how many.

    Returns
    -------
    lessons : Lessons
        On ``device``.
    reach : dict of float
        Of all the banks, see :func:`~probablend.banks.reach_of`.

    Raises
    ------
    ValueError
        If what was seen is of another training, or nothing was.
    """
    numbers = range(config.bank.number_at(config.lessons - 1) + 1)
    parts: list[dict[str, Tensor]] = []
    reach: dict[str, float] = {}
    for done, path in enumerate(_looked(config, start, directory, numbers, device, workers)):
        tensors, meta = load_tensors(path)
        if meta.get("origin") != _origin(config, start, numbers[done]):
            raise ValueError(f"{path} was seen by another training: remove it, or start anew")
        parts.append(tensors)
        reach = farther(reach, meta["reach"])
        if progress:
            progress(done + 1, len(numbers))
    all_parts = {key: torch.cat([part[key] for part in parts]).to(device) for key in parts[0]}
    if not len(all_parts["seen"]):
        raise ValueError("the scenes hold no source to learn from: ask for denser or brighter ones")
    batch_size = config.optimizer.batch_size
    lessons = Lessons(
        _lesson_of(all_parts), n_scenes=config.lessons * batch_size, batch_size=batch_size,
        seed=config.seed,
    )  # fmt: skip
    log.info("%d positions to learn from", len(lessons.positions))
    return lessons, reach


def _looked(
    config: TrainConfig,
    start: Path,
    directory: Path,
    numbers: range,
    device: torch.device,
    workers: int,
) -> Iterator[Path]:
    """Files of what was seen, in their order, as soon as they are there."""
    if not workers:
        for number in numbers:
            yield _look(config, start, directory, number, device)
        return
    context = multiprocessing.get_context("spawn")  # a process of a GPU must not be forked
    with ProcessPoolExecutor(workers, context, work_alone) as pool:
        cpu = torch.device("cpu")
        work = [pool.submit(_look, config, start, directory, n, cpu) for n in numbers]
        try:
            for number, one in zip(numbers, work, strict=True):
                try:
                    path = one.result()
                except BrokenProcessPool:
                    log.warning("a process that looks at scenes has died: going on without it")
                    path = _look(config, start, directory, number, device)
                yield path
        finally:
            for one in work:
                one.cancel()


@torch.no_grad()
def _look(
    config: TrainConfig, start: Path, directory: Path, number: int, device: torch.device
) -> Path:
    """Where what is seen in the scenes of a bank lies, looked at if it was not."""
    path = directory / f"lessons-{number}.safetensors"
    if path.exists():
        return path
    began = time.monotonic()
    network, _ = load_model(start)
    assert isinstance(network, FieldNetwork)
    network.to(device).eval()
    bank = training_bank(config, directory, "train", number).to(device)
    parts = []
    for index in _batches(config, number):
        scenes = draw_batch(
            bank, config.scenes, n=config.optimizer.batch_size, seed=config.seed, index=index
        )
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        parts += [_tensors_of(lesson) for lesson in study(network, scenes, generator=generator)]
    together = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    meta = {"origin": _origin(config, start, number), "reach": reach_of(bank, config)}
    save_tensors(path, together, meta)
    forget_bank(directory, number)
    n, seconds = len(together["seen"]), time.monotonic() - began
    log.info("looked at %d positions in %.0f s", n, seconds)
    return path


def _batches(config: TrainConfig, number: int) -> range:
    """Numbers of the batches of a bank."""
    n = config.bank.refresh_every
    return range(number * n, min((number + 1) * n, config.lessons)) if n else range(config.lessons)


def _origin(config: TrainConfig, start: Path, number: int) -> dict[str, Any]:
    """All that what is seen in the scenes of a bank depends on, as JSON would return it."""
    settings = asdict(config)
    origin = {key: settings[key] for key in ("surveys", "seed", "bank", "scenes")}
    origin["batches"] = [len(_batches(config, number)), config.optimizer.batch_size]
    origin["network"] = file_hash(start)
    origin |= contents_of(config)
    return json.loads(json.dumps(origin))


def _tensors_of(lesson: Lesson) -> dict[str, Tensor]:
    tensors = {f.name: getattr(lesson, f.name) for f in fields(lesson) if f.name != "fits"}
    if lesson.fits is not None:
        tensors |= {_FIT + f.name: getattr(lesson.fits, f.name) for f in fields(Fits)}
    return tensors


def _lesson_of(tensors: Mapping[str, Tensor]) -> Lesson:
    own = {key: value for key, value in tensors.items() if not key.startswith(_FIT)}
    fits = {k.removeprefix(_FIT): v for k, v in tensors.items() if k.startswith(_FIT)}
    return Lesson(fits=Fits(**fits) if fits else None, **own)
