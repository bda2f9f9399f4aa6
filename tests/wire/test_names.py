"""Names that contexts may be published under."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.wire.catalogue import valid_name
from preread.wire.names import why_unfit


@pytest.mark.parametrize(
    "name",
    [
        "manual",
        "Manual 2.0 (draft)",
        "інструкція",
        "інструкція-v2",
        "USB-кабель",
        "マニュアル",
        "οδηγίες",
        "café",
        "ü b?",
        "a",
        "日本語 manual",
        "..a",
        "x²",
        "😀",
    ],
)
def test_names_of_all_languages(name: str) -> None:
    assert why_unfit(name) is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "1 to 128"),
        ("a/b", "slash"),
        ("a\x1b[31m", "control"),
        ("man\u202eual", "U+202E"),
        ("man\u200bual", "U+200B"),
        ("manual\xa0", "U+00A0"),
        ("man\u00adual", "U+00AD"),
        ("\u2066manual", "U+2066"),
        ("manual\U000e0041", "U+E0041"),
        ("man\ue000ual", "U+E000"),
        ("manual ", "space"),
        (" manual", "space"),
        (" ", "space"),
        ("cafe\u0301", "normal form C, which is 'café'"),
        ("m\u0430nual", "Cyrillic and Latin letters look alike in 'm\u0430nual'"),
        ("manua\u0399", "Greek and Latin"),
    ],
)
def test_names_that_look_like_others_are_refused(name: str, told: str) -> None:
    why = why_unfit(name)
    assert why is not None and told in why and why.isprintable()


@given(st.text(max_size=140))
def test_a_fit_name_is_one_that_a_catalogue_takes_and_all_of_it_is_seen(name: str) -> None:
    if why_unfit(name) is None:
        assert valid_name(name) and name.isprintable() and name == name.strip() == unicodedata.normalize("NFC", name)
