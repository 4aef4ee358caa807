"""Kind ``image``: headers at the door, pixels in the stage, and hostile files in neither."""

from __future__ import annotations

import base64
import io
import struct
import tracemalloc
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.errors import (
    InvalidInputError,
    MalformedError,
    PayloadTooLargeError,
    PenstockError,
    SetupError,
    UnsupportedMediaTypeError,
)
from jobs.models import Limits, ModelConfig, StageConfig
from jobs.payload import Payload
from preprocess.header import read_header
from preprocess.image import MEDIA_TYPES
from preprocess.kinds import Kind, check, kind
from tests.unit.graphs import record_of

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/bmp": "BMP", "image/gif": "GIF"}
RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def made(
    shape: tuple[int | None, ...] = (None, 3, None, None),
    dtype: str = "float32",
    limits: Limits | None = None,
    **options: Any,
) -> Kind:
    """An image kind for one input of ``shape`` with these options."""
    config = ModelConfig(preprocess=StageConfig("image", options), limits=limits or Limits())
    return kind(record_of(("x", dtype, shape), config=config))


def file(image: Image.Image, kind_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind_name, **options)
    return buffer.getvalue()


def outcome(asked: Kind, data: bytes, media_type: str = "image/png") -> NDArray[Any]:
    (item,) = asked.run([asked.from_bytes(media_type, data)])
    assert not isinstance(item, PenstockError), item
    array: NDArray[Any] = item["x"]
    return array


def pixels(data: bytes, media_type: str = "image/png", **options: Any) -> NDArray[Any]:
    """What the model would see, as height x width x channels."""
    channels = 1 if options.get("mode") == "L" else 3
    asked = made((None, None, None, channels), layout="NHWC", **options)
    array: NDArray[Any] = outcome(asked, data, media_type)[0]
    return array


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82"


# --- The door ---


@pytest.mark.parametrize("media_type", sorted(FORMATS))
@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_the_header_is_read_as_pillow_reads_it(media_type: str, options: dict[str, Any]) -> None:
    data = file(Image.new("RGB", (37, 53), "red"), FORMATS[media_type], **options)
    assert read_header(data) == (media_type, 37, 53)


def test_the_headers_of_extended_webp_progressive_jpeg_and_fill_bytes_are_read() -> None:
    webp = file(Image.new("RGBA", (300, 2), (1, 2, 3, 4)), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0")
    jpeg = file(Image.new("RGB", (9, 700)), "JPEG", progressive=True, icc_profile=b"x" * 200_000)
    assert read_header(webp) == ("image/webp", 300, 2)
    assert read_header(jpeg) == ("image/jpeg", 9, 700)
    assert read_header(jpeg[:2] + b"\xff" * 7 + jpeg[2:]) == ("image/jpeg", 9, 700)


def test_json_and_raw_bodies_give_the_same_payload() -> None:
    data = file(Image.fromarray(RAMP))
    raw = msgspec.json.encode({"base64": base64.b64encode(data).decode()})
    assert made().from_json(raw) == made().from_json(msgspec.Raw(raw)) == made().from_bytes("image/png", data)
    assert made().media_types == MEDIA_TYPES == FORMATS.keys()


def test_the_format_is_what_the_bytes_say() -> None:
    data = file(Image.fromarray(RAMP), "JPEG")
    assert made().from_bytes("image/png", data).media_type == "image/jpeg"


@pytest.mark.parametrize(
    ("width", "height"), [(1, 178_000_000), (13_000, 13_000), (65_535, 65_535), (2**31, 2**31), (0, 0), (5, 0)]
)
def test_an_image_bomb_is_refused_at_the_door(width: int, height: int) -> None:
    with pytest.raises(InvalidInputError, match=f"{width} x {height}"):
        made().from_bytes("image/png", png(width, height))


def test_the_limit_of_pixels_is_the_models_own() -> None:
    data = file(Image.new("L", (10, 11)))
    assert made(pixels_max=110).from_bytes("image/png", data)
    with pytest.raises(InvalidInputError, match="up to 109 pixels"):
        made(pixels_max=109).from_bytes("image/png", data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"%PDF-1.7",
        file(Image.new("L", (2, 2)), "TIFF"),
        file(Image.new("L", (16, 16)), "ICO"),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8" + b"\xff" * 100_000,
        b"\xff\xd8" + b"\xff\xe0\0\0" * 100_000,
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"BM",
        b"GIF89a",
    ],
)
def test_other_formats_and_broken_headers_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="not an image of image/bmp, image/gif"):
        made().from_bytes("image/png", data)


