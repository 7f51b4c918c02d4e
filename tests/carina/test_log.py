"""Logs of a daemon: every record says which call it belongs to."""

import io
import json
import logging
from pathlib import Path

import pytest

from carina import config, context, log
from carina.errors import InvalidArgument

CALL = context.Call(
    namespace="n",
    request="0123456789abcdef",
    method="/a.B/C",
    peer="pid=1 uid=0",
    trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)


def _logged(formatter: logging.Formatter) -> str:
    """What becomes of two records: one without a call, and one with an error within a call."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("carina.test")
    logger.addHandler(handler)
    logger.info("began with %s", "x")
    with context.use(CALL):
        try:
            raise ValueError("wrong")
        except ValueError:
            logger.exception("failed")
    return stream.getvalue()


def test_json_records_are_one_object_each() -> None:
    """Time, level, service and message are in each; method, namespace, request, trace, span and peer where they are."""
    first, second = map(json.loads, _logged(log.Json("contentd")).splitlines())

    assert {key: first[key] for key in ("level", "service", "message")} == {
        "level": "info",
        "service": "contentd",
        "message": "began with x",
    }
    assert first["time"].endswith("Z")
    assert "method" not in first
    assert (second["method"], second["namespace"], second["request"]) == ("/a.B/C", "n", "0123456789abcdef")
    assert (second["trace"], second["span"]) == ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    assert second["peer"] == "pid=1 uid=0"
    assert second["error"].endswith("ValueError: wrong")


def test_text_records_name_the_call_at_their_end() -> None:
    """A line that a person reads says the same, after the message."""
    lines = _logged(log.Text("contentd")).splitlines()

    assert lines[0].endswith(" INFO contentd began with x")
    assert 'ERROR contentd failed method=/a.B/C namespace=n request=0123456789abcdef peer="pid=1 uid=0"' in lines[1]


def test_a_forged_message_stays_in_its_line() -> None:
    """What a client sends can't begin a line of its own in a log of JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(log.Json("contentd"))
    logger = logging.Logger("carina.test")
    logger.addHandler(handler)
    with context.use(context.Call(namespace='x"}\n{"level":"info')):
        logger.info("a\nb")

    assert len(stream.getvalue().splitlines()) == 1
    assert json.loads(stream.getvalue())["namespace"] == 'x"}\n{"level":"info'


def test_each_service_has_its_level(tmp_path: Path) -> None:
    """The level of a service is its own, or its kind's, or everybody's."""
    file = tmp_path / "config.toml"
    file.write_text('[log]\nformat = "json"\nlevel = "warning"\n[log.levels]\nsnapshotd = "debug"\nimaged = "error"\n')
    found = config.load(file).log

    assert found.format == "json"
    assert [found.level_of(name) for name in ("contentd", "imaged", "snapshotd-native")] == [
        logging.WARNING,
        logging.ERROR,
        logging.DEBUG,
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[log]\nformat = "xml"', "format 'xml' is not one of text, json"),
        ('[log]\nlevel = "loud"', "level 'loud' is not one of debug"),
        ('[log.levels]\nnobody = "info"', "unknown key 'nobody'"),
        ('[log]\nfile = "/x"', "unknown key 'file'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    """A setting of the log that can't be is refused, with its name."""
    file = tmp_path / "config.toml"
    file.write_text(text)

    with pytest.raises(InvalidArgument, match=said):
        config.load(file)
