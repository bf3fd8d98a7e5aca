"""Trees of class folders and the images in them."""

import hashlib
import io
import os
import random
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import ROOT
from in_process import user_error
from PIL import Image
from torchvision.datasets import ImageFolder

from lib.data.folders import (
    ImageTree,
    evenly_spread,
    imagenet_wnids,
    load_rgb,
    outputs_of,
    positions_of,
    read_split,
    read_tree,
)
from utils.errors import UserError
from utils.storage.files import write_csv

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def make(root: Path, *files: str) -> Path:
    """Small images at these paths."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS).save(path)
    return root


# Trees


def test_order_and_labels(tmp_path: Path) -> None:
    make(tmp_path, "b/2.png", "b/10.jpeg", "a/x.JPG", "a/deeper/y.bmp", "c/1.webp")
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.md").touch()
    make(tmp_path, "a/._x.JPG", "b/.hidden/1.png", "b/@eaDir/1.png", "@eaDir/1.png")
    tree = read_tree(str(tmp_path))
    assert ".cache, @eaDir, b/.hidden and 1 more" in tree.notes[0]
    assert tree.classes == ("a", "b", "c")
    assert tree.files == ("a/x.JPG", "a/deeper/y.bmp", "b/10.jpeg", "b/2.png", "c/1.webp")
    assert tree.labels == (0, 0, 1, 1, 2)


def test_the_order_is_torchvisions(tmp_path: Path) -> None:
    make(tmp_path, "b/2.png", "b/10.png", "a/y.png", "a/i-j/1.png", "a/i/k/1.png", "a/i/z.png")
    make(tmp_path, "a/B.png", "Z/1.PNG")
    theirs = ImageFolder(str(tmp_path))
    tree = read_tree(str(tmp_path))
    assert tree.classes == tuple(theirs.classes)
    assert [(tree.path(i), label) for i, label in enumerate(tree.labels)] == theirs.samples


@pytest.mark.parametrize("target", [".", "../dog", "../cat", "../../more"])
def test_every_real_folder_counts_once(target: str, tmp_path: Path) -> None:
    make(tmp_path, "t/cat/1.png", "t/dog/1.png", "t/dog/2.png", "more/1.png")
    (tmp_path / "t/cat/more").symlink_to(target)
    (tmp_path / "t/dog/more").symlink_to("../../more" if "more" in target else "..")
    tree = read_tree(str(tmp_path / "t"))
    linked = ("cat/more/1.png",) * ("more" in target)
    assert tree.files == ("cat/1.png", *linked, "dog/1.png", "dog/2.png")
    assert "do not count" in tree.notes[0]


def test_a_link_to_nowhere_is_an_image_and_a_class_linked_twice_is_an_error(tmp_path: Path) -> None:
    (make(tmp_path, "cat/1.png") / "cat/3.png").symlink_to("nowhere")  # reading it says so
    assert read_tree(str(tmp_path)).files == ("cat/1.png", "cat/3.png")
    (tmp_path / "dog").symlink_to("cat")
    assert "dog: class folder without images" in user_error(read_tree, str(tmp_path))
    assert user_error(read_tree, f"{tmp_path}/no").endswith("add it or make it readable")


def test_a_class_folder_that_is_kept_shut_is_one_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "cat/1.png", "dog/1.png")
    shut = PermissionError(13, "Permission denied", f"{tmp_path}/cat")
    listings = [os.scandir(tmp_path), shut, os.scandir(tmp_path / "dog")]
    monkeypatch.setattr(os, "scandir", Mock(side_effect=listings))
    message = user_error(read_tree, str(tmp_path))
    assert message.endswith("/cat: Permission denied; add it or make it readable")


@pytest.mark.parametrize(
    ("link", "to", "pairs"),
    [
        ("val", "train", "val/cat is train/cat, val/dog is train/dog"),
        ("val/cat", "../train/dog", "val/cat is train/dog"),
        ("val/cat", "../other", ""),
    ],
)
def test_training_images_under_the_name_of_val(
    link: str, to: str, pairs: str, tmp_path: Path
) -> None:
    make(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/dog/2.png", "other/1.png")
    if link == "val":
        shutil.rmtree(tmp_path / link)
    (tmp_path / link).symlink_to(to)
    assert read_split(str(tmp_path), "train").notes == ()
    note = (f"{tmp_path}: one folder counts twice ({pairs})",)
    assert read_split(str(tmp_path), "val").notes == note * bool(pairs)


def test_names_beyond_ascii_count_and_beyond_utf8_are_refused(tmp_path: Path) -> None:
    tree = read_tree(str(make(tmp_path, "katze_ü/1.png", "katze_ü/2.png")))
    by_hand = hashlib.sha256("katze_ü/1.png\nkatze_ü/2.png".encode()).hexdigest()
    assert tree.fingerprint == by_hand
    os.rename(tmp_path / "katze_ü/1.png", os.fsencode(tmp_path / "katze_ü") + b"/\xff.png")
    message = user_error(read_tree, str(tmp_path))
    path = f"{tmp_path}/katze_ü/\\udcff.png"
    assert message == f"{path}: not UTF-8; rename it, or set PYTHONUTF8=1"


# Which output a class is


def test_labels_follow_the_networks_class_names(tmp_path: Path) -> None:
    tree = read_tree(str(make(tmp_path, "cat/1.png", "eel/2.png")))
    relabelled = tree.with_labels_of(["ant", "eel", "bee", "cat"], 4)
    assert relabelled.labels == (3, 1)
    assert relabelled.files == tree.files


WNIDS = imagenet_wnids()
ASKED = "DATA.class_order=text or DATA.class_order=numeric"


@pytest.mark.parametrize(
    ("classes", "names", "outputs", "order", "labels"),
    [
        (("cat", "eel"), None, 2, "auto", [0, 1]),
        (("cat", "eel"), None, 1000, "auto", "has 2 classes and the network 1000"),
        (("cat", "eel"), None, 2, "numeric", "folder cat is no number"),
        ([str(i) for i in range(10)], None, 10, "auto", list(range(10))),  # the same either way
        ([str(i) for i in range(12)], None, 12, "auto", ASKED),
        ([str(i) for i in range(12)], None, 12, "numeric", list(range(12))),
        ([str(i) for i in range(1, 13)], None, 12, "numeric", list(range(12))),
        ([str(i) for i in range(12)], None, 12, "text", [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]),
        (("2", "10"), None, 12, "numeric", [2, 10]),
        ([str(i) for i in range(1000)], None, 1000, "auto", list(range(1000))),
        (("7", "10", "999"), None, 1000, "auto", [7, 10, 999]),
        ((WNIDS[4], WNIDS[700]), None, 1000, "auto", [4, 700]),
        (WNIDS, None, 1000, "auto", list(range(1000))),
        (("2", "10"), WNIDS, 1000, "auto", [2, 10]),
        (("2", "1000"), WNIDS, 1000, "auto", "class 1000 is none of the network's 1000 classes"),
        ((WNIDS[9],), WNIDS, 1000, "text", [9]),
        (("2",), ("0", "1"), 2, "auto", "class 2 is none of the network's 2 classes"),
        (("cat", "eel"), ("ant", "cat"), 2, "auto", "class eel is none of the network's 2 classes"),
    ],
)
def test_outputs(
    classes: Sequence[str],
    names: Sequence[str] | None,
    outputs: int,
    order: str,
    labels: list[int] | str,
) -> None:
    given = ("DIR", sorted(classes), names, outputs, order)
    if isinstance(labels, str):
        assert labels in user_error(outputs_of, *given)
        return
    found, _ = outputs_of(*given)
    assert dict(zip(sorted(classes), found, strict=True)) == dict(zip(classes, labels, strict=True))


# Subsets


@pytest.mark.parametrize(("total", "wanted"), [(10, 3), (50_000, 5000), (7, 7), (5, 9), (1, 1)])
def test_evenly_spread(total: int, wanted: int) -> None:
    positions = evenly_spread(total, wanted)
    assert len(positions) == min(total, wanted)
    assert positions[0] == 0
    gaps = np.diff([*positions, total])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_image_ids(encoding: str, tmp_path: Path) -> None:
    tree = read_tree(str(make(tmp_path / "val", "a/1.png", "a/2.png", "b/3 4.png", "b/ü.png")))
    ids = tmp_path / "ids.txt"
    ids.write_text("b/ü.png\n# a comment\r\n\nb/3 4.png  \na/1.png\na/1.png\n", encoding)
    assert positions_of(tree, str(ids)) == [0, 2, 3]


def test_image_ids_are_taken_as_a_results_table_has_them(tmp_path: Path) -> None:
    files = ("-cat/1.png", "=dog/1.png", "a,b/1.png", '\'q/"1".png', "image/1.png")
    tree = ImageTree("val", ("x",), files, (0,) * 5)
    write_csv(tmp_path / "r_images.csv", ["image"], [[name] for name in files])
    assert "'=dog" in (tmp_path / "r_images.csv").read_text()
    assert positions_of(tree, str(tmp_path / "r_images.csv")) == [0, 1, 2, 3, 4]
    (tmp_path / "plain.txt").write_text("=dog/1.png\na,b/1.png\n")
    assert positions_of(tree, str(tmp_path / "plain.txt")) == [1, 2]


def test_robustbenchs_images(tmp_path: Path) -> None:
    numbers = (ROOT / "lib/data/robustbench_val_numbers.txt").read_text().split()
    assert (len(numbers), numbers[:3]) == (5000, ["11", "31", "41"])
    files = [f"a/ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 50001)]
    files[10] = "b/ILSVRC2012_val_00000011.png"
    tree = ImageTree("val", ("a", "b"), tuple(files), (0,) * 50000)
    found = positions_of(tree, "robustbench")
    assert [position + 1 for position in found] == sorted(map(int, numbers))
    with pytest.raises(UserError, match=r"lacks 1 of 5000 images.*val_00000041"):
        positions_of(tree.subset([i for i in range(50000) if i != 40]), "robustbench")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a/1.png\na/9.png\n", "a/9.png is not in"),
        (b"\n# nothing\n", "no image is named"),
        (b"\x89PNG\xff\xfe", "write one class/filename a line"),
        (None, "No such file"),
    ],
)
def test_wrong_image_ids(content: bytes | None, words: str, tmp_path: Path) -> None:
    tree = read_tree(str(make(tmp_path / "val", "a/1.png")))
    ids = tmp_path / "ids.txt"
    if content is not None:
        ids.write_bytes(content)
    message = user_error(positions_of, tree, str(ids))
    assert words in message
    assert f"--image_ids {ids}" in message


# Images


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    Image.fromarray(COLOURS).convert(mode).save(path)
    if mode != "YCbCr":  # which JPEG gives back as RGB
        assert Image.open(path).mode == mode
    image = load_rgb(path)
    assert (image.mode, image.size) == ("RGB", (40, 24))
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(path).convert("RGB")))
    assert np.asarray(image).std() > 10  # a picture, not one colour


def test_palette_with_transparency(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    palette = Image.fromarray(COLOURS).convert("P")
    palette.save(path, transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's, which is of no use in a log
        image = load_rgb(path)
    assert np.array_equal(np.asarray(image), np.asarray(palette.convert("RGB")))


RAMP = np.linspace(0, 1, 24 * 40, dtype=np.float32).reshape(24, 40)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (RAMP, "its numbers are floats"),
        ((RAMP * 65535).astype(np.uint16), (RAMP * 65535).astype(np.int32) // 256),
        ((RAMP * 65535).astype(np.int32), (RAMP * 65535).astype(np.int32) // 256),
        ((RAMP * 255).astype(np.int32), (RAMP * 255).astype(np.int32)),
        ((RAMP * -9).astype(np.int32), "reach from -9 to 0"),
        ((RAMP * 1e6).astype(np.int32), "reach from 0 to 1000000"),
    ],
)
def test_numbers_beyond_bytes(values: np.ndarray, wanted: np.ndarray | str, tmp_path: Path) -> None:
    for suffix in ("tif", "png") if values.dtype == np.uint16 else ("tif",):
        path = str(tmp_path / f"x.{suffix}")
        Image.fromarray(values).save(path)
        if isinstance(wanted, str):
            assert wanted in user_error(load_rgb, path)
        else:
            pixels = np.asarray(load_rgb(path)).astype(int)
            assert np.array_equal(pixels, np.repeat(wanted[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", [mode for mode in Image.MODES if mode.startswith("I;16")])
def test_white_of_sixteen_bits_is_white(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And grey is grey, in every order of bytes."""
    for value in (65535, 0x8000):
        image = Image.new(mode, (4, 4), value)
        monkeypatch.setattr(Image, "open", lambda _, image=image: image)
        assert np.asarray(load_rgb("x.tif")).tolist() == [[[value >> 8] * 3] * 4] * 4


