"""Download and unpacking of published files: checksum first, and a folder is there whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch.hub
from filelock import FileLock

from metricloss_pl.errors import UserError, reason

UNREADABLE_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError)
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


class Resource(NamedTuple):
    """Published file of a data set: an archive, or a file beside the archives.

    `url` is its address; with `by_hand`, that of the page where a person can get it. `md5` is its checksum.
    """

    name: str
    url: str
    md5: str
    by_hand: bool = False


def fetch(
    resources: Sequence[Resource],
    root: str | Path,
    folder: str,
    *,
    download: bool = True,
    archives_hold_folder: bool = False,
) -> Path:
    """Return `root/folder`, into which archives are unpacked and other files are put if it does not exist yet.

    Files of those names in `root` are used instead of downloading; downloaded archives stay there. Unfinished work is
    in `root/.<folder>.partial`, which the next call starts again; `root/folder` appears by one rename. Processes that
    call it together wait for the first.

    Args:
        resources: Files that make up `root/folder`.
        root: Folder of all files; created if needed.
        folder: Name of the set's own folder.
        download: Download missing files; else only files in `root` are used.
        archives_hold_folder: `folder` is the archives' own top folder; their other content is dropped.

    Returns:
        The path `root/folder`.

    Raises:
        UserError: A file is missing (and not to be downloaded), cannot be fetched, has another checksum, is no readable
            archive, holds a member that points outside, or no archive holds `folder`.
    """
    root = Path(root).expanduser()

    def build(partial: Path) -> Path:
        content = partial if archives_hold_folder else partial / folder
        content.mkdir(exist_ok=True)
        for resource in resources:
            _put(resource, root, content, download)
        if not (partial / folder).is_dir():
            raise UserError(f"{root / resources[0].name} holds no folder {folder}")
        return partial / folder

    if not (root / folder).is_dir():
        check_present([r for r in resources if r.by_hand or not download], root, root / folder)
    return make_folder(root / folder, build)


def make_folder(target: Path, build: Callable[[Path], Path]) -> Path:
    """Return the folder `target`; if it does not exist yet, `build` makes it elsewhere and one rename puts it there.

    Args:
        target: The folder.
        build: Function that gets an empty folder beside `target` and returns the path in it that becomes `target`.

    Raises:
        UserError: The folder cannot be written, or `build` raises it.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                partial = target.with_name(f".{target.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                try:
                    os.replace(build(partial), target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot put {target.name} into {target.parent}: {reason(error)}") from error
    return target


def check_present(resources: Sequence[Resource], root: Path, target: Path) -> None:
    """Check that files which are not to be downloaded are in `root`.

    Raises:
        UserError: Some are missing; the message names them and their addresses.
    """
    missing = [resource for resource in resources if not (root / resource.name).is_file()]
    if missing:
        files = ", ".join(f"{file.name} (from {file.url}, MD5 {file.md5})" for file in missing)
        switch = "" if any(file.by_hand for file in missing) else ", or switch `download` on"
        raise UserError(f"{target} not found: put {files} into {root}{switch}")


def check_sum(resource: Resource, root: Path) -> Path:
    """Return the path of a file in `root` after comparing its checksum.

    Raises:
        UserError: The checksum differs.
    """
    file = root / resource.name
    found = _md5(file)
    if found != resource.md5:
        raise UserError(
            f"{file} is not the file expected (MD5 {found} instead of {resource.md5}): get it from {resource.url}"
        )
    return file


def _put(resource: Resource, root: Path, content: Path, download: bool) -> None:
    """Put the content of a resource into the folder `content`."""
    file, is_archive = root / resource.name, resource.name.endswith(_ARCHIVES)
    if resource.by_hand or not download:
        check_sum(resource, root)
    elif not file.is_file() or _md5(file) != resource.md5:
        _download(resource, content / resource.name, root)
        if not is_archive:
            return
        os.replace(content / resource.name, file)
    if is_archive:
        unpack(file, content)
    else:
        shutil.copyfile(file, content / resource.name)


def _download(resource: Resource, file: Path, root: Path) -> None:
    try:
        torch.hub.download_url_to_file(resource.url, str(file))
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        raise UserError(
            f"cannot download {resource.url}: {reason(error)}; {resource.name} (MD5 {resource.md5}) can be put into "
            f"{root} by hand"
        ) from error
    found = _md5(file)
    if found != resource.md5:
        raise UserError(
            f"the download of {resource.url} is incomplete or altered: MD5 {found} instead of {resource.md5}; try again"
        )


def unpack(archive: Path, into: Path) -> None:
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
