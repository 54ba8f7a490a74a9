"""What is written about the sidecar agrees with what it is."""

from scripts import reference


def test_the_variables_are_those_it_reads() -> None:
    page = reference.SIDECAR.read_text()
    assert reference.written(page, reference.VARIABLES, reference.variables()) == page, "run scripts.reference"
