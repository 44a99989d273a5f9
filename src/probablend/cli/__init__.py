"""The command line: one sub-command per stage, each a few lines over the library."""

import errno
import inspect
import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from rich.logging import RichHandler

from probablend._version import __version__

# isort: off
# The help lists commands in the order in which they are made.
from probablend.cli import shared, segment, look, models, emulate, evaluate  # noqa: F401

# isort: on
from probablend.cli.shared import Quiet, app, data_app, emulate_app, err, evaluate_app, out, speak

__all__ = ["app", "main"]


def _version(show: bool) -> None:
    if show:
        out.print(f"probablend {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Version.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    handler = RichHandler(console=err, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    speak(quiet=quiet)


def _with_quiet(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that takes ``--quiet`` too: it goes before the command's name and after it."""

    @wraps(command)
    def quietly(*, quiet: bool, **options: Any) -> Any:
        if quiet:
            speak(quiet=True)
        return command(**options)

    known = inspect.signature(command)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False)
    parameters = [*known.parameters.values(), option.replace(annotation=Quiet)]
    quietly.__signature__ = known.replace(parameters=parameters)  # type: ignore[attr-defined]
    quietly.__annotations__ = command.__annotations__ | {"quiet": Quiet}
    return quietly


for _group in (app, emulate_app, data_app, evaluate_app):
    for _one in _group.registered_commands:
        assert _one.callback is not None
        _one.callback = _with_quiet(_one.callback)


def main() -> None:
    """Run the command line; a mistake of the user's ends in one sentence."""
    try:
        app()
    except ValueError as error:
        _fail(str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail("the disc is full: make room and run the command again" if full else str(error))
    except MemoryError:
        _fail("not enough memory")
    except Exception as error:  # what no check foresaw must still end in one sentence
        logging.getLogger("probablend").debug("traceback", exc_info=error)
        _fail(f"unexpected {type(error).__name__}: {error}")


def _fail(text: str) -> None:
    line = " ".join(text.split())
    print(f"probablend: error: {line}", file=sys.stderr)
    raise SystemExit(1)
