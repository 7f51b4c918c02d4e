"""Runtime specifications: safe defaults, and the caller's wishes over the image's."""

import pytest

from carina.errors import InvalidArgument
from carina.images.manifest import Config
from carina.oci import spec
from carina.oci.user import User
from carina.platforms import host

IMAGE = Config(platform=host(), diff_ids=(), env=("PATH=/bin", "A=1"), entrypoint=("/init",), cmd=("serve",))


def test_nothing_is_inheritable() -> None:
    """No process gets inheritable or ambient capabilities by default."""
    made = spec.generate("one", "test", IMAGE)

    assert set(made["process"]["capabilities"]) == {"bounding", "effective", "permitted"}
    assert made["process"]["noNewPrivileges"] is True


def test_what_leaks_from_the_host_is_masked() -> None:
    """The power-measurement side channel and the kernel's secrets are out of sight."""
    masked = spec.generate("one", "test", IMAGE)["linux"]["maskedPaths"]

    assert {"/proc/kcore", "/proc/keys", "/sys/devices/virtual/powercap", "/sys/firmware"} <= set(masked)


def test_the_command_is_the_images_unless_given() -> None:
    """Entrypoint and command of the image run; arguments of the caller replace both."""
    assert spec.generate("one", "test", IMAGE)["process"]["args"] == ["/init", "serve"]
    given = spec.generate("one", "test", IMAGE, spec.Options(args=["sh"]))
    assert given["process"]["args"] == ["sh"]


def test_the_callers_environment_wins_and_images_stay_as_they_are() -> None:
    """Later variables replace earlier ones, a bare name removes one, and no container changes another's."""
    one = spec.generate("one", "test", IMAGE, spec.Options(env=["A=2", "B=3"]))
    two = spec.generate("two", "test", IMAGE, spec.Options(env=["A"]))

    assert one["process"]["env"] == ["PATH=/bin", "A=2", "B=3"]
    assert two["process"]["env"] == ["PATH=/bin"]
    assert IMAGE.env == ("PATH=/bin", "A=1")


def test_the_cgroup_is_named_after_namespace_and_container() -> None:
    """Two namespaces never share a cgroup."""
    assert spec.generate("one", "test", IMAGE)["linux"]["cgroupsPath"] == "/test/one"


def test_groups_of_the_user_are_set() -> None:
    """Supplementary groups reach the process."""
    made = spec.generate("one", "test", IMAGE, spec.Options(user=User(uid=1, gid=2, additional_gids=(2, 3))))

    assert made["process"]["user"] == {"uid": 1, "gid": 2, "additionalGids": [2, 3]}


@pytest.mark.parametrize(
    ("image", "options", "sentence"),
    [
        (Config(platform=host(), diff_ids=()), spec.Options(), "no command to run"),
        (IMAGE, spec.Options(cwd="relative"), "not an absolute path"),
    ],
)
def test_what_cannot_run_is_refused(image: Config, options: spec.Options, sentence: str) -> None:
    """A container without command, or in a relative directory, is refused with the reason."""
    with pytest.raises(InvalidArgument, match=sentence):
        spec.generate("one", "test", image, options)
