"""Does what is left of asking for datasets go in time, and nothing that somebody still needs?"""

from __future__ import annotations

import hashlib
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from farm.client import Farm
from farm.dataset import leftovers
from farm.dataset.asking import Asked, ask, carry_out, withdraw
from farm.dataset.desk import Datasets
from farm.dataset.files import HEAD, Files, uploads
from farm.dataset.folder import Folder
from farm.dataset.leftovers import FILE_S, clear, drop_files, forget
from farm.dataset.peeking import look
from farm.dataset.spec import DatasetSpec
from farm.errors import Conflict, FarmError
from tests.dataset.farms import CHAIN
from tests.dataset.test_planning import farm, stocked  # noqa: F401
from tests.e2e.rig import until

WEEK_S, DAY_S = 7 * 86_400, 86_400


def uploaded(stocked: Farm, folder: Path, text: str, owner: str = "ada") -> str:  # noqa: F811
    """The id of a file that an owner has uploaded."""
    path = folder / "rows.csv"
    path.write_text(text)
    file = f"{hashlib.sha256(text.encode()).hexdigest()}/rows.csv"
    Files(stocked.store, owner).put(file, path, look(path))
    return file


def wish(stocked: Farm, file: str, name: str = "some", owner: str = "ada", **given: object) -> Asked:  # noqa: F811
    """A dataset of an uploaded file, as the API asks for it."""
    spec = DatasetSpec.model_validate({"name": name, "chain": CHAIN})
    key = Files(stocked.store, owner).key(file)
    return Asked.model_validate(
        {"spec": spec, "file": key, "file_name": "rows.csv", "format": "csv", "owner": owner, **given}
    )


def refused(stocked: Farm, folder: Path, name: str = "some") -> Asked:  # noqa: F811
    """A wish that was refused for its rows."""
    asked = wish(stocked, uploaded(stocked, folder, "prompt,seed\na fig,1\na plum,-1\n"), name)
    assert ask(stocked, asked)
    carry_out(stocked, name, lambda: False)
    assert Datasets(stocked).status(name).state == "refused"
    return asked


def keys(stocked: Farm) -> list[str]:  # noqa: F811
    """What lies under `datasets-files/`."""
    found = stocked.store.client.list_objects_v2(Bucket=stocked.store.bucket, Prefix="datasets-files/")
    return [one["Key"] for one in found.get("Contents", [])]


def test_a_refusal_is_told_for_a_week(stocked: Farm, tmp_path: Path) -> None:  # noqa: F811
    # Given a wish that was refused, and one that waits to be planned
    before = time.time() - 0.001  # what is told is whole milliseconds
    asked = refused(stocked, tmp_path)
    after = time.time()
    ask(stocked, wish(stocked, asked.file.split("/", 2)[2], "waiting"))
    # Then it is told until when that is told, and why
    told = Datasets(stocked).status("some").refused
    assert told is not None
    over = datetime.fromisoformat(told["until"]).timestamp()
    assert told["count"] == 1
    assert before + WEEK_S <= over <= after + WEEK_S
    # When nearly a week has gone, Then it is there with its file; when all of it has, it is not
    clear(stocked.store, over - 60)
    assert [one.name for one in Datasets(stocked).ls()] == ["some", "waiting"]
    assert asked.file in keys(stocked)
    clear(stocked.store, over + 60)
    assert [one.name for one in Datasets(stocked).ls()] == ["waiting"]
    assert Folder(stocked.store, "some").names("") == []
    assert asked.file in keys(stocked), "the one that waits names it, too"
    # And a deletion that broke off is ended by the next look
    refused(stocked, tmp_path)
    folder = Folder(stocked.store, "some")
    folder.write("refused.json", json.dumps({**told, "forgotten": True, "until": "2020-01-01T00:00:00+00:00"}).encode())
    with pytest.raises(Conflict, match="being deleted"):
        ask(stocked, asked)
    assert forget(folder, time.time())
    assert ask(stocked, asked)


