import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from toolkit.datasets import evaluation_dataset, ids_of, labels_of
from toolkit.representations import EvaluationView


class Samples(Dataset):
    def __init__(self, samples):
        self.items = samples

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Boxes(Samples):
    """A detection data set: the class of each image's boxes in `targets`."""

    def __init__(self, targets):
        super().__init__([{"img": torch.zeros(3, 2, 2)}] * len(targets))
        self.targets = targets


class Transformed(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.transform(index)


def folder(root):
    for name in ("ant/1.png", "ant/0.png", "bee/0.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return ImageFolder(root)


def test_labels_from_everywhere(tmp_path):
    tensors = TensorDataset(torch.zeros(3, 1), torch.tensor([2, 0, 1]))
    assert labels_of(tensors) == [2, 0, 1]
    assert labels_of(TensorDataset(torch.zeros(3, 1))) is None
    assert labels_of(TensorDataset(torch.zeros(3, 1), torch.zeros(3))) is None
    assert labels_of(Subset(tensors, [2, 1])) == [1, 0]
    assert labels_of(ConcatDataset([tensors, Subset(tensors, [0])])) == [2, 0, 1, 2]
    assert labels_of(folder(tmp_path)) == [0, 0, 1]
    assert labels_of(Samples([(0, 5), (0, np.int64(6))])) == [5, 6]
    assert labels_of(Samples([(0, torch.tensor(5))])) == [5]
    assert labels_of(Samples([(0, [1, 2]), (0, [3])])) == [[1, 2], [3]]
    assert labels_of(Samples([{"image": 0, "label": "cat"}])) == ["cat"]
    assert labels_of(Samples([(0, []), (0, [3])])) == [[], [3]]
    assert labels_of(Samples([(0, torch.tensor([0.0, 1.0, 1.0]))])) == [[1, 2]]
    assert labels_of(TensorDataset(torch.zeros(2, 1), torch.eye(2).long())) == [[0], [1]]
    assert labels_of(Boxes([[0, 1, 1], [], [2]])) == [[0, 1, 1], [], [2]]
    assert labels_of(EvaluationView(Subset(Boxes([[0, 1, 1], [], [2]]), [1, 0]))) == [[], [0, 1, 1]]
    assert labels_of(ConcatDataset([Boxes([[3, 3]]), Boxes([[]])])) == [[3, 3], []]
    assert labels_of(Boxes([torch.tensor([0, 1, 1]), torch.tensor([]), torch.tensor([2])])) == [[0, 1, 1], [], 2]
    assert labels_of(Boxes([np.array([0, 3]), np.array([1, 1])])) == [[0, 3], [1, 1]]
    assert labels_of(Boxes([torch.tensor([0, 1]), torch.tensor([1, 1])])) == [[1], [0, 1]], "rows of zeros and ones"
    assert labels_of(Samples([torch.zeros(2)])) is None
    assert labels_of(Samples([])) is None


def test_ids_are_files_relative_to_the_root(tmp_path):
    images = folder(tmp_path / "a")
    assert ids_of(images) == ["ant/0.png", "ant/1.png", "bee/0.png"]
    assert ids_of(Subset(images, [2, 0])) == ["bee/0.png", "ant/0.png"]
    assert ids_of(ConcatDataset([images, folder(tmp_path / "b")])) is None, "the same names twice tell nothing"
    assert ids_of(TensorDataset(torch.zeros(3, 1))) is None


def test_evaluation_dataset_takes_the_transform_of_the_validation_set():
    train, validation = Transformed(lambda i: -i), Transformed(lambda i: i * 10)
    plain = evaluation_dataset(Subset(ConcatDataset([train, train]), [1, 5]), Subset(validation, [0]))
    assert [plain[0], plain[1]] == [10, 20]
    assert train[1] == -1, "the training set itself is not changed"
    assert evaluation_dataset(train, None) is train
    assert evaluation_dataset(train, TensorDataset(torch.zeros(1))) is train
