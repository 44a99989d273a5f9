"""Sets of real galaxies: where they come from, and getting them into the cache.

A download goes on where it stopped, is checked against the checksum that the record
publishes, and appears under its name only when it is whole. From an archive only plain
files are taken, by their last name, into a folder of its own.
"""

import logging
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pooch
import requests
from pooch.downloaders import doi_to_repository
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

__all__ = ["DATASETS", "Dataset", "dataset_folder", "download", "require"]

log = logging.getLogger(__name__)

_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A published set of real galaxies.

    Parameters
    ----------
    record : str
        ``doi:…`` of the record, or the ``http…`` folder of a mirror; ends without a slash.
    archive : str
        Name of the archive in it.
    checksum : str or None
        ``algorithm:digest``; None takes the one that the record publishes.
    files : tuple of str
        Files without which the set is of no use.
    megabytes : int
        Size of the archive.
    what : str
        One line for the user.
    """

    record: str
    archive: str
    checksum: str | None
    files: tuple[str, ...]
    megabytes: int
    what: str


DATASETS: dict[str, Dataset] = {
    "candels": Dataset(
        record="doi:10.5281/zenodo.2604740",
        archive="candels-blender-data.tar.gz",
        checksum=None,
        files=("candels_img.npy", "candels_seg.npy", "candels_cat.csv"),
        megabytes=120,
        what="2 001 isolated CANDELS galaxies, HST F160W (Boucaud et al. 2020)",
    ),
    "cosmos": Dataset(
        record="doi:10.5281/zenodo.3242143",
        archive="COSMOS_25.2_training_sample.tar.gz",
        checksum=None,
        files=("real_galaxy_catalog_25.2.fits",),
        megabytes=4400,
        what="87 000 COSMOS galaxies, HST F814W < 25.2, for GalSim (Mandelbaum et al. 2012)",
    ),
}


def dataset_folder(name: str) -> Path | None:
    """Where a set is, or None if it is not here whole.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    folder = _cache() / _known(name)
    return folder if all((folder / file).is_file() for file in DATASETS[name].files) else None


def require(name: str) -> Path:
    """Folder of a set that must be here.

    Raises
    ------
    FileNotFoundError
        If it is not; the message says how to get it.
    """
    folder = dataset_folder(name)
    if folder is None:
        raise FileNotFoundError(
            f"the {name} galaxies ({DATASETS[name].megabytes} MB) are not here: "
            f"run 'probablend data get {name}'"
        )
    return folder


def download(name: str) -> Path:
    """Get a set into the cache, unless it is there.

    Returns
    -------
    Path
        Its folder.

    Raises
    ------
    ValueError
        If the name is unknown, the checksum is wrong or the archive is not what it should be.
    ConnectionError
        If the server cannot be reached or breaks off; what came is kept and the next attempt
        goes on from there.
    """
    here = dataset_folder(name)
    if here is not None:
        return here
    dataset, cache = DATASETS[name], _cache()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        store = pooch.create(path=cache, base_url=f"{dataset.record}/", registry=None)
        if dataset.checksum is None:
            store.load_registry_from_doi()
            if dataset.archive not in store.registry:
                raise ValueError(f"{dataset.record} has no file {dataset.archive}")
        else:
            store.registry[dataset.archive] = dataset.checksum
        archive = store.fetch(dataset.archive, downloader=_resume)
    except requests.RequestException as error:
        raise ConnectionError(
            f"cannot download {dataset.archive} from {dataset.record}: {error}"
        ) from error
    folder = _unpack(Path(archive), cache / name, dataset)
    Path(archive).unlink()
    return folder


def _known(name: str) -> str:
    if name not in DATASETS:
        raise ValueError(f"unknown set {name!r}; known: {', '.join(DATASETS)}")
    return name


def _cache() -> Path:
    return Path(pooch.os_cache("probablend"))


def _resume(url: str, output_file: str, store: Any) -> None:
    """Downloader for pooch that goes on with what an earlier attempt left.

    Pooch checks the checksum of ``output_file`` and then renames it.
    """
    if url.startswith("doi:"):
        doi, name = url.removeprefix("doi:").rsplit("/", 1)
        url = doi_to_repository(doi).download_url(name)
    else:
        name = url.rsplit("/", 1)[1]
    part = Path(store.path) / f"{name}.part"
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        whole_already = response.status_code == 416  # asked for what comes after the end
        if not whole_already:
            response.raise_for_status()
            append = have > 0 and response.status_code == 206
            total = int(response.headers.get("content-length", 0)) + (have if append else 0)
            _receive(response, part, name, append=append, total=total)
            if total and part.stat().st_size < total:
                raise requests.ConnectionError(
                    f"the connection broke at {part.stat().st_size} of {total} bytes"
                )
    # A damaged download must not be resumed for ever: from here on pooch owns the file.
    shutil.move(part, output_file)


def _receive(
    response: requests.Response, part: Path, name: str, *, append: bool, total: int
) -> None:
    start = part.stat().st_size if append else 0
    with (
        part.open("ab" if append else "wb") as handle,
        Progress(
            TextColumn(name),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(stderr=True),
        ) as progress,
    ):
        task = progress.add_task(name, total=total or None, completed=start)
        for chunk in response.iter_content(1 << 14):
            handle.write(chunk)
            progress.advance(task, len(chunk))


def _unpack(archive: Path, folder: Path, dataset: Dataset) -> Path:
    """Take the plain files of an archive into ``folder``, which appears whole."""
    work = Path(tempfile.mkdtemp(prefix=".unpack-", dir=folder.parent))
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                source = tar.extractfile(member) if member.isfile() else None
                if source is None or not name or name.startswith("."):
                    continue
                with source, (work / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        missing = [file for file in dataset.files if not (work / file).is_file()]
        if missing:
            raise ValueError(f"{archive.name} lacks {', '.join(missing)}")
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    except tarfile.TarError as error:
        raise ValueError(f"{archive.name} is not a readable archive: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder
