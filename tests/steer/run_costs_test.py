"""What stages would take: against the compiled programs' figures, and counts by hand."""

import pytest

from configs import phantom
from maira_jax.model import config as model_config
from steer import run_costs
from steer.run_costs import DeviceRates

RATES = DeviceRates(n=2, flops=1e12, bandwidth=1e9, price=None)


def test_a_studys_operations_are_those_of_the_compiled_program():
    """docs/scaling.md: 23.0 TFLOP for two images and a prompt of 3,200 tokens, up to layer 15."""
    model = model_config.published()
    study = run_costs._Collection(n=1, tokens=3200, kept=89, images=2)
    flops = study.flops(model, 16) + 2 * run_costs._image_flops(model)
    assert flops == pytest.approx(23.0e12, rel=0.01)


def test_costs_of_the_phantom():
    config = phantom.get_config()
    config.train.update({"steps": 10, "batch_size": 100})
    config.interpret.update({"judge": "llm", "features": (1, 2), "n_score": 10, "n_prompt": 5, "n_control": 1})
    config.judge.update({"model": "m", "price_out": 1e6 / run_costs.TYPICAL_ANSWER})  # a dollar for a request
    found = run_costs.costs(config, RATES)
    d, width = 128, 128 * config.sae.expansion
    # docs/scaling.md: five products, 0.67 GFLOP for 4,096 and 16,384.
    assert found["train"].seconds == pytest.approx(5 * 2 * d * width * 1000 / 2e12)
    # An explanation, and twice 10 examples in questions of 5 for three scorers and shuffled explanations.
    assert found["interpret"].judge == pytest.approx((2 + 5) * (1 + 4 * 4))
    # Features, four controls that read their activations, and shuffled explanations.
    assert found["faithfulness"].judge == pytest.approx(6 * config.faithfulness.n)
    assert found["evaluate"].judge == 0
    tokens = found["harvest"].disk / (d * 4) / config.studies.n
    assert 50 < tokens < 120  # 76 of the first 600
    config.sae.companions = {"x2": {"expansion": 2 * config.sae.expansion}}
    assert run_costs.costs(config, RATES)["train"].seconds == pytest.approx(3 * found["train"].seconds)


def test_rates_are_of_this_device():
    rates = DeviceRates.measured("float32")
    assert rates.flops > 1e8 and rates.bandwidth > 1e7 and rates.price is None
    assert RATES.seconds(flops=2e12, nbytes=2e9) == 2
