"""Paths and addresses, told apart, and folders that are sent to an address."""

from __future__ import annotations

from pathlib import Path

import pytest

from activation_logging.errors import AddressError
from activation_logging.locations import (
    Address,
    below,
    folder_for,
    located,
    place_of,
    refuse_address,
)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("out", Path("out")),
        ("/data/out/", Path("/data/out")),
        ("~/out", Path.home() / "out"),
        ("file:///data/a%20b", Path("/data/a b")),
        ("odd:name/out", Path("odd:name/out")),
        ("s3://bucket/a/", Address("s3://bucket/a")),
        ("gs://bucket", Address("gs://bucket")),
        # The command line makes paths of what it is given.
        (Path("s3://bucket/a"), Address("s3://bucket/a")),
        (Path("file:///data/x"), Path("/data/x")),
        (Path("/data/s3:/x"), Path("/data/s3:/x")),
    ],
)
def test_what_is_an_address(given, found):
    assert located(given) == found
    assert type(located(given)) is type(found)


def test_an_address_where_a_path_is_expected():
    address = located("s3://bucket/a/b")
    assert isinstance(address, Address)
    assert (address.name, address.parts) == ("b", ("s3:", "bucket", "a", "b"))
    assert address.absolute() == address.resolve() == address
    assert str(below(address, "c/d")) == "s3://bucket/a/b/c/d"
    assert below(Path("/a"), "c/d") == Path("/a/c/d")


def test_a_password_is_not_repeated():
    with pytest.raises(AddressError) as refused:
        located("https://me:hush@example.org/x")
    assert "hush" not in str(refused.value)
    assert "example.org" in str(refused.value)


def test_what_lies_on_a_disk():
    refuse_address("folder", "a store")
    with pytest.raises(AddressError, match="a store lies on a disk of this machine, not at s3://b"):
        refuse_address("s3://b/x", "a store")


@pytest.fixture(params=["a folder", "an address"])
def place(request, tmp_path):
    if request.param == "a folder":
        return place_of(tmp_path / "place")
    pytest.importorskip("fsspec")
    return place_of(f"memory://{tmp_path.name}/place")


def test_files_of_a_place(place, tmp_path):
    cache = tmp_path / "cache"
    assert (place.sizes(), place.read("a/b")) == ({}, None)
    with pytest.raises(FileNotFoundError):
        place.local("a/b", cache)
    place.write("a/b", b"one")
    place.write("a/b", b"other")
    (tmp_path / "sent").write_bytes(b"sent")
    place.put("a/c/d", tmp_path / "sent")
    place.write("e", b"")
    assert place.sizes() == {"a/b": 5, "a/c/d": 4, "e": 0}
    assert [place.read(name) for name in place.sizes()] == [b"other", b"sent", b""]
    assert place.local("a/c/d", cache).read_bytes() == b"sent"
    assert not place.replace("e", b"new", b"old")
    assert not place.replace("e", b"new", None)
    assert place.replace("e", b"new", b"")
    assert place.replace("f", b"first", None)
    assert [place.read(name) for name in "ef"] == [b"new", b"first"]
    place.delete(["a/b", "a/c/d", "f"])
    assert list(place.sizes()) == ["e"]


def test_a_folder_that_is_sent_to_an_address(tmp_path):
    pytest.importorskip("fsspec")
    address = f"memory://{tmp_path.name}/report"
    with folder_for(address, "index.html") as folder:
        (folder / "sub").mkdir()
        (folder / "index.html").write_text("page")
        (folder / "sub" / "figures.csv").write_text("1,2")
        assert not place_of(address).sizes()
    assert list(place_of(address).sizes()) == ["index.html", "sub/figures.csv"]
    assert not folder.exists()
    with folder_for(tmp_path / "local", "index.html") as same:
        assert same == tmp_path / "local"


def test_nothing_is_sent_after_a_failure(tmp_path):
    pytest.importorskip("fsspec")
    address = f"memory://{tmp_path.name}/failed"
    with pytest.raises(ZeroDivisionError), folder_for(address, "index.html") as folder:
        (folder / "index.html").write_text("half")
        raise ZeroDivisionError
    assert not place_of(address).sizes()
