"""Which input image does a cell name?

A file beside the table or in a folder there, an object of the farm's own bucket (`s3://bucket/key`), or an image that
is stored already (`sha256:HEX`). It is fitted to the dataset's chain and stored when its row is planned; where the
planning is refused in the end, what was stored lies there unnamed.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from farm.dataset.spec import DatasetSpec
from farm.errors import BadBlob, InvalidJob, NotFound
from farm.inputs import Inputs
from farm.job import InputImage
from farm.plan import wrong
from farm.s3 import reaching
from farm.stage import STORED
from farm.whose import Owns, check_own

MOST = 1000
"""Names whose image is remembered: rows that name the same one mostly stand together."""


class Images:
    """The input images of one dataset. Files are looked for in `folder`; without one there are none."""

    def __init__(
        self, farm: Inputs, spec: DatasetSpec, folder: Path | None, *, store: bool, owns: Owns | None = None
    ) -> None:
        """`owns`: which stored images may be named; all of them without it. `store`: as of `Moulds`."""
        self._farm, self._folder, self._store, self._owns = farm, folder, store, owns
        # One slow answer must not end the planning of a hundred thousand images.
        self._blobs = farm.store if store else farm.inbox
        self._chain = farm.chain(spec.chain)
        self._known: dict[str, InputImage] = {}

    def input(self, cell: Any) -> InputImage:
        """The stored input image that a cell names.

        Raises:
            InvalidJob: at `image`: there is none, or it is no image that the chain takes.
        """
        if not isinstance(cell, str) or not cell:
            raise wrong("image", "a file's path, s3://BUCKET/KEY or sha256:HEX", "bad_image")
        if cell not in self._known:
            if len(self._known) >= MOST:
                self._known.clear()
            try:
                data, image = self._farm.prepare(self._chain, self._data(cell))
            except InvalidJob as error:
                found = error.errors[0] if error.errors else error
                raise wrong("image", getattr(found, "msg", error.message), found.code) from None
            if data is None or image is None:
                raise wrong("image", "no image", "bad_image")
            if self._store:
                self._blobs.put_blob(data, "image/png")
            self._known[cell] = image
        return self._known[cell]

    def _data(self, cell: str) -> bytes | Path:
        if self._owns is not None:
            check_own(cell, "image", self._owns)
        if cell.startswith(STORED):
            try:
                most = self._farm.settings.max_area * 4
                return self._blobs.get_blob(cell.removeprefix(STORED), most)
            except BadBlob:
                raise wrong("image", "no such image is stored; give the file", "bad_image") from None
        if cell.startswith("s3://"):
            return self._object(cell)
        if self._folder is None:
            raise wrong("image", "files cannot be named here; upload them, and give sha256:HEX", "bad_image")
        return self._file(self._folder, cell)

    def _file(self, folder: Path, cell: str) -> Path:
        """A file beside the table: whoever wrote that may be a stranger, and names no other file of this machine."""
        try:
            path = (folder / cell).resolve()
            if path.is_relative_to(folder.resolve()):
                return path
        except (OSError, RuntimeError, ValueError):  # too long a name, links in a circle, a null byte
            raise wrong("image", "no file has such a name", "bad_image") from None
        told = "lies outside of the table's folder: copy it there, or upload it and give sha256:HEX"
        raise wrong("image", f"the file {told}", "bad_image")

    def _object(self, cell: str) -> bytes:
        """An object of the farm's bucket."""
        bucket, _, key = cell.removeprefix("s3://").partition("/")
        store = self._blobs
        if bucket != store.bucket or self._folder is None:
            raise wrong("image", f"only images of this farm's own bucket, s3://{store.bucket}/…", "bad_image")
        try:
            with reaching("read an image"):
                found = store.client.get_object(Bucket=bucket, Key=key)
                with closing(found["Body"]) as body:
                    if found["ContentLength"] > self._farm.settings.max_upload_bytes:
                        raise wrong("image", "the object is larger than an image may be", "bad_image")
                    return body.read()
        except NotFound:
            raise wrong("image", "there is no such object", "bad_image") from None
