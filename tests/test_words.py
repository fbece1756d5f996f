"""Numbers in messages."""

import pytest

from common.words import counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1000 images")])
def test_nouns_agree_with_their_number(number, text):
    assert counted(number, "image") == text
