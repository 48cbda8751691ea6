"""Long documents cut into parts."""

from collections.abc import Iterator
from dataclasses import replace

from sbp_jax.text.documents import Document

BREAKS = ("\n\n", "\n", ". ", " ")  # where a text is cut, the best first


def parts(document: Document, longest: int) -> Iterator[Document]:
    """The document, or parts of it that have at most so many characters, in order; ids then end in #0, #1 and so on.

    A part ends with the last paragraph in its latter half, or with the last line, sentence or word. What is only space
    between two parts is in neither.
    """
    if len(document.text) <= longest:
        yield document
        return
    for number, text in enumerate(_cut(document.text.strip(), longest)):
        yield replace(document, id=f"{document.id}#{number}", text=text)


def _cut(text: str, longest: int) -> Iterator[str]:
    start = 0
    while (left := len(text) - start) > longest:
        size = min(longest, -(-left // -(-left // longest)) * 5 // 4)  # the last part is no remainder
        half, end = start + size // 2, start + size
        places = (text.rfind(mark, half, end) + len(mark.rstrip()) for mark in BREAKS)
        place = next((place for place in places if place > half), end)
        yield text[start:place].rstrip()
        start = place
        while start < len(text) and text[start].isspace():
            start += 1
    if start < len(text):
        yield text[start:]
