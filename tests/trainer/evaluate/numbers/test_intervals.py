import numpy as np
import pytest
from scipy.stats import bootstrap

from trainer.evaluate.numbers.intervals import N_RESAMPLES, Sums, interval, paired_difference


def simulated(rng, n_classes=60, mean=0.6, spread=6.0):
    """Classes of different size and difficulty: what a benchmark draws."""
    counts = rng.integers(3, 30, n_classes)
    difficulty = rng.beta(spread * mean, spread * (1 - mean), n_classes)
    return Sums(hits=rng.binomial(counts, difficulty).astype(float), counts=counts.astype(float)), difficulty


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        sums, _ = simulated(rng)
        low, high = interval(sums, n_resamples=400)
        inside.append(low <= 0.6 <= high)
    assert 0.91 <= np.mean(inside) <= 0.98


def test_pictures_drawn_alone_would_be_too_narrow():
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(200):
        sums, _ = simulated(rng)
        share, n = sums.value, sums.counts.sum()
        inside.append(abs(share - 0.6) <= 1.96 * np.sqrt(share * (1 - share) / n))
    assert np.mean(inside) < 0.85


def test_an_interval_agrees_with_scipy():
    sums, _ = simulated(np.random.default_rng(2))
    (theirs,) = [
        bootstrap(
            (sums.hits, sums.counts),
            lambda hits, counts, axis=-1: hits.sum(axis) / counts.sum(axis),
            paired=True,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(3),
        ).confidence_interval
    ]
    assert interval(sums, n_resamples=20_000) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_the_same_numbers_every_time_whatever_the_chunks(monkeypatch):
    sums, _ = simulated(np.random.default_rng(4))
    whole = interval(sums)
    monkeypatch.setattr("trainer.evaluate.numbers.intervals.CACHED", 0)
    monkeypatch.setattr("trainer.evaluate.numbers.intervals.CHUNK", 1)
    assert interval(sums) == whole


def test_one_class_says_nothing_of_others():
    one, other = (Sums(hits=np.array([hits]), counts=np.array([4.0])) for hits in (3.0, 1.0))
    assert np.isnan(interval(one)).all()
    found = paired_difference(one, other)
    assert found.value == 0.5
    assert np.isnan([found.low, found.high, found.p]).all()


def test_a_paired_test_sees_a_small_gain_that_the_intervals_hide():
    rng = np.random.default_rng(5)
    before, _ = simulated(rng, n_classes=100)
    gain = rng.binomial((before.counts - before.hits).astype(int), 0.08)
    after = Sums(hits=before.hits + gain, counts=before.counts)
    assert interval(after)[0] < interval(before)[1]
    found = paired_difference(after, before)
    assert found.value == pytest.approx(after.value - before.value)
    assert 0 < found.low < found.value < found.high
    assert found.p == pytest.approx(2 / (N_RESAMPLES + 1))
    back = paired_difference(before, after)
    assert (back.value, back.p) == (-found.value, found.p)


def test_a_paired_test_of_nothing_finds_nothing_more_often_than_it_says():
    rng = np.random.default_rng(6)
    found = []
    for _ in range(300):
        a, difficulty = simulated(rng)
        b = Sums(hits=rng.binomial(a.counts.astype(int), difficulty).astype(float), counts=a.counts)
        found.append(paired_difference(a, b, n_resamples=400).p < 0.05)
    assert np.mean(found) < 0.09
    assert paired_difference(a, a).p == 1


def test_other_classes_cannot_be_paired():
    a = Sums(hits=np.ones(3), counts=np.ones(3))
    with pytest.raises(ValueError, match="same classes"):
        paired_difference(a, Sums(hits=np.ones(3), counts=np.full(3, 2.0)))
    with pytest.raises(ValueError, match="expected"):
        Sums(hits=np.ones(3), counts=np.ones(2))
