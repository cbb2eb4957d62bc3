"""LASSO at a number of factors, against scikit-learn's path and the conditions that any minimum meets."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import lars_path_gram

from gcp.methods import lasso
from gcp.methods.lasso import Factors


def correlated(n, n_samples, seed=0):
    """A Gram matrix of variables that are mixtures of n / 3 others, and their products with a target."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n_samples, n // 3)) @ rng.standard_normal((n // 3, n))
    x = np.maximum(mixed + 0.5 * rng.standard_normal((n_samples, n)), 0)
    y = x @ rng.standard_normal(n) + 3 * rng.standard_normal(n_samples)
    return x.T @ x / n_samples, x.T @ y / n_samples


def assert_minimal(gram, wanted, found: Factors):
    """The subgradient of a LASSO's objective contains zero, up to rounding."""
    left, nonzero, rounding = wanted - gram @ found.values, found.values != 0, 1e-9 * np.abs(wanted).max()
    np.testing.assert_allclose(left[nonzero], found.penalty * np.sign(found.values[nonzero]), atol=rounding)
    assert np.abs(left).max() <= found.penalty + rounding


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n, n_samples, most", [(6, 40, 1), (30, 100, 20), (30, 100, 29), (150, 1000, 100)])
def test_it_is_where_scikit_learns_path_has_as_many_factors(n, n_samples, most, seed):
    gram, wanted = correlated(n, n_samples, seed)
    found = lasso.lasso(gram, wanted, most)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        penalties, _, path = lars_path_gram(wanted, gram.copy(), n_samples=1, method="lasso")
    between = (path[:, 1:] + path[:, :-1]) / 2  # at a breakpoint itself, a factor that enters or leaves is zero
    last = np.flatnonzero((between != 0).sum(0) > most)[0]
    assert found.penalty == pytest.approx(penalties[last])
    np.testing.assert_allclose(found.values, path[:, last], atol=1e-9)
    assert (found.values != 0).sum() == most
    assert_minimal(gram, wanted, found)


def test_pivots_are_applied_in_blocks_without_changing_the_factors(monkeypatch):
    gram, wanted = correlated(60, 500)
    expected = lasso.lasso(gram, wanted, 40)
    for block in (1, 7):
        monkeypatch.setattr(lasso, "BLOCK", block)
        found = lasso.lasso(np.asfortranarray(gram), wanted, 40)
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-9)
        assert found.order == expected.order


def test_all_factors_without_a_penalty_are_those_of_least_squares():
    gram, wanted = correlated(12, 200)
    found = lasso.lasso(gram, wanted, 12)
    np.testing.assert_allclose(found.values, np.linalg.solve(gram, wanted), rtol=1e-6)


def test_a_variable_that_the_others_explain_is_not_added_to_them():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 5))
    x = np.column_stack([x, x[:, 0], x[:, 1] + x[:, 2], np.zeros(50)])  # a copy, a sum, and nothing
    gram, wanted = x.T @ x, x.T @ x[:, :5] @ np.array([3.0, 2.0, 1.0, -1.0, 0.5])
    found = lasso.lasso(gram, wanted, 8)
    assert (found.values != 0).sum() == 5
    assert_minimal(gram, wanted, found)
    np.testing.assert_allclose(gram @ found.values, wanted, atol=1e-6 * np.abs(wanted).max())


def test_variables_that_tie_enter_one_by_one():
    found = lasso.lasso(np.eye(4), np.array([1.0, -1.0, 1.0, 0.5]), 2)
    assert found.order == [0, 1] and found.penalty == 1
    found = lasso.lasso(np.eye(4), np.array([1.0, -1.0, 1.0, 0.5]), 3)
    np.testing.assert_allclose(found.values, [0.5, -0.5, 0.5, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_leave_all_factors_at_zero(bad):
    gram, wanted = np.eye(3), np.array([1.0, bad, 0.0])
    assert not lasso.lasso(gram, wanted, 2).values.any()
    gram[0, 2] = gram[2, 0] = bad
    assert not lasso.lasso(gram, np.array([1.0, 2.0, 0.5]), 2).values.any()


@pytest.mark.parametrize("scale", [1e-10, 1e-6, 1e6, 1e10])
def test_the_scale_of_the_variables_makes_no_difference(scale):
    """With G and the products scaled alike, the minimum is where it was, at a penalty that is scaled as well.

    The path is one on which factors also become zero again, which takes pivots as small as the inverses of variances.
    """
    rng = np.random.default_rng(1)
    x = rng.standard_normal((30, 12)) @ (np.eye(12) + 0.6 * rng.standard_normal((12, 12)))
    gram, wanted = x.T @ x, x.T @ (x @ rng.standard_normal(12) + rng.standard_normal(30))
    expected, found = lasso.lasso(gram, wanted, 11), lasso.lasso(scale * gram, scale * wanted, 11)
    assert len(expected.order) > (expected.values != 0).sum() == 11
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-9)
    assert found.order == expected.order and found.penalty == pytest.approx(scale * expected.penalty)
