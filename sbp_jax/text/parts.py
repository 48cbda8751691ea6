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
    while len(text) > longest:
        size = min(longest, -(-len(text) // -(-len(text) // longest)) * 5 // 4)  # the last part is no remainder
        places = (text.rfind(mark, size // 2, size) + len(mark.rstrip()) for mark in BREAKS)
        place = next((place for place in places if place >= size // 2), size)
        yield text[:place].rstrip()
        text = text[place:].lstrip()
    if text:
        yield text
