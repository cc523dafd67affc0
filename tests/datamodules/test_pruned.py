import copy
import warnings

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from toolkit import FeatureExtractor, RandomSelector, Selection, SemanticSelector, WaveletSelector
from toolkit.datamodules import PrunedDataModule


def tensors(n=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(n, 3, 8, 8, generator=generator), torch.arange(n) % 4)


class Data(L.LightningDataModule):
    """A data module as people write them."""

    def __init__(self, dataset=None, make_loader=None, batch_size=8):
        super().__init__()
        self.save_hyperparameters(ignore=["dataset", "make_loader"])
        self.dataset = tensors() if dataset is None else dataset
        self.make_loader = make_loader
        self.batch_size = batch_size
        self.calls = []
        self.extra = "an attribute of the inner module"

    def prepare_data(self):
        self.calls.append("prepare_data")

    def setup(self, stage):
        self.calls.append(f"setup {getattr(stage, 'value', stage)}")

    def teardown(self, stage):
        self.calls.append(f"teardown {getattr(stage, 'value', stage)}")

    def train_dataloader(self):
        if self.make_loader is not None:
            return self.make_loader(self.dataset)
        return DataLoader(self.dataset, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(tensors(16, seed=1), batch_size=8)

    def state_dict(self):
        return {"own": torch.tensor(7)}

    def load_state_dict(self, state_dict):
        self.calls.append(f"load_state_dict {int(state_dict['own'])}")


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(6, 4)
        self.seen = []

    def forward(self, images):
        return self.linear(self.avgpool(self.conv(images).relu()).flatten(1))

    def training_step(self, batch, batch_idx):
        self.seen += batch[0][:, 0, 0, 0].tolist()
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        self.total_steps = self.trainer.estimated_stepping_batches
        return optimizer


def trainer(tmp_path, **options):
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(tmp_path),
        "enable_checkpointing": False,
    }
    return L.Trainer(**{**defaults, **options})


def semantic(model=None, keep_fraction=0.75, **options):
    features = FeatureExtractor(Model() if model is None else model, progress=False, cache=False)
    return SemanticSelector(features, keep_fraction, progress=False, **options)


def loader_of(datamodule):
    datamodule.setup("fit")
    return datamodule.train_dataloader()


def test_training_sees_the_kept_images_alone_and_the_schedule_their_number(tmp_path):
    torch.manual_seed(0)
    model, inner = Model(), Data()
    datamodule = PrunedDataModule(inner, semantic(model))
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, datamodule=datamodule)
    selection = datamodule.selection
    assert len(selection.kept) == 36
    assert model.total_steps == 2 * 5, "36 images in batches of 8, two epochs"
    kept_pixels = inner.dataset.tensors[0][selection.kept][:, 0, 0, 0].tolist()
    assert sorted(model.seen) == sorted(kept_pixels * 2)
    assert inner.calls == ["prepare_data", "setup fit", "teardown fit"]
    assert inner.trainer is run
    assert len(run.val_dataloaders.dataset) == 16
    assert datamodule.origin == "chosen"


def test_the_second_run_finds_the_selection_in_the_cache(tmp_path):
    model, data = Model(), tensors()
    first = PrunedDataModule(Data(data), semantic(model), cache_dir=tmp_path)
    first.setup("fit")
    again = PrunedDataModule(Data(data), semantic(copy.deepcopy(model)), cache_dir=tmp_path)
    again.datamodule.dataset = data
    again.setup("fit")
    np.testing.assert_array_equal(first.selection.kept, again.selection.kept)
    assert (first.origin, again.origin) == ("chosen", "cache")
    assert again.selection_folder.parent == tmp_path / "selections"

    different = {
        "weights": PrunedDataModule(Data(data), semantic(Model()), cache_dir=tmp_path),
        "settings": PrunedDataModule(Data(data), semantic(model, linkage="average"), cache_dir=tmp_path),
        "data": PrunedDataModule(Data(tensors(seed=9)), semantic(model), cache_dir=tmp_path),
    }
    for name, module in different.items():
        module.setup("fit")
        assert module.selection is not None
        assert module.origin == "chosen", name


