"""The style of plots: texts are no formulas, no figure depends on when it is drawn, and nothing else is styled."""

import base64
import xml.etree.ElementTree as xml

import matplotlib

from tuneserve.page.drawing import image, panels, style

FORMULA = r"<b>$\frac{1$"


def drawn() -> str:
    with style():
        figure, axes = panels(4.0, 3.0)
        axes.plot([1, 2], [3, 4])
        axes.set_xlabel(FORMULA)
        return image(figure)


def test_an_image_is_an_svg_with_its_texts() -> None:
    kind, _, data = drawn().partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert FORMULA in "".join(xml.fromstring(base64.b64decode(data)).itertext())


def test_an_image_is_the_same_each_time() -> None:
    assert drawn() == drawn()


def test_the_style_ends_with_its_block() -> None:
    before = matplotlib.rcParams["text.parse_math"]
    with style():
        assert matplotlib.rcParams["text.parse_math"] is False
    assert matplotlib.rcParams["text.parse_math"] == before


def test_several_panels() -> None:
    with style():
        figure, axes = panels(4.0, 3.0, 2, 1, sharex=True)
    assert (len(axes), figure.get_size_inches().tolist()) == (2, [4.0, 3.0])
