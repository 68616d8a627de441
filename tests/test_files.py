"""Files and directories that appear whole or not at all."""

import pytest

from jtok.files import whole, write_text


def test_a_file_takes_its_name_when_it_is_written(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with whole(path) as beside:
        beside.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_a_directory_takes_the_place_of_an_empty_one(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    with whole(path) as beside:
        beside.mkdir()
        (beside / "a").touch()
    assert [p.name for p in path.iterdir()] == ["a"] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_what_was_there_stays_when_writing_fails(folder, tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), whole(path) as beside:
        beside.mkdir() if folder else beside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
