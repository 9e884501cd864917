"""Settings of Sphinx: `sphinx-build -W docs docs/_build` renders these pages, without network access."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from twisted_storaged import __version__

project = "storaged"
release = version = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"storaged {__version__}"
html_show_copyright = False
# `[text](page.md#heading)` links to a heading, of at most this level.
myst_heading_anchors = 3