def test_an_altered_cache_is_made_anew(tmp_path):
    model, data = Model(), tensors()
    first = PrunedDataModule(Data(data), semantic(model), cache_dir=tmp_path)
    loader_of(first)
    (first.selection_folder / "selection.csv").write_text("index,id\n")
    again = PrunedDataModule(Data(data), semantic(model), cache_dir=tmp_path)
    with pytest.warns(UserWarning, match="A cached selection cannot be used and is made anew"):
        loader_of(again)
    np.testing.assert_array_equal(first.selection.kept, again.selection.kept)


def test_a_selection_that_cannot_be_kept_is_used_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(Selection, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    datamodule = PrunedDataModule(Data(), semantic(), cache_dir=tmp_path)
    with pytest.warns(UserWarning, match="could not be kept .*No space left"):
        assert len(loader_of(datamodule).dataset) == 36


def test_an_unwritable_cache_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="`cache_dir` must be a folder that can be written to"):
        loader_of(PrunedDataModule(Data(), semantic(), cache_dir=tmp_path / "file"))


def test_resume_continues_with_the_identical_subset_without_choosing(tmp_path):
    torch.manual_seed(0)
    model, data = Model(), tensors()
    first = PrunedDataModule(Data(data), semantic(model))
    run = trainer(tmp_path)
    run.fit(model, datamodule=first)
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)

    class Refusing:
        def select(self, dataset=None, labels=None, ids=None):
            raise AssertionError("a resumed run does not choose")

    resumed_model = Model()
    resumed = PrunedDataModule(Data(data), Refusing())
    trainer(tmp_path, max_epochs=2).fit(resumed_model, datamodule=resumed, ckpt_path=path, weights_only=True)
    np.testing.assert_array_equal(resumed.selection.kept, first.selection.kept)
    np.testing.assert_array_equal(resumed.selection.representative, first.selection.representative)
    assert sorted(resumed_model.seen) == sorted(data.tensors[0][first.selection.kept][:, 0, 0, 0].tolist())
    assert "load_state_dict 7" in resumed.datamodule.calls
    assert resumed.origin == "checkpoint"

    for changed, match in [
        (tensors(47), "of 48 images, the data set now has 47"),
        (tensors(seed=5), "its f"),
    ]:
        with pytest.raises(MisconfigurationException, match=f"The training data changed.*{match}"):
            trainer(tmp_path, max_epochs=2).fit(
                Model(), datamodule=PrunedDataModule(Data(changed), Refusing()), ckpt_path=path, weights_only=True
            )
    other = PrunedDataModule(Data(data), semantic(model, 0.5))
    with pytest.warns(UserWarning, match="was made with other settings .* goes on with the checkpoint's"):
        trainer(tmp_path, max_epochs=2).fit(Model(), datamodule=other, ckpt_path=path, weights_only=True)
    np.testing.assert_array_equal(other.selection.kept, first.selection.kept)
    allowed = PrunedDataModule(Data(tensors(seed=5)), Refusing(), allow_changed_data=True)
    trainer(tmp_path, max_epochs=2).fit(Model(), datamodule=allowed, ckpt_path=path, weights_only=True)
    np.testing.assert_array_equal(allowed.selection.kept, first.selection.kept)
    validated = PrunedDataModule(Data(tensors(47)), Refusing())
    trainer(tmp_path).validate(Model(), datamodule=validated, ckpt_path=path, weights_only=True, verbose=False)


