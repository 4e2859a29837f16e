"""Class names in captions: find them, and replace them for controls.

A caption names a class if it contains the words of its name in order; case, punctuation and underscores are ignored. Of
several names the longest counts, then the first; of classes with the same name the first.
"""

import re
from collections.abc import Sequence

from trainer.evaluate.numbers.arrays import Labels

NO_CLASS = -1
_WORD = re.compile(r"[^\W_]+[+#]*")  # with C++ and C# as words of their own


class ClassNames:
    """Class names of a set, as a matcher for captions."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = list(classes)
        self._labels: dict[tuple[str, ...], int] = {}
        for label, name in enumerate(classes):
            self._labels.setdefault(tuple(word.casefold() for word in _WORD.findall(name)), label)
        self._labels.pop((), None)
        self._lengths = sorted({len(words) for words in self._labels}, reverse=True)

    def label(self, caption: str) -> int:
        """The class named by a caption, or NO_CLASS."""
        return self._find(caption)[0]

    def exchange(self, caption: str, permutation: Labels) -> str:
        """Replace the name of class c in a caption by that of ``permutation[c]``; a caption without a name is kept."""
        label, start, end = self._find(caption)
        if label == NO_CLASS:
            return caption
        name: str = self._classes[permutation[label]]
        return caption[:start] + name + caption[end:]

    def _find(self, caption: str) -> tuple[int, int, int]:
        """(label, start, end) of the class name in a caption."""
        words = list(_WORD.finditer(caption))
        folded = [word.group().casefold() for word in words]
        for length in self._lengths:
            for first in range(len(words) - length + 1):
                label = self._labels.get(tuple(folded[first : first + length]))
                if label is not None:
                    return label, words[first].start(), words[first + length - 1].end()
        return NO_CLASS, 0, 0
