"""The site's pages lie where their files lie in the repository, so that links work in both and README is the start."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SHOWN = ("*.md", "CITATION.cff", "LICENSE", "*/weights/*.md", "docs/**/*")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Files of the theme as they are, those of the project by their place in it."""
    root = Path(config.config_file_path).parent
    theme = [file for file in files if file.src_dir != config.docs_dir]
    shown = sorted({path for pattern in SHOWN for path in root.glob(pattern)})
    names = [
        path.relative_to(root).as_posix()
        for path in shown
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    place = (str(root), config.site_dir, config.use_directory_urls)
    return Files([*theme, *(File(name, *place) for name in names)])