def test_a_saved_selection_is_trained_on_maybe_edited(tmp_path):
    data = tensors()
    chosen = semantic().select(data)
    chosen.save(tmp_path / "selection")
    datamodule = PrunedDataModule(Data(data), str(tmp_path / "selection"))
    assert len(loader_of(datamodule).dataset) == 36
    lines = (tmp_path / "selection" / "kept.txt").read_text().splitlines()
    (tmp_path / "selection" / "kept.txt").write_text("\n".join(lines[1:]) + "\n")
    with pytest.warns(UserWarning, match="0 images added, 1 taken out"):
        assert len(loader_of(PrunedDataModule(Data(data), tmp_path / "selection")).dataset) == 35
    with pytest.raises(MisconfigurationException, match="from the training set's 47 images, got one from 48"):
        loader_of(PrunedDataModule(Data(tensors(47)), chosen))
    (tmp_path / "selection" / "kept.txt").write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match="from data with another fingerprint"):
        loader_of(PrunedDataModule(Data(tensors(seed=4)), tmp_path / "selection"))
    with pytest.warns(UserWarning, match="that was given was made from data with another fingerprint"):
        loader_of(PrunedDataModule(Data(tensors(seed=4)), chosen))
    with pytest.raises(FileNotFoundError, match="`folder` must hold a saved selection"):
        loader_of(PrunedDataModule(Data(data), tmp_path / "nowhere"))


def test_hooks_attributes_and_hyperparameters_are_the_inner_modules(tmp_path):
    inner = Data()
    datamodule = PrunedDataModule(inner, RandomSelector(0.5))
    assert datamodule.extra == "an attribute of the inner module"
    assert datamodule.hparams == inner.hparams
    datamodule.batch_size = 4
    assert inner.batch_size == 4
    with pytest.raises(AttributeError, match="nowhere"):
        datamodule.nowhere  # noqa: B018
    # A hook that the inner module does not override must not look overridden to Lightning.
    from lightning.pytorch.utilities.model_helpers import is_overridden

    for name in ("on_after_batch_transfer", "test_dataloader", "predict_dataloader", "transfer_batch_to_device"):
        assert not is_overridden(name, datamodule)
    for name in ("val_dataloader", "train_dataloader", "prepare_data", "setup", "state_dict"):
        assert is_overridden(name, datamodule)


def test_a_hook_of_the_model_is_used_where_the_data_module_has_none(tmp_path):
    class Doubling(Model):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            noise = 100 * torch.rand(1) if self.trainer.training or self.training else 1.0
            return [batch[0] * 2 * noise, batch[1]]

    model = Doubling()
    doubled = TensorDataset(tensors().tensors[0] * 2, tensors().tensors[1])
    wanted = semantic(copy.deepcopy(model)).select(doubled)
    datamodule = PrunedDataModule(Data(), semantic(model))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You have overridden `on_after_batch_transfer`")
        trainer(tmp_path).fit(model, datamodule=datamodule)
    np.testing.assert_array_equal(datamodule.selection.kept, wanted.kept)
    np.testing.assert_allclose(datamodule.selection.distance, wanted.distance, atol=1e-6)


class Augmented(Dataset):
    """Images with a transform, as torchvision's data sets have."""

    def __init__(self, transform, n=24):
        self.targets = [i % 3 for i in range(n)]
        self.transform = transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index))
        return self.transform(image), self.targets[index]

    def fingerprint(self):
        return "the same images"


def noisy(image):
    return image + torch.rand_like(image)


def plain(image):
    return image


@pytest.mark.parametrize("switched_off_by", ["validation", "evaluation_dataset", "nobody"])
def test_images_are_seen_as_for_evaluation(switched_off_by):
    class Module(Data):
        def val_dataloader(self):
            if switched_off_by == "validation":
                return [DataLoader(Augmented(plain, 6), batch_size=4)]
            return DataLoader(tensors(4))

    inner = Module(Augmented(noisy))
    if switched_off_by == "evaluation_dataset":
        inner.evaluation_dataset = lambda: Augmented(plain)
    model = Model()
    datamodule = PrunedDataModule(inner, semantic(model, 0.5), cache=False)
    if switched_off_by == "nobody":
        with pytest.warns(UserWarning, match="Reading the same images twice gives different ones"):
            loader_of(datamodule)
        return
    loader = loader_of(datamodule)
    np.testing.assert_array_equal(datamodule.selection.kept, semantic(model, 0.5).select(Augmented(plain)).kept)
    assert not torch.equal(loader.dataset[0][0], loader.dataset[0][0]), "training itself stays augmented"


