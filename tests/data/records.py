"""TFRecord files written independently of their reader: bit by bit, and by the rules of protocol buffers."""

import struct


def crc32c(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(value: int) -> bytes:
    value %= 2**64
    text = b""
    while value > 127:
        text += bytes([value % 128 + 128])
        value //= 128
    return text + bytes([value])


def delimited(number: int, content: bytes) -> bytes:
    return varint(8 * number + 2) + varint(len(content)) + content


def feature(values: list, packed: bool = True) -> bytes:
    """Of bytes, floats or whole numbers; numbers in one field or in one each."""
    kind = {bytes: 1, float: 2, int: 3}[type(values[0])]
    if kind == 1:
        return delimited(1, b"".join(delimited(1, value) for value in values))
    texts = [struct.pack("<f", value) if kind == 2 else varint(value) for value in values]
    key = varint(8 + (5 if kind == 2 else 0))
    return delimited(kind, delimited(1, b"".join(texts)) if packed else b"".join(key + text for text in texts))


def example(features: dict[str, list], packed: bool = True) -> bytes:
    entries = (delimited(1, name.encode()) + delimited(2, feature(values, packed)) for name, values in features.items())
    return delimited(1, b"".join(delimited(1, entry) for entry in entries))
