"""A real PostgreSQL server for tests, from the system's package, in a temporary directory, on a socket of its own."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.programs import require_program

PLACES = ["", *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)]


def program(name: str) -> str:
    """Debian keeps the server's programs out of the path."""
    found = next((path for place in PLACES if (path := shutil.which(name, path=place or None))), None)
    return found or require_program(name)


@contextmanager
def server(directory: Path) -> Iterator[str]:
    """A running server; the URL of its database. The server refuses to run as root, so a root test lends it to `nobody`."""
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    data, user = directory / "data", {}
    directory.mkdir(parents=True)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(directory, nobody.pw_uid, nobody.pw_gid)

    def run(*command: str) -> None:
        done = subprocess.run(
            command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **user
        )
        assert done.returncode == 0, done.stdout

    run(initdb, "-D", str(data), "-U", "scalerl", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
    options = (
        f"-c listen_addresses= -c unix_socket_directories={directory} -c max_connections=20 -c shared_buffers=16MB"
    )
    run(pg_ctl, "-D", str(data), "-w", "-l", str(directory / "log"), "-o", options, "start")
    try:
        yield f"postgresql://scalerl@/postgres?host={directory}"
    finally:
        run(pg_ctl, "-D", str(data), "-m", "immediate", "stop")
