"""Where sentences end."""

import re

# A mark behind which a space or nothing follows, past closing quotes and brackets; in scripts without spaces, any.
_END = re.compile(r"""[.!?…।؟۔]["'”’»)\]]*(?=\s|$)|[。！？｡]["'”’」』）)\]]*""")


def last_end(text: str) -> int:
    """Characters up to the end of the last whole sentence, 0 where there is none; "Mr. " counts as one."""
    end = 0
    for match in _END.finditer(text):
        end = match.end()
    return end