def test_an_evaluation_dataset_of_another_length_is_refused():
    inner = Data()
    inner.evaluation_dataset = lambda: tensors(5)
    with pytest.raises(MisconfigurationException, match="must have the training set's 48 images .* got 5"):
        loader_of(PrunedDataModule(inner, semantic()))


def test_with_indices_replaces_the_subset():
    inner = Data()
    asked = []

    def with_indices(kept):
        asked.append(kept)
        return Subset(inner.dataset, kept)

    inner.with_indices = with_indices
    datamodule = PrunedDataModule(inner, RandomSelector(0.5))
    loader_of(datamodule)
    assert asked == [datamodule.selection.kept.tolist()]


@pytest.mark.parametrize(
    ("dataset", "n_kept"),
    [
        (lambda: ConcatDataset([tensors(20), tensors(28, seed=3)]), 24),
        (lambda: Subset(tensors(), range(0, 48, 2)), 12),
        (lambda: [(torch.rand(3, 8, 8), i % 2) for i in range(10)], 5),
    ],
)
@pytest.mark.filterwarnings("ignore:The content of a")
def test_any_indexable_data_set(dataset, n_kept):
    datamodule = PrunedDataModule(Data(dataset()), semantic(keep_fraction=0.5))
    assert len(loader_of(datamodule).dataset) == n_kept
    assert sum(len(batch[1]) for batch in datamodule.train_dataloader()) == n_kept


class Doubled(DataLoader):
    """A subclass with the same arguments."""


def double_collate(samples):
    return torch.stack([image for image, _ in samples]) * 2, torch.tensor([int(label) for _, label in samples])


def test_the_loaders_own_settings_are_kept():
    generator = torch.Generator().manual_seed(3)

    def make(dataset):
        return Doubled(
            dataset,
            batch_size=5,
            shuffle=True,
            drop_last=True,
            collate_fn=double_collate,
            generator=generator,
            timeout=0,
            num_workers=2,
            persistent_workers=True,
            prefetch_factor=3,
        )

    loader = loader_of(PrunedDataModule(Data(make_loader=make), RandomSelector(0.5)))
    assert type(loader) is Doubled
    assert (loader.batch_size, loader.drop_last, loader.num_workers) == (5, True, 2)
    assert (loader.prefetch_factor, loader.persistent_workers) == (3, True)
    assert loader.collate_fn is double_collate
    assert loader.generator is generator
    assert isinstance(loader.sampler, RandomSampler)
    assert len(loader) == 4


