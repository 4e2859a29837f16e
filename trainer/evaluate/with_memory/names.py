"""Which class a caption names, and captions with their names exchanged.

A name stands in a caption as whole words in order; case, punctuation and underscores are looked past. Of several names
the longest counts, then the first. Of classes that share a name the first has it.
"""

import re
from collections.abc import Sequence

from trainer.evaluate.numbers.arrays import Labels

NO_CLASS = -1
_WORD = re.compile(r"[^\W_]+[+#]*")  # with C++ and C# as words of their own


class Names:
    """The names of a set's classes, to be looked for."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = list(classes)
        self._labels: dict[tuple[str, ...], int] = {}
        for label, name in enumerate(classes):
            self._labels.setdefault(tuple(word.casefold() for word in _WORD.findall(name)), label)
        self._labels.pop((), None)
        self._lengths = sorted({len(words) for words in self._labels}, reverse=True)

    def label(self, caption: str) -> int:
        """The class that a caption names, or NO_CLASS."""
        return self._find(caption)[0]

    def exchange(self, caption: str, permutation: Labels) -> str:
        """The caption with the name of class c replaced by that of ``permutation[c]``; as it is if it names none."""
        label, start, end = self._find(caption)
        if label == NO_CLASS:
            return caption
        name: str = self._classes[permutation[label]]
        return caption[:start] + name + caption[end:]

    def _find(self, caption: str) -> tuple[int, int, int]:
        """(label, start, end) of the name in the caption."""
        words = list(_WORD.finditer(caption))
        folded = [word.group().casefold() for word in words]
        for length in self._lengths:
            for first in range(len(words) - length + 1):
                label = self._labels.get(tuple(folded[first : first + length]))
                if label is not None:
                    return label, words[first].start(), words[first + length - 1].end()
        return NO_CLASS, 0, 0
