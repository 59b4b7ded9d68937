"""Messages between the trainer and a worker process: length, then JSON. Nothing that comes back is ever unpickled."""

import json
import os
import struct
from typing import Any

_LENGTH = struct.Struct("!Q")
MAX_MESSAGE_BYTES = 16 * 2**20
"""Of what a worker answers; what the trainer sends is its own business."""


class WireError(Exception):
    """The other side is gone, or what it sent is no message."""


class HungUp(WireError):
    """The other side is gone."""


def encode(message: Any) -> bytes:
    """One message, length first.

    Raises:
        TypeError, ValueError: JSON cannot hold it.
    """
    payload = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(payload)) + payload


def send(descriptor: int, data: bytes) -> None:
    """Writes all of `data`, however long the other side takes."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise HungUp(f"nobody reads ({error})") from error


def receive(descriptor: int) -> Any:
    """Waits for one message of the trainer, however long that takes."""
    (length,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size))
    return json.loads(_read(descriptor, length))


def _read(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            chunk = os.read(descriptor, min(size - len(data), 2**20))
        except OSError as error:
            raise HungUp(str(error)) from error
        if not chunk:
            raise HungUp("the connection was closed")
        data += chunk
    return bytes(data)


class Inbox:
    """Cuts what arrives into messages. Who wrote it is not known, so nothing about it is taken for granted."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def is_waiting(self) -> bool:
        """Whether a message has begun to arrive."""
        return bool(self._data)

    def feed(self, data: bytes) -> list[Any]:
        """Takes what arrived and returns the messages that are complete now.

        Raises:
            WireError: this cannot become a message.
        """
        self._data += data
        messages = []
        while self._data:
            # Bytes that are still to come count as zero: what is too long already need not be waited for.
            (length,) = _LENGTH.unpack(bytes(self._data[: _LENGTH.size]).ljust(_LENGTH.size, b"\0"))
            if length > MAX_MESSAGE_BYTES:
                raise WireError(f"a message of {length:,} bytes was announced, more than {MAX_MESSAGE_BYTES:,}")
            end = _LENGTH.size + length
            if len(self._data) < end:
                break
            messages.append(_decode(bytes(self._data[_LENGTH.size : end])))
            del self._data[:end]
        return messages


def _decode(payload: bytes) -> Any:
    try:
        message = json.loads(payload.decode("utf-8"))
        if b"\\ud" in payload or b"\\uD" in payload:
            # Half of a character, written as an escape, would break whoever encodes it later.
            json.dumps(message, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise WireError(f"the message is not JSON in UTF-8 ({error})") from error
    return message