@pytest.mark.parametrize(
    ("options", "check"),
    [
        (lambda d: {"batch_size": 8}, lambda s, kept: type(s) is SequentialSampler),
        (lambda d: {"sampler": RandomSampler(d, replacement=True, num_samples=30)}, lambda s, kept: len(s) == 15),
        (lambda d: {"sampler": RandomSampler(d, num_samples=10)}, lambda s, kept: len(s) == 5),
        (
            lambda d: {"sampler": WeightedRandomSampler([float(i) for i in range(len(d))], len(d))},
            lambda s, kept: s.weights.tolist() == [float(i) for i in kept] and len(s) == len(kept),
        ),
        (
            lambda d: {"batch_sampler": BatchSampler(SequentialSampler(d), 6, drop_last=True)},
            lambda s, kept: type(s) is SequentialSampler,
        ),
        (lambda d: {"sampler": torch.utils.data.DistributedSampler(d, 2, 1)}, lambda s, kept: len(s) == len(kept) // 2),
    ],
)
def test_samplers_are_translated(options, check):
    datamodule = PrunedDataModule(Data(make_loader=lambda d: DataLoader(d, **options(d))), RandomSelector(0.5))
    loader = loader_of(datamodule)
    kept = datamodule.selection.kept.tolist()
    assert check(loader.sampler, kept)
    if "batch_sampler" in options(range(3)):
        assert (loader.batch_size, loader.drop_last) == (6, True)
    assert all(0 <= index < len(kept) for index in loader.sampler)


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.rand(3, 8, 8), 0


class Endless(Dataset):
    def __getitem__(self, index):
        return torch.rand(3, 8, 8), 0


class OwnSampler(Sampler):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(range(self.n))

    def __len__(self):
        return self.n


class OwnLoader(DataLoader):
    def __init__(self, dataset, **_):
        super().__init__(dataset)

    def __new__(cls, *args, **kwargs):
        if kwargs:
            raise TypeError("no arguments, please")
        return super().__new__(cls)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda d: DataLoader(Stream()), "must be read by index to be pruned, got Stream"),
        (lambda d: DataLoader(Endless(), sampler=OwnSampler(3)), "must have a length to be pruned, got Endless"),
        (lambda d: {"a": DataLoader(d)}, "must return one DataLoader to be pruned, got dict"),
        (lambda d: [DataLoader(d)], "must return one DataLoader to be pruned, got list"),
        (
            lambda d: DataLoader(d, sampler=OwnSampler(48)),
            "sampler must be one of PyTorch's to be pruned, got OwnSampler",
        ),
        (
            lambda d: DataLoader(d, batch_sampler=[[0, 1], [2]]),
            "batch_sampler must be one of PyTorch's to be pruned, got list",
        ),
        (lambda d: OwnLoader(d), "must be a DataLoader, or a subclass with the same arguments"),
    ],
)
def test_loaders_that_cannot_be_pruned_say_what_to_do(make, match):
    with pytest.raises(MisconfigurationException, match=match):
        loader_of(PrunedDataModule(Data(make_loader=make), RandomSelector(0.5)))


def test_missing_labels_say_what_to_do():
    datamodule = PrunedDataModule(Data(TensorDataset(torch.rand(9, 3, 8, 8))), semantic())
    with pytest.raises(ValueError, match="`labels` must be given where scope='class'"):
        loader_of(datamodule)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PrunedDataModule(tensors(), None), "`datamodule` must be a LightningDataModule, got TensorDataset"),
        (lambda: PrunedDataModule(PrunedDataModule(Data())), "must be one that is not pruned yet"),
        (lambda: PrunedDataModule(Data(), 3), "`selector` must have a method `select`, or be a folder, got int"),
    ],
)
def test_constructor_errors(make, match):
    with pytest.raises(TypeError, match=match):
        make()


def test_selection_before_setup_is_an_error():
    with pytest.raises(RuntimeError, match=r"Call `prepare_data\(\)` and `setup\('fit'\)`"):
        PrunedDataModule(Data(), RandomSelector(0.5)).selection  # noqa: B018


def test_without_a_selector_nothing_changes():
    loader = loader_of(PrunedDataModule(Data(), None))
    assert len(loader.dataset) == 48
    assert isinstance(loader.dataset, TensorDataset)


def test_vectors_that_exist_prune_a_data_module():
    vectors = np.random.default_rng(0).normal(size=(48, 5))
    datamodule = PrunedDataModule(Data(), SemanticSelector(vectors, 0.5, progress=False))
    assert len(loader_of(datamodule).dataset) == 24
    short = PrunedDataModule(Data(), SemanticSelector(vectors[:40], 0.5, progress=False))
    with pytest.raises(ValueError, match="`embeddings` must be one row for each of the data set's 48 images"):
        loader_of(short)


class Rows(Dataset):
    """Images in `.data`, labels that show in the samples alone or in `.y`."""

    def __init__(self, labels, own_attribute):
        self.data = np.random.default_rng(0).random((24, 3, 8, 8), dtype=np.float32)
        self.hidden = labels
        if own_attribute:
            self.y = labels

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.from_numpy(self.data[index]), self.hidden[index]


@pytest.mark.parametrize("own_attribute", [False, True])
def test_a_cached_selection_is_not_used_for_other_labels(own_attribute):
    model = Model()
    for labels in ([i % 2 for i in range(24)], [i % 3 for i in range(24)]):
        datamodule = PrunedDataModule(Data(Rows(labels, own_attribute)), semantic(model, 0.5))
        loader_of(datamodule)
        assert datamodule.origin == "chosen"
        assert [label for (label,) in datamodule.selection.labels] == labels


