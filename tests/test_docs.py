"""What the documentation says works: Python runs, commands parse, settings are read.

Tutorials (``code-cell``) run when the documentation is built. Here run the other blocks: Python,
page by page, on an emulated image. Commands are parsed, not run: many need files of the reader's or
hours. What needs a cluster is compiled, and the names it takes from this package are looked up.
Other shell lines are checked for syntax.
"""

import ast
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import typer
from astropy.io import fits
from astropy.table import Table

from probablend import cli
from probablend.catalog import COLUMNS
from probablend.checkpoint import available_models
from probablend.config import TrainConfig, from_mapping
from probablend.emulate.products import scene_wcs
from probablend.emulate.psf import psf_image
from probablend.flags import Flag
from probablend.models import build_model
from probablend.survey import read_survey

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    if not {"_build", "_templates"} & set(path.parts)
}
ELSEWHERE = {"btk", "dask_jobqueue", "dask_kubernetes", "lsdb"}  # not installed for the tests


def blocks(language):
    """Page and text of every fenced block of a language."""
    pattern = re.compile(rf"^( *)```{language}\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
    return [(page, m[2]) for page, text in PAGES.items() for m in pattern.finditer(text)]


def numbered(items):
    """As parameters of a test, named after their page."""
    return [pytest.param(*item, id=f"{item[0]}-{k}") for k, item in enumerate(items)]


def commands():
    """Page and words of every command line: in shell blocks, or in backticks and alone."""
    lines = [(page, re.sub(r"\\\n\s*", " ", text)) for page, text in blocks("bash")]
    lines += [
        (page, m[1])
        for page, text in PAGES.items()
        for m in re.finditer(r"^`((?:probablend|python) .*)`(?= \(|$)", text, re.MULTILINE)
    ]
    for page, text in lines:
        for line in re.split(r"\n|&&", text):
            if words := shlex.split(line, comments=True):
                yield page, words


def parse(words):
    """Parse a command line as the command would, and do nothing."""
    command = typer.main.get_command(cli.app)
    context = command.make_context("probablend", list(words))
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = command.make_context(name, rest, parent=context)
    return context.params


def all_commands():
    """Every command and group, by the words that call it."""

    def walk(command, words):
        yield words, command
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*words, name))

    return dict(walk(typer.main.get_command(cli.app), ()))


@pytest.mark.parametrize(
    ("page", "words"),
    numbered((page, w[1:]) for page, w in commands() if Path(w[0]).name == "probablend"),
)
def test_commands_parse(page, words):
    assert isinstance(parse(words), dict)


# What a test makes smaller, by option, and what it leaves to other tests: a network, a cluster, a
# server, a run that was killed, weights of a training that another page describes.
SMALLER = {"--samples": 1, "--n": 1, "--size": 96, "--stamps": 1, "--steps": 12, "--density": 20}
NOT_HERE = re.compile(
    r"^(data get|view|demo)\b|--dask|--resume|--device |--devices |/configs/|--source c"
)
TOY = """
name = "mine"
surveys = ["euclid-vis"]
n_validation = 4
[model]
kind = "field"
channels = [4, 6]
n_convs = 1
context = 12
flow_hidden = [16]
head_width = 6
n_draws = 2
[bank]
n_galaxies = 40
n_stars = 4
[scenes]
size = 32
mag_range = [21.0, 26.0]
[optimizer]
n_steps = 1
batch_size = 4
"""


