"""Images: bombs and other formats are refused by the header, broken pixels fail their own job, odd ones are right."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.end_to_end.test_images import SAMPLES
from tests.hostile.pictures import (
    NOISE,
    RAMP,
    chunk,
    exif_of,
    file,
    gif_frame,
    jpeg_of,
    png,
    sixteen_bit_colour,
    turned,
)
from tests.hostile.rows import Ask, Row, as_json, ask, b64, check
from tests.hostile.rows import rows as table
from tests.system import System

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "BMP": "image/bmp", "GIF": "image/gif"}
PROFILE = np.random.default_rng(3).bytes(5_000_000)
COLOURS = Image.fromarray(NOISE)


def _sent(data: bytes, media_type: str = "image/png", model: str = "pixels", **headers: str) -> Ask:
    return Ask(f"/predict/{model}", data, headers={"Content-Type": media_type, **headers})


def _as_text(name: str, data: bytes, pointer: str = "/input/base64") -> Row:
    text = f'{{"input": {{"base64": "{b64(data)}"}}}}'
    return Row(f"{name}, in JSON", as_json("/predict/pixels", text), 422, "invalid-input", pointer)


REFUSED = {
    "1 x 178,000,000": png(1, 178_000_000),
    "178,000,000 x 1": png(178_000_000, 1),
    "13,000 x 13,000": png(13_000, 13_000),
    "65,535 x 65,535": png(65_535, 65_535),
    "2^31 x 2^31": png(2**31, 2**31),
    "a JPEG of 65,535 x 65,535": jpeg_of(65_535, 65_535),
    "a GIF of 65,535 x 65,535": b"GIF89a" + b"\xff" * 4 + b"\0" * 20,
    "a BMP of 2^31 rows upside down": b"BM" + bytes(12) + b"\x28\0\0\0\1\0\0\0\0\0\0\x80" + bytes(20),
    "a BMP of negative width": b"BM" + bytes(12) + b"\x28\0\0\0\xff\xff\xff\xff\1\0\0\0" + bytes(20),
    "0 x 0": png(0, 0),
    "5 x 0": png(5, 0),
    "a JPEG of 0 x 0": jpeg_of(0, 0),
    "a pixel above the limit": png(1_000_001, 1),
    "nothing": b"",
    "a PNG's first bytes": b"\x89PNG\r\n\x1a\n",
    "a JPEG's first bytes": b"\xff\xd8\xff",
    "a JPEG of fill bytes": b"\xff\xd8" + b"\xff" * 1_000_000,
    "a JPEG of empty segments": b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000,
    "a JPEG of segments without length": b"\xff\xd8" + b"\xff\xe0\0\0" * 100_000,
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "SVG with entities": b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n(/etc/passwd) (r) file\n",
    "PDF": b"%PDF-1.7\n1 0 obj\n",
    "TIFF": file(COLOURS, "TIFF"),
    "ICO": file(COLOURS, "ICO"),
    "PPM": file(COLOURS, "PPM"),
    "TGA": file(COLOURS, "TGA"),
    "a zip": b"PK\3\4" + bytes(100),
    "a pickle": b"\x80\4cposix\nsystem\n(S'id'\ntR.",
}
DAMAGED = {
    **{f"half a {form}": (file(COLOURS, form)[: len(file(COLOURS, form)) // 2], FORMATS[form]) for form in FORMATS},
    "a PNG without pixels": (png(900, 900), "image/png"),
    "a PNG whose pixels are noise": (png(8, 8, chunk(b"IDAT", b"\xa5" * 100)), "image/png"),
    "a PNG with too few pixels": (png(900, 900, chunk(b"IDAT", zlib.compress(bytes(10)))), "image/png"),
    "a PNG with a wrong checksum": (png(8, 8)[:32] + b"\xa5" + png(8, 8)[33:], "image/png"),
    "a PNG with two headers": (png(8, 8, png(900, 900)[8:33]), "image/png"),
    "a PNG with a text of 100 MB": (
        png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000), 1))),
        "image/png",
    ),
    "a PNG with a profile of 100 MB": (
        png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000), 1))),
        "image/png",
    ),
    "a PNG with a profile of 5 MB": (file(COLOURS, icc_profile=PROFILE), "image/png"),  # Pillow reads up to 1 MB
    "a GIF whose frame is a bomb": (gif_frame(60_000, 60_000), "image/gif"),
    "a GIF without a frame": (b"GIF89a\x04\0\x04\0\0\0\0;", "image/gif"),
    "a JPEG of one header only": (jpeg_of(64, 64)[: jpeg_of(64, 64).index(b"\xff\xda")], "image/jpeg"),
    "a WebP of a header only": (file(COLOURS, "WEBP")[:30], "image/webp"),
    "a BMP of a depth that is none": (
        b"BM" + bytes(12) + b"\x28\0\0\0\4\0\0\0\4\0\0\0\1\0\x63\0" + bytes(40),
        "image/bmp",
    ),
}


@table(
    *[Row(name, _sent(data), 422, "invalid-input") for name, data in REFUSED.items()],
    *[_as_text(name, REFUSED[name]) for name in ("1 x 178,000,000", "0 x 0", "SVG")],
    Row("a media type that is none", _sent(file(COLOURS), "image/svg+xml"), 415, "unsupported-media-type"),
    Row("an archive of parts", _sent(b"--x--", "multipart/form-data; boundary=x"), 415, "unsupported-media-type"),
    Row("parts without boundary", _sent(b"--x--", "multipart/form-data"), 415, "unsupported-media-type"),
    Row("a picture of 5 MB for digits", _sent(bytes(5_000_000), model="digits"), 413, "payload-too-large"),
)
def test_a_bomb_or_another_format_is_refused_by_its_header(system: System, row: Row) -> None:
    check(system, row)


@table(*[Row(name, _sent(*sent), 202, "invalid-input") for name, sent in DAMAGED.items()])
def test_a_picture_that_is_damaged_behind_its_header_fails_at_its_first_attempt(system: System, row: Row) -> None:
    check(system, row)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_is_turned_upright(system: System, orientation: int) -> None:
    stored = file(turned(Image.fromarray(RAMP), orientation), exif=exif_of(orientation))
    np.testing.assert_array_equal(_seen(system, stored), RAMP)


def test_a_digit_is_read_however_the_camera_stood(system: System) -> None:
    upright = Image.open(SAMPLES[3])
    expected = _result(system, _sent(file(upright), model="digits"))
    for orientation in range(2, 9):
        stored = file(turned(upright, orientation), exif=exif_of(orientation))
        assert _result(system, _sent(stored, model="digits")) == expected


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_is_none_turns_nothing(system: System, orientation: int) -> None:
    np.testing.assert_array_equal(_seen(system, file(Image.fromarray(RAMP), exif=exif_of(orientation))), RAMP)


def test_cmyk_is_seen_in_its_colours(system: System) -> None:
    inks = Image.new("CMYK", (8, 8), (255, 255, 0, 0))
    seen = _seen(system, file(inks, "JPEG", quality=100), "image/jpeg")
    np.testing.assert_allclose(seen[4, 4], np.asarray(inks.convert("RGB"))[4, 4], atol=4)
    assert seen[4, 4].argmax() == 2, "cyan and magenta are blue"


def test_sixteen_bits_are_seen_by_their_high_byte(system: System) -> None:
    grey = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    seen = _seen(system, file(Image.fromarray(grey)))
    np.testing.assert_array_equal(seen, np.repeat((grey >> 8)[..., np.newaxis], 3, axis=2))
    colour = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 2_730
    np.testing.assert_array_equal(_seen(system, sixteen_bit_colour(colour)), colour >> 8)


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_clear_colour_of_a_palette_is_seen_as_white(system: System, form: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 100, 0])
    image.putdata([0, 1])
    seen = _seen(system, file(image, form, transparency=0), FORMATS[form])
    assert seen.tolist() == [[[255, 255, 255], [0, 100, 0]]]


def test_half_clear_black_is_seen_as_grey(system: System) -> None:
    assert _seen(system, file(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))).tolist() == [[[127, 127, 127]]]


def test_of_2000_frames_the_first_is_seen(system: System) -> None:
    frames = [Image.new("L", (3, 3), number % 200 + 40) for number in range(2_000)]
    data = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert set(_seen(system, data, "image/gif").ravel().tolist()) == {40}


def test_a_profile_of_5_mb_changes_nothing(system: System) -> None:
    plain, profiled = file(COLOURS, "JPEG"), file(COLOURS, "JPEG", icc_profile=PROFILE)
    assert len(profiled) > len(PROFILE)
    seen = _seen(system, profiled, "image/jpeg")
    np.testing.assert_array_equal(seen, _seen(system, plain, "image/jpeg"))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_broken_exif_block_changes_nothing(system: System, exif: bytes) -> None:
    np.testing.assert_array_equal(_seen(system, file(Image.fromarray(RAMP), exif=exif)), RAMP)


@pytest.mark.parametrize("claimed", ["image/jpeg", "image/gif", "IMAGE/PNG; name=../../etc/passwd"])
def test_a_media_type_that_lies_changes_nothing(system: System, claimed: str) -> None:
    np.testing.assert_array_equal(_seen(system, file(Image.fromarray(RAMP)), claimed), RAMP)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a%00.png", "x" * 5_000, "..\\\\..\\\\a.php", "\u00e9.png"])
def test_a_file_name_is_not_looked_at(system: System, name: str) -> None:
    sent = _sent(file(Image.fromarray(RAMP)), **{"Content-Disposition": f'attachment; filename="{name}"'})
    result: Any = _result(system, sent)["y"]
    np.testing.assert_array_equal(np.asarray(result), RAMP)


def _seen(system: System, data: bytes, media_type: str = "image/png") -> NDArray[Any]:
    """What the model sees of a picture: height x width x RGB."""
    return np.asarray(_result(system, _sent(data, media_type))["y"])


def _result(system: System, sent: Ask) -> dict[str, Any]:
    answer = ask(system, sent)
    assert answer.status == 202, answer
    document = system.ended(answer.json()["task_id"])
    assert document["status"] == "completed", document
    result: dict[str, Any] = document["result"]
    return result
