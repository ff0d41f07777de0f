"""Networks drawn at random run on tiles, with levers and in strips, to the numbers of one device, or are refused.

`python -m tests.random_networks --cases 2000 --seed 1` runs many more.
"""

import pytest

from tests.random_networks.networks import draw
from tests.random_networks.trial import trial


@pytest.mark.filterwarnings("ignore")  # of layers drawn at random torch warns of this and that
@pytest.mark.parametrize("ten", range(6))
def test_sixty_networks_are_exact_or_refused_in_planning_with_layer_and_line(ten: int) -> None:
    outcomes = {}
    for number in range(10 * ten, 10 * ten + 10):
        case = draw(f"0/{number}")
        outcomes[number] = trial(case)
    wrong = {number: outcome for number, outcome in outcomes.items() if not outcome.right}
    assert not wrong
    assert [outcome.kind for outcome in outcomes.values()].count("exact") >= 4, "or the sweep says little"
