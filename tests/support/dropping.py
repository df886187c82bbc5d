"""An engine that is stopped or started again, as its clients see it: its socket, with connections that can be cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path


class Dropping:
    """Hands on what is said between clients of the socket `path` and `engine`, until it is told to drop them."""

    def __init__(self, path: Path, engine: str = "/var/run/docker.sock") -> None:
        self.answers = True
        self._engine = engine
        self._open: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        path.chmod(0o777)
        self._listening.listen()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def drop(self) -> None:
        """Cuts every connection, and takes none until `answers` is set."""
        self.answers = False
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self.drop()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._accepting.join()

    def _accept(self) -> None:
        with self._listening, suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self.answers:
                    threading.Thread(target=self._connect, args=(client,), daemon=True).start()
                else:
                    client.close()

    def _connect(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._engine)
            self._open += [client, server]
            back = threading.Thread(target=_hand_on, args=(server, client))
            back.start()
            _hand_on(client, server)
            back.join()


def _hand_on(said: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while data := said.recv(1 << 16):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)
