"""DOCX -> text with its headings, by mammoth, which gives the document's structure as HTML."""

from __future__ import annotations

import io
import zipfile

from minimemo.errors import InputError
from minimemo.readers.html import read_html
from minimemo.text.document import Place

LARGEST = 256 << 20  # bytes of the document's XML, unpacked


def read_docx(content: bytes, name: str) -> tuple[str, list[Place], list[str]]:
    """The text of a document with headings, lists, tables and notes; comments and deleted text are left out.

    Raises InputError for what is damaged or too large.
    """
    import mammoth

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as package:
            if sum(part.file_size for part in package.infolist() if part.filename.endswith(".xml")) > LARGEST:
                raise InputError(f"{name}: unpacks to more than {LARGEST >> 20} MB of text; split it")
            for part in package.infolist():
                if part.filename.endswith(".xml") and b"<!ENTITY" in package.read(part):
                    raise InputError(f"{name}: a damaged document (it defines XML entities); save it again")
        no_pictures = mammoth.images.img_element(lambda _: {})
        page = mammoth.convert_to_html(io.BytesIO(content), convert_image=no_pictures).value
    except InputError:
        raise
    except Exception as error:  # mammoth lets every fault of a file through as it comes
        raise InputError(f"{name}: a damaged Word document ({error}); save it again") from None
    text = read_html(f"<body>{page}</body>")
    return text.text, text.places, []
