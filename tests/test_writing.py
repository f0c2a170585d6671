"""Writing: a reader, or a kill, meets the old file or the new one, never half of one."""

import json

import pytest

from utils.writing import write_json, written_aside


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with written_aside(path) as aside:
        assert aside.parent == tmp_path  # on the same disk, where a rename is one step
        aside.write_text("half")
        assert path.read_text() == "old"
        aside.write_text("whole")
    assert path.read_text() == "whole" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), written_aside(path) as aside:
        aside.write_text("half")
        raise error
    with pytest.raises(error), written_aside(path):  # before there is anything
        raise error
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_two_that_write_at_once_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with written_aside(path) as one, written_aside(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and [*tmp_path.iterdir()] == [path]  # the last to end


def test_json_is_written_as_it_was_with_a_line_end(tmp_path):
    value = {"f1": 0.1, "names": ["é", None], "nested": {"a": True}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value and text.endswith("}\n")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"no": object()})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text
