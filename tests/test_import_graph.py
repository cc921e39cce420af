"""Which module imports which: `make lint` checks the layers of folders, these tests what it does not see."""

from __future__ import annotations

import grimp
import pytest


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("fastmalade", cache_dir=None)


def test_no_files_import_each_other_in_a_circle(graph):
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    # Take away modules that import nothing of what is left, until nothing changes: what remains lies on circles or
    # above them.
    while free := [module for module, imported in imports.items() if not imported]:
        imports = {module: imported - set(free) for module, imported in imports.items() if module not in free}
    assert imports == {}


def test_only_programs_import_the_package_as_a_whole(graph):
    importers = graph.find_modules_that_directly_import("fastmalade")
    assert {module.split(".")[1] for module in importers} <= {"bench", "cli"}
