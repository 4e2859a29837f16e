"""The command that answers over HTTP. The one door to the service."""

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from memory_builder.ann.fastscan import ServeFormat
from memory_builder.commands.options import LinkOptions, MovedModel
from memory_builder.errors import EncoderError, UsageError

if TYPE_CHECKING:
    from memory_builder.model.encoder import EncoderConfig
    from memory_builder.readers.link_policy import LinkPolicy


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Answer questions to a memory over HTTP, until interrupted."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: any. There is no log-in: whoever reaches it may ask."""
    port: int = 8000
    """Port to listen at; 0: any that is free, which is told."""
    model: OmitArgPrefixes[MovedModel] = field(default_factory=MovedModel)
    serve_format: ServeFormat = "plain"
    """fastscan: hold the codes in RAM in the form that SIMD scans; for 4-bit PQ and RaBitQ."""
    address: str | None = None
    """Ray cluster: auto, HOST:PORT, or local for one on this machine. Its actors hold the index's parts, or it runs the
    --replicas."""
    replicas: int | None = None
    """Run so many copies of the service on the Ray cluster, by Ray Serve, each with the whole index."""
    max_k: int = 10_000
    """Most rows a query."""
    max_json_bytes: int = 32 << 20
    """Longest request in JSON."""
    max_body_bytes: int = 256 << 20
    """Longest request to /bulk."""
    max_spool_bytes: int = 4 << 30
    """Most bytes of bodies and answers that lie on disk (in TMPDIR) while clients send and take them."""
    max_pixels: int = 32_000_000
    """Largest picture that is asked with or shown."""
    head_s: float = 10.0
    """Seconds a client may take to send the head of a request."""
    body_s: float = 30.0
    """Seconds for its body, and one more for each MiB that came."""
    answer_s: float = 30.0
    """Seconds to take the answer, and one more for each MiB that was taken."""
    server_name: UseAppendAction[tuple[str, ...]] = ()
    """Name by which clients call this service, beside those of this machine and IP addresses; may be repeated."""
    links: OmitArgPrefixes[LinkOptions] = field(default_factory=LinkOptions)
    refresh_s: float = 10.0
    """Seconds after which a request looks whether the memory has a newer state."""

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
            serve(self.memory, host=self.host, port=self.port, config=config, limits=limits, on_listening=self._tell)
            return 0
        if self.port == 0:
            raise UsageError("--port 0: replicas need a port of which you know the number")
        from cluster.replicas import deployed

        with deployed(config, address=self.address, replicas=self.replicas, host=self.host, port=self.port):
            self._tell(self.port)
            while True:
                time.sleep(3600)

    def _encoder(self) -> "EncoderConfig | None":
        """The model; likewise."""
        from memory_builder.catalog.description import read_description
        from memory_builder.catalog.trusted import encoder_of
        from memory_builder.storage.store import Store

        named = self.model.encoder()
        if named is not None or self.replicas is None:
            return named
        with suppress(EncoderError):  # told to whoever asks it a text; vectors can be asked for
            return encoder_of(read_description(Store(self.memory)), self.memory)
        return None

    def _links(self) -> "LinkPolicy":
        """What may be read for pictures; replicas may run where nobody remembers what was embedded from here."""
        from memory_builder.catalog.trusted import link_policy
        from memory_builder.memory import Memory

        commits = () if self.replicas is None else Memory.open(self.memory).commits.values()
        return link_policy(commits, local_roots=self.links.local_root, allow_hosts=self.links.allow_host)

    def _tell(self, port: int) -> None:
        print(f"serving {self.memory} at http://{self.host}:{port}", file=sys.stderr, flush=True)
