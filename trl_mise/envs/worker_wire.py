"""Messages between the trainer and a worker process: length, then JSON. Nothing that comes back is ever unpickled."""

import json
import socket
import struct
import time
from typing import Any

_LENGTH = struct.Struct("!I")
MAX_MESSAGE_BYTES = 16 * 2**20


class WireError(Exception):
    """The other side is gone, or what it sent is no message."""


class HungUp(WireError):
    """The other side is gone."""


def send(sock: socket.socket, message: Any, timeout: float | None = None) -> None:
    """Sends one message.

    Raises:
        HungUp: the other side does not take it.
    """
    payload = json.dumps(message).encode("ascii")
    sock.settimeout(timeout)
    try:
        sock.sendall(_LENGTH.pack(len(payload)) + payload)
    except OSError as error:
        raise HungUp(f"nobody reads ({error})") from error


def receive(sock: socket.socket, deadline: float | None = None) -> Any:
    """Waits for one message.

    Args:
        sock: connected stream socket.
        deadline (`float`, *optional*): of `time.monotonic()`.

    Raises:
        TimeoutError: the deadline has passed before the message was complete.
        HungUp: the other side has closed the connection.
        WireError: it sent something else.
    """
    (length,) = _LENGTH.unpack(_read(sock, _LENGTH.size, deadline))
    if length > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {length:,} bytes was announced, more than {MAX_MESSAGE_BYTES:,}")
    try:
        return json.loads(_read(sock, length, deadline))
    except (ValueError, RecursionError) as error:
        raise WireError(f"the message is not JSON ({error})") from error


def _read(sock: socket.socket, size: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
        else:
            sock.settimeout(None)
        try:
            chunk = sock.recv(min(size - len(data), 2**16))
        except TimeoutError:
            raise
        except OSError as error:
            raise HungUp(str(error)) from error
        if not chunk:
            raise HungUp("the connection was closed")
        data += chunk
    return bytes(data)
