"""Metrics as lines of text."""

import pyro_vae as pv
from pyro_vae.cli.tables import SECTIONS, epoch_line, table

LARGE = {
    "mean": -123456.78,
    "standard_error": 12345.67,
    "num_samples": 5_000_000,
    "num_images": 1_000_000,
}
SHARE = {"accuracy": 1.0, "standard_error": 0.5, "num_images": 1_000_000}
LARGE_RESULTS = {
    "elbo": {**LARGE, "num_images": 2_000_000},
    "reconstruction": LARGE,
    "kl": LARGE,
    "log_likelihood": {
        **LARGE,
        "elbo_same_images": LARGE,
        "monte_carlo_error": 12345.678,
        "median_effective_sample_size": 5e6,
        "share_of_images_with_k_hat_over_0.7": 1.0,
    },
    "log_likelihood_all_images": LARGE,
    "log_joint": LARGE,
    "check": {
        "method": "quadrature",
        "difference": -123456.78,
        "standard_error": 12345.67,
        "max_difference": 123456.78,
        "num_images": 1_000_000,
        "disagree": True,
    },
    "annealed": LARGE,
    "annealed_difference": LARGE,
    "simulated": dict.fromkeys(("lower", "upper", "gap"), LARGE),
    "bits_per_dimension": {**LARGE, "of": "dequantized bytes"},
    "nats_per_count": LARGE,
    "active_units": {"count": 1000, "latent_dim": 1000, "predicted": 1000},
    "information": {
        "mutual_information": 12345.67,
        "mutual_information_error": 123.45,
        "marginal_kl": 12345.67,
        "marginal_kl_error": 123.45,
        "num_images": 1_000_000,
        "ceiling": 13.82,
        "saturated": True,
    },
    "classification": {
        **SHARE,
        "log_loss": 1234.567,
        "log_loss_error": 123.456,
        "calibration_error": 1.0,
        "bins": [None] * 15,
    },
    "calibration": {
        "p_value": 1e-9,
        "worst": "log p(x | z)",
        "num_images": 1_000_000,
        "coverage": {region: {"share": 1.0} for region in ("0.5", "0.9", "0.99")},
    },
    "linear_probe": SHARE,
    "bayes_classifier": SHARE,
    "inference_gap": {
        **dict.fromkeys(("total", "approximation", "amortization"), LARGE),
        "method": "ais",
    },
    "anomalies": {
        "minus_log_likelihood": {
            "auroc": 1.0,
            "standard_error": 0.5,
            "num_anomalies": 1_000_000,
            "num_normal": 1_000_000,
        }
    },
    "given": "covariates",
    "observed": 0.001,
    "exposure": "total",
}


def test_an_epoch_with_large_numbers_fits_into_80_columns():
    record = {
        "epoch": 10000,
        "elbo": -123456.78,
        "validation_elbo": -123456.78,
        "kl": 12345.67,
        "active_units": 1000,
        "beta": 0.12345,
        "seconds": 12345.6,
    }
    line = epoch_line(record, 10000)
    assert len(line) <= 80
    assert "validation -123456.78" in line


def test_large_numbers_fit_into_80_columns():
    assert SECTIONS.keys() <= LARGE_RESULTS.keys()
    likelihood = pv.Bernoulli(relaxed=True)
    text = table(LARGE_RESULTS, "fashion_mnist, validation set, best checkpoint", likelihood)
    assert all(len(line) <= 80 for line in text.splitlines()), text
    for name in ("log p(x, y)", "simulated, lower", "simulated, upper", "calibration, p", "AUROC"):
        assert name in text


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