def encoded(form: str) -> bytes:
    """An image's file."""
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, form)
    return buffer.getvalue()


def test_an_image_beyond_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/1.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 479)  # twice that is read
    message = user_error(load_rgb, str(tmp_path / "a/1.png"))
    reason = "it has more pixels than Pillow reads (958) and must be made smaller"
    assert message == f"cannot read {tmp_path}/a/1.png: {reason}; replace or remove it"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 480)
    assert load_rgb(str(tmp_path / "a/1.png")).size == (40, 24)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (encoded("JPEG")[:-200], "image file is truncated"),
        (encoded("PNG")[:300], "truncated"),
        (b"I am a text file.\n", "it is not an image"),
        (b"", "it is not an image"),
        (None, "No such file"),
    ],
)
def test_unreadable_images_are_named(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "ima\nge.jpg"
    if content is not None:
        path.write_bytes(content)
    message = user_error(load_rgb, path)
    assert message.startswith(f"cannot read {tmp_path}/ima\\nge.jpg: ")
    assert words in message
    assert message.endswith("; replace or remove it")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_no_damage_makes_anything_but_an_image_or_a_user_error(form: str, tmp_path: Path) -> None:
    whole, chance = encoded(form), random.Random(form)
    path = tmp_path / "image"
    refused = []
    for attempt in range(60):
        content = bytearray(whole)
        if attempt % 2:
            del content[chance.randrange(len(content)) :]
        for _ in range(chance.choice([1, 5, 20]) if content and attempt % 2 == 0 else 0):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            load_rgb(path)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not [message for message in refused if "\n" in message]
