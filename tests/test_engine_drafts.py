"""What is drafted, how far, and when it is given up: no model is needed to see it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geode.engine.drafts import LONGEST, REST, Lookup, check_same
from geode.errors import OptionError


def sequence(ids: list[int], number: int = 1) -> Any:
    return SimpleNamespace(ids=np.asarray([*ids, *[0] * 100]), known=len(ids), number=number)


def say(one: Any, token: int) -> None:
    one.ids[one.known] = token
    one.known += 1


def test_what_followed_the_same_words_is_guessed() -> None:
    drafts = Lookup()
    one = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3])
    assert drafts.draft([one], [9]) == [[4, 5, 6]], "three words agree, so three are guessed"
    say(one, 4)
    assert drafts.draft([one], [9]) == [[5, 6, 7, 8]], "four agree"
    assert drafts.draft([one], [1]) == [[5]]
    say(one, 99)
    assert drafts.draft([one], [9]) == [[]], "these words are new"


def test_the_last_time_counts() -> None:
    one = sequence([1, 2, 3, 10, 1, 2, 3, 20, 1, 2, 3])
    assert Lookup().draft([one], [1]) == [[20]]


def test_luck_makes_bold_and_failure_tires() -> None:
    drafts, one = Lookup(), sequence([*range(40), *range(20)])
    lengths = []
    for _ in range(3):
        (found,) = drafts.draft([one], [50])
        lengths.append(len(found))
        drafts.judged(one, len(found), len(found))
    assert lengths == [4, 8, LONGEST]
    rests = []
    for _ in range(8):
        asked = 1
        while not drafts.draft([one], [50])[0]:
            asked += 1
        rests.append(asked - 1)
        drafts.judged(one, 2, 0)
    assert rests == [0, 2, 4, 8, 16, 32, 32, 32] and rests[-1] == REST
    drafts.forget(one)
    assert len(drafts.draft([one], [50])[0]) == 4


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 20))
def test_a_guess_is_what_stood_behind_the_last_such_words(ids: list[int], most: int) -> None:
    """However the text grew, token by token or at once."""
    grown, drafts = sequence(ids[:1]), Lookup()
    for token in ids[1:]:
        drafts.draft([grown], [most])
        say(grown, token)
    (found,) = drafts.draft([grown], [most])
    assert [found] == Lookup().draft([sequence(ids)], [most])
    places = [i for i in range(3, len(ids)) if ids[i - 3 : i] == ids[-3:]]
    assert found == (ids[places[-1] : places[-1] + len(found)] if places else [])
    assert len(found) <= most and bool(found) == bool(places and most)


def test_a_drafting_model_must_speak_the_same_tokens() -> None:
    large, small = (SimpleNamespace(config=SimpleNamespace(vocab=n)) for n in (10, 11))
    with pytest.raises(OptionError, match="11 tokens and the model 10"):
        check_same(large, small)  # type: ignore[arg-type]
