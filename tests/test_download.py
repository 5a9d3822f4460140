from __future__ import annotations

import io
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from metricloss_pl.download import Resource, fetch, make_folder
from metricloss_pl.errors import UserError
from tests.helpers import md5


def make_tar(file: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> str:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return md5(file)


def make_zip(file: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return md5(file)


def fetch_archive(url: str, checksum: str, root: Path, folder: str, download: bool = True) -> Path:
    """One archive that holds the folder."""
    resource = Resource(url.rpartition("/")[2], url, checksum)
    return fetch([resource], root, folder, download=download, archives_hold_folder=True)


def refused(*args, **kwargs) -> str:
    """The one line with which the call is refused."""
    with pytest.raises(UserError) as caught:
        fetch_archive(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def web(tmp_path) -> Path:
    folder = tmp_path / "web"
    folder.mkdir()
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "deep" / "data"


CONTENT = {"birds/a.txt": b"one", "birds/sub/b.txt": b"two", "notes.txt": b"beside"}


@pytest.mark.parametrize(("name", "make"), [("birds.tgz", make_tar), ("birds.zip", make_zip)])
def test_archive_is_downloaded_and_unpacked(web, root, name, make):
    checksum = make(web / name, CONTENT)
    target = fetch_archive((web / name).as_uri(), checksum, root, "birds")
    assert target == root / "birds"
    assert (target / "a.txt").read_bytes() == b"one"
    assert (target / "sub" / "b.txt").read_bytes() == b"two"
    assert not (root / ".birds.partial").exists()
    assert not (root / "notes.txt").exists()


def test_what_is_there_is_not_fetched_again(web, root):
    checksum = make_tar(web / "birds.tgz", CONTENT)
    url = (web / "birds.tgz").as_uri()
    fetch_archive(url, checksum, root, "birds")
    (web / "birds.tgz").unlink()
    (root / "birds" / "a.txt").write_bytes(b"mine")
    fetch_archive(url, checksum, root, "birds")
    assert (root / "birds" / "a.txt").read_bytes() == b"mine"


@pytest.mark.parametrize("download", [True, False])
def test_archive_put_there_by_hand_is_used(web, root, download):
    root.mkdir(parents=True)
    checksum = make_tar(root / "birds.tgz", CONTENT)
    fetch_archive((web / "birds.tgz").as_uri(), checksum, root, "birds", download=download)  # nothing lies at the URL
    assert (root / "birds" / "a.txt").exists()


def test_missing_archive_without_download_says_which_file_goes_where(root):
    message = refused("https://example.org/x/birds.tgz", "0" * 32, root, "birds", download=False)
    assert "birds.tgz" in message
    assert str(root) in message
    assert "https://example.org/x/birds.tgz" in message
    assert not root.exists()


def test_wrong_archive_put_there_by_hand_is_kept_and_named(root):
    root.mkdir(parents=True)
    make_tar(root / "birds.tgz", CONTENT)
    message = refused("https://example.org/x/birds.tgz", "0" * 32, root, "birds", download=False)
    assert str(root / "birds.tgz") in message
    assert "0" * 32 in message
    assert (root / "birds.tgz").exists()
    assert not (root / "birds").exists()


def test_download_with_wrong_checksum_leaves_nothing(web, root):
    make_tar(web / "birds.tgz", CONTENT)
    message = refused((web / "birds.tgz").as_uri(), "0" * 32, root, "birds")
    assert "MD5" in message
    assert "0" * 32 in message
    assert {file.name for file in root.iterdir()} <= {".birds.lock"}


def test_download_that_fails_says_so(web, root):
    message = refused((web / "none.tgz").as_uri(), "0" * 32, root, "birds")
    assert "cannot download" in message
    assert "none.tgz" in message
    assert str(root) in message
    assert not (root / "birds").exists()


def test_server_without_the_file_and_no_server_say_so(root):
    class Lacks(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Lacks) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/tree.txt"
        resource = Resource("tree.txt", url, "0" * 32)
        with pytest.raises(UserError, match=rf"^cannot download {url}: .*; tree.txt \(MD5 0+\) can"):
            fetch([resource], root, "tree")
        server.shutdown()
    by_hand = rf"tree.txt \(MD5 0+\) can be put into {re.escape(str(root))} by hand$"
    with pytest.raises(UserError, match=f"^cannot download {url}: .*; {by_hand}"):
        fetch([resource], root, "tree")
    assert [file.name for file in root.iterdir()] == [".tree.lock"]


def test_interrupted_download_is_started_again(web, root, monkeypatch):
    checksum = make_tar(web / "birds.tgz", CONTENT)
    url = (web / "birds.tgz").as_uri()
    whole = (web / "birds.tgz").read_bytes()

    def stops_half_way(url: str, dst: str) -> None:
        Path(dst).write_bytes(whole[: len(whole) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.hub, "download_url_to_file", stops_half_way)
        with pytest.raises(KeyboardInterrupt):
            fetch_archive(url, checksum, root, "birds")
    assert not (root / "birds").exists()
    assert not (root / "birds.tgz").exists()
    fetch_archive(url, checksum, root, "birds")
    assert (root / "birds" / "sub" / "b.txt").exists()


def test_interrupted_unpacking_is_not_taken_as_complete(web, root, monkeypatch):
    checksum = make_tar(web / "birds.tgz", CONTENT)
    url = (web / "birds.tgz").as_uri()

    def stops_half_way(self: tarfile.TarFile, path: Path, filter: str) -> None:
        self.extract("birds/a.txt", path, filter=filter)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", stops_half_way)
        with pytest.raises(KeyboardInterrupt):
            fetch_archive(url, checksum, root, "birds")
    assert not (root / "birds").exists()
    fetch_archive(url, checksum, root, "birds")
    assert (root / "birds" / "sub" / "b.txt").exists()


def test_leftovers_of_a_killed_process_are_cleared(web, root):
    checksum = make_tar(web / "birds.tgz", CONTENT)
    (root / ".birds.partial" / "birds").mkdir(parents=True)
    (root / ".birds.partial" / "birds" / "junk.txt").write_bytes(b"half")
    (root / "birds.tgz").write_bytes(b"half")
    fetch_archive((web / "birds.tgz").as_uri(), checksum, root, "birds")
    assert sorted(file.name for file in (root / "birds").iterdir()) == ["a.txt", "sub"]
    assert md5(root / "birds.tgz") == checksum
    assert not (root / ".birds.partial").exists()


@pytest.mark.parametrize("member", ["../evil.txt", "birds/../../evil.txt"])
@pytest.mark.parametrize(("name", "make"), [("birds.tgz", make_tar), ("birds.zip", make_zip)])
def test_member_that_points_outside_is_refused(web, root, member, name, make):
    checksum = make(web / name, {"birds/a.txt": b"one", member: b"evil"})
    message = refused((web / name).as_uri(), checksum, root, "birds")
    assert "evil.txt" in message
    assert "outside" in message
    assert not (root / "birds").exists()
    assert not list(root.parent.rglob("evil.txt"))


def test_link_that_points_outside_is_refused(web, root):
    checksum = make_tar(web / "birds.tgz", {"birds/a.txt": b"one"}, links={"birds/link": "../../../secret"})
    assert "birds/link" in refused((web / "birds.tgz").as_uri(), checksum, root, "birds")
    assert not (root / "birds").exists()


def test_file_that_is_no_archive_is_refused(web, root):
    (web / "birds.tgz").write_bytes(b"<html>busy</html>")
    message = refused((web / "birds.tgz").as_uri(), md5(web / "birds.tgz"), root, "birds")
    assert "cannot be unpacked" in message
    assert "birds.tgz" in message


def test_archive_without_the_folder_is_refused(web, root):
    checksum = make_tar(web / "birds.tgz", {"fish/a.txt": b"one"})
    assert "no folder birds" in refused((web / "birds.tgz").as_uri(), checksum, root, "birds")


def test_root_that_is_a_file_is_refused(web, tmp_path):
    checksum = make_tar(web / "birds.tgz", CONTENT)
    (tmp_path / "file").write_bytes(b"")
    assert str(tmp_path / "file") in refused((web / "birds.tgz").as_uri(), checksum, tmp_path / "file", "birds")


def test_several_files_make_one_folder(web, root):
    resources = []
    for name, members in (("a.tgz", {"images/a.txt": b"one"}), ("b.tgz", {"images/b.txt": b"two"})):
        resources.append(Resource(name, (web / name).as_uri(), make_tar(web / name, members)))
    (web / "index.txt").write_bytes(b"a b")
    resources.append(Resource("index.txt", (web / "index.txt").as_uri(), md5(web / "index.txt")))
    target = fetch(resources, root, "birds")
    assert sorted(file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()) == [
        "images/a.txt",
        "images/b.txt",
        "index.txt",
    ]
    assert sorted(file.name for file in root.iterdir() if file.is_file()) == [".birds.lock", "a.tgz", "b.tgz"]


def test_file_beside_the_archives_put_there_by_hand_is_copied(web, root):
    root.mkdir(parents=True)
    (root / "index.txt").write_bytes(b"a b")
    resource = Resource("index.txt", "https://example.org/index.txt", md5(root / "index.txt"), by_hand=True)
    assert (fetch([resource], root, "birds") / "index.txt").read_bytes() == b"a b"
    assert (root / "index.txt").exists()


def test_what_only_a_person_may_fetch_is_never_downloaded(web, root, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    checksum = make_tar(web / "birds.tgz", CONTENT)
    by_hand = [Resource("birds.tgz", (web / "birds.tgz").as_uri(), checksum, by_hand=True)]
    with pytest.raises(UserError) as caught:
        fetch(by_hand, root, "birds", archives_hold_folder=True)
    assert f"put birds.tgz (from {by_hand[0].url}, MD5 {checksum}) into {root}" in str(caught.value)
    assert "`download`" not in str(caught.value)
    root.mkdir(parents=True)
    make_tar(root / "birds.tgz", {"birds/a.txt": b"another"})
    with pytest.raises(UserError, match="is not the file expected"):
        fetch(by_hand, root, "birds", archives_hold_folder=True)
    (root / "birds.tgz").write_bytes((web / "birds.tgz").read_bytes())
    assert (fetch(by_hand, root, "birds", archives_hold_folder=True) / "a.txt").exists()


def test_folder_appears_whole_or_not_at_all(root):
    def fails(partial: Path) -> Path:
        (partial / "a.txt").write_bytes(b"half")
        assert not (root / "birds").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_folder(root / "birds", fails)
    assert not (root / "birds").exists()
    assert not (root / ".birds.partial").exists()

    def succeeds(partial: Path) -> Path:
        assert not list(partial.iterdir())
        (partial / "a.txt").write_bytes(b"whole")
        return partial

    assert (make_folder(root / "birds", succeeds) / "a.txt").read_bytes() == b"whole"
    assert make_folder(root / "birds", fails) == root / "birds"
