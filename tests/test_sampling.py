import pytest
import torch

from toolkit.sampling import EpochSampler, LossSampler, RandomSubsetSampler


def epochs(sampler, count):
    found = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def on_ranks(monkeypatch, size, make):
    samplers = []
    for rank in range(size):
        monkeypatch.setattr("toolkit.sampling.world", lambda rank=rank: (rank, size))
        samplers.append(make())
    return samplers


def test_every_epoch_has_all_images_in_another_order():
    first, second = epochs(EpochSampler(50, seed=1), 2)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert epochs(EpochSampler(50, seed=1), 2) == [first, second]
    assert epochs(EpochSampler(50, seed=2), 1) != [first]


def test_turns_are_taken_in_the_order_of_the_last_iteration():
    sampler = EpochSampler(10, seed=0)
    ahead = iter(sampler)
    next(ahead), next(ahead), next(ahead)
    order = list(sampler)
    assert torch.cat([sampler.take(4), sampler.take(4), sampler.take(2)]).tolist() == order


@pytest.mark.parametrize("make", [lambda: EpochSampler(11), lambda: RandomSubsetSampler(11, 0.7)])
def test_processes_share_an_epoch_evenly(monkeypatch, make):
    alone, shares = make(), on_ranks(monkeypatch, 3, make)
    for epoch in range(4):
        for sampler in (alone, *shares):
            sampler.set_epoch(epoch)
        theirs = [list(sampler) for sampler in shares]
        assert len({len(share) for share in theirs}) == 1
        assert [len(sampler) for sampler in shares] == [len(share) for share in theirs]
        assert {index for share in theirs for index in share} == set(alone)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9, 1.0])
def test_without_replacement_all_images_come_up_equally_often(fraction):
    sampler = RandomSubsetSampler(30, fraction, seed=3)
    counts = torch.zeros(30)
    for epoch in epochs(sampler, 40):
        assert len(epoch) == len(sampler) == int(30 * fraction + 1e-9)
        counts += torch.bincount(torch.tensor(epoch), minlength=30)
    assert counts.max() - counts.min() <= 1


def test_with_replacement_each_epoch_draws_from_all_images():
    found = epochs(RandomSubsetSampler(30, 0.5, replacement=True, seed=3), 40)
    assert all(len(set(epoch)) == 15 for epoch in found)
    assert any(set(a) & set(b) for a, b in zip(found[::2], found[1::2], strict=True))
    assert set().union(*found) == set(range(30))


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.9])
def test_a_share_of_the_images_below_the_mean_loss_is_left_out(ratio):
    losses = torch.linspace(0, 1, 101) ** 2
    below = losses < losses.mean()
    sampler = LossSampler(losses, 101, ratio, seed=1, epoch=4)
    kept = torch.zeros(101, dtype=torch.bool)
    kept[torch.tensor(list(sampler))] = True
    n_below = int(below.sum())
    assert kept[~below].all()
    assert int(kept[below].sum()) == n_below - int(ratio * n_below) == sampler.n_chosen() - int((~below).sum())
    assert (sampler.weights[~below] == 1).all()
    assert float(sampler.weights[kept].sum()) == pytest.approx(101, rel=1e-5), "the weights stand for all images"


def test_the_expected_gradient_is_that_of_all_images():
    losses = torch.rand(40, generator=torch.Generator().manual_seed(0))
    gradients = torch.randn(40, generator=torch.Generator().manual_seed(1))
    sums = []
    for epoch in range(3000):
        sampler = LossSampler(losses, 40, 0.5, seed=0, epoch=epoch)
        indices = torch.tensor(list(sampler))
        sums.append(float((sampler.weights[indices] * gradients[indices]).sum()))
    spread = torch.tensor(sums).std() / 3000**0.5
    assert float(torch.tensor(sums).mean()) == pytest.approx(float(gradients.sum()), abs=4 * float(spread))


def test_without_losses_all_images_stay_and_count_once():
    sampler = LossSampler(None, 9, 0.5, seed=0, epoch=1)
    assert sorted(sampler) == list(range(9))
    assert (sampler.weights == 1).all()
    same = LossSampler(torch.full((9,), 2.0), 9, 0.5, seed=0, epoch=1)
    assert same.n_chosen() == 9, "none is below the mean"


@pytest.mark.parametrize("fraction", [0.0, 1.5, 0.01])
def test_a_subset_has_at_least_one_image(fraction):
    with pytest.raises(ValueError, match="`keep_fraction` must be"):
        RandomSubsetSampler(30, fraction)