@pytest.mark.parametrize(
    ("raw", "error", "pointer"),
    [
        (b'{"base64": "!"}', InvalidInputError, "/input/base64"),
        (b'{"base64": "AAAA"}', InvalidInputError, "/input/base64"),
        (b'{"base64": 1}', InvalidInputError, "/input"),
        (b'{"base64": "", "url": "x"}', InvalidInputError, "/input"),
        (b"[1]", InvalidInputError, "/input"),
        (b"{", MalformedError, None),
        (b'{"base64": "\xff"}', MalformedError, None),
    ],
)
def test_wrong_json_is_pointed_at(raw: bytes, error: type[PenstockError], pointer: str | None) -> None:
    with pytest.raises(error) as caught:
        made().from_json(raw)
    assert caught.value.pointer == pointer


def test_a_bomb_in_json_is_pointed_at() -> None:
    with pytest.raises(InvalidInputError) as caught:
        made().from_json(msgspec.json.encode({"base64": base64.b64encode(png(65_535, 65_535)).decode()}))
    assert caught.value.pointer == "/input/base64"


def test_sizes_and_media_types_are_bounded() -> None:
    asked = made(limits=Limits(input_bytes_max=30))
    with pytest.raises(PayloadTooLargeError):
        asked.from_bytes("image/png", b"x" * 31)
    with pytest.raises(PayloadTooLargeError):
        asked.from_json(msgspec.json.encode({"base64": "A" * 44}))
    with pytest.raises(UnsupportedMediaTypeError):
        asked.from_bytes("image/tiff", b"")


# --- The stage ---


def test_pixels_arrive_unchanged() -> None:
    np.testing.assert_array_equal(pixels(file(Image.fromarray(RAMP))), RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    turned = {  # how the stored pixels must be turned to stand upright (Exif 2.32, tag 274)
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, 1),
    }
    stored = RAMP[:2]
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(file(Image.fromarray(stored), exif=exif)), turned[orientation](stored))


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_a_broken_exif_block_leaves_the_picture_as_it_is(exif: bytes) -> None:
    np.testing.assert_array_equal(pixels(file(Image.fromarray(RAMP), exif=exif)), RAMP)


def test_transparency_lies_on_white() -> None:
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    clear = Image.new("LA", (1, 1), (0, 0))
    assert pixels(file(half)).tolist() == [[[127, 127, 127]]]
    assert pixels(file(clear), mode="L").tolist() == [[[255]]]


def test_a_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 100, 0])
    image.putdata([0, 1])
    for data, media_type in (
        (file(image, transparency=0), "image/png"),
        (file(image, "GIF", transparency=0), "image/gif"),
    ):
        assert pixels(data, media_type).tolist() == [[[255, 255, 255], [0, 100, 0]]]


def test_cmyk_becomes_colour_and_grey() -> None:
    data = file(Image.new("CMYK", (8, 8), (255, 255, 0, 0)), "JPEG", quality=100)
    blue = pixels(data, "image/jpeg")[4, 4]
    assert blue[2] > 250
    assert max(blue[0], blue[1]) < 5
    assert pixels(data, "image/jpeg", mode="L")[4, 4, 0] == pytest.approx(29, abs=2)


def test_sixteen_bits_keep_the_high_byte() -> None:
    image = Image.fromarray(np.array([[0, 255, 256, 32_768, 65_535]], np.uint16))
    assert pixels(file(image), mode="L")[..., 0].tolist() == [[0, 0, 1, 128, 255]]


def test_of_many_frames_the_first_is_taken() -> None:
    frames = [Image.new("L", (3, 3), number % 256) for number in range(40, 340)]
    data = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert set(pixels(data, "image/gif", mode="L").ravel().tolist()) == {40}


