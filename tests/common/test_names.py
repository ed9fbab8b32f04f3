import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.common.errors import UnsafeName
from storage_proxy.common.names import (
    MAX_NAME_BYTES,
    MAX_PART_BYTES,
    default_filename,
    folded,
    numbered,
    portable,
    require_safe_key,
    sanitized,
    unsafe_filename_reason,
    unsafe_key_reason,
    unsafe_reason,
)

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=80)
PATHS = st.lists(
    st.text(max_size=12) | st.sampled_from([".", "..", "", "CON", "a.txt", "C:", "x" * 300]), max_size=6
).map("/".join)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        ("/a", "is absolute"),
        ("C:/a", "is absolute"),
        ("c:a", "is absolute"),
        ("a//b", "contains an empty part"),
        ("a/./b", "contains a . or .. part"),
        ("../a", "contains a . or .. part"),
        ("a/..", "contains a . or .. part"),
        ("a\x00b", "contains a control character"),
        ("a\nb", "contains a control character"),
        ("a\x7f", "contains a control character"),
        ("a\x85", "contains a control character"),
        ("a\\b", "contains a backslash"),
        ("a\ud800", "contains a lone surrogate"),
        ("x" * 256, "contains a part longer than 255 bytes"),
        ("é" * 128, "contains a part longer than 255 bytes"),
        ("abc/" * 1025, "is longer than 4096 bytes"),
    ],
)
def test_an_unsafe_name_is_refused_with_its_reason(name: str, reason: str) -> None:
    assert unsafe_reason(name) == reason


@pytest.mark.parametrize("name", ["a", "a/b.txt", "folder/", "x" * 255, "...", "a b", "日本/Grüße", ".hidden", "a..b"])
def test_an_ordinary_name_is_accepted(name: str) -> None:
    assert unsafe_reason(name) is None


@pytest.mark.parametrize("key", ["", "/a", "a/../b", "..", "./a", "a\x00", "a\\b", "\ud800", "x" * 1025, "é" * 513])
def test_an_unsafe_key_is_refused_at_its_field(key: str) -> None:
    with pytest.raises(UnsafeName) as refused:
        require_safe_key(key)
    assert refused.value.errors[0]["loc"] == ["key"]


@pytest.mark.parametrize("key", ["a//b", "x" * 1024, "folder/", "C:a", "a/" + "y" * 300])
def test_a_key_may_have_empty_and_long_parts(key: str) -> None:
    assert unsafe_key_reason(key) is None


@pytest.mark.parametrize("filename", ["", "x" * 256, "a/b", "a\r\nb", "\udfff"])
def test_an_unsafe_filename_is_refused(filename: str) -> None:
    assert unsafe_filename_reason(filename) is not None


@pytest.mark.parametrize("filename", ["a", "x" * 255, "é" * 255, 'quo"te.txt', "CON"])
def test_a_filename_has_1_to_255_characters(filename: str) -> None:
    assert unsafe_filename_reason(filename) is None


@given(ANY_TEXT | PATHS)
def test_no_text_makes_the_rules_themselves_fail(text: str) -> None:
    unsafe_reason(text)
    unsafe_key_reason(text)
    unsafe_filename_reason(text)


SAFE_PATHS = PATHS.map(sanitized)


@given((ANY_TEXT | PATHS).filter(bool))
def test_a_listed_key_always_becomes_a_safe_name(key: str) -> None:
    assert unsafe_reason(sanitized(key)) is None


@given(SAFE_PATHS)
def test_a_safe_name_is_left_as_it_is(name: str) -> None:
    assert sanitized(name) == name


@given(ANY_TEXT.filter(lambda key: unsafe_key_reason(key) is None))
def test_the_default_filename_of_a_safe_key_is_safe(key: str) -> None:
    assert unsafe_filename_reason(default_filename(key)) is None


@given(SAFE_PATHS)
def test_a_portable_name_is_safe_and_stays_as_it_is(name: str) -> None:
    once = portable(name)
    assert unsafe_reason(once) is None
    assert portable(once) == once
    assert not set(once) & set('<>:"|?*')


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("con", "con_"),
        ("CON.txt", "CON_.txt"),
        ("a/lpt1/b", "a/lpt1_/b"),
        ("COM0", "COM0"),
        ("a.", "a_"),
        ("a ", "a_"),
        ("what?.txt", "what_.txt"),
        ("folder./", "folder_/"),
    ],
)
def test_portable_names_are_those_of_the_contract(name: str, expected: str) -> None:
    assert portable(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "a (2).txt"),
        ("d.x/a", "d.x/a (2)"),
        (".hidden", ".hidden (2)"),
        ("a.tar.gz", "a.tar (2).gz"),
        ("folder/", "folder (2)/"),
        ("x" * 251 + ".txt", "x" * 247 + " (2).txt"),
    ],
)
def test_a_number_stands_before_the_extension(name: str, expected: str) -> None:
    assert numbered(name, 2) == expected


@given(SAFE_PATHS, st.integers(2, 10**6))
def test_a_numbered_name_is_safe(name: str, number: int) -> None:
    made = numbered(name, number)
    assert len(made.encode()) <= MAX_NAME_BYTES
    assert all(len(part.encode()) <= MAX_PART_BYTES for part in made.split("/"))
    assert unsafe_reason(made) is None


def test_names_fold_by_case_and_composition() -> None:
    assert folded("Grüße") == folded("GRU\u0308SSE")
    assert folded("A.TXT") == folded("a.txt")
    assert folded("a") != folded("b")


def test_a_name_that_is_too_deep_keeps_its_file_and_no_part_is_cut_into_dots() -> None:
    deep = "/".join(["ab"] * 1364) + "/..x"
    name = sanitized(deep)
    assert unsafe_reason(name) is None
    assert name.startswith("ab/ab/")
    assert name.endswith("/..x")


@pytest.mark.parametrize("name", ["CON." + "a" * 249 + ".b", "NUL." + "é" * 124 + " x"])
def test_a_long_reserved_name_stays_portable_when_it_is_cut(name: str) -> None:
    once = portable(name)
    assert not once.endswith((".", " "))
    assert portable(once) == once
    assert len(once.encode()) <= 255
