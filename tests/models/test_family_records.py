"""Families are found by their folders, and facts about one are stated nowhere else."""

import re
from pathlib import Path

import pytest

from jtok.errors import UserError
from jtok.models.vlm.families import all as every
from jtok.models.vlm.vlm_presets import presets

ROOT = Path(every.__file__).parents[4]


def test_every_folder_has_a_record_under_its_own_name():
    folders = {path.parent.name for path in Path(every.__file__).parent.glob("*/__init__.py")}
    assert folders == every.families().keys() and len(folders) >= 6


@pytest.mark.parametrize("name", every.families())
def test_the_folders_hold_no_logic_in_their_init(name):
    assert not (Path(every.__file__).parent / name / "__init__.py").read_text().strip()


def test_a_family_is_named_in_its_folder_only():
    names = re.compile("|".join(f'"{name}"' for name in every.families() if name != "llava"))
    files = [path for path in (ROOT / "jtok").rglob("*.py") if "families" not in path.parts]
    assert len(files) > 100
    assert [str(path) for path in files if names.search(path.read_text(encoding="utf-8"))] == []


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="'here' is of model type 'bert'; .*llava_next.*qwen2_5_vl"):
        every.find("bert", "'here'")


def test_names_of_presets_are_of_one_family_each():
    names = [name for family in every.families().values() for name in family.presets]
    assert sorted(names) == sorted(presets())
