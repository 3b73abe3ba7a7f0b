"""Files are whole or not there, and errors name them."""

import errno
import json
import shutil
import threading
import time

import pytest

from nnunetv2_swipe import files
from nnunetv2_swipe.files import read_json, read_json_object, replaced, stamp, write_json


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00nothing", b"[" * 100_000])
def test_what_is_no_json_is_named(tmp_path, content, monkeypatch):
    monkeypatch.setattr(files, "_PAUSE_S", 0)
    (tmp_path / "plans.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"plans\.json is not a JSON file"):
        read_json(tmp_path / "plans.json")


def test_what_is_no_object_is_named(tmp_path):
    (tmp_path / "plans.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"plans\.json holds a list"):
        read_json_object(tmp_path / "plans.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"plans\.json"):
        read_json(tmp_path / "plans.json")


def test_a_file_that_is_being_written_is_waited_for(tmp_path):
    file = tmp_path / "plans.json"
    file.write_text('{"a":')

    def finish():
        time.sleep(0.3)
        file.write_text('{"a": 1}')

    writer = threading.Thread(target=finish)
    writer.start()
    assert read_json(file) == {"a": 1}
    writer.join()


def test_a_file_appears_when_it_is_complete(tmp_path):
    file = tmp_path / "a.json"
    write_json({"a": 1}, file)
    with replaced(file) as unfinished:
        unfinished.write_text('{"a": 2}')
        assert json.loads(file.read_text()) == {"a": 1}
        assert unfinished.suffix == ".json"
    assert json.loads(file.read_text()) == {"a": 2}
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_an_error_leaves_what_was_there(tmp_path, error):
    file = tmp_path / "a.json"
    file.write_text("1")
    message = "a.json cannot be written: No space left" if isinstance(error, OSError) else None

    def write():
        with replaced(file) as unfinished:
            unfinished.write_text("2")
            raise error

    with pytest.raises(type(error), match=message):
        write()
    assert file.read_text() == "1"
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_a_link_in_a_shared_folder_is_not_written_through(tmp_path):
    (tmp_path / "other").write_text("theirs")
    (tmp_path / ".unfinished_a.json").symlink_to(tmp_path / "other")
    write_json([], tmp_path / "a.json")
    assert (tmp_path / "other").read_text() == "theirs"


def test_a_file_in_anothers_place_has_another_stamp_although_its_date_was_kept(tmp_path):
    file, other = tmp_path / "a.txt", tmp_path / "b.txt"
    file.write_text("old")
    other.write_text("new")
    before = stamp(file)
    shutil.copystat(file, other)  # as cp -p, rsync -a and unzip do
    other.replace(file)
    assert file.stat().st_mtime_ns == before[2]
    assert stamp(file) != before
    assert stamp(file) == stamp(file)
    assert json.loads(json.dumps(stamp(file))) == stamp(file)
