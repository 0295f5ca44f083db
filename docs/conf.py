"""Sphinx's configuration of the site: `make docs` builds it into build/docs.

The source is the whole checkout, so the links between docs/, recipes/ and CHANGELOG.md are those
that a git host shows, too. Pages ask no other host for anything: no web fonts, no scripts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import lorarlhf

project = "lorarlhf"
project_copyright = "the authors of lorarlhf, Apache-2.0"
release = version = lorarlhf.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "site_parts",
]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "recipes/*.md",
    "recipes/*/*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
# Folders that need not be searched for pages.
exclude_patterns = [".*", "**/.*", "build", "dist", "runs", "lorarlhf", "ui", "tests", "benchmarks"]

# ---- Markdown

myst_heading_anchors = 4
myst_enable_extensions = ["strikethrough"]
highlight_language = "none"

# ---- docstrings

default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
napoleon_use_ivar = True
napoleon_use_rtype = False

# ---- pages

html_theme = "pydata_sphinx_theme"
html_title = "lorarlhf"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "first.html"}
html_sidebars = {"**": ["site-navigation"]}
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_use_index = False
html_domain_indices = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "lorarlhf"},
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "article_header_start": [],
    "back_to_top_button": False,
}
copybutton_exclude = ".linenos, .gp, .go"
