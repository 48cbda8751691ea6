"""Whitening: equal variance in all directions of the sample, relations kept, degenerate samples without NaN."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from sbp_jax.embedding.whitening import Whitening


@pytest.fixture(scope="module")
def cone() -> np.ndarray:
    """Unit vectors that share a large part, as hidden states do; [2000, 16] float32."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(2000, 16)) * np.linspace(0.05, 1, 16) + 4
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_similarities_spread_around_zero(cone):
    before, after = cone @ cone.T, Whitening.fit(cone)(cone)
    assert np.median(before) > 0.9 and after.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, rtol=1e-5)
    assert abs(np.median(after @ after.T)) < 0.05
    spread = after.std(axis=0)
    assert spread.max() / spread.min() < 1.5 < 3 < cone.std(axis=0).max() / cone.std(axis=0).min()


def test_copies_stay_copies_and_the_sample_may_be_another_one(cone):
    whitening = Whitening.fit(cone[:1000])
    doubled = whitening(cone[[1500, 1500, 1501]])
    assert (doubled[0] == doubled[1]).all() and not np.allclose(doubled[0], doubled[2])


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_vectors_than_dimensions_and_equal_ones_give_numbers(cone, rows):
    for vectors in (cone[:rows], np.repeat(cone[:1], rows, axis=0)):
        whitened = Whitening.fit(vectors)(vectors)
        np.testing.assert_allclose(np.linalg.norm(whitened, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("rows", [8, 40, 2000])
def test_the_map_divides_by_the_covariance_that_scikit_learn_estimates(cone, rows):
    whitening = Whitening.fit(cone[:rows])
    covariance_DD, shrinkage = ledoit_wolf(cone[:rows].astype(np.float64))
    assert 0.001 < shrinkage < 0.9
    np.testing.assert_allclose(np.linalg.inv(whitening.matrix_DD @ whitening.matrix_DD), covariance_DD, rtol=1e-6)


def test_a_sample_smaller_than_the_width_finds_relatives_better_than_plain_vectors():
    """Planted: 100 families of two in 256 dimensions, told apart by small parts of vectors that share large ones."""
    random = np.random.default_rng(0)
    shared_KD, own_FD = random.normal(size=(4, 256)), random.normal(size=(100, 256))
    vectors_ND = 3 * random.normal(size=(200, 4)) @ shared_KD + np.repeat(own_FD, 2, axis=0)
    vectors_ND += random.normal(size=vectors_ND.shape)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)

    def found(vectors_ND):
        similarities_NN = vectors_ND @ vectors_ND.T
        np.fill_diagonal(similarities_NN, -2)
        return np.mean(similarities_NN.argmax(axis=1) == np.arange(200) ^ 1)

    assert found(vectors_ND) < 0.5 and found(Whitening.fit(vectors_ND)(vectors_ND)) > 0.9
