import io
import tarfile

import numpy as np
import pytest

from helpers.evaluation_sets import (
    CLASSES,
    classification_set,
    encoded,
    multilabel_set,
    npy,
    picture,
    picture_folders,
    retrieval_set,
    write_split,
    write_texts,
)
from memory_builder.errors import SourceError
from trainer.evaluate.sets.datasets import DEFAULT_TEMPLATE, open_dataset


def test_a_classification_folder_is_read_whole_in_order(tmp_path):
    dataset = open_dataset(classification_set(tmp_path, splits={"test": 2}))
    assert (dataset.kind, dataset.classes, len(dataset.templates)) == ("classification", CLASSES, 3)
    assert dataset.tiers == ("common", "rare") * 6
    examples = list(dataset.examples())
    assert [example.labels for example in examples] == [(label,) for label in range(12)] * 2
    assert [example.key for example in examples] == [f"s{i:07d}" for i in range(24)]
    assert [example.key for example in dataset.examples(frozenset({"s0000013"}))] == ["s0000013"]


def test_a_multilabel_folder_gives_every_label_of_a_picture(tmp_path):
    dataset = open_dataset(multilabel_set(tmp_path))
    assert dataset.kind == "multilabel"
    assert [example.labels for example in dataset.examples()][:3] == [(0, 1), (1, 2), (2, 3)]


def test_a_retrieval_folder_gives_every_caption_of_a_picture(tmp_path):
    dataset = open_dataset(retrieval_set(tmp_path))
    examples = list(dataset.examples())
    assert dataset.classes == ()
    assert examples[2].captions == (
        "a moon 2",
        "number 2: moon on a light ground",
        "2 moon icons",
    )
    assert [len(example.captions) for example in examples[:4]] == [1, 2, 3, 1]


def test_picture_folders_are_labelled_in_order_of_their_names(tmp_path):
    dataset = open_dataset(picture_folders(tmp_path))
    assert dataset.classes == tuple(sorted(name.replace(" ", "_") for name in CLASSES))
    assert dataset.templates == (DEFAULT_TEMPLATE,)
    examples = list(dataset.examples())
    assert [example.labels[0] for example in examples] == [label for label in range(12) for _ in range(2)]
    assert examples[0].key == "arrow_up/0.png"
    names = [name.replace("_", " ") for name in dataset.classes]
    write_texts(tmp_path, classnames=names, zeroshot_classification_templates="an icon of {c}")
    assert open_dataset(tmp_path).classes == tuple(names)
    assert open_dataset(tmp_path).templates == ("an icon of {c}",)


def test_folders_of_classes_without_splits_are_their_own_test_split(tmp_path):
    picture_folders(tmp_path, split=".")
    assert len(list(open_dataset(tmp_path).examples())) == 24
    with pytest.raises(SourceError, match=r"no split 'train'.*Name another with --split"):
        open_dataset(tmp_path, "train")


def test_the_digest_changes_with_names_and_pictures(tmp_path):
    classification_set(tmp_path, splits={"test": 1})
    before = open_dataset(tmp_path).digest()
    assert open_dataset(tmp_path).digest() == before
    write_texts(tmp_path, classnames=[f"{name}!" for name in CLASSES])
    renamed = open_dataset(tmp_path).digest()
    classification_set(tmp_path, splits={"test": 2})
    assert len({before, renamed, open_dataset(tmp_path).digest()}) == 3


