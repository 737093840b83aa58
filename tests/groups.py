"""Which tests stay together in one of pytest-xdist's processes: they share engines and servers.

Not its own ``xdist_group``: with pytest 9.2, pytest-xdist 3.8 reads the mark and splits each file.
"""

from xdist.scheduler import LoadScopeScheduling

# Long, and shares nothing with the tests of its file: by the start of its id.
ALONE = (
    "tests/engine/test_own_process.py::",
    "tests/engine/test_patched_vllm.py::test_its_hooks_are_called[",
    "tests/engine/test_v2_runner.py::",
    "tests/kernels/test_own_process.py::",
    "tests/scripts/test_check_architectures.py::test_they_are_exact_or_refused[",
)
# Each shares a server.
FOLDERS = ("tests/clients/", "tests/engine/serving/")


def is_alone(nodeid: str) -> bool:
    return nodeid.startswith(ALONE)


def group_of(nodeid: str) -> str:
    """A file, unless it is a test that is alone, or of a folder whose files share something."""
    if is_alone(nodeid):
        return nodeid
    folder = next((folder for folder in FOLDERS if nodeid.startswith(folder)), None)
    return folder or nodeid.partition("::")[0]


class Groups(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
