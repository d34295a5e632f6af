"""Start Python programs quickly: a server that has the large libraries loaded and forks for each program.

Run as a script with the path of a socket. It loads third-party libraries only, and nothing that reads the
environment. `client` is the source of a program that stands in for `python`: it sends its arguments, its
environment, its directory and its standard streams to the server and exits with the status that comes back.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path

LIBRARIES = (
    *("torch", "diffusers.models", "diffusers.schedulers", "transformers", "safetensors.torch", "av", "cv2"),
    *("celery", "kombu", "redis", "redis.asyncio", "requests", "pydantic_settings", "fastapi"),
    *("click", "rich.table", "PIL.Image", "structlog", "pytest"),
)
LENGTH_BYTES = 4


def client(path: Path) -> str:
    """Return the source of a program that runs `python ARGUMENTS` on the server at `path`."""
    return f"""#!{sys.executable} -ISE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({str(path)!r})
request = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(request).to_bytes({LENGTH_BYTES}, "big")], [0, 1, 2])
server.sendall(request)
sys.exit(server.recv(1)[0])
"""


def serve(path: str) -> None:
    """Handle clients until the socket file is removed or this process is killed."""
    for name in LIBRARIES:
        import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _handle(connection)
        connection.close()
        _reap()


def _handle(connection: socket.socket) -> None:
    """Run the requested program in a child process and send its exit status."""
    head, streams, _, _ = socket.recv_fds(connection, LENGTH_BYTES, 3)
    left, request = int.from_bytes(head, "big"), b""
    while len(request) < left:
        request += connection.recv(left - len(request))
    arguments, environment, folder = json.loads(request)
    program = os.fork()
    if program == 0:
        connection.close()
        _run(arguments, environment, folder, streams)
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    connection.send(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def _run(arguments: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> None:
    """Run the program `-m MODULE ARGUMENTS` or `FILE ARGUMENTS` in this process. Does not return."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0] = folder
    status: object = 0
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as left:
        status = left.code
    except BaseException:  # noqa: BLE001  any error of a program is its own exit status 1
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        sys.stderr.write(f"{status}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _reap() -> None:
    """Reap children that have exited."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


if __name__ == "__main__":
    serve(sys.argv[1])
