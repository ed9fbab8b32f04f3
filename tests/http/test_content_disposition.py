"""The Content-Disposition header."""

from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from storage_proxy.common.names import unsafe_filename_reason
from storage_proxy.common.tokens import Disposition
from storage_proxy.http.content_disposition import content_disposition


def test_both_forms_are_given() -> None:
    assert (
        content_disposition(Disposition.ATTACHMENT, "naïve résumé.txt")
        == "attachment; filename=\"naive resume.txt\"; filename*=UTF-8''na%C3%AFve%20r%C3%A9sum%C3%A9.txt"
    )
    assert content_disposition(Disposition.INLINE, "a.txt").startswith('inline; filename="a.txt"')


@given(st.text(min_size=1, max_size=255).filter(lambda name: unsafe_filename_reason(name) is None))
def test_no_name_breaks_out_of_its_quotes_and_the_exact_one_survives(filename: str) -> None:
    header = content_disposition(Disposition.ATTACHMENT, filename)
    plain, exact = header.removeprefix('attachment; filename="').split("\"; filename*=UTF-8''")
    assert header.isascii()
    assert header.isprintable()
    assert not set(plain) & set('"\\%/')
    assert unquote(exact) == filename
