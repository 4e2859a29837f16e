import numpy as np
import pytest

from trainer.evaluate.with_memory.names import NO_CLASS, ClassNames

NAMES = ClassNames(
    ["Visual Studio", "Visual Studio Code", "C", "C++", "C#", "X", "São Tomé", "red panda", "Red Panda", "-"]
)


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("logo of Visual Studio, flat", 0),
        ("the visual-studio_code logo", 1),
        ("c", 2),
        ("a C++ file", 3),
        ("a c# file", 4),
        ("Xbox", NO_CLASS),
        ("x or c: the first of two as long", 5),
        ("flag of SÃO TOMÉ!", 6),
        ("RED PANDA", 7),
        ("", NO_CLASS),
        ("-", NO_CLASS),
        ("panda red", NO_CLASS),
    ],
)
def test_the_longest_name_in_whole_words_is_found(caption, label):
    assert NAMES.label(caption) == label


def test_names_are_exchanged_where_they_stand():
    permutation = np.roll(np.arange(10), -1)
    assert NAMES.exchange("logo of visual_studio, flat", permutation) == "logo of Visual Studio Code, flat"
    assert NAMES.exchange("nothing of it", permutation) == "nothing of it"
