"""What `ctr` says of input that can't be: the status that it knows, and a sentence with the name in it."""

from support.constellation import Constellation

DIGEST = "sha256:" + "a" * 64
SYNTAX = "expected one of the operators ==, != and ~=: invalid argument"
REFUSED = {
    ("namespaces", "create", "a/b"): "namespace 'a/b' is not valid",
    ("namespaces", "create", "x" * 77): "has 77 characters, more than 76: invalid argument",
    ("namespaces", "label", "other", "k=" + "v" * 5000): "label 'k' is 5001 bytes long with its value, more than 4096",
    ("images", "ls", "name=x"): SYNTAX,
    ("images", "tag", "nothing:1", "other:1"): "image 'nothing:1' does not exist: not found",
    ("images", "label", "nothing:1", "a=b"): "image 'nothing:1' does not exist: not found",
    ("content", "get", DIGEST): f"content {DIGEST} does not exist: not found",
    ("content", "label", DIGEST, "a=b"): f"content {DIGEST} does not exist: not found",
    ("content", "ls", "digest=x"): SYNTAX,
    ("containers", "info", "nothing"): "container 'nothing' does not exist: not found",
    ("containers", "rm", "nothing"): "container 'nothing' does not exist: not found",
    ("containers", "label", "nothing", "a=b"): "container 'nothing' does not exist: not found",
    ("containers", "ls", "id=x"): SYNTAX,
    ("leases", "create", "--id", "x" * 5000): "is longer than 4096 bytes: invalid argument",
    ("leases", "rm", "nothing"): "lease 'nothing' does not exist: not found",
    ("leases", "ls", "id=x"): SYNTAX,
    ("snapshots", "rm", "nothing"): "snapshot 'nothing' does not exist: not found",
}


def test_refusals(constellation: Constellation) -> None:
    """Each mistake is refused with its reason in one line."""
    for arguments, sentence in REFUSED.items():
        answer = constellation.ctr(*arguments, check=False)
        assert (arguments, answer.status) == (arguments, 1)
        assert sentence in answer.error
        assert "Traceback" not in answer.error


def test_second_of_a_name(constellation: Constellation) -> None:
    """What is there already is refused as such."""
    constellation.ctr("leases", "create", "--id", "twice")
    again = constellation.ctr("leases", "create", "--id", "twice", check=False)
    assert again.status == 1
    assert "lease 'twice' already exists: already exists" in again.error
    constellation.ctr("leases", "rm", "twice")


def test_namespace_that_is_no_name(constellation: Constellation) -> None:
    """Every call checks the namespace that it is for."""
    answer = constellation.ctr("--namespace", "bad name", "images", "ls", check=False)
    assert answer.status == 1
    assert "namespace 'bad name' is not valid" in answer.error
