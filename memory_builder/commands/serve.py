"""``memory-builder serve``: serve a memory over HTTP. Only this module imports the service."""

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from memory_builder.ann.fastscan import ServeFormat
from memory_builder.commands.options import LinkOptions, ModelOptions
from memory_builder.errors import EncoderError, UsageError

if TYPE_CHECKING:
    from memory_builder.model.encoder import EncoderConfig
    from memory_builder.readers.link_policy import LinkPolicy


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a memory over HTTP, with a page to search with, until interrupted."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: every network interface. There is no log-in: whoever reaches it may search."""
    port: int = 8000
    """Port to listen at; 0: any free port, which is printed."""
    model: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    serve_format: ServeFormat = "plain"
    """fastscan: hold codes of 4-bit PQ or RaBitQ in RAM in the layout that SIMD scans."""
    address: str | None = None
    """Ray cluster: auto, HOST:PORT, or local for one on this machine. It runs --replicas, or else its actors hold the
    index parts."""
    replicas: int | None = None
    """Number of replicas of the service to run on the Ray cluster with Ray Serve, each with the whole index."""
    max_k: int = 10_000
    """Largest k of a query."""
    max_json_bytes: int = 32 << 20
    """Largest JSON request in bytes."""
    max_body_bytes: int = 256 << 20
    """Largest request to /bulk in bytes."""
    max_spool_bytes: int = 4 << 30
    """Largest total of request bodies and responses on disk (in TMPDIR) in bytes."""
    max_pixels: int = 32_000_000
    """Largest picture to decode or show, in pixels."""
    head_s: float = 10.0
    """Timeout in seconds for a client to send the headers of a request."""
    body_s: float = 30.0
    """Timeout in seconds for a client to send a body, plus one for each MiB received."""
    answer_s: float = 30.0
    """Timeout in seconds for a client to read a response, plus one for each MiB sent."""
    server_name: UseAppendAction[tuple[str, ...]] = ()
    """Host name of this service, besides this machine's names and IP addresses; may be repeated."""
    links: OmitArgPrefixes[LinkOptions] = field(default_factory=LinkOptions)
    refresh_s: float = 10.0
    """Seconds between checks for a newer snapshot of the memory."""

    def run(self) -> int:
        from cluster.session import ServiceConfig

        config = ServiceConfig(
            memory=self.memory,
            encoder=self._encoder(),
            serve_format=self.serve_format,
            address=self.address if self.replicas is None else None,
            max_k=self.max_k,
            max_json_bytes=self.max_json_bytes,
            max_body_bytes=self.max_body_bytes,
            max_spool_bytes=self.max_spool_bytes,
            max_pixels=self.max_pixels,
            refresh_s=self.refresh_s,
            links=self._links(),
            host=self.host,
            server_names=self.server_name,
        )
        if self.replicas is None:
            from memory_builder.serving import WaitLimits, serve

            limits = WaitLimits(head_s=self.head_s, body_s=self.body_s, answer_s=self.answer_s)
            serve(self.memory, host=self.host, port=self.port, config=config, limits=limits, on_listening=self._print)
            return 0
        if self.port == 0:
            raise UsageError("--port 0: replicas need a known port")
        from cluster.replicas import deployed

        with deployed(config, address=self.address, replicas=self.replicas, host=self.host, port=self.port):
            self._print(self.port)
            while True:
                time.sleep(3600)

    def _encoder(self) -> "EncoderConfig | None":
        """Return the model of the service; replicas get it by name, since they may run under another user."""
        from memory_builder.catalog.description import read_description
        from memory_builder.catalog.trusted_sources import encoder_of
        from memory_builder.storage.store import Store

        named = self.model.encoder()
        if named is not None or self.replicas is None:
            return named
        with suppress(EncoderError):  # a text query raises it; vectors can still be searched
            return encoder_of(read_description(Store(self.memory)), self.memory)
        return None

    def _links(self) -> "LinkPolicy":
        """Return the link policy; replicas may run on machines without the record of embedded sources."""
        from memory_builder.catalog.trusted_sources import link_policy
        from memory_builder.memory import Memory

        commits = () if self.replicas is None else Memory.open(self.memory).commits.values()
        return link_policy(commits, local_roots=self.links.local_root, allow_hosts=self.links.allow_host)

    def _print(self, port: int) -> None:
        print(f"serving {self.memory} at http://{self.host}:{port}", file=sys.stderr, flush=True)
