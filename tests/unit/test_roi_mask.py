import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import BadShape, InvalidInput, ShapeOutsideImage
from backend.roi_mask import (
    Annulus,
    Circle,
    Rect,
    parse_shape,
    scale_shape,
    shape_fields,
    shape_from_fields,
    shape_mask,
)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (None, None),
        ("", None),
        ("  \n", None),
        ("null", None),
        ('{"kind":"rect","x":1,"y":2,"w":3,"h":4}', Rect(x=1, y=2, w=3, h=4)),
        ('{"kind":"rect","cx":10,"cy":20,"w":4,"h":6}', Rect(x=8, y=17, w=4, h=6)),
        ('{"kind":"rect","x":-1.5,"y":0,"w":0.5,"h":1e3}', Rect(x=-1.5, y=0, w=0.5, h=1000)),
        ('{"kind":"circle","cx":5,"cy":6,"r":7,"more":[]}', Circle(cx=5, cy=6, r=7)),
        ('{"kind":"annulus","cx":5,"cy":6,"r":7,"r_inner":3}', Annulus(cx=5, cy=6, r=7, r_inner=3)),
        ('{"kind":"annulus","cx":5,"cy":6,"r":7,"r_inner":0}', Annulus(cx=5, cy=6, r=7, r_inner=0)),
    ],
)
def test_a_shape_is_read_from_its_json_text(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize(
    ("text", "error", "word"),
    [
        ("{", BadShape, "JSON"),
        ("[" * 100_000, BadShape, "JSON"),
        ("[1,2]", BadShape, "object"),
        ('"rect"', BadShape, "object"),
        ("17", BadShape, "object"),
        ("{}", BadShape, "kind"),
        ('{"kind":"ellipse"}', BadShape, "ellipse"),
        ('{"kind":["rect"]}', BadShape, "kind"),
        ('{"kind":"rect","x":1,"y":2,"w":3}', BadShape, "shape.h"),
        ('{"kind":"rect","x":"1","y":2,"w":3,"h":4}', BadShape, "shape.x"),
        ('{"kind":"rect","x":true,"y":2,"w":3,"h":4}', BadShape, "shape.x"),
        ('{"kind":"rect","cx":1,"w":3,"h":4}', BadShape, "shape.cy"),
        ('{"kind":"circle","cx":NaN,"cy":6,"r":7}', BadShape, "shape.cx"),
        ('{"kind":"circle","cx":1,"cy":6,"r":Infinity}', BadShape, "shape.r"),
        ('{"kind":"circle","cx":1,"cy":6,"r":1e400}', BadShape, "shape.r"),
        ('{"kind":"circle","cx":1,"cy":6,"r":' + "9" * 400 + "}", BadShape, "shape.r"),
        ('{"kind":"circle","cx":1,"cy":6,"r":0}', InvalidInput, "shape.r"),
        ('{"kind":"rect","x":1,"y":2,"w":-3,"h":4}', InvalidInput, "shape.w"),
        ('{"kind":"annulus","cx":1,"cy":2,"r":3,"r_inner":3}', InvalidInput, "shape.r_inner"),
        ('{"kind":"annulus","cx":1,"cy":2,"r":3,"r_inner":-1}', InvalidInput, "shape.r_inner"),
        ('{"kind":"annulus","cx":1,"cy":2,"r":3}', BadShape, "shape.r_inner"),
    ],
)
def test_a_shape_that_makes_no_sense_is_refused_and_the_sentence_names_why(text, error, word):
    with pytest.raises(error) as refused:
        parse_shape(text)
    assert word in refused.value.sentence
    assert type(refused.value) is error


SHAPES = [Rect(x=1.5, y=-2, w=3, h=4), Circle(cx=5, cy=6, r=7), Annulus(cx=5, cy=6, r=7.5, r_inner=3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_json_object_of_a_shape_reads_back_as_the_shape(shape):
    assert shape_from_fields(json.loads(json.dumps(shape_fields(shape)))) == shape


def test_no_shape_is_the_whole_image():
    assert shape_mask(None, (2, 3)).tolist() == [[True] * 3] * 2


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        (Rect(x=1, y=0, w=2, h=1), ["011", "000", "000"]),
        (Rect(x=0.5, y=0.5, w=1, h=2), ["000", "010", "010"]),
        (Rect(x=-5, y=-5, w=6, h=7), ["100", "100", "000"]),
        (Circle(cx=1, cy=1, r=1), ["010", "111", "010"]),
        (Circle(cx=0, cy=0, r=1.5), ["110", "110", "000"]),
        (Annulus(cx=1, cy=1, r=1.5, r_inner=1), ["111", "101", "111"]),
        (Annulus(cx=2, cy=1, r=0.5, r_inner=0), ["000", "001", "000"]),
    ],
)
def test_a_mask_holds_the_pixels_whose_centres_lie_in_the_shape(shape, rows):
    assert shape_mask(shape, (3, 3)).tolist() == [[c == "1" for c in row] for row in rows]


def test_a_whole_number_rectangle_is_what_a_crop_would_cut():
    mask = shape_mask(Rect(x=3, y=2, w=5, h=4), (10, 12))
    assert mask[2:6, 3:8].all()
    assert mask.sum() == 20


def test_columns_are_x_and_rows_are_y():
    mask = shape_mask(Circle(cx=30, cy=5, r=3), (20, 40))
    rows, columns = np.nonzero(mask)
    assert (rows.mean(), columns.mean()) == (5, 30)


def test_a_ring_has_the_area_of_its_circles_difference():
    mask = shape_mask(Annulus(cx=100, cy=100, r=80, r_inner=40), (201, 201))
    assert mask.sum() == pytest.approx(math.pi * (80**2 - 40**2), rel=0.005)
    assert not mask[100, 100]
    assert mask[100, 40]


@pytest.mark.parametrize(
    "shape",
    [
        Rect(x=10, y=0, w=5, h=5),
        Rect(x=0.2, y=0.2, w=0.5, h=0.5),  # between pixel centres
        Circle(cx=-10, cy=5, r=3),
        Annulus(cx=5, cy=5, r=100, r_inner=50),
    ],
)
def test_a_shape_that_covers_no_pixel_is_refused(shape):
    with pytest.raises(ShapeOutsideImage, match="10×10 px") as refused:
        shape_mask(shape, (10, 10))
    assert refused.value.details["shape"] == shape_fields(shape)


@pytest.mark.parametrize(
    ("shape", "scaled"),
    [
        (Rect(x=2, y=4, w=6, h=8), Rect(x=4, y=8, w=12, h=16)),
        (Circle(cx=10, cy=20, r=5), Circle(cx=20, cy=40, r=10)),
        (Annulus(cx=10, cy=20, r=5, r_inner=2), Annulus(cx=20, cy=40, r=10, r_inner=4)),
    ],
)
def test_a_shape_scales_with_its_image(shape, scaled):
    assert scale_shape(shape, (50, 100), (100, 200)) == scaled
    assert scale_shape(shape, (50, 100), (50, 100)) == shape


@given(
    st.floats(-5, 25), st.floats(-5, 25), st.floats(0.1, 20), st.floats(0, 0.99), st.integers(1, 20), st.integers(1, 20)
)
def test_the_mask_of_a_ring_agrees_with_the_distance_of_every_pixel(cx, cy, r, inner_share, height, width):
    shape = Annulus(cx=cx, cy=cy, r=r, r_inner=r * inner_share)
    expected = np.array(
        [[shape.r_inner**2 <= (x - cx) ** 2 + (y - cy) ** 2 <= r**2 for x in range(width)] for y in range(height)]
    )
    if expected.any():
        assert (shape_mask(shape, (height, width)) == expected).all()
    else:
        with pytest.raises(ShapeOutsideImage):
            shape_mask(shape, (height, width))