def one_sample(root, **files):
    write_texts(root, classnames=CLASSES, zeroshot_classification_templates="{c}")
    write_split(root, "test", [{"png": encoded(picture(0, 0)), "cls": b"0"}, files], n_tars=1)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "classnames.txt").unlink(), r"classnames.txt is missing: write one class name a line"),
        (lambda root: write_texts(root, classnames=""), r"classnames.txt is empty"),
        (lambda root: write_texts(root, classnames=["a", "", "b"]), r"classnames.txt, line 2 is blank"),
        (lambda root: (root / "classnames.txt").write_bytes(b"\xff\xfe\xfa"), r"not UTF-8"),
        (lambda root: (root / "zeroshot_classification_templates.txt").unlink(), r"templates.txt is missing"),
        (
            lambda root: write_texts(root, zeroshot_classification_templates="a photo"),
            r"'a photo' has no \{c\} for the class name: add it",
        ),
        (lambda root: write_texts(root, zeroshot_classification_templates="{c} of {}"), r"cannot be filled"),
        (lambda root: write_texts(root, zeroshot_classification_templates="{{{c}}}"), r"cannot be filled"),
        (lambda root: write_texts(root, dataset_type="detection"), r"says 'detection': expected classification"),
        (lambda root: write_texts(root, tiers=["rare"] * 3), r"tiers.txt has 3 lines for 12 classes"),
        (lambda root: (root / "test" / "nshards.txt").unlink(), r"nshards.txt is missing"),
        (lambda root: write_texts(root / "test", nshards="some"), r"says 'some': expected the number of tars"),
        (lambda root: write_texts(root / "test", nshards="3"), r"lacks 1 of the 3 tars .*2.tar first"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused_when_it_is_opened(tmp_path, spoil, said):
    classification_set(tmp_path, splits={"test": 1})
    spoil(tmp_path)
    with pytest.raises(SourceError, match=said):
        open_dataset(tmp_path)


PNG = encoded(picture(0, 1))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"png": PNG, "cls": b"12"}, r"0.tar: s0000001.cls says '12': expected a label from 0 to 11.*has 12 lines"),
        ({"png": PNG, "cls": b"cat"}, r"says 'cat'"),
        ({"png": PNG, "cls": b"-1"}, r"says '-1'"),
        ({"png": PNG}, r"s0000001 has no .cls \(the label, a number\), only png"),
        ({"cls": b"1"}, r"s0000001 has no picture"),
    ],
)
def test_a_sample_that_is_not_understood_is_refused_by_name(tmp_path, files, said):
    one_sample(tmp_path, **files)
    with pytest.raises(SourceError, match=said):
        list(open_dataset(tmp_path).examples())


@pytest.mark.parametrize(
    ("kind", "files", "said"),
    [
        ("multilabel", {"png": PNG, "npy": npy([1, 0])}, r"holds int64\[2\]: expected a 0 or 1 for each of the 12"),
        ("multilabel", {"png": PNG, "npy": npy([2] * 12)}, r"expected a 0 or 1"),
        ("multilabel", {"png": PNG, "npy": b"no array"}, r"s0000001.npy is no array"),
        ("multilabel", {"png": PNG, "cls": b"1"}, r"has no .npy .*dataset_type.txt names the kind of the set"),
        ("retrieval", {"png": PNG, "txt": b" \n"}, r"s0000001.txt is empty"),
        ("retrieval", {"png": PNG, "cls": b"1"}, r"has no .txt"),
    ],
)
def test_so_is_one_of_the_other_kinds(tmp_path, kind, files, said):
    good = {"png": PNG, "npy": npy([1] * 12), "txt": b"a caption"}
    write_texts(tmp_path, dataset_type=kind, classnames=CLASSES, zeroshot_classification_templates="{c}")
    write_split(tmp_path, "test", [good, files], n_tars=1)
    with pytest.raises(SourceError, match=said):
        list(open_dataset(tmp_path).examples())


def test_an_empty_split_a_name_twice_and_a_broken_tar_are_refused(tmp_path):
    classification_set(tmp_path, splits={"test": 1})
    tar = tmp_path / "test" / "0.tar"
    whole = tar.read_bytes()
    (tmp_path / "test" / "1.tar").write_bytes(whole)
    with pytest.raises(SourceError, match=r"1.tar: s0000000 occurs twice"):
        list(open_dataset(tmp_path).examples())
    tar.write_bytes(whole[:2000])
    with pytest.raises(SourceError, match=r"0.tar is truncated at byte .*download it again"):
        list(open_dataset(tmp_path).examples())
    for name in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / "test" / name, "w"):
            pass
    with pytest.raises(SourceError, match="test has no samples"):
        list(open_dataset(tmp_path).examples())


def test_picture_folders_that_do_not_fit_are_refused(tmp_path):
    picture_folders(tmp_path)
    write_texts(tmp_path, classnames=["one", "two"])
    with pytest.raises(SourceError, match=r"names 2 classes, .* has 12 folders"):
        open_dataset(tmp_path)
    (tmp_path / "classnames.txt").unlink()
    (tmp_path / "test" / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty holds no picture"):
        open_dataset(tmp_path)
    with pytest.raises(SourceError, match="is no folder"):
        open_dataset(tmp_path / "missing")


def test_arrays_with_pickles_are_not_opened(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], object), allow_pickle=True)
    write_texts(tmp_path, dataset_type="multilabel", classnames=["one"], zeroshot_classification_templates="{c}")
    write_split(tmp_path, "test", [{"png": PNG, "npy": buffer.getvalue()}], n_tars=1)
    with pytest.raises(SourceError, match="is no array of numbers"):
        list(open_dataset(tmp_path).examples())
