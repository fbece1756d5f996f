"""Files that look like pictures and are broken, each in a way that Pillow reports with another class of error."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 16


def saved(mode: str = "RGB", kind: str = "PNG", **options: object) -> bytes:
    """A whole picture, 16 × 16, of grey noise in that mode."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colours: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of these raw rows, with further chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_png(*chunks: bytes) -> bytes:
    return png(1, 1, 8, 0, b"\0\x80", *chunks)


def broken() -> dict[str, bytes]:
    """By what is wrong."""
    whole = {kind: saved(kind=kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "DDS")}
    found = {f"truncated {kind}": data[: len(data) // 2] for kind, data in whole.items()}
    found |= {f"head of a {kind}": data[:24] for kind, data in whole.items()}
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, SIDE, SIDE, 8, 3)
    return found | {
        "empty": b"",
        "text": b"no picture",
        "zTXt of another compression": grey_png(chunk(b"zTXt", b"key\0\x09data")),
        "zTXt bomb": grey_png(chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(10**8)))),
        "iCCP of another compression": grey_png(chunk(b"iCCP", b"name\0\x07data")),
        "IHDR too short": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0\0"),
        "wrong CRC": whole["PNG"][:60] + b"\0\0\0" + whole["PNG"][63:],
        "EXIF that is none": grey_png(chunk(b"eXIf", b"Exif\0\0garbage!")),
        "bomb": png(60_000, 60_000, 8, 0, b""),
        "DDS of an unknown format": whole["DDS"][:80] + struct.pack("<I", 4) + b"ZZZZ" + whole["DDS"][88:],
        "DDS with a header of another size": b"DDS " + struct.pack("<I", 1) + whole["DDS"][8:],
        "PSD without an end": psd,
        "PSD of an unknown mode": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, SIDE, SIDE, 8, 99) + bytes(64),
        "PSD of an unknown version": b"8BPS" + struct.pack(">H6xHIIHH", 9, 3, SIDE, SIDE, 8, 3) + bytes(64),
        "PPM of nonsense": b"P6\nwide high\n255\n",
        "TIFF that points nowhere": b"II*\0\xff\xff\xff\x7f",
        "GIF with no frame": b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b";",
    }