def test_a_refusal_of_an_earlier_build_has_its_week_from_now_on(stocked: Farm, tmp_path: Path) -> None:  # noqa: F811
    refused(stocked, tmp_path)
    folder = Folder(stocked.store, "some")
    folder.write("refused.json", json.dumps({"code": "bad_file", "message": "x", "hint": ""}).encode())
    assert not forget(folder, 1000.0)
    assert not forget(folder, 1000.0 + WEEK_S - 1)
    assert forget(folder, 1000.0 + WEEK_S + 1)


def test_a_refusal_beside_a_plan_takes_nothing_with_it(stocked: Farm, tmp_path: Path) -> None:  # noqa: F811
    # Given a dataset that was planned, and then refused all the same by an earlier build, long ago
    ask(stocked, wish(stocked, uploaded(stocked, tmp_path, "prompt\na fig\n")))
    carry_out(stocked, "some", lambda: False)
    folder = Folder(stocked.store, "some")
    before = folder.names("")
    folder.write("refused.json", json.dumps({"code": "internal", "until": "2020-01-01T00:00:00+00:00"}).encode())
    folder.write("tries.json", b"2")
    # When
    assert not forget(folder, time.time())
    # Then the refusal alone is gone
    assert folder.names("") == before
    assert folder.plan().samples == 1


