"""The rendered pictures, their captions and the tokenizer of the shipped models."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapes.scenes import SIZE, Scene, Thing, alternatives, hard_negatives, is_held_out, random_scene, render
from shapes.scenes import words as all_words
from tests.tiny import tokenizer

seeds = st.integers(0, 2**32)


@given(seeds, st.booleans())
def test_scenes_are_drawn_from_the_asked_half_and_their_captions_are_all_known_words(seed, held_out):
    scene = random_scene(np.random.default_rng(seed), held_out)
    assert is_held_out(scene) == held_out
    assert set(scene.caption.split()) <= set(all_words())


@given(seeds)
def test_the_same_seed_draws_the_same_picture_and_shapes_stay_inside(seed):
    scene = random_scene(np.random.default_rng(seed))
    (picture, covered), (again, _) = (render(scene, np.random.default_rng(seed)) for _ in range(2))
    assert picture.shape == (SIZE, SIZE, 3)
    assert np.array_equal(picture, again)
    edge = np.concatenate([covered[0], covered[-1], covered[:, 0], covered[:, -1]])
    assert edge.max() == 0


@given(seeds)
def test_a_relation_is_what_the_picture_shows(seed):
    rng = np.random.default_rng(seed)
    things = (Thing("small", "red", "circle"), Thing("large", "blue", "square"))
    scene = Scene(things, str(rng.choice(["above", "below", "left of", "right of"])), "gray")
    picture = render(scene, rng)[0].astype(int)
    red = np.argwhere((picture[..., 0] > 150) & (picture[..., 2] < 90)).mean(0)  # (y, x)
    blue = np.argwhere((picture[..., 2] > 150) & (picture[..., 0] < 90)).mean(0)
    dy, dx = red - blue
    seen = {"above": dy < -abs(dx), "below": dy > abs(dx), "left of": dx < -abs(dy), "right of": dx > abs(dy)}
    assert seen[scene.where]


@given(seeds)
def test_wrong_captions_are_not_the_scenes_own(seed):
    scene = random_scene(np.random.default_rng(seed), things=2)
    wrong = [s.caption for s in hard_negatives(scene).values()]
    wrong += [
        s.caption for others in alternatives(scene).values() for s in others if s.background != s.things[0].colour
    ]
    assert scene.caption not in wrong


def test_caption_of_a_scene():
    scene = Scene((Thing("large", "red", "circle"), Thing("small", "blue", "square")), "above", "green")
    assert scene.caption == "a large red circle above a small blue square on a green background"


@pytest.mark.parametrize("word", all_words())
def test_every_word_is_one_token(word):
    assert len(tokenizer().tokenize(word)) == 1


def test_an_unknown_word_is_spelled_in_bytes_and_the_end_token_has_the_highest_id():
    assert "".join(tokenizer().tokenize("zebra")) == "zebra</w>"
    ids = tokenizer()("a red ring", padding="max_length").input_ids
    assert len(ids) == tokenizer().model_max_length
    assert max(ids) == tokenizer().eos_token_id == len(tokenizer()) - 1
