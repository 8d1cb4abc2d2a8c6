"""Metrics as lines of text."""

import pyro_vae as pv
from pyro_vae.cli.tables import epoch_line, table


def test_large_numbers_fit_into_80_columns():
    record = {
        **dict.fromkeys(
            (
                "step",
                "beta",
                "learning_rate",
                "loss",
                "reconstruction",
                "rewinds",
                "images_per_second",
            ),
            0.12345,
        ),
        **{
            "epoch": 10000,
            "elbo": -123456.78,
            "validation_elbo": -123456.78,
            "kl": 12345.67,
            "active_units": 1000,
        },
        "seconds": 12345.6,
    }
    assert len(epoch_line(record, 10000)) <= 80
    value = {
        "mean": -123456.78,
        "standard_error": 12345.67,
        "num_samples": 5_000_000,
        "num_images": 1_000_000,
    }
    more = {
        "monte_carlo_error": 12345.678,
        "median_effective_sample_size": 5e6,
        "share_of_images_with_k_hat_over_0.7": 1.0,
        "share_of_images_with_k_hat_over_1": 1.0,
    }
    numbers = {
        "count": 1000,
        "latent_dim": 1000,
        "accuracy": 1.0,
        "difference": -123456.78,
        "max_difference": 123456.78,
    }
    information = {
        "mutual_information": 12345.67,
        "mutual_information_error": 123.45,
        "marginal_kl": 12345.67,
        "ceiling": 13.82,
        "saturated": True,
    }
    shared = {
        **value,
        **more,
        **numbers,
        **information,
        "marginal_kl_error": 123.45,
        "elbo_same_images": value,
    }
    everything = {
        **shared,
        **dict.fromkeys(("total", "approximation", "amortization", "lower", "upper", "gap"), value),
    }
    names = [
        "elbo",
        "reconstruction",
        "kl",
        "log_likelihood",
        "log_likelihood_all_images",
        "check",
        "annealed",
        "simulated",
    ]
    names += [
        "annealed_difference",
        "bits_per_dimension",
        "active_units",
        "information",
        "linear_probe",
        "inference_gap",
    ]
    results = {name: {**everything, "method": "quadrature", "disagree": True} for name in names}
    results["inference_gap"]["method"] = "ais"
    results["bits_per_dimension"]["of"] = "dequantized bytes"
    text = table(
        results, "fashion_mnist, validation set, best checkpoint", pv.Bernoulli(relaxed=True)
    )
    assert all(len(line) <= 80 for line in text.splitlines()), text
    assert len(text.splitlines()) > 20
    assert "simulated, lower" in text
    assert "simulated, upper" in text


VALUE = {"mean": -1.0, "standard_error": 0.1, "num_samples": 9, "num_images": 50}
LOG_P = {
    **VALUE,
    "elbo_same_images": VALUE,
    "monte_carlo_error": 0.01,
    "median_effective_sample_size": 5.0,
    "share_of_images_with_k_hat_over_0.7": 0.0,
    "share_of_images_with_k_hat_over_1": 0.0,
}
LINES = {"elbo": VALUE, "reconstruction": VALUE, "kl": VALUE, "log_likelihood": LOG_P}


def printed(**changes):
    return table({**LINES, **changes}, "digits", pv.Bernoulli())


def test_the_elbo_of_the_same_images_is_printed_for_a_subset_only():
    assert "same images" not in printed()
    assert "same images" in printed(elbo={**VALUE, "num_images": 51})


def test_a_monte_carlo_error_that_is_too_small_is_said_to_be():
    assert "too small" not in printed()
    high = {**LOG_P, "share_of_images_with_k_hat_over_0.7": 0.1}
    assert "0.010  too small" in printed(log_likelihood=high)


def test_a_check_without_an_error_neither_agrees_nor_disagrees():
    check = {"method": "ais", "difference": 0.4, "standard_error": None, "max_difference": 1.0}
    for disagree, verdict in ((None, "error unknown"), (True, "DISAGREES"), (False, " agrees")):
        assert verdict in printed(check={**check, "num_images": 5, "disagree": disagree})


def test_saturated_information_is_a_bound():
    information = {
        "mutual_information": 3.5,
        "mutual_information_error": 0.1,
        "marginal_kl": 9.0,
        "marginal_kl_error": 0.2,
        "num_images": 50,
        "ceiling": 3.91,
        "saturated": False,
    }
    assert "bound" not in printed(information=information)
    out = printed(information={**information, "saturated": True})
    assert "lower bound: at most 3.91" in out
    assert "upper bound" in out


def test_calibration_is_rejected_or_not():
    coverage = {"0.5": {"share": 0.471}, "0.99": {"share": 0.9}}
    found = {"p_value": 0.2, "worst": "z[3]", "num_images": 1000, "coverage": coverage}
    assert "0.2  not rejected" in printed(calibration=found)
    out = printed(calibration={**found, "p_value": 1e-300})
    assert "< 0.0001  not exact: z[3]" in out
    assert "50%: 47.1%, 99%: 90.0%" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_the_gap_says_what_it_rests_on():
    gap = dict.fromkeys(("total", "approximation", "amortization"), VALUE)
    gap |= {"share_of_images_with_k_hat_over_0.7": 0.9}
    assert "by quadrature" in printed(inference_gap={**gap, "method": "quadrature"})
    assert "lower bound, by AIS" in printed(inference_gap={**gap, "method": "ais"})
    assert "lower bound: k-hat over 0.7 for 90%" in printed(inference_gap={**gap, "method": "is"})
