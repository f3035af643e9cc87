"""Files are whole or absent, digests are stable."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gacq_deploy.errors import ArtifactError, ResourceError, UsageError
from gacq_deploy.storage import files
from gacq_deploy.storage import lock as lock_module
from gacq_deploy.storage.digests import describe_file, digest_array, digest_json, verify_file
from gacq_deploy.storage.files import (
    TEMP_PREFIX,
    atomic_directory,
    atomic_path,
    map_scratch,
    scratch,
    write_bytes,
    write_json,
)
from gacq_deploy.storage.lock import LOCK_NAME, lock_directory, lock_holder


def test_digest_of_an_array_sees_dtype_shape_and_values() -> None:
    a = np.arange(6, dtype=np.float32)
    digests = {digest_array(x) for x in (a, a.reshape(2, 3), a.astype(np.int64), a + 1)}
    assert len(digests) == 4
    assert digest_array(a.reshape(2, 3).T.copy().T) == digest_array(a.reshape(2, 3))


@pytest.mark.parametrize(
    "array",
    [np.zeros((0, 2), np.float32), np.array(3.5, np.float32), np.arange(6, dtype=np.int64).reshape(2, 3).T],
)
def test_digest_of_an_array_is_of_its_head_and_row_major_bytes(array: np.ndarray) -> None:
    head = f"{array.dtype.str}{list(array.shape)}".encode()
    assert digest_array(array) == hashlib.sha256(head + array.tobytes()).hexdigest()


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic_path(path) as temp:
        temp.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_directory_write_leaves_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    with atomic_directory(target, ("a",)) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target, ("a",)) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    with atomic_directory(target, ("a",)) as folder:
        (folder / "b").write_text("new")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_a_full_disk_is_a_resource_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(ResourceError, match="No space left"):
            write_bytes(path, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="Cannot write"):
        write_bytes(tmp_path / "file" / "x", b"")


def test_no_memory_is_not_called_a_place_that_is_not_writable(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="Out of memory") as caught, atomic_path(tmp_path / "x"):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    assert "--batch" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_json_is_canonical(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "ü"})
    assert (tmp_path / "a").read_bytes() == '{\n  "a": "ü",\n  "b": 1\n}\n'.encode()
    assert digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1})


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "symlink", "hard link"])
def test_verify_refuses_every_damage(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    entry = describe_file(path)
    verify_file(path, entry, what="File", hint="")
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(b"01234")
    elif damage == "flipped":
        path.write_bytes(b"0123456788")
    elif damage == "symlink":
        path.rename(tmp_path / "y")
        path.symlink_to(tmp_path / "y")
    else:
        os.link(path, tmp_path / "y")
    with pytest.raises(ArtifactError, match="File"):
        verify_file(path, entry, what="File", hint="")


def test_two_processes_refuse_each_other_and_a_dead_one_is_forgotten(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gacq_deploy.storage.lock import lock_directory\n"
        "with lock_directory(Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "held"
        with pytest.raises(ResourceError, match=f"in use by process {other.pid}"), lock_directory(tmp_path):
            pass
        assert lock_holder(tmp_path) == str(other.pid)
        other.kill()
    assert lock_holder(tmp_path) is None
    left = f"{TEMP_PREFIX}{os.getpid()}"  # a process id that lives, as PID 1 does in every container
    (tmp_path / "work" / "polish").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "work" / "polish"):
        (folder / f"{left}-x").write_text("left by the dead")
        (folder / f"{left}-dir").mkdir()
        (folder / f"{TEMP_PREFIX}old-artifact").symlink_to(tmp_path / "nowhere")
        (folder / "artifact").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "work")
    with lock_directory(tmp_path):
        found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
        assert found == [LOCK_NAME, "artifact", "elsewhere", "work", "work/polish", "work/polish/artifact"]


@pytest.mark.parametrize("kind", ["symlink", "hard link", "dangling", "fifo", "folder"])
def test_a_lock_that_is_not_ours_is_refused_and_not_followed(tmp_path: Path, kind: str) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("precious")
    lock = run / LOCK_NAME
    match kind:
        case "symlink":
            lock.symlink_to(victim)
        case "hard link":
            os.link(victim, lock)
        case "dangling":
            lock.symlink_to(tmp_path / "made")
        case "fifo":
            os.mkfifo(lock)
        case _:
            lock.mkdir()
    with (
        pytest.raises(UsageError, match=f"{LOCK_NAME} is a link, or no file|Cannot write"),
        lock_directory(run),
    ):
        pass
    assert victim.read_text() == "precious"
    assert not (tmp_path / "made").exists()
    lock_holder(run)


def test_a_file_system_without_locks_is_named_and_no_process_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock_module.fcntl, "flock", flock)
    with pytest.raises(UsageError, match="gives no lock: No locks available"), lock_directory(tmp_path):
        pass


@pytest.mark.parametrize("leads", ["file", "nowhere"])
def test_a_link_in_the_place_of_the_temporary_file_is_not_written_through(
    tmp_path: Path, leads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is random; that somebody guesses it is played by one that is not."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    victim, path = tmp_path / "victim", tmp_path / "x.json"
    if leads == "file":
        victim.write_text("precious")
    for name in (f"{TEMP_PREFIX}guessed-{path.name}", "scratch.bin"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(UsageError, match="File exists"):
        write_bytes(path, b"new")
    with pytest.raises(UsageError, match="File exists"), atomic_directory(path, ()):
        pass
    map_scratch(tmp_path / "scratch.bin", np.dtype("f4"), (4,))[:] = 1
    assert not path.exists()
    assert victim.read_text() == "precious" if leads == "file" else not victim.exists()


@pytest.mark.parametrize("length", [230, 245, 255])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("x" * (length - 4) + ".png")
    write_bytes(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_is_made_for_the_lock_only_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    assert lock_holder(folder) is None
    with pytest.raises(UsageError, match="Cannot write"), lock_directory(folder):
        pass
    assert not list(tmp_path.iterdir())
    with lock_directory(folder, make=True):
        assert lock_holder(folder) == str(os.getpid())
    assert lock_holder(folder) is None


def test_who_asks_for_the_holder_keeps_nobody_out(tmp_path: Path) -> None:
    """The question takes the lock for an instant; whoever comes in that instant tries again."""
    with lock_directory(tmp_path):
        pass
    stop = threading.Event()

    def ask() -> None:
        # often, but not all the time: what is asked without a pause holds the lock half of the time
        while not stop.wait(0.001):
            lock_holder(tmp_path)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for _ in range(200):
            with lock_directory(tmp_path):
                pass
    finally:
        stop.set()
        asker.join()


def test_other_runs_below_and_living_processes_keep_their_temporary_files(tmp_path: Path) -> None:
    child = tmp_path / "child"
    mine = tmp_path / "work" / f"{TEMP_PREFIX}cache.bin"
    child.mkdir()
    with (
        lock_directory(child),
        atomic_path(tmp_path / "images.png") as living,
        scratch(tmp_path / "onnx", folder=True) as folder,
    ):
        theirs = child / f"{TEMP_PREFIX}cache.bin"
        for path in (mine, theirs):
            path.parent.mkdir(exist_ok=True)
            path.write_text("x")
        with lock_directory(tmp_path):
            assert theirs.exists()
            assert living.exists()
            assert folder.exists()
            assert not mine.exists()


def test_a_swap_of_folders_cut_in_the_middle_ends_with_the_old_or_the_new_one(tmp_path: Path) -> None:
    """A kill between the two renames leaves the old folder under its temporary name."""
    target, old = tmp_path / "artifact", tmp_path / f"{TEMP_PREFIX}old-artifact"
    with atomic_directory(target, ("a",)) as folder:
        (folder / "a").write_text("old")
    target.rename(old)
    with lock_directory(tmp_path):
        assert (target / "a").read_text() == "old"
        assert not old.exists()
    target.rename(old)
    target.mkdir()
    (target / "a").write_text("new")
    with lock_directory(tmp_path):
        assert (target / "a").read_text() == "new"
        assert not old.exists()


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "artifact"
    with atomic_directory(target, ("a",)) as folder:
        (folder / "a").write_text("old")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to == target and "old" not in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UsageError, match="Input/output error"), atomic_directory(target, ("a",)) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "old"


def test_what_others_put_into_a_folder_comes_along_when_it_is_made_again(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    with atomic_directory(target, ("a", "b*")) as folder:
        (folder / "a").write_text("old")
        (folder / "bits").write_text("old")
    (target / "NOTES.txt").write_text("mine")
    (target / "more").mkdir()
    (target / "more" / "a").write_text("mine, though it has the name of one of ours")
    (target / "link").symlink_to(tmp_path)
    with atomic_directory(target, ("a", "b*")) as folder:
        (folder / "a").write_text("new")
    found = sorted(p.relative_to(target).as_posix() for p in target.rglob("*"))
    assert found == ["NOTES.txt", "a", "link", "more", "more/a"]
    assert (target / "a").read_text() == "new"
    assert (target / "link").is_symlink()


def test_a_link_in_the_place_of_a_folder_is_replaced_and_what_it_leads_to_left_alone(tmp_path: Path) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "artifact"
    elsewhere.mkdir()
    (elsewhere / "a").write_text("precious")
    target.symlink_to(elsewhere)
    with atomic_directory(target, ("a",)) as folder:
        (folder / "a").write_text("new")
    assert not target.is_symlink()
    assert (elsewhere / "a").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["artifact", "elsewhere"]
