"""What importing the library costs."""

import subprocess
import sys

HEAVY = "('grpclib', 'betterproto2', 'aiohttp', 'asyncio', 'carina.rpc')"


def loaded(statement: str) -> str:
    code = f"import sys\n{statement}\nprint([name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_library_is_cheap_until_it_is_used() -> None:
    """`import carina` loads nothing; naming the client loads what it connects with, and no http."""
    assert loaded("import carina") == "[]"
    assert "aiohttp" not in loaded("import carina; carina.Client; carina.embedded")


def test_there_is_nothing_else() -> None:
    """A name that the library does not have is an AttributeError, as of any module."""
    code = "import carina\ntry: carina.absent\nexcept AttributeError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "module 'carina' has no attribute 'absent'"
