"""Files that are whole or absent, on a full disk and with odd names too; locks that go with their process."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from img2img_recon.support import files
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path, locked, make_folder_once, write_json
from img2img_recon.training.run_folder import RunFolder

LONGEST = 255


def python(code: str, *words: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_the_temporary_takes_the_place_by_renaming(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with path.open() as reader:
        with atomic_path(path) as temporary:
            temporary.write_text("new content")
            written = temporary.stat().st_ino
            assert path.read_text() == "old"
        # A copy would keep the file's inode, and this reader would find the new content or half of it.
        assert reader.read() == "old"
    assert path.stat().st_ino == written
    assert path.read_text() == "new content"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_data_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), sync(handle)))
    monkeypatch.setattr(Path, "replace", lambda *a: (events.append("name"), replace(*a))[1])
    write_json(tmp_path / "a.json", {})
    assert events == ["sync", "name"]


def test_an_error_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", [1])

    def write() -> None:
        with atomic_path(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert (tmp_path / "a.json").read_text() == "[\n  1\n]\n"
    assert os.listdir(tmp_path) == ["a.json"]


def test_results_are_as_readable_as_other_files(tmp_path):
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "name",
    [
        "a" * (LONGEST - 5) + ".json",
        "é" * (LONGEST // 2),
        "x." + "y" * (LONGEST - 2),
        ".hidden",
        "no suffix",
        "-dash",
        "two\nlines.txt",
        "[a]*.h5",
        "ends.",
        "..txt",
    ],
)
def test_odd_and_long_names(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert os.listdir(tmp_path) == [name]
    make_folder_once(tmp_path / "f" / name, lambda folder: (folder / "b").write_text(""))
    assert os.listdir(tmp_path / "f") == [name]


def test_writers_that_go_by_the_suffix_see_it(tmp_path):
    for name in ("a.npy", "b.h5"):
        with atomic_path(tmp_path / name) as temporary:
            assert temporary.suffix == Path(name).suffix
            temporary.write_text("x")


@pytest.mark.parametrize("name", ["best.ckpt", "no_suffix", "a" * LONGEST])
def test_what_a_killed_writer_leaves_is_found_and_removed(tmp_path, name):
    code = """
        import sys, time
        from pathlib import Path
        from img2img_recon.support.files import atomic_path
        with atomic_path(Path(sys.argv[1])) as temporary:
            print(temporary, flush=True)
            time.sleep(60)
    """
    with python(code, tmp_path / name) as process:
        leftover = Path(process.stdout.readline().strip())
        process.kill()
    assert leftover.exists()
    assert leftover.name.startswith(".")
    (tmp_path / ".env.local.txt").write_text("a user's")
    RunFolder(tmp_path).remove_leftovers()
    assert os.listdir(tmp_path) == [".env.local.txt"]


WRITERS = {
    "plain": "path.write_bytes(bytes(10**6))",
    "numpy": """
            import numpy
            with path.open('wb') as file:
                numpy.save(file, numpy.zeros(10**6))""",
    "hdf5": """
            import h5py, numpy
            with h5py.File(path, 'w') as file:
                file['a'] = numpy.ones(10**6)""",
    "zip": """
            import zipfile
            with zipfile.ZipFile(path, 'w') as file:
                file.writestr('a', bytes(10**6))""",
    "torch": "import torch; torch.save({'a': torch.ones(10**6)}, path)",
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size")
@pytest.mark.parametrize("writer", WRITERS)
def test_no_room_is_one_line_and_keeps_the_old_file(tmp_path, writer):
    path = tmp_path / "old.bin"
    path.write_text("old")
    code = f"""
        import resource, sys
        from pathlib import Path
        from img2img_recon.support.cli import run_script
        from img2img_recon.support.files import atomic_path
        def write(path):
            {WRITERS[writer]}
        def main():
            resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
            with atomic_path(Path(sys.argv[1])) as temporary:
                write(temporary)
        run_script(main)
    """
    process = python(code, path, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    last = said.splitlines()[-1]
    assert last.startswith(f"error: {path}: cannot be written (File too large); make room")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["old.bin"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_at_any_moment(tmp_path, monkeypatch, number, where):
    write_json(tmp_path / "a.json", 1)
    reason = os.strerror(number)

    def refuse(*_):
        raise OSError(number, reason)

    if where != "write":
        monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[where], refuse)

    def write() -> None:
        with atomic_path(tmp_path / "a.json") as temporary:
            temporary.write_text("2")
            if where == "write":
                refuse()

    with pytest.raises(InputError) as caught:
        write()
    assert str(caught.value).startswith(
        f"{tmp_path / 'a.json'}: cannot be written ({reason}); make"
    )
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_folder_for_which_there_is_no_room(tmp_path, number):
    def fill(folder):
        (folder / "half").write_text("x")
        raise OSError(number, os.strerror(number))

    with pytest.raises(InputError, match=r"made: cannot be written \(.*\); make room"):
        files.make_folder_once(tmp_path / "made", fill)
    assert os.listdir(tmp_path) == []


def test_other_errors_of_the_block_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text((tmp_path / "missing").read_text())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/a.json: cannot be written \("):
        write_json(tmp_path / "file" / "a.json", 1)
    with pytest.raises(InputError, match=r"--out: .* cannot be written to"):
        files.writable_folder(tmp_path / "file" / "b", "--out")


def test_a_lock_keeps_others_out_and_goes_with_its_process(tmp_path):
    path = tmp_path / "sub" / ".lock"
    code = """
        import sys, time
        from pathlib import Path
        from img2img_recon.support.files import locked
        with locked(Path(sys.argv[1]), 0, "busy"):
            print("held", flush=True)
            time.sleep(60)
    """
    with python(code, path) as process:
        assert process.stdout.readline() == "held\n"
        start = time.monotonic()
        with pytest.raises(InputError, match=r"^taken$"), locked(path, 0.2, "taken"):
            pass
        assert 0.15 < time.monotonic() - start < 10
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The same process is kept out too: `RunFolder.is_locked` asks in this way.
    with (
        locked(path, 0, "taken"),
        pytest.raises(InputError, match="taken"),
        locked(path, 0, "taken"),
    ):
        pass
    with locked(path, 0, "taken"):
        pass


def test_waiting_for_a_lock_ends_when_it_is_free(tmp_path):
    code = """
        import sys, time
        from pathlib import Path
        from img2img_recon.support.files import locked
        with locked(Path(sys.argv[1]), 0, "busy"):
            print("held", flush=True)
            time.sleep(0.5)
    """
    with python(code, tmp_path / ".lock") as process:
        process.stdout.readline()
        with locked(tmp_path / ".lock", 60, "taken"):
            pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError) as caught, locked(tmp_path / ".lock", 0, "taken"):
        pass
    assert str(caught.value) == f"{tmp_path / '.lock'}: cannot be locked ({os.strerror(number)})"


def test_a_folder_is_filled_once(tmp_path):
    fills = []

    def fill(folder: Path) -> None:
        fills.append(folder)
        (folder / "a").write_text("1")
        # Another process finishes first: its folder stays, and this one's is thrown away.
        make_folder_once(tmp_path / "data", lambda other: (other / "a").write_text("2"))

    assert make_folder_once(tmp_path / "data", fill) == tmp_path / "data"
    assert (tmp_path / "data" / "a").read_text() == "2"
    make_folder_once(tmp_path / "data", fill)
    assert len(fills) == 1
    assert os.listdir(tmp_path) == ["data"]


def test_a_fill_that_fails_leaves_nothing(tmp_path):
    def fill(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise KeyError

    with pytest.raises(KeyError):
        make_folder_once(tmp_path / "data", fill)
    assert os.listdir(tmp_path) == []


def test_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.delenv("IMG2IMG_CACHE", raising=False)
    assert files.cache_dir("a", "b") == tmp_path / "x" / "img2img_recon" / "a" / "b"
    monkeypatch.setenv("IMG2IMG_CACHE", str(tmp_path / "own"))
    assert files.cache_dir("a") == tmp_path / "own" / "a"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMG2IMG_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set IMG2IMG_CACHE to a writable folder"):
        files.cache_dir("a")
