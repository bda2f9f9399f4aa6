"""What a context may be called when it is published: names that look alike are not, and people choose by looks.

Stricter than what a catalogue may hold (`preread.wire.catalogue.valid_name`), so that what was published before stays
readable.
"""

import re
import unicodedata
from typing import Final

from preread.wire.catalogue import valid_name

_WORD: Final = re.compile(r"[^\W\d_]+")
_LOOK_ALIKE: Final = ("LATIN", "CYRILLIC", "GREEK")


def why_unfit(name: str) -> str | None:
    """Why a context cannot be published under this name; None if it can.

    Refused are letters that are not seen or that change how others are seen (format characters such as U+202E and
    U+200B, odd spaces), a name that is not in normal form C (Unicode Standard Annex 15), and words that mix Latin,
    Cyrillic and Greek letters (Unicode Technical Standard 39, 5.2: moderately restrictive).
    """
    if not valid_name(name):
        return "it takes 1 to 128 characters, no control characters, no slash"
    unseen = next((letter for letter in name if not letter.isprintable()), None)
    if unseen is not None:
        return f"U+{ord(unseen):04X} is not seen in it"
    if name != name.strip():
        return "it begins or ends with a space"
    if not unicodedata.is_normalized("NFC", name):
        return f"it is not in Unicode's normal form C, which is {unicodedata.normalize('NFC', name)!r}"
    for word in _WORD.findall(name):
        scripts = {script for letter in word if (script := _script(letter))}
        if len(scripts) > 1:
            mixed = " and ".join(sorted(script.capitalize() for script in scripts))
            return f"{mixed} letters look alike in {word!r}"
    return None


def _script(letter: str) -> str | None:
    """Which of the scripts that look alike a letter belongs to, by its name in Unicode."""
    script = unicodedata.name(letter, "").partition(" ")[0]
    return script if script in _LOOK_ALIKE else None
