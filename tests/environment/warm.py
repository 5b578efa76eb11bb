"""Run commands in forks of a process that has imported torch and the package, for tests with many short commands.

Importing torch takes seconds of processor time. The server imports torch and this package once and forks for each
command, which has its own process, working directory, environment, streams and exit code, as a newly started process
does. One server serves all processes of a test run and ends when the last of them has closed the pipe `alive`.

    python warm.py serve DIRECTORY MODULE …          listen at DIRECTORY/socket; import these modules too
    python warm.py SOCKET ckpt-probe ARGUMENT …      run the installed command
    python warm.py SOCKET -c CODE                    run python -c CODE
    python warm.py SOCKET python FILE ARGUMENT …     run python FILE
    python warm.py SOCKET dask ARGUMENT …            run Dask's command
    python warm.py SOCKET serve DIRECTORY MODULE …   listen at DIRECTORY/socket in a fork, which imports more modules
    python warm.py SOCKET workers ADDRESS            start multiprocessing's workers as forks until stdin is closed
"""

import atexit
import contextlib
import gc
import json
import os
import pkgutil
import signal
import socket
import sys
from importlib import import_module

LIBRARIES = (
    "click",
    "h5py",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "pydantic",
    "rich.console",
    "rich.progress",
    "rich.table",
    "safetensors.torch",
    "scipy.optimize",
    "scipy.stats",
    "torch",
    "torch._dynamo",
    "torch.fx",
    "torch.func",
    "torch.utils.data",
)
PARTS = (
    "alignment",
    "analysis",
    "checkpoints",
    "checkpoints.formats",
    "cli",
    "data",
    "data.images",
    "dumps",
    "extraction",
    "findings",
    "merging",
    "metrics",
    "models",
    "moments",
    "paths",
    "predictions",
    "reporting",
    "scheduling",
    "training",
    "trajectories",
)
"""Parts of the package that commands import, except those that import other frameworks or network clients."""


def ask(address):
    """Have the server run a command with the streams of this process, and exit with its code or signal."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = {"words": sys.argv[2:], "directory": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
        data = json.dumps(request).encode()
        socket.send_fds(connection, [len(data).to_bytes(8, "little")], [0, 1, 2])
        connection.sendall(data)
        status = connection.recv(4)
    code = os.waitstatus_to_exitcode(int.from_bytes(status, "little")) if status else 1
    if code < 0:
        # End by the signal that ended the command.
        with contextlib.suppress(OSError):  # SIGKILL has no handler that could be reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(directory, modules):
    """Serve until no test process is left; in each forked process return the arguments of the command to run."""
    from select import select

    with socket.socket(socket.AF_UNIX) as listener:
        alive = os.open(f"{directory}/alive", os.O_RDONLY | os.O_NONBLOCK)
        listener.bind(f"{directory}/socket")
        listener.listen()
        # From now on clients can connect; they wait until the imports are done.
        print("listening", flush=True)
        _import_modules(modules)
        running = {}  # for each descriptor of a child: its process, and the connection to its client
        open_ended = [alive]
        while open_ended or running:
            connections = {connection: ended for ended, (_, connection) in running.items()}
            ready, _, _ = select([*open_ended, *running, *connections, *([listener] if open_ended else [])], [], [])
            for ended in {descriptor for descriptor in ready if descriptor in running}:
                process, connection = running.pop(ended)
                with contextlib.suppress(OSError), connection:
                    connection.sendall(os.waitpid(process, 0)[1].to_bytes(4, "little"))
                os.close(ended)
            for connection in {item for item in ready if connections.get(item) in running}:
                os.kill(running[connections[connection]][0], signal.SIGKILL)  # the client has ended
            if alive in ready:
                open_ended.clear()
            elif listener in ready:
                connection, _ = listener.accept()
                if request := _request(connection):
                    process = os.fork()
                    if not process:
                        for descriptor in (alive, *running):
                            os.close(descriptor)
                        for inherited in (listener, connection, *connections):
                            inherited.close()
                        return _become(*request)
                    for stream in request[1]:
                        os.close(stream)
                    running[os.pidfd_open(process)] = process, connection
    import shutil

    shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)


def serve_workers():
    """Have multiprocessing start its worker processes as forks of this process, which has the modules they need."""
    from multiprocessing import connection, forkserver

    if sys.platform != "linux" or sys.version_info >= (3, 14):
        return  # workers are new processes, or a key is needed to ask the server for one
    with socket.socket(socket.AF_UNIX) as listener:
        address = connection.arbitrary_address("AF_UNIX")
        listener.bind(address)
        listener.listen()
        ended, alive = os.pipe()
        process = os.fork()
        if not process:
            os.close(alive)
            with contextlib.suppress(SystemExit):
                forkserver.main(listener.fileno(), ended, [])
            os._exit(0)
    os.close(ended)
    server = forkserver._forkserver
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, alive, process


def fork_workers(address):
    """Serve multiprocessing's requests for worker processes at an address until this process's stdin is closed."""
    from multiprocessing import forkserver

    # The package starts multiprocessing's own server with these signals blocked, so that its workers inherit this.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    alive = os.dup(0)
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen()
        os.rename(f"{address}.new", address)  # noqa: PTH104
        forkserver.main(listener.fileno(), alive, [])


def _import_modules(modules):
    gc.disable()
    for name in (*LIBRARIES, *modules):
        with contextlib.suppress(ImportError):
            import_module(name)
    for name in ("ckpt_probe", *(f"ckpt_probe.{part}" for part in PARTS)):
        for module in pkgutil.iter_modules(import_module(name).__path__, f"{name}."):
            if module.name != "ckpt_probe.__main__":
                import_module(module.name)
    # A command does not import torch's compiler, which on exit reads directories for a further module.
    if (compiler := sys.modules.get("torch._dynamo.utils")) is not None:
        atexit.unregister(compiler.dump_compile_times)
    # Exempt imported objects from collection: a fork then shares their memory, as it does not write to it.
    gc.freeze()
    gc.enable()


def _request(connection):
    """Return the command that a client sends, and its streams; None if the client has ended."""
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    data = b""
    while len(data) < int.from_bytes(length, "little"):
        part = connection.recv(2**16)
        if not part:
            return None
        data += part
    return (json.loads(data), streams) if data else None


def _become(request, streams):
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
    # SIGINT is ignored if the tests run in the background, and blocked if this server began with a test's workers.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    import random

    import numpy as np

    random.seed()
    np.random.seed()  # noqa: NPY002
    return request["words"]


def leave(words):
    """Run a command and end the process as Python does, but without destroying the imported modules."""
    import threading

    code = 0
    try:
        _run(words)
    except SystemExit as exit_request:
        code = exit_request.code if isinstance(exit_request.code, int) else int(exit_request.code is not None)
        if isinstance(exit_request.code, str):
            print(exit_request.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(code)


def _run(words):
    import types

    if words[0] == "serve":
        words = serve(words[1], words[2:])
    if words[0] == "workers":
        fork_workers(words[1])
    if any("workers" in word for word in words):
        serve_workers()
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
        return
    if words[0] == "python":
        import runpy

        sys.argv, sys.path[0] = words[1:], os.path.dirname(os.path.abspath(words[1]))  # noqa: PTH100, PTH120
        runpy.run_path(words[1], run_name="__main__")
        return
    sys.argv, sys.path[0] = words, os.path.dirname(sys.executable)  # noqa: PTH120
    import_module("dask.__main__" if words[0] == "dask" else "ckpt_probe.cli.app").main()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        leave(serve(sys.argv[2], sys.argv[3:]))
    else:
        ask(sys.argv[1])
