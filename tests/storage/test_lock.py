"""One writer at a time, told by real processes: who holds it, and that it dies with its holder."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flaxbert.errors import ConfigError
from flaxbert.storage.lock import holder, locked

_ROOT = Path(__file__).parents[2]
_HOLDER = """
import sys
from pathlib import Path
from flaxbert.storage.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def _holder(path: Path):
    """Another process that holds the lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught, locked(path):
        pass
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_second_process_is_refused_and_told_who_and_where(tmp_path):
    path = tmp_path / ".lock"
    with _holder(path) as process:
        for _ in range(2):  # a refusal does not wipe the holder's name
            message = _refusal(path)
            assert f"pid {process.pid} on {socket.gethostname()}" in message
            assert str(tmp_path) in message
        process.communicate(timeout=30)  # ends its input: it leaves the block
        with locked(path):
            pass


def test_the_lock_dies_with_its_process(tmp_path):
    path = tmp_path / ".lock"
    with _holder(path) as process:
        assert "in use" in _refusal(path)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        assert path.is_file()  # the file stays, the lock does not
        with locked(path):
            assert path.read_text() == f"pid {os.getpid()} on {socket.gethostname()}\n"


def test_a_stale_name_in_the_file_blocks_nobody(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("pid 1 on some-other-machine-with-a-long-name\n" * 3)
    with locked(path):
        assert path.read_text() == f"pid {os.getpid()} on {socket.gethostname()}\n"


def test_the_lock_is_released_when_the_block_raises(tmp_path):
    path = tmp_path / ".lock"
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    with locked(path):
        pass


def test_it_is_held_within_one_process_too(tmp_path):
    path = tmp_path / ".lock"
    with locked(path):
        assert f"pid {os.getpid()}" in _refusal(path)


def _failing(monkeypatch, number: int) -> None:
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_not_called_in_use(tmp_path, monkeypatch, number):
    path = tmp_path / ".lock"
    _failing(monkeypatch, number)
    message = _refusal(path)
    assert "in use" not in message
    assert f"{path} cannot be locked ({os.strerror(number)})" in message and "mount" in message


def test_another_error_of_locking_has_the_file_s_name(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    _failing(monkeypatch, errno.EIO)
    with pytest.raises(OSError) as caught, locked(path):
        pass
    assert caught.value.errno == errno.EIO and caught.value.filename == str(path)


@pytest.mark.parametrize("ending", [None, KeyError])
def test_a_disk_that_cannot_close_it_hides_no_ending(tmp_path, monkeypatch, ending):
    path = tmp_path / ".lock"
    really_open = Path.open

    class _Unclosable(io.TextIOWrapper):
        def close(self):
            super().close()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def opened(self, mode, **options):
        binary = really_open(self, "ab+")
        return _Unclosable(binary, **options)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(ending) if ending else contextlib.nullcontext(), locked(path):
        if ending:
            raise ending
    monkeypatch.undo()
    with locked(path):
        assert path.read_text().startswith(f"pid {os.getpid()}")


def test_a_lock_of_another_machine_is_not_called_free(tmp_path, monkeypatch):
    """On a shared disk: /proc/locks has no line for it, though its process may be alive."""
    path = tmp_path / ".lock"
    path.write_text("pid 7 on elsewhere\n")
    with pytest.raises(OSError, match="pid 7 on elsewhere was the last to lock it"):
        holder(path)
    with locked(path):
        assert holder(path) == f"pid {os.getpid()} on {socket.gethostname()}"
    assert holder(path) is None  # our own, and nobody holds it any more
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    path.write_text("pid 7 on elsewhere\n")
    assert holder(path) is None


def test_any_content_of_the_file_can_be_told(tmp_path):
    path = tmp_path / ".lock"
    path.write_bytes(b"\xff on " + b"x" * 10**6)
    with pytest.raises(OSError, match="was the last") as caught:
        holder(path)
    assert len(str(caught.value)) < 600
