"""Pages without a browser: what a handler gives to gradio, and what starts without gradio."""

import importlib
import sys
from pathlib import Path

import pytest

from img2img_recon.support.errors import InputError
from img2img_recon.support.page import handler


@pytest.fixture
def upload(tmp_path):
    path = tmp_path / "hash" / "a file.txt"
    path.parent.mkdir()
    path.write_text("content")
    return str(path)


def test_a_handler_gives_outputs_and_what_is_told_and_then_removes_its_folder(upload):
    def work(files, out, say, factor):
        say(f"{files[0]}: read")
        result = out / "result.txt"
        result.write_text(factor * files[0].read_text())
        return (result,)

    answers = handler(work, (None,))(upload, 2)
    result, told = next(answers)
    assert told == "a file.txt: read"
    assert result.read_text() == "contentcontent"
    assert list(answers) == []
    assert not result.parent.parent.exists()
    assert Path(upload).read_text() == "content"


def test_an_error_is_one_line_without_folders(upload, tmp_path):
    folders = []

    def work(files, out, say):
        folders.append(out)
        raise InputError(f"{files[0]}: broken, next to {out / 'b.txt'} of {out}")

    assert list(handler(work, (None, 7))(upload)) == [
        (None, 7, "error: a file.txt: broken, next to b.txt of upload")
    ]
    assert not folders[0].exists()
    for given, line in (([], "no file yet"), ([upload, upload], "a file.txt: given twice")):
        ((_, _, told),) = handler(work, (None, 7))(given)
        assert told.startswith(f"error: {line}")
        assert "\n" not in told


@pytest.mark.parametrize("module", ["denoise_tasks.app", "fastmri_plugin.app"])
def test_without_gradio_a_page_says_what_to_install(module, monkeypatch, capsys):
    main = importlib.import_module(module).main
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["app"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    line = 'error: this page needs gradio: pip install "img2img-mlp-mixer[app]"\n'
    assert capsys.readouterr().err == line
    with pytest.raises(InputError, match="--port: given 65536; allowed: a whole number"):
        main(["--port", "65536"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"python -m {module}" in capsys.readouterr().out
