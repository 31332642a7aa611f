"""Which negations and hedges reach a mention."""

import pytest

from maira_jax.reports.mentions import find_mentions
from maira_jax.reports.status import set_status


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("pleural effusion", "present"),
        ("no pleural effusion", "absent"),
        ("pleural effusion is not seen", "absent"),
        ("no change in the pleural effusion", "present"),
        ("possible pleural effusion", "uncertain"),
        ("pleural effusion cannot be excluded", "uncertain"),
        ("evaluate for pleural effusion", "unmentioned"),
    ],
)
def test_status_of_one_mention(clause: str, expected: str) -> None:
    (mention,) = find_mentions(clause)
    set_status(clause, mention)
    assert mention.status == expected and not mention.resolved


def test_the_predicate_of_one_finding_does_not_deny_the_next() -> None:
    clause = "the effusion has resolved and atelectasis is seen"
    effusion, atelectasis = find_mentions(clause)
    for mention in (effusion, atelectasis):
        set_status(clause, mention)
    assert (effusion.status, effusion.resolved) == ("absent", True)
    assert (atelectasis.status, atelectasis.resolved) == ("present", False)
