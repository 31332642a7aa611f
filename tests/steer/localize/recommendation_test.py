"""The recommendation in words, and the plot that goes with it."""

import re
from xml.etree import ElementTree

from steer.localize.curve import svg
from steer.localize.recommendation import PointFigures, recommend


def point(site, depth, on, off, auroc=0.9, section="frontal", degenerate=0.0):
    written = {"write_on_target": on, "write_off_target": off, "write_degenerate": degenerate, "n": 40}
    return PointFigures(site, depth, section, auroc, written, None, None)


POINTS = [
    point("projector.3", -1, 1.0, 0.0, section="image"),
    point("language.embed", 0, 1.0, 0.1),
    point("language.0.resid_post", 1, 0.95, 0.1),
    point("language.2.resid_post", 3, 0.6, 0.0, auroc=0.99),
    point("language.embed", 0, 0.1, 0.0, auroc=1.0, section="generated"),
]


def test_the_deepest_site_that_writes_nearly_as_well_is_named():
    found = recommend(POINTS)
    assert (found["site"], found["section"]) == ("language.0.resid_post", "frontal")
    assert found["recommendation"] == (
        "In the tokens 'frontal': read best at language.2.resid_post (mean AUROC 0.990); write at language.embed to "
        "language.0.resid_post. Steer at language.0.resid_post, tokens 'frontal': 95% of 40 reports on target, "
        "10% with another finding changed."
    )
    assert [each["site"] for each in found["points"]] == [each.site for each in POINTS]


def test_degenerate_reports_and_other_findings_count_against_a_site():
    spoiled = [
        point("language.2.resid_post", 3, 0.95, 0.1, degenerate=0.3),
        point("language.4.resid_post", 5, 0.95, 0.4),
    ]
    assert recommend([*POINTS, *spoiled])["site"] == "language.0.resid_post"


def test_where_nothing_writes_it_says_so():
    assert recommend([point("language.embed", 0, 0.0, 0.0)])["recommendation"].startswith("No site writes any")


def test_the_plot_has_a_curve_for_each_measure_of_each_section():
    rows = [each.row() for each in POINTS]
    rows[1]["site"] = "<b>"
    picture = ElementTree.fromstring(svg(rows))
    lines = picture.findall("{*}polyline")
    assert len(lines) == 3 * 3  # read, written and off target, of three sections
    written = [tuple(map(float, each.split(","))) for each in lines[4].get("points").split()]
    assert len(written) == 3 and written[0][1] == 20.0 and written[0][0] < written[1][0] < written[2][0]
    assert re.search("<b>", svg(rows)) is None