def test_ids_in_arrays_decide_the_fingerprint():
    ids = np.arange(1500)
    one, other = semantic(always_remove=ids), semantic(always_remove=np.where(ids == 700, 1600, ids))
    assert one.config()["always_remove"][700] == 700
    assert semantic(Model(), 0.5).config() == semantic(Model(), 0.5).config()
    one.features = other.features = np.ones((3, 3))
    assert one.fingerprint() != other.fingerprint()


def test_a_sampler_that_draws_some_images_makes_those_the_training_set():
    drawn = list(range(0, 48, 2))
    datamodule = PrunedDataModule(
        Data(make_loader=lambda d: DataLoader(d, batch_size=4, sampler=SubsetRandomSampler(drawn))),
        semantic(keep_fraction=0.5),
    )
    loader = loader_of(datamodule)
    assert len(datamodule.selection) == 24
    assert len(loader.dataset) == 12
    kept = {float(loader.dataset[i][0][0, 0, 0]) for i in range(12)}
    assert kept <= {float(tensors()[i][0][0, 0, 0]) for i in drawn}
    assert type(loader.sampler) is RandomSampler


def test_training_is_the_same_with_a_found_and_a_made_selection(tmp_path):
    class Random(Dataset):
        """Labels have to be read out of randomly augmented samples."""

        def __len__(self):
            return 24

        def __getitem__(self, index):
            return torch.rand(3, 8, 8), index % 2

        def fingerprint(self):
            return "the same"

    class Plain(Random):
        def __getitem__(self, index):
            return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index)), index % 2

    model, sums = Model(), []
    for _ in range(2):
        inner = Data(Random())
        inner.evaluation_dataset = Plain
        datamodule = PrunedDataModule(inner, semantic(model, 0.5), cache_dir=tmp_path)
        torch.manual_seed(5)
        sums.append((datamodule.origin, sum(float(batch[0].sum()) for batch in loader_of(datamodule))))
    assert sums[0] == sums[1]


def test_an_error_of_the_inner_module_is_not_hidden():
    class Broken(Data):
        def train_dataloader(self):
            return self.not_there

    datamodule = PrunedDataModule(Broken(), RandomSelector(0.5))
    datamodule.setup("fit")
    with pytest.raises(RuntimeError, match="The selection could not be made: .*not_there"):
        datamodule.selection  # noqa: B018


def test_half_precision_training_takes_features_in_float32(tmp_path):
    model = Model()
    datamodule = PrunedDataModule(Data(), semantic(copy.deepcopy(model)))
    trainer(tmp_path, precision="bf16-true").fit(model, datamodule=datamodule)
    assert len(datamodule.selection.kept) == 36


def test_views_are_of_the_training_images_or_of_a_loaders():
    datamodule = PrunedDataModule(Data(), RandomSelector(0.5), cache=False)
    datamodule.setup("fit")
    training = datamodule.evaluation_view()
    assert len(training) == 48, "also those that are removed"
    assert torch.equal(training.load([3, 5])[0], datamodule.datamodule.dataset.tensors[0][[3, 5]])
    other = tensors(n=10, seed=1)
    loader = DataLoader(other, batch_size=4, collate_fn=double_collate)
    for given in (loader, [loader], [[loader], DataLoader(tensors())]):
        view = datamodule.evaluation_view(given)
        assert view.dataset is other
        assert view.collate_fn is double_collate


def test_wavelets_prune_a_data_module():
    x, y = tensors().tensors
    twins = TensorDataset(torch.cat([x, (x + 0.01).clamp(0, 1)]), torch.cat([y, y]))
    datamodule = PrunedDataModule(Data(twins), WaveletSelector(0.5, progress=False), cache=False)
    datamodule.setup("fit")
    kept = datamodule.selection.kept
    assert len(kept) == 48
    assert set(kept % 48) == set(range(48)), "one of each pair"
    assert len(loader_of(datamodule).dataset) == 48
