"""What a process does to the world: an audit hook that notes everything outside of allowed folders.

Note: an audit hook cannot be taken out again, so it stands in a process of its own; and what C++
code opens (TensorStore, safetensors, tokenizers) it does not see. Against that
stands a secret in the forbidden folder, which must not come out anywhere.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

_WRITES = ("w", "a", "x", "+")
# Event -> the places of its paths among the arguments.
_CHANGES = {
    "os.mkdir": (0,), "os.remove": (0,), "os.rmdir": (0,), "os.rename": (0, 1), "os.link": (0, 1),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,),
    "shutil.rmtree": (0,), "shutil.move": (0, 1), "os.mknod": (0,),
}  # fmt: skip
_FOLLOW = ("os.truncate", "os.chmod", "os.chown", "os.utime")
_RUNS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile",
    "socket.connect", "socket.sendto", "pty.spawn", "ctypes.dlopen", "pickle.find_class",
)  # fmt: skip


class Guard:
    """Notes forbidden acts while `watching`; `forbidden` may not even be read."""

    def __init__(self, allowed: list[Path], forbidden: list[Path]) -> None:
        self.acts: list[str] = []
        self.watching = False
        self._allowed = [os.path.realpath(path) for path in (*allowed, "/dev")]
        self._forbidden = [os.path.realpath(path) for path in forbidden]
        self._inside = threading.local()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching or getattr(self._inside, "hook", False):
            return
        self._inside.hook = True
        try:
            self._look(event, arguments)
        finally:
            self._inside.hook = False

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = (
                any(letter in mode for letter in _WRITES)
                if isinstance(mode, str)
                else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            )
            self._note(event, path, writes=writes)
        elif event in ("os.listdir", "os.scandir"):
            self._note(event, arguments[0], writes=False)
        elif event in _CHANGES:
            places = _CHANGES[event]
            for place, folder in zip(places, _handles(arguments, len(places)), strict=True):
                if place < len(arguments):
                    path = _joined(folder, arguments[place])
                    self._note(event, path, writes=True, follows=event in _FOLLOW)
        elif event in _RUNS and not self._is_library(event, arguments):
            self.acts.append(f"{event} {str(arguments)[:200]}")

    def _note(self, event: str, path: Any, *, writes: bool, follows: bool = True) -> None:
        if isinstance(path, int) or path is None:
            return
        try:
            real = os.path.realpath(path := os.fsdecode(path))
            if not follows:  # a link itself is removed or renamed
                real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        except ValueError:  # a NUL: no file can have that name
            return
        if _below(real, self._forbidden) or (writes and not _below(real, self._allowed)):
            self.acts.append(f"{event} {real}{' for writing' if writes else ''}")

    def _is_library(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether an installed package does it on its own account."""
        if event == "pickle.find_class":  # tensorboardX hands its own events to a thread
            module, name = arguments
            return module.startswith("tensorboardX.") or (module, name) == ("builtins", "object")
        if event == "ctypes.dlopen":
            name = str(arguments[0])
            return arguments[0] is None or "/" not in name or name.startswith((sys.prefix, "/usr"))
        return False


def _handles(arguments: tuple[Any, ...], count: int) -> list[int]:
    """The open folders that relative paths start from stand last; -1 is the current one."""
    last = arguments[-count:]
    if all(type(value) is int and value >= 0 for value in last):
        return list(last)
    return [-1] * count


def _joined(folder: int, path: Any) -> Any:
    if folder < 0 or isinstance(path, int) or path is None:
        return path
    return os.path.join(f"/proc/self/fd/{folder}", os.fsdecode(path))


def _below(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)
