"""Downloads, against a server on this machine."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from probablend import data
from probablend.data import DATASETS, Dataset, dataset_folder, download


def archive(files, links=()):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``; breaks off after ``server.limit`` bytes; knows ranges."""

    def do_GET(self):
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = 0
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if wanted:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if self.server.limit is None else start + self.server.limit
        self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.files, http.limit, http.asked = {}, None, []
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def offer(server, monkeypatch, content, *, checksum=None):
    server.files["/toy.tar.gz"] = content
    toy = Dataset(
        record=f"http://127.0.0.1:{server.server_port}",
        archive="toy.tar.gz",
        checksum=checksum or f"sha256:{hashlib.sha256(content).hexdigest()}",
        files=("a.npy",),
        megabytes=1,
        what="a toy",
    )
    monkeypatch.setitem(DATASETS, "toy", toy)


CONTENT = {"set/a.npy": np.random.default_rng(0).bytes(200_000), "set/readme": b"hello"}


def test_a_set_is_downloaded_checked_and_unpacked(server, monkeypatch):
    offer(server, monkeypatch, archive(CONTENT))
    assert dataset_folder("toy") is None
    folder = download("toy")
    assert (folder / "a.npy").read_bytes() == CONTENT["set/a.npy"]
    assert dataset_folder("toy") == folder
    assert sorted(p.name for p in folder.parent.iterdir()) == ["toy"]
    n_asked = len(server.asked)
    assert download("toy") == folder
    assert len(server.asked) == n_asked


def test_a_broken_download_goes_on_where_it_stopped(server, monkeypatch):
    content = archive(CONTENT)
    offer(server, monkeypatch, content)
    server.limit = 50_000
    with pytest.raises(ConnectionError, match=r"cannot download toy\.tar\.gz"):
        download("toy")
    assert dataset_folder("toy") is None
    server.limit = None
    download("toy")
    assert server.asked[-1] is not None
    start = int(server.asked[-1].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start < len(content)


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(server, monkeypatch):
    offer(server, monkeypatch, archive(CONTENT), checksum="sha256:" + "0" * 64)
    with pytest.raises(ValueError, match="hash"):
        download("toy")
    assert dataset_folder("toy") is None
    assert not any(p.is_file() for p in data._cache().iterdir())


def test_an_archive_cannot_write_outside_its_folder(server, monkeypatch, tmp_path):
    outside = tmp_path / "outside.npy"
    content = {**CONTENT, "../../../evil.npy": b"x", "/abs.npy": b"y", "link.npy": b"z"}
    # A link that leads outside, and a file that would be written through it.
    offer(server, monkeypatch, archive(content, links=[("link.npy", str(outside))]))
    folder = download("toy")
    names = ["a.npy", "abs.npy", "evil.npy", "link.npy", "readme"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert not any(p.is_symlink() for p in folder.iterdir())
    assert not (tmp_path / "evil.npy").exists()
    assert not outside.exists()


def test_an_archive_without_the_files_is_refused(server, monkeypatch):
    offer(server, monkeypatch, archive({"other": b"x"}))
    with pytest.raises(ValueError, match=r"lacks a\.npy"):
        download("toy")
    assert dataset_folder("toy") is None


def test_a_file_that_is_no_archive_is_refused(server, monkeypatch):
    offer(server, monkeypatch, b"this is not a tar file")
    with pytest.raises(ValueError, match="not a readable archive"):
        download("toy")


def test_a_doi_is_resolved_to_the_record_and_its_checksum(server, monkeypatch):
    """The record's own list of files gives address and checksum, as Zenodo's does."""
    import json

    content = archive(CONTENT)
    base = f"http://127.0.0.1:{server.server_port}"
    record = {
        "id": 42,
        "files": [
            {
                "key": "toy.tar.gz",
                "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                "links": {"self": f"{base}/toy.tar.gz"},
            }
        ],
    }
    server.files["/api/42"] = json.dumps(record).encode()
    offer(server, monkeypatch, content)
    from pooch import downloaders

    monkeypatch.setattr(downloaders, "doi_to_url", lambda *_, **__: "https://zenodo.org/records/42")
    monkeypatch.setattr(downloaders.ZenodoRepository, "base_api_url", f"{base}/api")
    toy = Dataset(
        record="doi:10.5281/zenodo.42", archive="toy.tar.gz", checksum=None, files=("a.npy",),
        megabytes=1, what="a toy",
    )  # fmt: skip
    monkeypatch.setitem(DATASETS, "toy", toy)
    assert (download("toy") / "a.npy").read_bytes() == CONTENT["set/a.npy"]


def test_an_unknown_set_is_refused(server):
    with pytest.raises(ValueError, match="unknown set 'sdss'; known: candels, cosmos"):
        download("sdss")


def test_no_server_ends_in_one_sentence(server, monkeypatch):
    offer(server, monkeypatch, archive(CONTENT))
    server.files.clear()
    with pytest.raises(ConnectionError, match="404"):
        download("toy")
