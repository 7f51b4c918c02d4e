"""Known ways in which container runtimes were attacked, and which test shows that this one is not hurt.

A case has the names of tests that show it; those that are there are written into docs/reliability.md, and a test
checks that each case has at least one. What does not apply says why.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    number: int
    what: str
    tests: tuple[str, ...] = ()
    """Names of functions; every one that shows a part."""
    why_not: str = ""
    """Why it does not apply."""


CASES: Final = (
    Case(1, "labels of an image steer the daemon", ("test_users_and_labels_of_images",)),
    Case(2, "endless or special passwd and group files", ("test_only_a_small_regular_file_is_read",)),
    Case(3, "a USER too large for a number is taken for a name", ("test_numbers_out_of_range_are_refused",)),
    Case(4, "UID:GID overflows to 0", ("test_numbers_out_of_range_are_refused",)),
    Case(5, "a checkpoint's archive names other images", why_not="archives of checkpoints are not imported"),
    Case(6, "CDI annotations of a checkpoint's archive", why_not="archives of checkpoints are not imported"),
    Case(7, "container.log of a checkpoint's archive is a link", why_not="archives of checkpoints are not imported"),
    Case(8, "a cached directory is replaced by a link", (
        "test_a_directory_replaced_by_a_link_is_not_remembered",
        "test_a_directory_swapped_for_a_link_meanwhile_lets_nothing_out",
    )),
    Case(9, "directories that are open to others", (
        "test_modes_whatever_the_umask", "test_sockets_and_directories_are_closed_to_others", "test_bundle_modes",
    )),
    Case(10, "users of the host reach set-user-ID files of containers", (
        "test_modes_whatever_the_umask", "test_sockets_and_directories_are_closed_to_others", "test_bundle_modes",
    )),
    Case(11, "attaching and going away leaks", ("test_nothing_grows", "test_nothing_is_lost_stuck_or_leaked")),
    Case(12, "failing processes with a terminal leak", ("test_nothing_grows", "test_exec_that_cannot_be")),
    Case(13, "endless output is kept in memory", (
        "test_nothing_grows", "test_output_that_nobody_reads_ends_the_run",
    )),
    Case(14, "endless documents in an imported archive", (
        "test_archives_that_lie_are_refused",
        "test_bytes_near_the_corpus_are_read_or_refused",
    )),
    Case(15, "supplementary groups are not set", ("test_groups_of_the_user_are_set",)),
    Case(16, "inheritable capabilities", ("test_nothing_is_inheritable",)),
    Case(17, "an image's VOLUME leads out of its root", why_not="volumes of images are the client's: none are made"),
    Case(18, "files of the host are relabelled for SELinux", why_not="nothing is relabelled"),
    Case(19, "bytes that are a manifest and an index", (
        "test_a_document_that_lies_is_refused", "test_a_manifest_served_as_something_else_is_refused",
        "test_any_json_is_read_or_refused",
    )),
    Case(20, "the mode of a hard link to a symbolic link", ("test_a_hard_link_to_a_symbolic_link_changes_no_mode",)),
    Case(21, "variables of one container in another", (
        "test_environments_of_one_image_do_not_mix", "test_the_callers_environment_wins_and_images_stay_as_they_are",
    )),
    Case(22, "abstract sockets reachable from containers", ("test_sockets_and_directories_are_closed_to_others",)),
    Case(23, "credentials are sent elsewhere", (
        "test_layers_elsewhere_are_fetched_without_credentials", "test_credentials_do_not_follow_redirects_elsewhere",
    )),
    Case(24, "power meters as a side channel", ("test_what_leaks_from_the_host_is_masked",)),
    Case(25, "control groups of pods with user namespaces", why_not="there is no CRI; a spec's cgroup path is taken"),
    Case(26, "authorisation looks at the first manifest only", why_not="encrypted images are not read by ourselves"),
    Case(27, "AF_ALG and io_uring are allowed", ("test_default_seccomp_profile",)),
    Case(28, "a container overwrites runc", (
        "test_no_program_of_the_host_is_overwritten", "test_programs_of_the_host_stay_as_they_are",
    )),
    Case(29, "working directory /proc/self/fd/N", (
        "test_no_working_directory_is_a_descriptor", "test_no_descriptor_of_the_host_is_in_a_container",
    )),
    Case(30, "masked paths and /dev/null", why_not="runc's to prevent: the spec only names the paths"),
    Case(31, "links as destinations of mounts", why_not="runc's to prevent: it resolves destinations in the root"),
    Case(32, "files made on the host through shared volumes", why_not="runc's to prevent"),
    Case(33, "AF_ALG", ("test_default_seccomp_profile",)),
    Case(34, "a decompressor is looked up in the container's root", ("test_the_worker_can_do_little",)),
    Case(35, "copying into a container races with mounts", why_not="copying into containers is not offered"),
    Case(36, "authorisation sees other bytes than are executed", why_not="there are no authorisation plugins"),
    Case(37, "names of the API as paths", ("test_names_are_never_paths", "test_bad_digests", "test_long_names")),
    Case(38, "digests as paths", ("test_bad_digests", "test_bytes_near_the_corpus_are_read_or_refused")),
    Case(39, "mounts of a checkpoint's archive", why_not="archives of checkpoints are not imported"),
    Case(40, "logs and output without bound", (
        "test_nothing_grows", "test_output_that_nobody_reads_ends_the_run",
    )),
    Case(41, "layers that are not those of the configuration", ("test_a_wrong_diff_id_leaves_nothing_of_its_layer",)),
    Case(42, "Python's tarfile, and sizes that lie", ("test_refuses", "test_damaged_archives_end_and_stay_inside")),
    Case(43, "headers of gigabytes in archives", ("test_refuses",)),
    Case(44, "a size in a PAX header beside another", (
        "test_the_size_in_a_pax_header_governs_both_data_and_the_next_header",
    )),
    Case(45, "line ends in HTTP/2 headers", ("test_line_breaks_in_headers_are_refused",)),
    Case(46, "rapid reset, CONTINUATION without end", (
        "test_ten_thousand_resets_leave_nothing_behind", "test_large_headers_cost_only_their_call",
    )),
    Case(47, "messages of any size", (
        "test_a_message_of_4_gib_is_refused_before_it_comes",
        "test_a_message_that_inflates_beyond_the_limit_is_refused",
    )),
    Case(48, "bombs", ("test_a_bomb_ends_at_the_limits", "test_a_layer_can_not_take_all_memory", "test_is_refused")),
    Case(49, "very many leases, labels, ingests; hard expressions", (
        "test_many_leases", "test_many_labels", "test_pathological_expression_is_harmless", "test_too_many_are_refused",
    )),
    Case(50, "containerd's list of escapes", ("test_no_case_leads_outside_while_directories_are_swapped",)),
    Case(51, "what overlayfs knows, in a layer", (
        "test_what_overlayfs_knows_is_taken_from_a_layer_with_care", "test_opaque_marks_in_odd_places",
    )),
    Case(52, "sizes, types and digests that lie; indexes without end", (
        "test_indexes_nested_without_end_are_refused", "test_a_manifest_served_as_something_else_is_refused",
        "test_a_tag_that_says_another_digest_than_asked_for_is_refused",
    )),
    Case(53, "ranges that are ignored, overlap or change", (
        "test_a_registry_that_ignores_ranges_is_read_once", "test_ranges_that_change_or_overlap_are_found_out",
    )),
)  # fmt: skip


def where() -> dict[str, str]:
    """Name of each test function -> its file, below `tests`."""
    found: dict[str, str] = {}
    for path in sorted(TESTS.rglob("*.py")):
        for name in re.findall(r"^ *(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE):
            found.setdefault(name, path.relative_to(TESTS).as_posix())
    return found
