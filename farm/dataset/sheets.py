"""How does a shard look at a glance?"""

from __future__ import annotations

import tarfile
from contextlib import closing, suppress

from farm.dataset.card import contact_sheet, thumbnail
from farm.dataset.folder import Folder
from farm.dataset.tars import PICTURES
from farm.errors import BadBlob, NotFound, Unavailable
from farm.s3 import reaching

SHOWN = 12
"""Pictures on a sheet: two rows."""
MOST_BYTES = 128 << 20
"""No more of a tar is read: latents may lie between its pictures."""


def sheet(folder: Folder, number: int) -> bytes:
    """A WebP of a shard's first pictures: made when it is first asked for, and kept beside the shard.

    Raises:
        NotFound: there is no such shard, or no picture in it.
        BadBlob: it is damaged.
        Unavailable: the store does not answer.
    """
    stats = folder.stats(number)
    # Another tar, after a retry, is another sheet.
    path = f"sheets/{number:05d}-{stats['files'][f'{number:05d}.tar']['sha256'][:16]}.webp"
    if (there := folder.read(path)) is not None:
        return there
    thumbnails = _thumbnails(folder, number)
    if not thumbnails:
        raise NotFound("the shard has no picture")
    made = contact_sheet(thumbnails)
    with suppress(Unavailable):  # it was made anyway, and is made again
        folder.write(path, made, "image/webp")
    return made


def _thumbnails(folder: Folder, number: int) -> list[bytes]:
    """The first pictures of a tar, of which no more is read."""
    found = list[bytes]()
    with reaching("read a shard"):
        key = folder.key(f"shards/{number:05d}.tar")
        opened = folder.store.client.get_object(Bucket=folder.store.bucket, Key=key)
        with closing(opened["Body"]) as body:
            try:
                with tarfile.open(fileobj=body, mode="r|") as tar:
                    for member in tar:
                        if len(found) == SHOWN or member.offset > MOST_BYTES:
                            break
                        if member.name.partition(".")[2] in PICTURES and (file := tar.extractfile(member)):
                            found.append(thumbnail(file.read()))
            except tarfile.TarError as error:
                raise BadBlob(f"the shard cannot be read: {error}") from None
    return found
