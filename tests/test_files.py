"""timam.files: old content or new, whatever happens in between."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from timam import files
from timam.files import cache_folder, recover_folder, replacing_file, replacing_folder, write_text


def fail_inside(replacing, error: BaseException) -> None:
    """Writes a half of the file, or of the folder's model, and fails."""
    with replacing as new:
        (new / "model" if new.is_dir() else new).write_text("half")
        raise error


def fill(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").write_text(content)
    (folder / f"only_{content}").write_text(content)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """{path: text} of the files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_file_is_replaced_at_the_end_as_a_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "nëw\n")
    assert path.read_bytes() == "nëw\n".encode()
    with replacing_file(path) as temporary:
        temporary.write_text("newer")
        assert path.read_text(encoding="utf-8") == "nëw\n"  # a kill here leaves this
        assert temporary.parent == path.parent  # one file system: os.replace is one step
    with pytest.raises(FileNotFoundError), replacing_file(path):
        pass  # writing nothing is an error, not a loss
    assert contents(tmp_path) == {"a.txt": "newer"}


@pytest.mark.parametrize("replacing", [replacing_file, replacing_folder])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOENT, "x"), Exception("os error")])
def test_exception_is_passed_on_and_leaves_everything_as_it_was(tmp_path, replacing, old, error):
    target = tmp_path / "target"
    if old:
        fill(target, "old") if replacing is replacing_folder else target.write_text("old")
    before = contents(tmp_path)
    with pytest.raises(type(error)) as caught:
        fail_inside(replacing(target), error)
    assert caught.value is error
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == (["target"] if old else [])


class Killed(BaseException):
    """Stands for SIGKILL: what runs after it is taken out by the test."""


# In order, replacing an old folder: rmtree of remains of .new (1), [the caller writes], rmtree in recover_folder (2),
# rename old away (1), rename new in (2), rmtree of the old (3).
@pytest.mark.parametrize(
    ("name", "nth", "expected"),
    [("rmtree", 1, "old"), ("rmtree", 2, "old"), ("rename", 1, "old"), ("rename", 2, "old"), ("rmtree", 3, "new")],
)
def test_kill_at_any_point_leaves_old_or_new_after_recovery(tmp_path, monkeypatch, name, nth, expected):
    target, owner, calls = fill(tmp_path / "last", "old"), Path if name == "rename" else files.shutil, []
    original = getattr(owner, name)

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) >= nth:  # neither this call nor any later one runs
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, killed)
        with pytest.raises(Killed), replacing_folder(target) as new:
            fill(new, "new")
    with pytest.raises(RuntimeError):  # trying again without recovery loses nothing
        fail_inside(replacing_folder(target), RuntimeError())
    recover_folder(target)
    assert contents(tmp_path) == {"last/model": expected, f"last/only_{expected}": expected}
    with replacing_folder(target) as new:  # and the next replacement works
        fill(new, "newer")
    assert contents(tmp_path) == {"last/model": "newer", "last/only_newer": "newer"}
    assert os.listdir(tmp_path) == ["last"]


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("TIMAM_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/me/.cache/timam")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/timam")
    monkeypatch.setenv("TIMAM_CACHE", "~/a")
    assert cache_folder() == Path("/home/me/a")


def test_content_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    """Else a power cut just after the renaming leaves an empty file; a real one cannot be had in a test."""
    events, fsync = [], os.fsync

    def noted(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see which file was flushed")
    monkeypatch.setattr(os, "fsync", noted)
    for owner, name in ((os, "replace"), (Path, "rename")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, f=original: events.append("rename") or f(*a))
    write_text(tmp_path / "a.txt", "new")
    assert events == [f".a.txt.{os.getpid()}.tmp", "rename", tmp_path.name]
    renamed = ["model", ".last.new", "rename", tmp_path.name]
    for durable, expected in ((True, renamed), (False, ["rename"] * 2)):  # the second time the old one goes first
        events.clear()
        with replacing_folder(tmp_path / "last", durable) as new:
            (new / "model").write_text("new")
        assert events == expected


@pytest.mark.parametrize("replacing", [replacing_file, replacing_folder])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), Exception("I/O error: no room (os error 28)")])
def test_full_disk_is_said_with_the_name(tmp_path, replacing, error):
    with pytest.raises(OSError, match=r"No space left on device; what was there before is kept.*target") as caught:
        fail_inside(replacing(tmp_path / "target"), error)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_sums_find_every_damage_and_are_those_of_sha256sum(tmp_path):
    fill(tmp_path / "deep", "old")
    fill(tmp_path, "old")
    files.check_sums(tmp_path)  # no sums to compare with
    files.write_sums(tmp_path)
    files.check_sums(tmp_path)
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
    (tmp_path / "model").write_text("olt")
    (tmp_path / "deep" / "only_old").unlink()
    with pytest.raises(ValueError, match=r"deep/only_old is absent; .*/model is damaged"):
        files.check_sums(tmp_path)
    files.write_sums(tmp_path, [tmp_path / "only_old"])  # of one file: the others are free
    files.check_sums(tmp_path)
