"""What an evaluation keeps: one setting per folder, one file per method."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probablend._version import __version__
from probablend.infer.outputs import check_folder

__all__ = ["begin", "check_names", "kind_of", "read_run", "write_json"]

_RUN = "run.json"
_KINDS = ("fields", "pairs")


def write_json(path: Path, values: Any) -> None:
    """Write JSON; the name appears only when the file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(part, path)


def begin(folder: Path, setting: dict[str, Any], command: str) -> None:
    """Start an evaluation in a folder, or go on with the one that is there.

    Parameters
    ----------
    folder : Path
        Of the evaluation.
    setting : dict
        All that its results depend on, beside the methods.
    command : str
        The command line.

    Raises
    ------
    ValueError
        If the folder holds an evaluation of another setting.
    OSError
        If it cannot be written.
    """
    check_folder(folder.parent)
    setting = json.loads(json.dumps(setting | {"version": __version__}))
    if (folder / _RUN).exists():
        earlier = json.loads((folder / _RUN).read_text())["setting"]
        if earlier != setting:
            odd = sorted(k for k in earlier | setting if earlier.get(k) != setting.get(k))
            raise ValueError(
                f"{folder.parent} holds an evaluation with another {', '.join(odd)}: "
                "name another folder"
            )
    write_json(folder / _RUN, {"command": command, "setting": setting})


def kind_of(directory: Path) -> str:
    """What an evaluation is of: ``fields`` or ``pairs``.

    Raises
    ------
    FileNotFoundError
        If the directory holds neither.
    ValueError
        If it holds both.
    """
    kinds = [kind for kind in _KINDS if (directory / kind / _RUN).is_file()]
    if not kinds:
        raise FileNotFoundError(f"{directory} holds no evaluation of fields or of pairs")
    if len(kinds) > 1:
        raise ValueError(f"{directory} holds fields and pairs: --from after 'field' or 'pairs'")
    return kinds[0]


def read_run(folder: Path, what: str) -> dict[str, Any]:
    """Command and setting of the evaluation in a folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if not (folder / _RUN).is_file():
        raise FileNotFoundError(f"{folder.parent} holds no evaluation of {what}")
    run: dict[str, Any] = json.loads((folder / _RUN).read_text())
    return run


def check_names(names: Sequence[str], files: Sequence[str]) -> None:
    """Refuse methods whose results would be kept under one name.

    Raises
    ------
    ValueError
        If two are, or one is that of the record itself.
    """
    taken: dict[str, str] = {Path(_RUN).stem: "the record of the run"}
    for name, file in zip(names, files, strict=True):
        if file in taken:
            raise ValueError(f"{name} and {taken[file]} go by the same name, {file}: rename one")
        taken[file] = name
