"""How the documentation is built: sphinx-build -W --keep-going -j 2 docs docs/_build/html."""

import os
import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from probablend import __version__

project = "probablend"
author = copyright = "The probablend developers"
version = release = __version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "results"]

html_theme = "pydata_sphinx_theme"
html_title = f"probablend {version}"
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_prev_next": False,
    "use_edit_page_button": False,
}
html_sidebars = {"index": [], "start": [], "how_it_works": []}
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Tutorials run at every build, in a folder of their own; a cell that fails fails the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds a cell
nb_merge_streams = True
# `!probablend` in a cell is the command beside the Python that builds.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["TTY_COMPATIBLE"] = "0"  # no progress bars on a page
os.environ["COLUMNS"] = "96"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm: no widgets on a page

autosummary_ignore_module_all = False
autodoc_default_options = {"members": True}
autodoc_typehints = "none"  # numpydoc says them, with shapes and units
numpydoc_show_class_members = False


def _unlink_folders(app: Sphinx, doctree: nodes.document) -> None:
    """Folders of the repository are pages where the repository is shown, and none here."""
    page = Path(app.env.doc2path(app.env.docname))
    for node in list(doctree.findall(addnodes.pending_xref)):
        if node.get("reftype") == "myst" and (page.parent / node["reftarget"]).is_dir():
            node.replace_self(node.children)


def setup(app: Sphinx) -> None:
    """Hook into the build."""
    app.connect("doctree-read", _unlink_folders)
