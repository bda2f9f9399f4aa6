"""Documents as people have them."""

import pytest

from preread.testing.documents import docx, paragraph, pdf


@pytest.fixture(scope="session")
def manual_docx() -> bytes:
    return docx(
        paragraph("Air cleaner", "Heading1")
        + paragraph("The fan has code 107.")
        + paragraph("Care", "Heading2")
        + paragraph("Change it weekly.")
    )


@pytest.fixture(scope="session")
def manual_pdf() -> bytes:
    return pdf("The pump has code 211.", "", "Empty it every day.")
