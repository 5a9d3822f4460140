"""Fetching an archive from the web, so that what lies unpacked on disk is whole and what was published."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import torch.hub
from filelock import FileLock

from metricloss_pl.errors import UserError, reason

UNREADABLE_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError)


def fetch_archive(url: str, md5: str, root: str | Path, folder: str, download: bool = True) -> Path:
    """Make sure that `root/folder` is there, unpacked from the archive at `url`.

    An archive of that name which already lies in `root` is used instead of downloading. Whatever is not finished (a
    download, an unpacking) lives in `root/.<folder>.partial`, which the next call starts again from nothing;
    `root/folder` appears by one rename. Processes that come here together wait for the first.

    Args:
        url: Where the archive is (http, https or file); its last part is the archive's name in `root`.
        md5: Checksum of the archive, compared before anything is unpacked.
        root: Folder to put the archive and its content into; created if need be.
        folder: The top folder inside the archive that is wanted.
        download: False takes an archive that lies in `root`, but fetches none.

    Returns:
        The path `root/folder`.

    Raises:
        UserError: The archive is missing (and not to be downloaded), cannot be fetched, has another checksum, is no
            readable archive, holds a member that points outside, or lacks `folder`.
    """
    root = Path(root).expanduser()
    target = root / folder
    archive = root / PurePosixPath(url).name
    if target.is_dir():
        return target
    if not download and not archive.is_file():
        raise UserError(
            f"{target} not found: put {archive.name} (from {url}, MD5 {md5}) into {root}, or switch `download` on"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{folder}.lock"):
            if not target.is_dir():
                _fetch_and_unpack(url, md5, archive, target, download)
    except OSError as error:
        raise UserError(f"cannot put {folder} into {root}: {reason(error)}") from error
    return target


def _fetch_and_unpack(url: str, md5: str, archive: Path, target: Path, download: bool) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        found = _md5(archive) if archive.is_file() else None
        if found != md5 and not download:
            raise UserError(f"{archive} is not the archive expected (MD5 {found} instead of {md5}): get it from {url}")
        if found != md5:
            _download(url, md5, partial / archive.name)
            os.replace(partial / archive.name, archive)
        _unpack(archive, partial)
        if not (partial / target.name).is_dir():
            raise UserError(f"{archive} holds no folder {target.name}")
        os.replace(partial / target.name, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(url: str, md5: str, file: Path) -> None:
    try:
        torch.hub.download_url_to_file(url, str(file))
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        raise UserError(
            f"cannot download {url}: {reason(error)}; the file can be put into {file.parent.parent} by hand"
        ) from error
    found = _md5(file)
    if found != md5:
        raise UserError(f"the download of {url} is incomplete or altered: MD5 {found} instead of {md5}; try again")


def _unpack(archive: Path, into: Path) -> None:
    """Unpack a tar or zip file; a member whose path or link leads out of the folder is refused."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                        raise UserError(f"{archive} is refused: its member {name!r} points outside the folder")
                packed.extractall(into)
        else:
            with tarfile.open(archive) as packed_tar:
                packed_tar.extractall(into, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is refused: its member {error.tarinfo.name!r} points outside the folder") from error
    except UNREADABLE_ARCHIVE as error:
        raise UserError(f"{archive} cannot be unpacked: {reason(error)}") from error


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
