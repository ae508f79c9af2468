"""Arrays and plain values as bytes and back, without pickle: what references and sketches are stored and sent as."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

Array = npt.NDArray[Any]

MOST_BYTES = 256 << 20  # of what is unpacked
_HEAD = struct.Struct("<4sBQII")  # magic, version, length unpacked, length of the header, checksum
_KINDS = frozenset({"<f4", "<f8", "<i8", "<i4", "|u1"})


def packed(magic: bytes, version: int, plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Plain values (as JSON has them) and little-endian arrays, compressed. `magic` is 4 bytes that name the kind."""
    entries, pieces = [], []
    for name, values in arrays.items():
        kept = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        if kept.dtype.str not in _KINDS:
            raise ValueError(f"arrays of {kept.dtype} are not packed")
        entries.append([name, kept.dtype.str, list(kept.shape)])
        pieces.append(kept.tobytes())
    header = orjson.dumps({"plain": dict(plain), "arrays": entries})
    body = b"".join([header, *pieces])
    return _HEAD.pack(magic, version, len(body), len(header), zlib.crc32(body)) + zlib.compress(body, 1)


def unpacked(magic: bytes, version: int, data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """What `packed` was given; arrays are read-only. Raises ValueError for anything that `packed` did not make."""
    try:
        found, its_version, n_bytes, n_header, crc = _HEAD.unpack_from(data)
        if found != magic or its_version != version:
            raise ValueError(f"these bytes are not a {magic.decode()} of version {version}")
        if n_bytes > MOST_BYTES:
            raise ValueError(f"{n_bytes} bytes are more than the {MOST_BYTES} that are read")
        inflating = zlib.decompressobj()
        body = inflating.decompress(data[_HEAD.size :], n_bytes + 1)
        whole = inflating.eof and not inflating.unused_data
        if not whole or len(body) != n_bytes or zlib.crc32(body) != crc:
            raise ValueError("the bytes were changed or cut off")
        header = orjson.loads(body[:n_header])
        arrays, at = {}, n_header
        for name, kind, shape in header["arrays"]:
            if kind not in _KINDS or any(type(length) is not int or length < 0 for length in shape):
                raise ValueError("an array of an unknown kind or shape")
            dtype = np.dtype(kind)
            n = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(body, dtype, n, at).reshape(shape)
            at += n * dtype.itemsize
        return header["plain"], arrays
    except ValueError:
        raise
    except (struct.error, zlib.error, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"these bytes cannot be read: {error}") from None
