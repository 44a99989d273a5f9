"""Training: the loop, top to bottom, in one function.

Everything random is a function of the seed and of the step, and a checkpoint holds
weights, optimiser state and step: a run that is stopped and resumed ends with the same
weights as one that is not (to the bit on the CPU; some sums on a GPU have no fixed order).
"""

import csv
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from lightning_fabric.strategies import DDPStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from probablend._version import __version__
from probablend.banks import (
    BanksAhead,
    contents_of,
    farther,
    forget_banks,
    reach_of,
    training_bank,
)
from probablend.checkpoint import load_model, load_tensors, save_tensors, save_weights
from probablend.config import OptimizerConfig, TrainConfig, find_config, read_train_config
from probablend.device import resolve_device
from probablend.emulate.bank import Bank
from probablend.emulate.compose import SceneBatches, draw_batch
from probablend.emulate.scenes import SceneBatch
from probablend.emulate.sources import split_sources
from probablend.lessons import Lessons, gather_lessons
from probablend.models import build_model
from probablend.models.field import FieldNetwork
from probablend.models.network import Network
from probablend.models.start import freeze, take_over
from probablend.survey import PSF_RANGE, get_survey
from probablend.validation import validate

__all__ = ["familiarise", "train"]

log = logging.getLogger(__name__)

_TIE = 1e-3  # losses so close, relatively, are told apart by their calibration
# When familiarity is learnt: held-out scenes per one of the validation, and scenes of training
# galaxies per one of those.
_HELD_OUT, _FAMILIAR = 8, 2


