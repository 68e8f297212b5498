"""How Sphinx makes the website of README.md and the notebooks. scripts/website.py runs it, and finds address.py."""

import json
import re

from address import ROOT, address

project = html_title = "Tiny MNIST"
html_theme = "sphinx_book_theme"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "notebooks/*.md",
    "notebooks/[01]*.ipynb",
    "notebooks/answers/*.ipynb",
]
exclude_patterns = [".*", "build", "data"]  # folders with many files, where it need not look
nb_execution_mode = "off"  # the outputs are in the notebooks
myst_enable_extensions = ["html_image"]  # README.md's <img> are found and copied
myst_heading_anchors = 3
html_static_path, templates_path = ["static"], ["templates"]
html_css_files = ["website.css"]
html_copy_source = html_use_index = False
html_sidebars = {"**": ["navbar-logo.html", "search-button-field.html", "sbt-sidebar-nav.html", "draw.html"]}
html_theme_options = {
    "repository_url": address(),
    "repository_branch": "main",
    "use_repository_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "footer_content_items": [],
    "navbar_persistent": [],  # its search button stands in the sidebar already
}

CONTENTS = """
```{toctree}
:hidden:
:glob:
:caption: The course
notebooks/[01]*
```
```{toctree}
:hidden:
:glob:
:caption: Answers to the exercises
notebooks/answers/*
```
```{toctree}
:hidden:
:caption: More
notebooks/colab
notebooks/teaching
CONTRIBUTING
```
"""


def setup(app):
    app.connect("source-read", prepare)


def prepare(app, name, source):
    """Change the text of a page before Sphinx reads it, and not in its file."""
    if not source[0].startswith("{"):
        source[0] = with_links(app, name, source[0]) + CONTENTS * (name == root_doc)
        return
    notebook = json.loads(source[0])
    notebook["metadata"]["language_info"]["pygments_lexer"] = "ipython3"  # knows ! and %
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = with_links(app, name, "".join(cell["source"]))
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            cell["metadata"]["tags"] = ["hide-input"]
        for output in cell.get("outputs", []):
            # plots.show puts an image's text at the output, MyST-NB looks for it at the cell.
            if "image/png" in output.get("metadata", {}):
                cell["metadata"]["mystnb"] = {"image": output["metadata"]["image/png"]}
            # The theme has a style for the tables of pandas.
            if table := output.get("data", {}).get("text/html"):
                output["data"]["text/html"] = "".join(table).replace("<table>", '<table class="dataframe table">')
    source[0] = json.dumps(notebook)


def with_links(app, name, text):
    """Let links lead to GitHub where the site has no such page; a folder with pages is the first of them."""
    folder, names = (ROOT / name).parent, app.env.found_docs

    def leads(match):
        path = (folder / match[1]).resolve()
        if not path.exists() or app.env.path2doc(str(path)) in names:
            return match[0]
        inside = path.relative_to(ROOT).as_posix()
        if pages := sorted(page for page in names if page.startswith(f"{inside}/")):
            return f"](/{app.env.doc2path(pages[0], base=False)})"
        return f"]({address()}/{'tree' if path.is_dir() else 'blob'}/main/{inside})"

    return re.sub(r"\]\(([^)#:\s]+)\)", leads, text)