@pytest.mark.parametrize("media_type", sorted(FORMATS))
def test_a_truncated_file_fails_alone(media_type: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    data = file(Image.fromarray(noise), FORMATS[media_type])
    asked = made((None, 3, 64, 64))
    whole, cut = asked.from_bytes(media_type, data), asked.from_bytes(media_type, data[: len(data) // 2])
    first, second, third = asked.run([whole, cut, whole])
    assert isinstance(second, InvalidInputError)
    assert second.detail == "the image is damaged or incomplete; send the whole file"
    assert not isinstance(first, PenstockError)
    assert not isinstance(third, PenstockError)


def test_a_payload_that_is_no_image_fails_alone() -> None:
    assert isinstance(made().run([Payload("text/plain", b"")])[0], InvalidInputError)


def test_a_file_that_grows_past_its_header_is_refused_by_the_stage() -> None:
    data = bytearray(file(Image.new("P", (4, 4)), "GIF"))
    at = data.index(b",\0\0\0\0")
    data[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    (item,) = made().run([made().from_bytes("image/gif", bytes(data))])
    assert isinstance(item, InvalidInputError)


# --- From pixels to numbers ---


def test_layouts_hold_the_same_numbers() -> None:
    data = file(Image.fromarray(RAMP))
    np.testing.assert_array_equal(outcome(made((None, 3, 4, 4)), data)[0], RAMP.transpose(2, 0, 1))
    np.testing.assert_array_equal(outcome(made((None, 48), layout="flat"), data)[0], RAMP.ravel())


def test_invert_scale_mean_and_std_apply_in_that_order() -> None:
    got = pixels(file(Image.fromarray(RAMP)), invert=True, scale=0.5, mean=[1, 2, 3], std=[4])
    np.testing.assert_allclose(got, ((255.0 - RAMP) * 0.5 - [1, 2, 3]) / 4, rtol=1e-6)


def test_resize_takes_height_then_width_and_a_named_filter() -> None:
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    got = pixels(file(Image.fromarray(grey)), mode="L", resize=[2, 4], filter="box")
    np.testing.assert_array_equal(got[..., 0], (grey[0::2] + grey[1::2]) / 2)


def test_integers_are_rounded_and_clipped() -> None:
    data = file(Image.fromarray(np.array([[1, 3, 200]], np.uint8)))
    got = outcome(made((None, 1, 1, 3), "uint8", mode="L", scale=1.5), data)
    assert got.dtype == np.uint8
    assert got.ravel().tolist() == [2, 4, 255]


def test_a_picture_of_another_size_is_refused_where_nothing_resizes() -> None:
    (item,) = made((None, 3, 8, 8)).run([made().from_bytes("image/png", file(Image.fromarray(RAMP)))])
    assert isinstance(item, InvalidInputError)
    assert "4 x 4" in item.detail


# --- What a model may say ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"resise": [8, 8]}, "known keys: mode, resize"),
        ({"resize": [8, 0]}, "preprocess.options.resize[1]: Expected `int` >= 1"),
        ({"resize": "8x8"}, "preprocess.options.resize"),
        ({"resize": [8, 10**18]}, "preprocess.options.resize[1]: Expected `int` <= 16384"),
        ({"scale": "1/16"}, "preprocess.options.scale: Expected `float`, got `str`"),
        ({"mode": "CMYK"}, "preprocess.options.mode"),
    ],
)
def test_wrong_options_name_key_and_remedy(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        check(StageConfig("image", options))
    assert says in str(caught.value)


def test_the_largest_resize_costs_nothing_before_a_picture_comes() -> None:
    tracemalloc.start()
    made(resize=[16_384, 16_384])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((None, 64), {}),
        ((None, 3, 8, 8), {"layout": "flat"}),
        ((None, 64), {"layout": "flat", "resize": [8, 8]}),
        ((None, 3, 8, 8), {"resize": [8, 9]}),
        ((None, 3, 8, 8), {"mean": [1.0, 2.0]}),
        ((None, 3, 8, 8), {"std": [0.0]}),
    ],
)
def test_options_that_contradict_the_graph_are_a_setup_error(shape: tuple[int | None, ...], options: Any) -> None:
    with pytest.raises(SetupError, match=r"preprocess\.options"):
        made(shape, **options)