def test_what_fails_after_the_plan_was_written_is_no_refusal(
    stocked: Farm,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a wish, of which the store does not take what comes after the plan
    ask(stocked, wish(stocked, uploaded(stocked, tmp_path, "prompt\na fig\n")))
    write = Folder.write

    def full(self: Folder, path: str, *words: Any) -> None:
        if path == "rejects.json":
            raise FarmError("no room")
        write(self, path, *words)

    monkeypatch.setattr(Folder, "write", full)
    # When
    carry_out(stocked, "some", lambda: False)
    # Then there is a dataset
    folder = Folder(stocked.store, "some")
    assert folder.read("refused.json") is None
    assert folder.plan().samples == 1


@pytest.mark.parametrize("data", [b"no JSON", b"7", b'{"until": 7}'])
def test_one_refusal_that_cannot_be_read_keeps_no_other(
    stocked: Farm,  # noqa: F811
    tmp_path: Path,
    data: bytes,
) -> None:
    # Given one, before another whose week is over, and a file that nobody needs any more
    refused(stocked, tmp_path)
    Folder(stocked.store, "before").write("refused.json", data)
    # When
    with capture_logs() as logs:
        clear(stocked.store, time.time() + WEEK_S + 60)
    # Then it stays, and is told by name
    assert [Folder(stocked.store, name).names("") for name in ("before", "some")] == [["refused.json"], []]
    assert keys(stocked) == []
    assert [one["dataset"] for one in logs if one["event"] == "refusal_unreadable"] == ["before"]


def test_a_wish_that_was_taken_back_leaves_nothing_for_the_next(stocked: Farm, tmp_path: Path) -> None:  # noqa: F811
    # Given a wish that was refused just before it was taken back
    asked = refused(stocked, tmp_path)
    folder = Folder(stocked.store, "some")
    folder.write("tries.json", b"1")
    folder.write("progress.json", b"{}")
    # When, Then
    withdraw(stocked, asked)
    assert folder.names("") == []
    # And just after it: the next wish is planned
    folder.write("refused.json", b'{"code": "invalid_job", "message": "", "until": "2099-01-01T00:00:00+00:00"}')
    folder.write("tries.json", b"2")
    assert ask(stocked, asked)
    assert folder.names("") == ["asked.json"]


def test_who_asks_again_while_it_is_forgotten_is_heard(
    stocked: Farm,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a refusal whose week is over, and its owner who asks again between the look and the deletion
    again = refused(stocked, tmp_path).model_copy(update={"partial": True})
    folder, write_over = Folder(stocked.store, "some"), Folder.write_over

    def quicker(self: Folder, path: str, data: bytes, content_type: str, etag: str) -> bool:
        monkeypatch.undo()
        assert ask(stocked, again)
        return write_over(self, path, data, content_type, etag)

    monkeypatch.setattr(Folder, "write_over", quicker)
    # When
    assert not forget(folder, time.time() + WEEK_S + 60)
    # Then it is planned as it was asked for
    carry_out(stocked, "some", lambda: False)
    assert folder.plan().rows == 1
    assert not forget(folder, time.time() + 9 * WEEK_S)


def test_a_file_stays_a_day_and_as_long_as_a_wish_needs_it(stocked: Farm, tmp_path: Path) -> None:  # noqa: F811
    # Given one file that two wishes name, another owner's of the same bytes, and one that was never asked for
    file = uploaded(stocked, tmp_path, "prompt\na fig\n")
    names = ("first", "second")
    for name in names:
        ask(stocked, wish(stocked, file, name))
    others = {uploaded(stocked, tmp_path, "prompt\na fig\n", "bob"), uploaded(stocked, tmp_path, "prompt\na plum\n")}
    assert others == {file, hashlib.sha256(b"prompt\na plum\n").hexdigest() + "/rows.csv"}
    # Then nothing goes within a day
    assert drop_files(stocked.store, time.time() + DAY_S - 60) == []
    assert len(keys(stocked)) == 6
    # And after that what no wish names
    late = time.time() + DAY_S + 60
    assert len(drop_files(stocked.store, late)) == 2
    kept = Files(stocked.store, "ada").key(file)
    assert keys(stocked) == [kept, kept + HEAD]
    # When one of the two is planned, Then the other still needs it; when both are, nobody does
    carry_out(stocked, "first", lambda: False)
    assert drop_files(stocked.store, late) == []
    carry_out(stocked, "second", lambda: False)
    assert drop_files(stocked.store, late) == [kept]
    assert keys(stocked) == []
    assert Folder(stocked.store, "second").plan().samples == 1


def test_a_file_that_was_uploaded_again_is_new(stocked: Farm, tmp_path: Path) -> None:  # noqa: F811
    # Given an old file, of which the first rows are written again
    file = uploaded(stocked, tmp_path, "prompt\na fig\n")
    files = Files(stocked.store, "ada")
    until_s = uploads(stocked.store)[0].at + FILE_S

    def is_later() -> bool:  # the store tells whole seconds
        files.renew(file, files.head(file))
        return uploads(stocked.store)[0].at + FILE_S > until_s

    until(is_later, 20, "a later second")
    # Then it stays
    assert drop_files(stocked.store, until_s + 0.5) == []
    assert files.is_there(file)
    # And what an upload that broke off has left goes, too: a file without its first rows, and those without a file
    stocked.store.client.delete_object(Bucket=stocked.store.bucket, Key=files.key(file) + HEAD)
    stocked.store.client.put_object(Bucket=stocked.store.bucket, Key=files.key("x/odd.csv") + HEAD, Body=b"")
    assert len(drop_files(stocked.store, time.time() + DAY_S + 60)) == 2
    assert keys(stocked) == []


def test_a_file_that_is_named_while_it_is_deleted_stays(
    stocked: Farm,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given an old file, and a wish that is written after it was looked who names it
    file = uploaded(stocked, tmp_path, "prompt\na fig\n")
    drop = leftovers.drop

    def meanwhile(store: object, gone: list[str]) -> None:
        monkeypatch.setattr(leftovers, "drop", drop)
        assert ask(stocked, wish(stocked, file))
        drop(stocked.store, gone)

    monkeypatch.setattr(leftovers, "drop", meanwhile)
    # When
    assert drop_files(stocked.store, time.time() + DAY_S + 60) == []
    # Then its rows are there to be planned, and nobody else can name it
    carry_out(stocked, "some", lambda: False)
    assert Folder(stocked.store, "some").plan().rows == 1
    assert not Files(stocked.store, "ada").is_there(file)


def test_where_a_wish_cannot_be_read_no_file_goes(stocked: Farm, tmp_path: Path) -> None:  # noqa: F811
    uploaded(stocked, tmp_path, "prompt\na fig\n")
    Folder(stocked.store, "newer").write("asked.json", b'{"v": 2}')
    with pytest.raises(ValueError, match="v"):
        drop_files(stocked.store, time.time() + DAY_S + 60)
    assert len(keys(stocked)) == 2
