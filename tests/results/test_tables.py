"""Sums of errors against numpy, names as in the paper, tables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrf.results.tables import (
    PUBLISHED_PX,
    Result,
    Spread,
    differences,
    initialisation_name,
    mean_and_deviation,
    network_name,
    published_set,
    tables,
)
from nrf.system.markdown import html_table, markdown_table

ERRORS = st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=40)


@given(ERRORS, ERRORS, st.floats(0, 1))
def test_a_spread_is_numpys_over_all_that_came(first, second, q):
    a, b = Spread(), Spread()
    a.add(np.array(first))
    b.add(np.array(second))
    both = a + b
    assert both.n == len(first) + len(second)
    assert both.mean == pytest.approx(np.mean(first + second), rel=1e-12)
    assert both.quantile(q) == pytest.approx(np.quantile(first + second, q), rel=1e-12)


def test_a_spread_refuses_what_is_no_error():
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite values of 0 or more"):
            Spread().add(np.array([1.0, bad]))
    assert math.isnan(Spread().mean) and math.isnan(Spread().quantile(0.5))


def test_names():
    ann = {"net": "ann", "init_scheme_spatial": "rf", "init_scheme_temporal": "uniform"}
    assert network_name(ann | {"stack_frames": 1}) == "ReLU-SF"
    assert network_name(ann | {"stack_frames": 8}) == "ReLU-MF"
    assert network_name({"net": "lif", "stack_frames": 8}) == "LIF"
    assert initialisation_name(ann) == "rf"  # no time constants
    assert initialisation_name(ann | {"net": "li"}) == "rf-uniform"
    assert [published_set(name) for name in ("Spatial", "my_temporal", "data-0", "spatial-temporal")] == [
        "spatial",
        "temporal",
        None,
        None,
    ]
    assert PUBLISHED_PX["temporal"]["LIF"] == {"rf": 13.2, "uniform": 15.2}


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7)))
    assert mean_and_deviation([2.0])[0] == 2 and math.isnan(mean_and_deviation([2.0])[1])


def test_tables_of_text():
    assert markdown_table(["a", "b"], [[1.234, None], ["x|y", math.nan]]).splitlines() == [
        "| a    | b   |",
        "| ---- | --- |",
        "| 1.23 |     |",
        "| x\\|y |     |",
    ]
    assert html_table(["<a>"], [[2.0]]) == (
        "<table><thead><tr><th>&lt;a&gt;</th></tr></thead><tbody><tr><td>2.00</td></tr></tbody></table>"
    )


def result(seed, error_px, **settings):
    one = Result("LI", "rf", seed, f"{seed}.ckpt", None, {"lr": 0.1, "seed": seed} | settings)
    errors_px = np.full((2, 1, 3), error_px)
    one.add(errors_px, [{"size": 10.0 * seed, "velocity": 0.2}], ("circle", "square", "triangle"))
    return one


def test_seeds_are_one_line_with_their_spread():
    text = tables([result(1, 1.0), result(2, 3.0)], "title")
    assert "| LI      | rf             | 2           | 2.00 | 1.41 | 1.50    | 2.00   | 2.50 " in text
    assert "### By size" in text and "| 10   | 20   |" in text and "| 1.00 | 3.00 |" in text
    assert "### By velocity" not in text  # there is but one
    assert "not only seeds differ" not in text


def test_what_differs_beside_the_seed_is_told():
    assert differences([result(1, 1.0), result(2, 1.0)]) == []
    assert differences([result(1, 1.0), result(1, 1.0, lr=0.2)]) == ["lr", "seed, which two have in common"]
    text = tables([result(1, 1.0), result(2, 1.0, lr=0.2)], "title")
    assert "LI, rf: not only seeds differ, but also lr" in text
