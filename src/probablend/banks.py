"""The banks of stamps of a training: drawn when they are needed, or ahead by other processes.

Each is a function of the seed and of its number. They lie in the folder of the training, where a
bank that is not there is drawn.
"""

import logging
import math
import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from probablend.checkpoint import file_hash
from probablend.config import TrainConfig
from probablend.emulate.bank import Bank, draw_bank, load_bank, save_bank
from probablend.emulate.sources import split_sources
from probablend.emulate.stamps import Split
from probablend.images import split_extension
from probablend.survey import get_survey

__all__ = [
    "BanksAhead",
    "contents_of",
    "farther",
    "forget_bank",
    "forget_banks",
    "reach_of",
    "training_bank",
    "work_alone",
]

log = logging.getLogger(__name__)


class BanksAhead:
    """Processes that draw the banks of stamps that a training needs next.

    Parameters
    ----------
    config, directory
        Of the training.
    start, end : int
        Its steps.
    workers : int
        How many processes.
    """

    _AHEAD = 2  # banks that may wait for the training, per process

    def __init__(
        self, config: TrainConfig, directory: Path, start: int, end: int, workers: int
    ) -> None:
        numbers = {config.bank.number_at(step) for step in range(start, end)}
        self.config, self.directory = config, directory
        self.numbers = sorted(numbers) if workers else []
        self.n_ahead = self._AHEAD * workers
        self.drawn: dict[int, Future[Any]] = {}
        self.pool: Any = nullcontext()
        if workers:  # a process of a GPU must not be forked
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(workers, context, work_alone)

    def __enter__(self) -> "BanksAhead":
        self.pool.__enter__()
        self._submit()
        return self

    def __exit__(self, *error: Any) -> None:
        for future in self.drawn.values():
            future.cancel()
        self.pool.__exit__(*error)

    def _submit(self) -> None:
        while self.numbers and len(self.drawn) < self.n_ahead:
            number = self.numbers.pop(0)
            self.drawn[number] = self.pool.submit(
                _draw_missing, self.config, self.directory, "train", number
            )

    def wait_for(self, number: int) -> None:
        """Until a bank lies in the folder, if it is drawn ahead."""
        if number not in self.drawn:
            return
        try:
            self.drawn.pop(number).result()
            self._submit()
        except BrokenProcessPool:
            log.warning("a process that draws galaxies has died: going on without, see workers")
            self.drawn, self.numbers = {}, []


def work_alone() -> None:
    """How a process that works beside a training starts."""
    torch.set_num_threads(1)  # as many processes work beside this one
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A training that is killed leaves no processes behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def training_bank(config: TrainConfig, directory: Path, split: Split, number: int) -> Bank:
    """Bank ``number`` of a split, drawn unless it lies in the folder already."""
    path, origin = _draw_missing(config, directory, split, number)
    bank = load_bank(path, origin=origin)
    if config.model["kind"] == "field" and not torch.isfinite(bank.g1 + bank.hlr).any():
        raise ValueError(
            f"source {config.bank.source} knows no sizes and shapes, which the field model "
            "learns: use parametric or cosmos"
        )
    return bank


def _bank_path(directory: Path, split: Split, number: int) -> Path:
    return directory / f"bank-{split}-{number}.safetensors"


def _draw_missing(
    config: TrainConfig, directory: Path, split: Split, number: int
) -> tuple[Path, dict[str, Any]]:
    """Where bank ``number`` of a split lies, drawn if it did not, and what it is."""
    path = _bank_path(directory, split, number)
    share = 1 if split == "train" else 4
    origin: dict[str, Any] = {
        "source": "+".join(split_sources(config.bank.source)),
        "surveys": list(config.surveys),
        "split": split,
        "n_galaxies": config.bank.n_galaxies // share,
        "n_stars": config.bank.n_stars // share,
        "mag_range": list(config.scenes.mag_range),
        # Surveys that might be are other ones, too, on held-out scenes.
        "seed": config.seed + 1000 * number + (0 if split == "train" else 500),
        "n_random_surveys": config.bank.n_random_surveys,
        "psf_images": list(config.bank.psf_images),
        "psf_image_fraction": config.bank.psf_image_fraction,
    }
    drawn_for = origin | contents_of(config)
    if not path.exists():
        began = time.monotonic()
        bank = draw_bank(**origin)
        save_bank(path, bank, origin=drawn_for)
        seconds = time.monotonic() - began
        log.info("drew a bank of %d MB in %.0f s", bank.n_bytes // 10**6, seconds)
    return path, drawn_for


def contents_of(config: TrainConfig) -> dict[str, Any]:
    """What the files say that a configuration names: surveys, and images of PSFs by their hash."""
    surveys = [get_survey(name).as_dict() for name in config.surveys]
    files = {str(s["psf_file"]) for s in surveys if "psf_file" in s} | {*config.bank.psf_images}
    paths = sorted({split_extension(name)[0] for name in files})
    hashes = {str(path): file_hash(path) for path in paths}
    return {"survey_contents": surveys, "psf_hashes": hashes}


def forget_banks(config: TrainConfig, directory: Path, done: int) -> None:
    """Remove the banks that come before the one of the last step; their seeds bring them back."""
    for number in range(config.bank.number_at(done - 1)):
        forget_bank(directory, number)


def forget_bank(directory: Path, number: int) -> None:
    """Remove a bank of training galaxies; its seed brings it back."""
    _bank_path(directory, "train", number).unlink(missing_ok=True)


def reach_of(bank: Bank, config: TrainConfig) -> dict[str, float]:
    """Sharpest and widest PSF, largest flux and galaxy of a bank."""
    brightest = 10 ** (0.4 * (bank.mag_of_sigma.max() - config.scenes.mag_range[0]))
    return {
        "least_fwhm": float(bank.psf_fwhm.min()),
        "fwhm": float(bank.psf_fwhm.max()),
        "flux": float(brightest),
        "hlr": float(bank.hlr.nan_to_num().max()),
    }


def farther(before: Mapping[str, float], reach: Mapping[str, float]) -> dict[str, float]:
    """The reach of several banks together."""
    least = min(before.get("least_fwhm", math.inf), reach["least_fwhm"])
    most = {k: max(before.get(k, 0.0), v) for k, v in reach.items()}
    return most | {"least_fwhm": least}
