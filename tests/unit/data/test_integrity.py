"""What was written is recognised, and nothing else is, whatever happened to it."""

import os
from pathlib import Path

import pytest

from lartpc_ds.data.integrity import Damage, FileRecord, fault, seal, unseal, write_atomically

TREE = {"step": 12, "names": ["a", "b"], "best": None, "score": 0.25}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rank0.pt"
    path.write_bytes(bytes(range(256)) * 4)
    return path


def test_a_file_as_it_was_written_has_no_fault(file: Path) -> None:
    assert fault(file, FileRecord.of(file)) is None


def test_text_and_the_file_of_it_have_one_record(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("Zürich\r\n", newline="")
    assert FileRecord.of(tmp_path / "a") == FileRecord.of_text("Zürich\r\n")


def test_the_checksum_is_the_one_of_b2sum(file: Path) -> None:
    empty = FileRecord.of_text("")
    assert empty.blake2b == "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"  # b2sum -l 256 /dev/null


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "rank0.pt is missing"),
        (b"", "rank0.pt is empty"),
        (bytes(range(256)), "rank0.pt has 256 bytes where 1024 were written"),
        (b"\x01" + bytes(range(256))[1:] + bytes(range(256)) * 3, "rank0.pt has another content than was written"),
    ],
    ids=["missing", "empty", "half", "flipped"],
)
def test_damage_is_named(file: Path, content: bytes | None, told: str) -> None:
    written = FileRecord.of(file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    found = fault(file, written)
    assert found is not None and found.startswith(told)


def test_a_folder_in_its_place_is_named(file: Path) -> None:
    written = FileRecord.of(file)
    file.unlink()
    file.mkdir()
    assert "rank0.pt" in (fault(file, written) or "")


def test_one_of_several_states_is_enough(file: Path) -> None:
    before = FileRecord.of(file)
    file.write_bytes(b"new")
    assert fault(file, FileRecord.of(file), before) is None


def test_a_sealed_tree_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(seal(TREE))
    assert unseal(path) == TREE


def test_every_flipped_byte_of_a_sealed_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    text = seal(TREE).encode()
    for position in range(len(text)):
        path.write_bytes(text[:position] + bytes([text[position] ^ 1]) + text[position + 1 :])
        try:
            assert unseal(path) == TREE
        except Damage as damage:
            assert str(damage).startswith("manifest.json ")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b"{}", b"null", b'{"step": 3}'])
def test_what_is_no_sealed_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(Damage, match=r"^manifest\.json "):
        unseal(path)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "job.json", []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(path.exists()), fsync(descriptor)))
    write_atomically(path, "{}")
    assert seen == [False, True]  # the file under its other name, then the folder with the new name
