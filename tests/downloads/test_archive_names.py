"""The names of an archive's entries."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.common.errors import DuplicateName
from storage_proxy.common.names import MAX_PART_BYTES, unsafe_reason
from storage_proxy.downloads.archive_names import ArchiveNames


def assigned(*wanted: str) -> list[str]:
    names = ArchiveNames(rename=True)
    for name in wanted:
        names.note_folders(name)
    return [names.assign(name) for name in wanted]


def test_the_later_of_two_equal_names_gets_a_number_before_its_extension() -> None:
    assert assigned("a.txt", "a.txt", "a.txt") == ["a.txt", "a (2).txt", "a (3).txt"]


def test_names_that_differ_in_case_are_duplicates() -> None:
    assert assigned("Read.me", "read.ME") == ["Read.me", "read (2).ME"]
    assert assigned("straße", "STRASSE") == ["straße", "STRASSE (2)"]


def test_names_that_differ_in_unicode_composition_are_duplicates() -> None:
    composed, decomposed = unicodedata.normalize("NFC", "é.txt"), unicodedata.normalize("NFD", "é.txt")
    assert assigned(composed, decomposed) == [composed, unicodedata.normalize("NFD", "é") + " (2).txt"]


@pytest.mark.parametrize("wanted", [["a", "A/b"], ["A/b", "a"], ["a", "a/"], ["a/", "a"]])
def test_a_file_named_as_a_folder_is_renamed_whichever_comes_first(wanted: list[str]) -> None:
    names = assigned(*wanted)
    assert names[wanted.index("a")] == "a (2)"
    assert [name for name in names if "/" in name] == [name for name in wanted if "/" in name]


def test_a_renamed_file_takes_no_name_that_is_taken() -> None:
    assert assigned("a (2)", "a", "a") == ["a (2)", "a", "a (3)"]
    assert assigned("a", "a", "a (2)") == ["a", "a (2)", "a (2) (2)"]
    assert assigned("a", "a", "a (2)/x")[1] == "a (3)"


def test_a_folder_may_be_named_in_other_case_by_its_files() -> None:
    assert assigned("A/x", "a/y", "a/") == ["A/x", "a/y", "a/"]


def test_a_number_before_the_extension_never_makes_a_part_too_long() -> None:
    name = "é" * 125 + ".txt"
    second = assigned(name, name)[1]
    assert second.endswith(" (2).txt")
    assert len(second.encode()) <= MAX_PART_BYTES


def test_a_dot_at_the_beginning_begins_no_extension() -> None:
    assert assigned(".env", ".env") == [".env", ".env (2)"]
    assert assigned("d.x/a", "d.x/a") == ["d.x/a", "d.x/a (2)"]


def test_duplicates_are_refused_where_they_may_not_be_renamed() -> None:
    names = ArchiveNames(rename=False)
    names.assign("a")
    with pytest.raises(DuplicateName):
        names.assign("A")
    assert names.assign("A", rename=True) == "A (2)"


parts = st.sampled_from(["a", "A", "b.txt", "B.TXT", "a (2)", "é", "e\u0301", "x" * 255])
wanted_names = st.lists(
    st.lists(parts, min_size=1, max_size=3).map("/".join).flatmap(lambda n: st.sampled_from([n, n + "/"])), max_size=12
)


@given(wanted_names)
def test_no_two_names_meet_on_any_file_system(wanted: list[str]) -> None:
    def form(name: str) -> str:
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

    names = assigned(*wanted)
    files = [form(name) for name in names if not name.endswith("/")]
    folders = [form(name[:-1]) for name in names if name.endswith("/")]
    parents = {form("/".join(n.split("/")[:i])) for n in names for i in range(1, len(n.removesuffix("/").split("/")))}
    assert len(set(files)) == len(files)
    assert len(set(folders)) == len(folders)
    assert not set(files) & (set(folders) | parents)
    assert all(unsafe_reason(name) is None for name in names)
    assert assigned(*wanted) == names


def test_many_long_names_that_are_one_when_cut_are_told_apart_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    take = ArchiveNames._take

    def counted(self: ArchiveNames, name: str) -> bool:
        nonlocal steps
        steps += 1
        return take(self, name)

    monkeypatch.setattr(ArchiveNames, "_take", counted)
    wanted = [f"{'x' * 249}{index:06}" for index in range(2000) for _ in range(2)]
    assert len(set(assigned(*wanted))) == len(wanted)
    assert steps < 3 * len(wanted)
