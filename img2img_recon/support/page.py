"""A page in the browser around a function: the server's flags, the page's frame, errors as lines; needs gradio."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from img2img_recon.support.cli import flag, one_line
from img2img_recon.support.errors import InputError
from img2img_recon.support.types import Port

# The system's own: nothing is fetched from anywhere.
FONTS = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
# Seconds: how often uploads and results are looked at, and how old they become while the server runs.
LOOKED_AT, KEPT = 600, 3600

Say = Callable[[str], None]
# (uploaded files, empty folder for results, what to tell, the page's choices) -> the page's outputs
Work = Callable[..., Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """Where a page is served."""

    port: Port | None = flag(None, help="port; default: the first free from 7860", basic=True)
    host: str = flag(
        "127.0.0.1", help="address; 0.0.0.0 lets other machines see the page", basic=True
    )
    share: bool = flag(
        False,
        help="a public address for a week; all that is uploaded then passes gradio's servers",
        basic=True,
    )


def serve(config: PageConfig, title: str, about: str, build: Callable[[Any], None]) -> None:
    """Serve a page until Ctrl-C; uploads and results are gone then.

    Args:
        config: where.
        title: of the page.
        about: a line below it.
        build: lays out the page's components; it is given the module `gradio`.

    Raises:
        InputError: gradio is not installed, or the address cannot be had.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import
    try:
        import gradio
    except ImportError:
        raise InputError('this page needs gradio: pip install "img2img-mlp-mixer[app]"') from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="img2img-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        with gradio.Blocks(
            title=title, analytics_enabled=False, delete_cache=(LOOKED_AT, KEPT)
        ) as page:
            gradio.Markdown(f"# {title}\n{about}")
            build(gradio)
        try:
            _, local, public = page.launch(
                server_name=config.host,
                server_port=config.port,
                share=config.share,
                theme=gradio.themes.Default(**FONTS),
                footer_links=[],
                run_history=False,
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError:
            raise InputError(
                f"--host, --port: given {config.host} and {config.port or '7860 to 7959'}; allowed: an address "
                "of this machine and a port that is free"
            ) from None
        print(f"{title}: {public or local}  (Ctrl-C ends it)", flush=True)
        page.block_thread()


def handler(work: Work, blank: Sequence[Any]) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """A function as gradio calls it.

    Args:
        work: gets the uploads under their own names in one folder.
        blank: its outputs where there are none.

    Returns:
        A generator (uploads, *choices) -> one tuple of the outputs and of all that is to be told, a line each.
        When gradio has copied the outputs and asks for more, the folder is removed.
    """

    def handle(uploads: str | list[str] | None, *choices: Any) -> Iterator[tuple[Any, ...]]:
        lines: list[str] = []
        # Not in gradio's folder: what lies there is not copied, and is gone before the browser asks for it.
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                given = [uploads] if isinstance(uploads, str) else uploads or []
                if not given:
                    raise InputError("no file yet: drop one, or click to choose")
                (folder / "out").mkdir()
                files = [_linked(Path(path), folder / "in") for path in given]
                outputs = work(files, folder / "out", lines.append, *choices)
            except InputError as error:
                outputs, lines = blank, [*lines, f"error: {one_line(error)}"]
            text = "\n".join(lines)
            for part in ("in", "out"):
                text = text.replace(f"{folder / part}{os.sep}", "")
                text = text.replace(str(folder / part), "upload")
            yield (*outputs, text)

    return handle


def _linked(path: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    if target.exists():
        raise InputError(f"{path.name}: given twice")
    os.link(path, target)
    return target
