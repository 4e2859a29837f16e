"""Where a row's link may lead, for memories of one's own and for those of strangers."""

import os
from pathlib import Path

import pytest

from memory_builder.catalog.commits import Commit
from memory_builder.catalog.trusted_sources import link_policy, refuse_unnamed, remember_sources
from memory_builder.errors import UsageError
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.readers.linked_pictures import fetch_target
from memory_builder.readers.pairs import BadPairError
from memory_builder.readers.shard import Shard, Source

STRANGERS = LinkPolicy()


def source(uri: str) -> Source:
    return Source(uri=uri, bytes=1, etag="version")


def commit(uri: str, etag: str = "version") -> Commit:
    counts = {"n_read": 1, "n_written": 1, "n_images": 1, "n_texts": 1}
    return Commit(ordinal=0, uri=uri, etag=etag, config_hash="", reasons={}, partial=None, checksums={}, **counts)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A table with a picture beside it, and a secret above."""
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    (tmp_path / "data" / "list.csv").touch()
    (tmp_path / "data" / "pictures" / "a.png").write_bytes(b"picture")
    (tmp_path / "secret.txt").write_bytes(b"TOP SECRET")
    (tmp_path / "data" / "out").symlink_to(tmp_path)
    (tmp_path / "data" / "secret.png").symlink_to(tmp_path / "secret.txt")
    return tmp_path


def links(home: Path) -> list[str]:
    secret = f"{home}/secret.txt"
    return [
        secret,
        f"file://{secret}",
        f"FILE://{secret}",
        f"FiLe://localhost{secret}",
        f"HTTP://x::file://{secret}",
        "S3://private/key.png",
        "HF://datasets/private/key.png",
        f"file://localhost{secret}",
        f"file://elsewhere{secret}",
        f"file:{secret}",
        "../secret.txt",
        "pictures/../../secret.txt",
        "out/secret.txt",
        "secret.png",
        "%2e%2e/secret.txt",
        "..%2fsecret.txt",
        "..\\secret.txt",
        f"//{secret}",
        f"\\\\host\\share{secret}",
        f"simplecache::file://{secret}",
        f"simplecache::{secret}",
        f"zip://secret.txt::{secret}",
        f"local://{secret}",
        f"memory://{secret}",
        f"reference://{secret}",
        f"github://owner:repo@main{secret}",
        f"sftp://host{secret}",
        f"dir://x::file://{home}",
        "data:image/png;base64,AAAA",
        "s3://private/key.png",
        "gs://private/key.png",
        "/proc/self/environ",
        "/dev/zero",
        "\0",
        "",
    ]


@pytest.mark.parametrize("which", range(len(links(Path("/home")))))
@pytest.mark.parametrize("policy", ["stranger's", "own", "rooted"])
def test_no_link_leads_out_of_what_was_named(home: Path, which: int, policy: str) -> None:
    table = str(home / "data" / "list.csv")
    policies = {
        "stranger's": STRANGERS,
        "own": LinkPolicy(sources=frozenset({table})),
        "rooted": LinkPolicy(roots=(str(home / "data"),)),
    }
    with pytest.raises(BadPairError):
        fetch_target(policies[policy].link(links(home)[which], table))


def test_a_picture_beside_the_table_is_seen_by_whoever_embedded_it_or_names_the_folder(home: Path) -> None:
    table = str(home / "data" / "list.csv")
    names = ["pictures/a.png", f"{home}/data/pictures/a.png", f"file://{home}/data/pictures/a.png", "./pictures/a.png"]
    named = LinkPolicy(roots=(str(home),))
    remember_sources([source(f"{table}#items=0-10")])
    for name in names:
        with pytest.raises(BadPairError, match="--local-root"):
            STRANGERS.link(name, table)
        with pytest.raises(BadPairError, match="--local-root"):
            link_policy([commit(f"{table}#items=0-10", "another")]).link(name, table)
        for policy in (named, link_policy([commit(f"{table}#items=0-10")])):
            assert fetch_target(policy.link(name, table)) == b"picture"
    relative = LinkPolicy(roots=(str(home / "data"),))  # of a table whose folder is not here
    assert fetch_target(relative.link("pictures/a.png", "/nowhere/list.csv")) == b"picture"


@pytest.mark.parametrize("member", ["../secret.txt", "/etc/passwd", "secret.png", "out/secret.txt", "a/../../secret"])
def test_a_member_of_a_folder_stays_in_it(home: Path, member: str) -> None:
    folder = str(home / "data")
    own = LinkPolicy(sources=frozenset({folder}))
    assert fetch_target(own.member(folder, "pictures/a.png")) == b"picture"
    with pytest.raises(BadPairError):
        own.member(folder, member)
    with pytest.raises(BadPairError, match="not embedded from here"):
        STRANGERS.member(folder, "pictures/a.png")


@pytest.mark.parametrize(
    "shard",
    [
        "{home}/secret.tar",
        "../secret.tar",
        "file://{home}/secret.tar",
        "simplecache::file://{home}/secret.tar",
        "{home}/data/../secret.tar",
        "{home}/data/out/secret.tar",
        "{home}/data/x::file://{home}/secret.tar",
        "s3://private/secret.tar",
        "https://example.org/a.tar",
        "http://169.254.169.254/a.tar",
        "memory://a.tar",
    ],
)
def test_a_stranger_s_memory_names_no_shard_of_this_machine(home: Path, shard: str) -> None:
    for policy in (STRANGERS, LinkPolicy(roots=(str(home / "data"), "s3://public/", "https://example.org/b"))):
        with pytest.raises(BadPairError, match="not embedded from here"):
            policy.shard(shard.format(home=home))
    LinkPolicy(roots=("https://example.org",)).shard("https://example.org/a.tar")
    with pytest.raises(BadPairError):
        LinkPolicy(roots=("https://example.org/b",)).shard("https://example.org/b/%2E%2E/a.tar")


def test_only_stored_files_are_read(tmp_path: Path) -> None:
    named = LinkPolicy(follows_named=True)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "environ.png").symlink_to("/proc/self/environ")
    (tmp_path / "large.png").touch()
    os.truncate(tmp_path / "large.png", 1 << 40)
    for name, reason in [
        ("pipe.png", "not a regular file"),
        ("zero.png", "not a regular file"),
        ("environ.png", "not a regular file"),
        (str(tmp_path), "no such file"),
        ("large.png", "larger than 256 MiB"),
        ("none.png", "no such file"),
    ]:
        with pytest.raises(BadPairError, match=reason):
            fetch_target(named.link(name, str(tmp_path / "list.csv")))


def test_work_that_a_memory_alone_names_is_done_on_what_was_named_here(tmp_path: Path) -> None:
    planned = [Shard(ordinal=i, uri=f"{tmp_path}/{i}.tar", etag="version", bytes=1) for i in range(3)]
    again = Shard(ordinal=3, uri=f"{tmp_path}/1.tar#rejects=1", etag="a later version", bytes=0)
    remember_sources(source(shard.uri) for shard in planned[:2])
    refuse_unnamed([*planned[:2], again], planned)
    with pytest.raises(UsageError, match=r"2.tar was not embedded from this machine before: name it"):
        refuse_unnamed(planned, planned)


def test_the_record_of_what_was_named_is_this_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    names = ["/data/a.tar", "s3://bucket/b.tar", "/data/pictures#folder=x", "/data/d.tar#rejects=3"]
    commits = [commit(name) for name in names]
    remember_sources([source("/data/a.tar")])
    remember_sources([source(name) for name in [*names, "/data/d.tar"]])
    (record,) = (tmp_path / "state").rglob("*.jsonl")
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700
    assert len(record.read_text().split()) == 4
    assert link_policy(commits).sources == {"/data/a.tar", "s3://bucket/b.tar", "/data/pictures", "/data/d.tar"}
    assert not link_policy([commit(name, "another version") for name in names]).sources
    with record.open("a") as file:
        file.write('"cut off')
    remember_sources([source("/data/c.tar")])
    assert len(link_policy([*commits, commit("/data/c.tar")]).sources) == 5
    record.chmod(0o666)  # now anyone may have written it
    assert not link_policy(commits).sources
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")  # cannot be written: the work goes on
    remember_sources([source("/data/a.tar")])


@pytest.mark.parametrize("scheme", ["http", "HTTP", "Http", "hTTps"])
def test_the_spelling_of_a_scheme_changes_nothing(scheme: str) -> None:
    for table in ("/nowhere/list.csv", "/nowhere/published/", "https://example.org/list.csv", "s3://bucket/list.csv"):
        for policy in (STRANGERS, LinkPolicy(follows_named=True)):
            target = policy.link(f"{scheme}://127.0.0.1:9/a.png", table)
            assert target.uri.startswith(f"{scheme.lower()}://")
            with pytest.raises(BadPairError, match="address is not public"):
                fetch_target(target)
