"""Folders that may be splits, and text files as other programs save them."""

import io

import numpy as np
import pytest

from helpers.evaluation_sets import (
    CLASSES,
    classification_set,
    encoded,
    npy,
    picture,
    picture_folders,
    write_split,
    write_texts,
)
from memory_builder.errors import SourceError
from trainer.evaluate.sets.datasets import open_dataset

PNG = encoded(picture(0, 1))


@pytest.mark.parametrize("splits", [("train", "val"), ("notes", "train"), ("Validation",), ("fold-0", "fold-1")])
def test_splits_are_not_taken_for_classes(tmp_path, splits):
    for split in splits:
        (tmp_path / "notes").mkdir() if split == "notes" else picture_folders(tmp_path, split=split)
    there = ", ".join(splits)
    with pytest.raises(SourceError, match=rf"no split 'test': .* its folders: {there}\. Name another with --split"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, splits[-1]).classes) == 12


def test_pictures_that_lie_in_a_split_itself_are_not_one_class(tmp_path):
    (tmp_path / "test").mkdir()
    picture(0, 0).save(tmp_path / "test" / "0.png")
    with pytest.raises(
        SourceError, match=r"test holds pictures outside of class folders: .* or name another split with --split"
    ):
        open_dataset(tmp_path)
    picture_folders(tmp_path)  # a stray picture beside class folders is none of theirs
    assert len(open_dataset(tmp_path).classes) == 12


def test_text_files_may_begin_with_a_byte_order_mark(tmp_path):
    classification_set(tmp_path, splits={"test": 1})
    (tmp_path / "dataset_type.txt").write_text("classification\n", "utf-8-sig")
    (tmp_path / "test" / "nshards.txt").write_text("2\n", "utf-8-sig")
    dataset = open_dataset(tmp_path)
    assert (dataset.kind, len(dataset.files)) == ("classification", 2)


@pytest.mark.parametrize("name", ["dataset_type.txt", "test/nshards.txt"])
def test_a_text_file_of_another_encoding_is_refused_by_name(tmp_path, name):
    classification_set(tmp_path, splits={"test": 1})
    (tmp_path / name).write_text("2", "utf-16")
    with pytest.raises(SourceError, match=rf"{name} is not UTF-8 .*: save it as UTF-8"):
        open_dataset(tmp_path)


def multilabel(root, *arrays):
    write_texts(root, dataset_type="multilabel", classnames=CLASSES, zeroshot_classification_templates="{c}")
    write_split(root, "test", [{"png": PNG, "npy": data} for data in arrays], n_tars=1)
    return root


def test_an_archive_of_arrays_is_no_array(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(12))
    for data in (buffer.getvalue(), b"PK\x03\x04 broken"):
        with pytest.raises(SourceError, match=r"s0000000.npy is no array of numbers .*numpy.save"):
            list(open_dataset(multilabel(tmp_path, data)).examples())


def test_a_multilabel_split_where_nothing_is_shown_is_refused(tmp_path, evaluate):
    ran = evaluate("zero-shot", "--dataset", multilabel(tmp_path, npy([0] * 12), npy([0] * 12)), "--out", tmp_path)
    assert (ran.code, "no picture has a label" in ran.err) == (2, True), ran.err
