"""Somebody who follows a page sees what each command says and leaves; a server runs while what comes after is typed."""

import socket
from pathlib import Path

import pytest
from docsite import reader
from docsite.reader import Reader
from docsite.shell import Typed


@pytest.fixture
def somebody(tmp_path: Path) -> Reader:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    smaller = {"bench ttft": {"--runs": "1"}}
    return Reader(tmp_path, {":8000": f":{port}", "PORT": port}, smaller, reader.environment(tmp_path))


def test_what_is_typed_comes_in_order_and_to_an_end(somebody: Reader, tmp_path: Path) -> None:
    steps = [
        Typed("export NAME=one", 1),
        Typed("echo $NAME, >&2; false", 2),
        Typed("python -m http.server PORT --bind 127.0.0.1", 3),
        Typed("import os; print('PORT', os.environ.get('NAME'))", 4, "python"),
        Typed(
            "python -c 'import urllib.request as r; print(r.urlopen(\"http://127.0.0.1:8000/bin/preread\").status)'", 5
        ),
    ]
    _, failed, server, program, fetched = somebody.follow(steps)
    assert (failed.code, failed.said) == (1, "one,\n")
    assert server.code == 0 and "Serving HTTP" in server.said
    assert (program.code, program.said) == (0, f"{somebody.here['PORT']} None\n")
    assert (fetched.code, fetched.said) == (0, "200\n") and fetched.typed.line == 5
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(somebody.here["PORT"]))).close()


def test_a_bench_has_its_smallest_arguments_and_all_others(somebody: Reader) -> None:
    told = somebody.told(Typed("preread bench ttft --runs 9 \\\n  --plot 'a b.svg'  # a picture", 1))
    assert told == "preread bench ttft --plot 'a b.svg' --runs 1"
    told = somebody.told(Typed("CERT=house.pem N=1 preread bench ttft --runs 9", 1))
    assert told == "CERT=house.pem N=1 preread bench ttft --runs 1"
    assert somebody.told(Typed("preread bench site --edges 1 | tail", 1)) == "preread bench site --edges 1 | tail"


def test_a_server_that_ends_is_no_server(somebody: Reader) -> None:
    (came,) = somebody.follow([Typed("python -m http.server nowhere", 1)])
    assert came.code == 2 and "nowhere" in came.said
