"""DOCX -> text with its headings, by mammoth, which gives the document's structure as HTML."""

from __future__ import annotations

import io
import zipfile

from minimemo.errors import InputError
from minimemo.readers.html import Text, read_html
from minimemo.text.document import Place

LARGEST = 64 << 20  # bytes of the document's XML, unpacked

_XML = (".xml", ".rels")


def read_docx(content: bytes, name: str) -> tuple[str, list[Place], list[str]]:
    """The text of a document with headings, lists, tables and notes; comments and deleted text are left out.

    Raises InputError for what is damaged or too large.
    """
    import mammoth

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as package:
            if sum(part.file_size for part in package.infolist() if part.filename.endswith(_XML)) > LARGEST:
                raise InputError(f"{name}: unpacks to more than {LARGEST >> 20} MB of text; split it")
            for part in package.infolist():
                if part.filename.endswith(_XML) and b"<!ENTITY" in package.read(part).replace(b"\0", b""):
                    raise InputError(f"{name}: a damaged document (it defines XML entities); save it again")
        no_pictures = mammoth.images.img_element(lambda _: {})
        page = mammoth.convert_to_html(io.BytesIO(content), convert_image=no_pictures).value
    except InputError:
        raise
    except Exception as error:  # mammoth lets every fault of a file through as it comes
        raise InputError(f"{name}: a damaged Word document ({error}); save it again") from None
    text = read_html(f"<body>{page}</body>", name, Text())
    return text.text, text.places, []