@pytest.fixture
def desk(scene, field_weights, tmp_path, monkeypatch):
    """A folder with the files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    header = scene_wcs(scene).to_header()
    header["MAGZERO"] = scene.survey.zeropoint
    flat = np.full(scene.image.shape, 1.0, np.float32)
    variance = scene.rms**2 * flat
    flags = np.zeros(scene.image.shape, np.int16)
    for name in ("image.fits", "tile.fits"):
        fits.HDUList(
            [fits.PrimaryHDU(), fits.ImageHDU(scene.image, header, name="SCI"),
             fits.ImageHDU(1 / variance, name="WHT"), fits.ImageHDU(variance, name="VARIANCE")]
        ).writeto(name)  # fmt: skip
    planes = {"rms": scene.rms * flat, "tile_rms": scene.rms * flat, "weight": 1 / variance,
              "psf_fwhm": 1.7 * flat}  # fmt: skip
    for name, plane in planes.items():
        fits.writeto(f"{name}.fits", plane)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(flags)]).writeto("flags.fits")
    psf = psf_image(scene.survey, 33)
    fits.writeto("psf.fits", psf)
    column = fits.Column("PSF_MASK", "1089E", dim="(33,33,1)", array=psf[None, None])
    fits.BinTableHDU.from_columns([column], name="PSF_DATA").writeto("image.psf")
    Path("tiles").mkdir()
    Path("runs/mine").mkdir(parents=True)
    shutil.copy(field_weights, "runs/mine/mine.safetensors")
    for name in "ab":
        fits.writeto(f"tiles/{name}.fits", scene.image, header)
    for name in "ab":  # beside them, as {}.weight.fits says
        fits.writeto(f"tiles/{name}.weight.fits", 1 / variance)
    rows = scene.catalog["x", "y"][:4]
    rows.write("mine.csv")
    rows.write("targets.parquet")
    Table({"x": rows["x"], "y": rows["y"], "flux": [1.0] * 4}).write("my.fits")
    for name in ("my.toml", "CONFIG.toml"):
        Path(name).write_text(TOY)
    Path("my-survey.toml").write_text(
        "name = 'my-survey'\npixel_scale = 0.1\nzeropoint = 25.0\ngain = 1.0\nsky_rms = 0.05\n"
        "psf_fwhm = 0.2\n"
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    sorted({page for page, w in commands() if Path(w[0]).name == "probablend"
            and "results" not in page and page != "docs/evaluation.md"}),
)  # fmt: skip
def test_commands_run(page, desk, monkeypatch):
    """Each command of a page after the other, on a small image."""
    for where, words in commands():
        line = shlex.join(words[1:])
        if where != page or Path(words[0]).name != "probablend" or NOT_HERE.search(line):
            continue
        name = next(n for n in (tuple(words[1:3]), tuple(words[1:2])) if n in all_commands())
        known = {option for p in all_commands()[name].params for option in p.opts}
        arguments = []
        for word in words[1:]:  # as a shell does; the weights of the tiles lie beside them
            found = [str(path) for path in sorted(Path().glob(word)) if "weight" not in path.name]
            arguments += found if "*" in word else [word]
        for option, value in SMALLER.items():
            if option in known:
                arguments += [option, str(value)]
        if "--overwrite" in known:
            arguments.append("--overwrite")
        monkeypatch.setattr("sys.argv", ["probablend", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, line


def test_an_option_that_does_not_exist_is_noticed():
    assert parse(["segment", "image.fits", "--samples", "4"])["samples"] == 4
    with pytest.raises(Exception, match="No such option"):
        parse(["segment", "image.fits", "--sampels", "4"])
    with pytest.raises(Exception, match="No such command"):
        parse(["evaluate", "fields"])


@pytest.mark.parametrize(
    ("page", "words"), numbered((page, w) for page, w in commands() if w[0] == "python")
)
def test_scripts_exist_and_know_their_options(page, words):
    if words[1] == "-m":
        return
    script = (ROOT / words[1]).read_text()
    for option in (w for w in words[2:] if w.startswith("-")):
        assert f'"{option}"' in script


@pytest.mark.parametrize(("page", "text"), numbered(blocks("bash")))
def test_shell_blocks_have_no_syntax_error(page, text):
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(("page", "text"), numbered(blocks("toml")))
def test_settings_are_read(page, text, tmp_path):
    values = tomllib.loads(text)
    if "pixel_scale" in values:
        (tmp_path / "survey.toml").write_text(text)
        assert read_survey(tmp_path / "survey.toml").name == values["name"]
    else:
        config = from_mapping(TrainConfig, values, where=page)
        assert build_model(config.model_settings).config.n_classes == 3


@pytest.mark.parametrize("page", sorted({page for page, _ in blocks("python")}))
def test_python_blocks_run(page, scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header = scene_wcs(scene).to_header()
    header["MAGZERO"] = 25.0
    fits.writeto("image.fits", scene.image * 10 ** (0.4 * (25 - scene.survey.zeropoint)), header)
    names = {}
    for where, text in blocks("python"):
        if where != page:
            continue
        code = compile(text, page, "exec")
        imported = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
        if ELSEWHERE & {(n.module or "").split(".")[0] for n in imported}:
            for node in imported:
                if node.module.startswith("probablend") and node.module != "probablend.btk":
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names)
        else:
            exec(code, names)


@pytest.mark.parametrize("words", all_commands(), ids=lambda words: " ".join(words) or "-")
def test_help_shows_an_example(words):
    """The example is of this command, and parses."""
    examples = re.findall(r"^\s*Example: probablend (.*)$", all_commands()[words].help, re.M)
    assert examples
    for example in examples:
        arguments = shlex.split(example)
        assert tuple(arguments[: len(words)]) == words
        parse(arguments)


def test_every_command_can_be_quiet():
    for words, command in all_commands().items():
        options = [o for p in command.params for o in p.opts]
        wanted = words not in (("emulate",), ("data",))  # groups that do nothing themselves
        assert ("--quiet" in options) == ("-q" in options) == wanted, words


def test_every_command_has_its_section():
    page = PAGES["docs/commands.md"]
    for words, command in all_commands().items():
        if not hasattr(command, "commands"):
            assert f"## `probablend {' '.join(words)}`" in page


def test_every_column_and_flag_is_described():
    page = PAGES["docs/catalogue.md"]
    named = {name for cell in re.findall(r"^\| `([^`]*)`", page, re.M) for name in cell.split(", ")}
    assert set(COLUMNS) <= named
    for flag in Flag:
        assert f"| {flag.value} | `{flag.name}` |" in page


def test_the_numbers_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    made = runpy.run_path(str(ROOT / "docs" / "evaluation.py"))
    assert PAGES["docs/evaluation.md"] == made["page"](), "run python docs/evaluation.py"
    assert PAGES["README.md"] == made["readme"](), "run python docs/evaluation.py"


def test_the_architecture_names_every_module():
    modules = {p.name for p in (ROOT / "src" / "probablend").rglob("*.py") if p.name[0] != "_"}
    page = PAGES["CONTRIBUTING.md"].split("| stage |")[1].split("| to add |")[0]
    assert modules == set(re.findall(r"`(\w+\.py)`", page))


def test_every_shipped_weight_file_has_its_card():
    titles = re.findall(r"^## (.*)", PAGES["docs/models.md"], re.MULTILINE)
    for name in available_models():
        assert any(f"`{name}`" in title for title in titles), name


@pytest.mark.parametrize(
    ("line", "position", "expected"),
    [("probablend se", 1, "segment"), ("probablend evaluate in", 2, "inject"),
     ("probablend segment --min", 2, "--min-p-source")],
)  # fmt: skip
def test_the_shell_completes(line, position, expected, monkeypatch, capsys):
    monkeypatch.setenv("_PROBABLEND_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(position))
    with pytest.raises(SystemExit) as stop:
        cli.app(prog_name="probablend")
    assert not stop.value.code
    assert expected in capsys.readouterr().out.split()
