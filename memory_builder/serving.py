"""``serve``: serve a memory over HTTP from Python, as ``memory-builder serve`` does."""

import socket
from collections.abc import Callable
from dataclasses import replace

from cluster.protocol import WaitLimits, server
from cluster.service import create_app
from cluster.session import ServiceConfig
from memory_builder.errors import UsageError
from memory_builder.memory import Memory

__all__ = ["ServiceConfig", "WaitLimits", "serve"]


def serve(
    memory: Memory | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    config: ServiceConfig | None = None,
    limits: WaitLimits | None = None,
    on_listening: Callable[[int], None] = lambda _: None,
) -> None:
    """Serve a memory over HTTP, with a page to search with, until interrupted.

    Args:
        memory: an open memory, or its folder.
        host: address to listen at; 0.0.0.0: any.
        port: port to listen at; 0: any free one.
        config: limits of one request.
        limits: timeouts of a client.
        on_listening: called with the port once requests are accepted.

    Raises:
        UsageError: the address is in use or not of this machine.
        MemoryBuilderError: as ``Memory.open``.
    """
    root = memory if isinstance(memory, str) else memory.store.root
    config = replace(config, memory=root, host=host) if config else ServiceConfig(memory=root, host=host)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen at --host {host} --port {port}: {error.strerror}") from None
        app = create_app(config)
        listening.listen()  # a client that connects as soon as the port is known waits in line
        on_listening(listening.getsockname()[1])
        server(app, limits or WaitLimits()).run(sockets=[listening])