def train(
    config: TrainConfig,
    directory: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    stop_after: int | None = None,
    devices: int = 1,
    num_nodes: int = 1,
    workers: int = 0,
    after: Sequence[str] = (),
) -> Path:
    """Train a network and keep the best weights.

    Parameters
    ----------
    config : TrainConfig
        What to train, on what, for how long.
    directory : Path
        Gets ``last.safetensors`` (to resume from), ``best.safetensors`` (the best so far on
        held-out scenes) and, at the end, ``NAME.safetensors`` in its place, each with a ``.json``;
        the banks of stamps, ``log.csv`` and TensorBoard events.
    device : {"auto", "cpu", "cuda", "mps"}
        Where to compute.
    resume : bool
        Whether to go on from ``last.safetensors``.
    stop_after : int, optional
        Leave after this step, as a time limit would.
    devices, num_nodes : int
        Processes on each machine, and machines: they share the batches of a step, see
        :class:`~probablend.config.OptimizerConfig`. All need the same folder.
    workers : int
        Further processes, which draw the banks of stamps that come next, or look at scenes if
        there are ``lessons``; the training waits for each bank if there are none. They change
        nothing else. Each takes a core and half a gigabyte; a script that asks for some needs
        ``if __name__ == "__main__":``.
    after : sequence of str
        Names of the trainings that wait for this one.

    Returns
    -------
    Path
        The best weights; the best so far, if the training has not ended.

    Raises
    ------
    FileNotFoundError
        If there is nothing to resume, unless the training that comes first has not ended.
    ValueError
        If the checkpoint belongs to another configuration, the loss is not finite, or a training
        comes before itself.
    FileExistsError
        If there is a checkpoint and ``resume`` is not set.
    """
    if config.lessons and devices * num_nodes > 1:
        raise ValueError("lessons are learnt by one process: leave devices and num_nodes at 1")
    if config.optimizer.n_batches % (devices * num_nodes):
        raise ValueError(
            f"{devices * num_nodes} processes cannot share {config.optimizer.n_batches} batches "
            "evenly: set n_batches to a multiple"
        )
    last, best = directory / "last.safetensors", directory / "best.safetensors"
    finished = directory / f"{config.name}.safetensors"
    if last.exists() and not resume:
        raise FileExistsError(
            f"{directory} holds a training already: resume it (--resume), or name another folder"
        )
    for survey in config.surveys:
        get_survey(survey)  # a wrong name is better said at once
    freeze(build_model(config.model_settings), config.frozen)
    earlier = config.start_from
    if earlier.endswith(".toml") and not last.exists():
        if devices * num_nodes > 1:
            raise ValueError(
                f"start_from: train {earlier} first, and name its weights: several processes take "
                "one training at a time"
            )
        earlier = _trained_before(earlier, directory, device, workers, (*after, config.name))
        resume = False
    if resume and not last.exists():
        raise FileNotFoundError(f"{directory} holds no training to go on with: start one")
    torch.manual_seed(config.seed)
    bare = build_model(config.model_settings)
    reach: dict[str, float] = {}
    if earlier and not resume:
        before, meta = load_model(earlier)
        take_over(bare, before, config.fresh, name=earlier)
        reach = {} if config.fresh else _reach_before(meta)
    tensors, state = load_tensors(last) if resume else ({}, {})
    other = _changed(state, config) if resume else []
    if state.get("finished") and not other:
        return finished
    if other:
        raise ValueError(
            f"{last} was made with another configuration ({', '.join(other)}); "
            "start a new directory"
        )
    contents = contents_of(config)
    accelerator = resolve_device(device).type

    directory.mkdir(parents=True, exist_ok=True)
    many = devices * num_nodes > 1
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=DDPStrategy(find_unused_parameters=True) if many else "auto",
        loggers=TensorBoardLogger(root_dir=directory, name="tensorboard", version=""),
    )
    fabric.launch()
    first = fabric.is_global_zero
    if first:
        _keep_rows(directory / "log.csv", until=state.get("step", 0))

    with fabric.rank_zero_first():
        validation = _validation(config, directory, fabric.device)

    bare.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen = freeze(bare, config.frozen)
    learning = [p for p in bare.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learning, lr=config.optimizer.learning_rate, weight_decay=config.optimizer.weight_decay
    )
    model, optimizer = fabric.setup(bare, optimizer)
    model.mark_forward_method("training_loss")
    averaged = None
    if decay := config.optimizer.average:
        averaged = AveragedModel(bare, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    kept = bare if averaged is None else cast(Network, averaged.module)

    start, seconds, best_so_far = 0, 0.0, _Best()
    if resume:
        _restore(bare, averaged, optimizer, tensors)
        start, seconds, best_so_far = state["step"], state["seconds"], _Best(**state["best"])
    end = min(config.optimizer.n_steps, stop_after or config.optimizer.n_steps)
    enough = state.get("enough", False)
    if enough:  # it was stopped while it learnt what its training looked like
        end = start
    reach = state.get("reach", reach)

    began, done = time.monotonic(), start
    n_pixels = config.scenes.size**2
    new_scenes = not config.lessons
    ahead = workers if first and new_scenes else 0
    banks = BanksAhead(config, directory, start, end, ahead)
    with _settings_for(accelerator), banks, _progress() as progress:
        scenes: SceneBatches | Lessons | None = None
        number, n_batches = -1, config.optimizer.n_batches
        if config.lessons and start < end:
            task = progress.add_task("look", text="")
            scenes, reached = gather_lessons(
                config, _looking(bare, config, directory, resume), directory, device=fabric.device,
                workers=workers,
                progress=lambda k, n: progress.update(task, completed=k, total=n),
            )  # fmt: skip
            reach = farther(reach, reached)
        task = progress.add_task("train", total=config.optimizer.n_steps, completed=start, text="")
        for step in range(start, end):
            if new_scenes and (wanted := config.bank.number_at(step)) != number:
                number = wanted
                with fabric.rank_zero_first():
                    banks.wait_for(number)
                    bank = training_bank(config, directory, "train", number).to(fabric.device)
                reach = farther(reach, reach_of(bank, config))
                scenes = SceneBatches(
                    bank, config.scenes, n_batches=config.optimizer.n_steps * n_batches,
                    batch_size=config.optimizer.batch_size, seed=config.seed,
                )  # fmt: skip
            assert scenes is not None
            model.train()
            for part in frozen:
                part.eval()
            rate, beta = _schedule(config.optimizer, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            own = range(fabric.global_rank, n_batches, fabric.world_size)
            parts = []
            for k in own:
                index = step * n_batches + k
                batch = scenes[index]
                generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
                with fabric.no_backward_sync(model, enabled=k != own[-1]):
                    terms = model.training_loss(batch, generator=generator, beta=beta)
                    if not torch.isfinite(terms["loss"]):
                        raise ValueError(
                            f"the loss is not finite at step {step}: lower the learning rate"
                        )
                    # Per pixel, so that rate and clipping mean the same for every patch size.
                    fabric.backward(terms["loss"] / (n_pixels * len(own)))
                parts.append({key: value.detach() for key, value in terms.items()})
            fabric.clip_gradients(model, optimizer, max_norm=config.optimizer.gradient_clip)
            optimizer.step()
            if averaged is not None:
                averaged.update_parameters(bare)
            terms = {k: torch.stack([part[k] for part in parts]).mean() for k in parts[0]}
            if many:
                terms = {k: fabric.all_reduce(v, reduce_op="mean") for k, v in terms.items()}

            done = step + 1
            shown = " ".join(f"{key} {value.item():.4g}" for key, value in terms.items())
            progress.update(task, completed=done, text=shown)
            judged = done % config.validate_every == 0 or done == config.optimizer.n_steps
            if first and judged:
                spent = seconds + time.monotonic() - began
                scores = validate(kept, validation, seed=config.seed)
                train_terms = {f"train_{key}": value.item() for key, value in terms.items()}
                row = {"step": done, "seconds": spent, "rate": rate, "beta": beta}
                row |= train_terms | scores
                _append_csv(directory / "log.csv", row)
                fabric.log_dict({k: v for k, v in row.items() if k != "step"}, step=done)
                log.info("%s", " ".join(f"{key}={value:.4g}" for key, value in row.items()))
                if best_so_far.add(scores):
                    save_weights(best, kept, _meta(config, row, reach), half=True)
            enough = judged and 0 < config.optimizer.patience <= best_so_far.stale
            if many and judged and config.optimizer.patience:
                enough = fabric.broadcast(enough)  # only the first process has judged
            if first and (done % config.checkpoint_every == 0 or done == end or enough):
                spent = seconds + time.monotonic() - began
                state = {"config": _plain(config), "step": done, "best": asdict(best_so_far)}
                state |= {"contents": contents}
                state |= {"seconds": spent, "enough": enough, "reach": reach}
                save_tensors(last, _state(bare, averaged, optimizer), state)
                forget_banks(config, directory, done)
            if enough:
                log.info("stopped at step %d: nothing has become better", done)
                break
    over = enough or end == config.optimizer.n_steps
    if first and over:
        _name(best, finished, config, directory, device=device, n_steps=done)
        state |= {"finished": True}
        save_tensors(last, _state(bare, averaged, optimizer), state)
        for path in (best, best.with_suffix(".json")):
            path.unlink()
    fabric.barrier()
    return finished if over else best


def _name(
    best: Path, finished: Path, config: TrainConfig, directory: Path, *, device: str, n_steps: int
) -> None:
    """Give the best weights their name, not before they know what their training looked like."""
    model, meta = load_model(best)
    if isinstance(model, FieldNetwork):
        familiarise(best, config, directory, output=finished, device=device, n_steps=n_steps)
    else:
        save_weights(finished, model, meta, half=True)


@dataclass
class _Best:
    """The best validation so far, by loss and, between losses as good as equal, calibration.

    Parameters
    ----------
    loss : float
        Lowest loss of any validation.
    kept_loss, kept_error : float
        Loss and calibration error of what was kept.
    error : float
        Lowest calibration error of any validation.
    stale : int
        Validations since either became lower.
    """

    loss: float = math.inf
    kept_loss: float = math.inf
    kept_error: float = math.inf
    error: float = math.inf
    stale: int = 0

    def add(self, scores: Mapping[str, float]) -> bool:
        """Whether weights with these scores are to be kept."""
        loss, error = scores["loss"], scores.get("coverage_error", math.inf)
        error = error if math.isfinite(error) else math.inf
        self.stale = 0 if loss < self.loss or error < self.error else self.stale + 1
        self.loss, self.error = min(self.loss, loss), min(self.error, error)
        good = self.loss + _TIE * abs(self.loss)  # what is as good as the lowest
        truer = error < self.kept_error or (error == self.kept_error and loss < self.kept_loss)
        keep = loss <= good and (truer or self.kept_loss > good)
        if keep:
            self.kept_loss, self.kept_error = loss, error
        return keep


def _looking(bare: Network, config: TrainConfig, directory: Path, resume: bool) -> Path:
    """Weights of the network that looks at scenes before it learns; a resumed one has learnt."""
    path = directory / "start.safetensors"
    if not resume:
        save_tensors(path, bare.state_dict(), {"model": config.model_settings})
    return path


def _trained_before(
    name: str, directory: Path, device: str, workers: int, after: Sequence[str]
) -> str:
    """Weights of the training that comes first, in a folder of its own; it goes on if it can."""
    config = read_train_config(find_config(name))
    if config.name in after:
        raise ValueError(f"start_from: {name} would come before itself ({' < '.join(after)})")
    folder = directory / config.name
    last, best = folder / "last.safetensors", folder / f"{config.name}.safetensors"
    if best.exists() and not (folder / "log.csv").exists():  # put there by hand
        return str(best)
    return str(train(
        config, folder, device=device, resume=last.exists(), workers=workers, after=after
    ))  # fmt: skip


@contextmanager
def _settings_for(accelerator: str) -> Iterator[None]:
    """How torch is to compute while a training lasts.

    On the CPU gradients gathered at many places are added in one order by any threads; on a GPU
    layers round like its convolutions, to ten bits, and scenes are all of one size.
    """
    ordered = torch.are_deterministic_algorithms_enabled()
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(ordered or accelerator == "cpu")
    if accelerator == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(ordered)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark


def familiarise(
    weights: Path,
    config: TrainConfig,
    directory: Path,
    *,
    output: Path | None = None,
    device: str = "auto",
    n_steps: int | None = None,
) -> Path:
    """Teach finished weights what their training looked like.

    Parameters
    ----------
    weights : Path
        Of a field model.
    config : TrainConfig
        How they were trained.
    directory : Path
        Of the training, with its banks of stamps; they are drawn where they are missing.
    output : Path, optional
        Where to write; ``weights`` itself if not given.
    device : {"auto", "cpu", "cuda", "mps"}
        Where to compute.
    n_steps : int, optional
        How many there were; those of the configuration if not given.

    Returns
    -------
    Path
        The weights, which now know what is unlike the training: see
        :class:`~probablend.models.familiar.Familiarity`.

    Raises
    ------
    ValueError
        If the weights are of another kind of network.
    """
    model, meta = load_model(weights)
    if not isinstance(model, FieldNetwork):
        raise ValueError(f"{weights} is no field model: it gathers nothing at sources")
    place = resolve_device(device)
    n = _HELD_OUT * -(-config.n_validation // _at_once(config))
    last = config.bank.number_at((config.lessons or n_steps or config.optimizer.n_steps) - 1)
    training = training_bank(config, directory, "train", last).to(place)
    validation = training_bank(config, directory, "validation", 0).to(place)
    seen, held_out = _sky(config, training, _FAMILIAR * n), _sky(config, validation, n)
    model.to(place).learn_familiar(seen, held_out)
    output = output or weights
    save_weights(output, model, meta, half=True)
    return output


def _validation(config: TrainConfig, directory: Path, device: torch.device) -> list[SceneBatch]:
    """Held-out scenes at survey density."""
    bank = training_bank(config, directory, "validation", 0).to(device)
    size = _at_once(config)
    numbers = range(-(-config.n_validation // size))
    return [draw_batch(bank, config.scenes, n=size, seed=config.seed + 1, index=k) for k in numbers]


def _at_once(config: TrainConfig) -> int:
    """Scenes that are looked at together where none is learnt from."""
    return min(config.optimizer.batch_size, config.n_validation)


def _sky(config: TrainConfig, bank: Bank, n_batches: int) -> Iterator[SceneBatch]:
    """Scenes as they were learnt from, and larger ones: most of an image is far from its border."""
    # A large sky with one galaxy would count as much as one with hundreds, and is none.
    natural = replace(config.scenes, isolated_fraction=0.0, pair_fraction=0.0, centred_fraction=0.0)
    for factor, kind in ((1, config.scenes), (3, natural)):
        scenes = replace(kind, size=factor * kind.size)
        n = max(1, _at_once(config) // factor**2)
        for k in range(n_batches):
            yield draw_batch(bank, scenes, n=n, seed=config.seed + 2, index=k)


def _schedule(optimizer: OptimizerConfig, step: int) -> tuple[float, float]:
    """Learning rate and weight of the KL term at a step."""
    n = optimizer.n_steps
    rise = min(1.0, (step + 1) / max(1.0, optimizer.warmup * n))
    fall = 0.5 * (1 + math.cos(math.pi * step / n))
    beta = optimizer.beta * min(1.0, step / max(1.0, optimizer.kl_warmup * n))
    return optimizer.learning_rate * rise * fall, beta


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON would return it."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(v) for key, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(asdict(config))


def _changed(state: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Settings that are not those of a checkpoint, and files that say something else."""

    def differing(one: Any, other: Any, name: str = "") -> list[str]:
        if one == other:
            return []
        if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
            return [name]
        keys = dict.fromkeys([*one, *other])
        return [
            part for k in keys
            for part in differing(one.get(k), other.get(k), f"{name}.{k}".lstrip("."))
        ]  # fmt: skip

    found = differing(state["config"], _plain(config))
    contents = contents_of(config)
    said = state.get("contents", {})
    if said.get("survey_contents") != contents["survey_contents"]:
        found.append("what the files of surveys say")
    if said.get("psf_hashes") != contents["psf_hashes"]:
        found.append("images of PSFs")
    return found


def _meta(config: TrainConfig, row: dict[str, float], reach: Mapping[str, float]) -> dict[str, Any]:
    surveys = [get_survey(name) for name in config.surveys]
    drawn = PSF_RANGE if config.bank.n_random_surveys else ()
    settings = {
        "kind": config.model["kind"],
        **asdict(build_model(config.model_settings).config),
    }
    return {
        "name": config.name,
        "version": __version__,
        "torch": torch.__version__,
        "model": settings,
        "config": _plain(config),
        "sources": split_sources(config.bank.source),
        "surveys": [survey.as_dict() for survey in surveys],
        "psf_fwhm_pixels": [survey.psf_fwhm_pixels for survey in surveys],
        "trained_range": {
            "psf_fwhm": [
                min([reach["least_fwhm"], *drawn]),
                max([reach["fwhm"], *drawn]),
            ],
            "flux": [0.0, reach["flux"]],  # in units of the noise
            "hlr": [0.0, reach["hlr"]],  # pixels
        },
        "metrics": row,
    }


def _reach_before(meta: Mapping[str, Any]) -> dict[str, float]:
    """Flux and size that earlier weights have seen; a training for one PSF forgets the others."""
    seen = meta.get("trained_range", {})
    return {key: seen[key][1] for key in ("flux", "hlr") if key in seen}


def _state(
    model: nn.Module, averaged: AveragedModel | None, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    if averaged is not None:
        tensors |= {f"averaged.{key}": value for key, value in averaged.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    return tensors


def _restore(
    model: nn.Module,
    averaged: AveragedModel | None,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(part("model."))
    if averaged is not None:
        averaged.load_state_dict(part("averaged."))
    state = optimizer.state_dict()
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, moment = key.split(".", 2)
            state["state"].setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict(state)


def _keep_rows(path: Path, *, until: int) -> None:
    """Drop what was logged after the checkpoint that a run starts from."""
    if not path.exists():
        return
    with path.open(newline="") as handle:
        reader = csv.DictReader(handle)
        whole = [row for row in reader if all(row.values())]  # not one that was cut off
        rows = [row for row in whole if int(row["step"]) <= until]
    part = path.with_suffix(".part")
    with part.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=reader.fieldnames or ["step"])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


def _append_csv(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" for key, value in row.items()} | {"step": row["step"]})


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        disable=not (console.is_terminal and log.isEnabledFor(logging.INFO)),
    )
