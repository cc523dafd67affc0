import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from toolkit import SemanticSelector
from toolkit.plotting import displayable, plot_groups


@pytest.mark.parametrize(
    ("sample", "shape"),
    [
        (torch.rand(3, 4, 5), (4, 5, 3)),
        ((torch.rand(1, 4, 5), 7), (4, 5)),
        ({"image": torch.rand(4, 5)}, (4, 5)),
        (torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8), (4, 5, 3)),
        (torch.randn(6, 4, 5) * 9, (4, 5, 3)),
        ((Image.new("L", (5, 4)), 0), (4, 5, 3)),
    ],
)
def test_samples_are_made_displayable(sample, shape):
    array = displayable(sample)
    assert array.shape == shape
    assert array.min() >= 0
    assert array.max() <= (255 if array.dtype == np.uint8 else 1)


@pytest.mark.parametrize("sample", ["text", torch.rand(3), torch.rand(2, 3, 4, 5), {"text": 1}])
def test_what_is_no_image_is_not_displayed(sample):
    assert displayable(sample) is None


def test_the_largest_groups_come_first_with_their_distances(tmp_path):
    base = np.eye(5)
    near = np.concatenate([base[:1] + 0.01 * base[1:4], base[1:2] + 0.02 * base[4:5], base])
    dataset = TensorDataset(torch.rand(9, 1, 6, 6), torch.tensor([0] * 9))
    selection = SemanticSelector(near, n_groups=5, progress=False).select(dataset)
    figure = plot_groups(selection, dataset, class_names=["ant"])
    grid = np.array(figure.axes).reshape(2, 4)
    assert grid[0][0].get_title() == "kept"
    distances = [float(axes.get_title()) for axes in grid[0][1:]]
    assert distances == sorted(distances)
    assert all(distance > 0 for distance in distances)
    assert grid[0][0].get_ylabel() == "ant\n4 images"
    assert grid[1][0].get_ylabel() == "ant\n2 images"
    assert len(grid[1][2].images) == 0
    figure.savefig(tmp_path / "groups.png")
    assert (tmp_path / "groups.png").stat().st_size > 1000
    assert len(plot_groups(selection, dataset, n_groups=1, n_members=2).axes) == 2


def test_errors():
    vectors = np.random.default_rng(0).normal(size=(4, 3))
    everything = SemanticSelector(vectors, 1.0, scope="dataset", progress=False).select()
    with pytest.raises(ValueError, match="`selection` must be one with a group of two images or more"):
        plot_groups(everything, range(4))
    half = SemanticSelector(vectors, 0.5, scope="dataset", progress=False).select()
    with pytest.raises(ValueError, match="`dataset` must be a data set of images, got 'a sample that is none at index"):
        plot_groups(half, ["a", "b", "c", "d"])
