import pytest

from storage_proxy.common.errors import UnsafeName
from storage_proxy.common.problems import MAX_FIELD_ERRORS
from storage_proxy.common.selection import check_selection
from storage_proxy.common.wire import ArchiveSelection, SelectedBlob


def refused(*entries: SelectedBlob) -> list[list[str | int]]:
    with pytest.raises(UnsafeName) as error:
        check_selection(ArchiveSelection(entries=list(entries)))
    return [list(each["loc"]) for each in error.value.errors]


def test_every_unsafe_name_and_key_is_told_at_its_place() -> None:
    found = refused(
        SelectedBlob("ok"), SelectedBlob("../up"), SelectedBlob("ok", "/abs"), SelectedBlob("a\\b", "c\x00d")
    )
    assert found == [["entries", 1, "key"], ["entries", 2, "name"], ["entries", 3, "key"], ["entries", 3, "name"]]


def test_a_key_that_is_no_safe_name_needs_one() -> None:
    assert refused(SelectedBlob("a//b")) == [["entries", 0, "key"]]
    check_selection(ArchiveSelection(entries=[SelectedBlob("a//b", "b")]))


def test_an_empty_name_is_not_an_absent_one() -> None:
    assert refused(SelectedBlob("a", "")) == [["entries", 0, "name"]]


def test_only_a_folder_may_be_named_like_one() -> None:
    assert refused(SelectedBlob("a", "b/")) == [["entries", 0, "name"]]
    check_selection(ArchiveSelection(entries=[SelectedBlob("a/", "b/"), SelectedBlob("a/", "b"), SelectedBlob("a/")]))


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a\\/", "a\x00/"])
def test_a_prefix_is_checked_as_a_key(prefix: str) -> None:
    with pytest.raises(UnsafeName) as error:
        check_selection(ArchiveSelection(prefix=prefix))
    assert error.value.errors[0]["loc"] == ["prefix"]


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/"])
def test_an_ordinary_prefix_passes(prefix: str) -> None:
    check_selection(ArchiveSelection(prefix=prefix))


def test_the_list_of_what_is_wrong_is_bounded_and_its_number_is_told() -> None:
    with pytest.raises(UnsafeName, match="250 of") as error:
        check_selection(ArchiveSelection(entries=[SelectedBlob("..")] * 250))
    assert len(error.value.errors) == MAX_FIELD_ERRORS
