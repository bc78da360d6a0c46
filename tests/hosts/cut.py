"""A link to the coordinator that can be cut: a TCP proxy that stops passing bytes on.

Nothing is closed, as where a cable is pulled or a firewall forgets a connection.
"""

from __future__ import annotations

import contextlib
import socket
import threading


class Link:
    """Listens on `port` for what is meant for the coordinator at `target` on this machine."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._sockets = [self._server]

    def __enter__(self) -> Link:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.set()
        for each in self._sockets:
            each.close()

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._server.accept()
                self._open.wait()
                there = self._connected()
                self._sockets += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _connected(self) -> socket.socket:
        while True:  # the coordinator may not listen yet
            try:
                return socket.create_connection(("127.0.0.1", self._target))
            except ConnectionRefusedError:
                threading.Event().wait(0.1)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
